"""Passes over completions whose prompts are read once, and without gradients.

Rows share much: the head of a chat template (with a persona in it), and their prompts,
two rows each where a reference stands against every audited row. The head is read once
for all rows, each prompt once for its rows, and only completions go through the pass
that counts. `Prompts` keeps what was read for several passes, whatever is done to the
completions in them. Knows nothing of what is computed on the states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from undertow.models.attention import fast_operations
from undertow.models.cache import bytes_a_token
from undertow.models.chat import Rendered
from undertow.models.hooks import completion_positions
from undertow.models.likelihood import common_prefix, token_batches
from undertow.models.loading import Model
from undertow.models.memory import in_halves

KeysValues = list[tuple[Tensor, Tensor]]
# Of one prompt: keys and values in turn [state, head, position, width].
Stacks = list[Tensor]

# MiB for the prompts of a part, and tokens of prompts that are read at a time.
_CPU, _ACCELERATED = (256, 2048), (4096, 32768)
# A head of fewer tokens does not pay for the copies of its cache.
_SHORTEST_HEAD = 12


@dataclass(frozen=True)
class Head:
    """What all rows begin with, read once.

    Attributes:
        ids: Its tokens.
        cache: Keys and values [1, head, position, width] of every layer.
    """

    ids: tuple[int, ...]
    cache: KeysValues


@torch.no_grad()
def read_head(model: Model, rows: Sequence[Rendered]) -> Head | None:
    """Reads what the prompts of all rows begin with; None if that is next to nothing."""
    if len(rows) < 2:
        return None
    prompts = [row.ids[: row.completion_start - 1] for row in rows]
    shared = common_prefix(prompts) if all(prompts) else 0
    if shared < _SHORTEST_HEAD:
        return None
    ids = torch.tensor([rows[0].ids[:shared]], device=model.device)
    cache = _started(model, [])
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    with completion_positions(model, nothing), fast_operations(model):
        model.module.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return Head(tuple(rows[0].ids[:shared]), _contents(cache))


def _contents(cache: Cache) -> KeysValues:
    found = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        found.append((layer.keys, layer.values))
    return found


def completion_batches(
    rows: Sequence[Rendered], *, token_budget: int
) -> list[list[int]]:
    """Places of rows whose completions go together: like lengths, within the budget.

    Prompts are read before and do not count; the last token of each does.
    """
    lengths = [len(row.ids) - row.completion_start + 1 for row in rows]
    return token_batches(lengths, token_budget=token_budget)


class Prompts:
    """The prompts of a part of the rows, as the model reads them, for several passes.

    Those of a part are read together and with no others, whatever was read before: what
    stands beside a prompt moves the last bits of its states.

    Args:
        model: With the same intervention, or none, whenever prompts are read.
        most_mib: Memory for the prompts of a part. None: what suits the device.
    """

    def __init__(self, model: Model, *, most_mib: int | None = None) -> None:
        usual, self.budget = _CPU if model.device.type == "cpu" else _ACCELERATED
        self.model, self.most = model, (usual if most_mib is None else most_mib) * 2**20
        self._kept: dict[tuple[int, ...], Stacks] = {}

    def parts(
        self, rows: Sequence[Rendered], *, most_rows: int | None = None
    ) -> list[list[int]]:
        """Places of rows that go together.

        Rows of one prompt stand side by side, so a prompt is read once however often
        it occurs. The prompts of a part fit into memory, or it has only one, and it has
        no more rows than asked for.
        """
        most = most_rows or len(rows)
        order = sorted(range(len(rows)), key=lambda i: (prompt_of(rows[i]), i))
        parts: list[list[int]] = []
        tokens, before, each = 0, None, bytes_a_token(self.model)
        for place in order:
            prompt = prompt_of(rows[place])
            size = 0 if prompt == before else len(prompt)
            room = self.most - (tokens + size) * each
            if not parts or len(parts[-1]) == most or (size and room < 0):
                parts.append([])
                tokens, size = 0, len(prompt)
            parts[-1].append(place)
            tokens, before = tokens + size, prompt
        return parts

    def read(self, rows: Sequence[Rendered]) -> None:
        """Reads the prompts of a part, unless it is they that are kept.

        Raises:
            ModelError: A prompt does not fit into memory.
        """
        wanted = {prompt_of(row): row for row in rows}
        if list(wanted) == list(self._kept):
            return
        self._kept = {}
        todo = list(wanted.values())
        head = read_head(self.model, todo)
        lengths = [row.completion_start for row in todo]
        for places in token_batches(lengths, token_budget=self.budget):
            prompts = [prompt_of(todo[place]) for place in places]
            in_halves(prompts, partial(self._read, head))
        self._kept = {prompt: self._kept[prompt] for prompt in wanted}

    def _read(self, head: Head | None, prompts: Sequence[tuple[int, ...]]) -> None:
        """One batch of prompts."""
        contents, _ = _read_prompts(self.model, prompts, head)
        stacks = _stacked(contents)
        for place, prompt in enumerate(prompts):
            # They end at one column; copies, so that no batch is kept for one of them.
            starts = [stack.shape[3] - len(prompt) for stack in stacks]
            own = zip(stacks, starts, strict=True)
            self._kept[prompt] = [s[:, place, :, at:].clone() for s, at in own]

    def together(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[KeysValues, Bool[Tensor, "prompt column"]]:
        """Kept prompts in one cache, ending at one column; which columns are theirs."""
        found = [self._kept[tuple(prompt)] for prompt in prompts]
        width = max(len(prompt) for prompt in prompts)
        seen = torch.zeros((len(prompts), width), dtype=torch.bool)
        for place, prompt in enumerate(prompts):
            seen[place, width - len(prompt) :] = True
        contents: KeysValues = []
        for several in zip(*found, strict=True):
            together = _left_padded(several, width)
            contents += zip(together[::2], together[1::2], strict=True)
        return contents, seen.to(self.model.device)


def _stacked(contents: KeysValues) -> Stacks:
    """Keys and values of layers that follow each other in one tensor, one for a shape.

    Layers on other devices have one of their own.
    """
    states = [each for layer in contents for each in layer]
    alike = groupby(states, key=lambda each: (each.shape, each.device))
    return [torch.stack(list(own)) for _, own in alike]


def _left_padded(
    stacks: Sequence[Float[Tensor, "state head _ width"]], columns: int
) -> Float[Tensor, "state prompt head column width"]:
    count, heads, _, width = stacks[0].shape
    padded = stacks[0].new_zeros((count, len(stacks), heads, columns, width))
    for place, each in enumerate(stacks):
        padded[:, place, :, columns - each.shape[2] :] = each
    return padded


def prompt_of(row: Rendered) -> tuple[int, ...]:
    """The prompt's tokens but for the last, which predicts the first of the answer."""
    return tuple(row.ids[: row.completion_start - 1])


def completion_states(
    model: Model,
    rows: Sequence[Rendered],
    *,
    prompts: Prompts,
) -> Float[Tensor, "token hidden"]:
    """Normed states that predict the completion tokens of the rows, flat.

    Gradients reach every position from the last one of the prompt on, and stop there:
    prompts are constants.

    Args:
        model: The model, with whatever steering or adapter is attached.
        rows: A batch of `completion_batches`.
        prompts: Holds these rows' prompts; whatever acts on the model now does not
            reach them.
    """
    different, owner = _prompts(rows)
    contents, seen = prompts.together(different)
    tails = [row.ids[row.completion_start - 1 :] for row in rows]
    ids, inside = _matrix(tails, model.device)
    index = torch.tensor(owner, device=model.device)
    taken = [
        (keys[index.to(keys.device)], values[index.to(values.device)])
        for keys, values in contents
    ]
    starts = torch.tensor([row.completion_start - 1 for row in rows])
    positions = starts[:, None].to(model.device) + torch.arange(
        ids.shape[1], device=model.device
    )
    answers = inside.clone()
    answers[:, 0] = False
    mask = torch.cat([seen[index], inside], dim=1)
    hidden, _ = _forward(model, ids, positions, mask, taken, answers)
    return hidden[:, :-1][inside[:, 1:]]


def _prompts(rows: Sequence[Rendered]) -> tuple[list[list[int]], list[int]]:
    """The different prompts without their last token, and whose each row is."""
    found: dict[tuple[int, ...], int] = {}
    owner = [found.setdefault(prompt_of(row), len(found)) for row in rows]
    return [list(prompt) for prompt in found], owner


@torch.no_grad()
def _read_prompts(
    model: Model, prompts: Sequence[Sequence[int]], head: Head | None
) -> tuple[KeysValues, Bool[Tensor, "prompt column"]]:
    """Keys and values of prompts, ending at one column; which columns are theirs."""
    start = 0 if head is None else len(head.ids)
    tails = [prompt[start:] for prompt in prompts]
    count = len(tails)
    before: KeysValues = (
        []
        if head is None
        else [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1))
              for k, v in head.cache]
    )  # fmt: skip
    ids, inside = _matrix(tails, model.device)
    seen = torch.ones((count, start), dtype=torch.bool, device=model.device)
    mask = torch.cat([seen, inside], dim=1)
    if not ids.shape[1]:
        return before, mask
    positions = start + torch.arange(ids.shape[1], device=model.device).expand_as(ids)
    nothing = torch.zeros_like(inside)
    _, cache = _forward(model, ids, positions, mask, before, nothing)
    return _ending_together(_contents(cache), mask)


def _ending_together(
    contents: KeysValues, seen: Bool[Tensor, "prompt column"]
) -> tuple[KeysValues, Bool[Tensor, "prompt column"]]:
    """Moves padding to the front: a sliding window counts columns, not tokens."""
    count = seen.shape[1]
    missing = count - seen.sum(dim=1, keepdim=True)
    if not bool(missing.any()):
        return contents, seen
    index = (torch.arange(count, device=seen.device) - missing) % count

    def moved(states: Tensor) -> Tensor:
        columns = index[:, None, :, None].to(states.device)
        return states.gather(2, columns.expand_as(states))

    return [(moved(k), moved(v)) for k, v in contents], seen.gather(1, index)


def _matrix(
    sequences: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """Sequences as one matrix padded on the right, and where they are."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.zeros((len(sequences), width), dtype=torch.long)
    inside = torch.zeros((len(sequences), width), dtype=torch.bool)
    for place, sequence in enumerate(sequences):
        if sequence:
            ids[place, : len(sequence)] = torch.tensor(sequence)
            inside[place, : len(sequence)] = True
    return ids.to(device), inside.to(device)


def _forward(
    model: Model,
    ids: Int[Tensor, "row token"],
    positions: Int[Tensor, "row token"],
    mask: Bool[Tensor, "row column"],
    before: KeysValues,
    completion: Bool[Tensor, "row token"],
) -> tuple[Float[Tensor, "row token hidden"], Cache]:
    cache = _started(model, before)
    with completion_positions(model, completion), fast_operations(model):
        hidden: Tensor = model.module.base_model(
            input_ids=ids, position_ids=positions, attention_mask=mask.long(),
            past_key_values=cache, use_cache=True,
        )[0]  # fmt: skip
    return hidden, cache


def _started(model: Model, before: KeysValues) -> Cache:
    """A cache that new positions are concatenated to, so that gradients can pass."""
    layers = [DynamicLayer() for _ in model.architecture.blocks]  # type: ignore[no-untyped-call]
    for layer, (keys, values) in zip(layers, before, strict=False):
        layer.update(keys, values)
    return Cache(layers=list(layers))
