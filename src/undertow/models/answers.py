"""Log-probabilities of answers after prompts: a prompt is read once for all of them.

Answers that begin alike share what they begin with. Several prompts go side by side, each
as a tree: the prompt, and behind it every answer, which sees the prompt and itself. Knows
nothing of traits or questions.
"""

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from undertow.errors import ModelError
from undertow.models.attention import fast_operations
from undertow.models.cache import new_cache
from undertow.models.chat import Rendered
from undertow.models.hooks import completion_positions
from undertow.models.likelihood import padded, predicting_states, token_batches
from undertow.models.loading import Model
from undertow.models.memory import OutOfMemory, attempted, in_halves, is_out_of_memory
from undertow.models.unembedding import unembed

# Whether a model keeps branches of a tree of so many tokens apart, as was tried out with
# a prompt of a few; how alike states are then, which rounding turns a little.
_trees: weakref.WeakKeyDictionary[nn.Module, dict[int, bool]] = (
    weakref.WeakKeyDictionary()
)
_PROBE, _EXACTLY, _ALIKE = 8, 0.9999, 0.99
# Kinds of attention that take masks.
_MASKED = ("sdpa", "eager")
# Tokens of trees side by side, padding included.
_CPU, _ACCELERATED = 2048, 16384


@torch.inference_mode()
def answer_logprobs(
    model: Model, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> Float[Tensor, " answer"]:
    """Log-probability of each answer after one prompt, nats, float64 on the CPU.

    Args:
        model: The model.
        prompt: Token ids, ending where the answer begins.
        answers: Token ids of each answer, at least one token each.
    """
    width = max(len(answer) for answer in answers)
    cache = new_cache(model, len(prompt) + width)
    ids = torch.tensor([list(prompt)], device=model.device)
    with completion_positions(model, torch.zeros_like(ids, dtype=torch.bool)):
        hidden = model.module.base_model(input_ids=ids, past_key_values=cache)[0]
    first = unembed(model, hidden[0, -1:]).float().log_softmax(-1)[0].cpu()
    totals = first[[answer[0] for answer in answers]].double()
    heads = _longest_heads(answers)
    if not heads:
        return totals
    inputs = padded(heads, device=model.device)
    with completion_positions(model, torch.ones_like(inputs, dtype=torch.bool)):
        hidden = model.module.base_model(input_ids=inputs, past_key_values=cache)[0]
    rows, columns = _places(heads)
    states = hidden[rows.to(model.device), columns.to(model.device)]
    nats = unembed(model, states).float().log_softmax(-1).cpu()
    found = {
        tuple(heads[row][: column + 1]): place
        for place, (row, column) in enumerate(
            zip(rows.tolist(), columns.tolist(), strict=True)
        )
    }
    for place, answer in enumerate(answers):
        for end in range(1, len(answer)):
            totals[place] += nats[found[tuple(answer[:end])], answer[end]].double()
    return totals


@torch.inference_mode()
def answer_logprobs_by_prompt(
    model: Model,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> Float[Tensor, "prompt answer"]:
    """The same after each of several prompts, which are read together.

    One after another where a model does not keep branches of a tree apart: where layers
    carry a state along, or count places for themselves.

    Args:
        model: The model.
        prompts: Token ids of each, one at least.
        answers: As in `answer_logprobs`.

    Raises:
        ModelError: A prompt with its answers does not fit into memory.
    """
    trees = [_tree(prompt, answers) for prompt in prompts]
    lengths = [len(tree.ids) for tree in trees]
    if not _takes_trees(model, longest=max(lengths)):
        return torch.stack([answer_logprobs(model, each, answers) for each in prompts])
    budget = _CPU if model.device.type == "cpu" else _ACCELERATED
    found = torch.empty(len(prompts), len(answers), dtype=torch.float64)
    for places in token_batches(lengths, token_budget=budget):
        batch = [trees[place] for place in places]
        done = in_halves(batch, partial(_tree_logprobs, model))
        found[places] = torch.stack([nats for part in done for nats in part])
    return found


def _tree_logprobs(model: Model, trees: Sequence["_Tree"]) -> list[Tensor]:
    """[answer] of each tree."""
    hidden = _tree_states(model, trees)
    return [
        _summed(model, states, tree) for states, tree in zip(hidden, trees, strict=True)
    ]


def _tree_states(
    model: Model, trees: Sequence["_Tree"]
) -> Float[Tensor, "tree token hidden"]:
    """Normed states of trees side by side, padded on the right."""
    ids, positions = (
        padded(rows, device=model.device)
        for rows in ([t.ids for t in trees], [t.positions for t in trees])
    )
    branches = torch.full(ids.shape, _PADDING)
    for place, tree in enumerate(trees):
        branches[place, : len(tree.branch)] = torch.tensor(tree.branch)
    masks = _masks(model, branches, positions.cpu())
    is_answer = (branches >= 0).to(model.device)
    with completion_positions(model, is_answer), fast_operations(model):
        states: Tensor = model.module.base_model(
            input_ids=ids, position_ids=positions, use_cache=False,
            attention_mask=masks,
        )[0]  # fmt: skip
    return states


def _summed(
    model: Model, states: Float[Tensor, "token hidden"], tree: "_Tree"
) -> Float[Tensor, " answer"]:
    """Log-probability of each answer of a tree, nats, float64 on the CPU."""
    device, places = model.device, sorted(set(tree.before))
    logits = unembed(model, states[torch.tensor(places, device=device)]).float()
    rows = torch.tensor([places.index(place) for place in tree.before], device=device)
    targets = torch.tensor(tree.targets, device=device)
    nats = (logits[rows, targets] - logits.logsumexp(-1)[rows]).double().cpu()
    empty = nats.new_zeros(max(tree.answers) + 1)
    return empty.index_add(0, torch.tensor(tree.answers), nats)


def _takes_trees(model: Model, *, longest: int) -> bool:
    """Whether branches of trees are kept apart; tried out at each new length."""
    # Others take no masks of this kind.
    if model.module.config.get_text_config()._attn_implementation not in _MASKED:
        return False
    tried = _trees.setdefault(model.module, {})
    if longest not in tried:
        apart = attempted(partial(_keeps_branches_apart, model, longest))
        if isinstance(apart, OutOfMemory):
            said = "memory ran out: prompts are read one by one; results are the same"
            warnings.warn(said, RuntimeWarning, stacklevel=3)
            return False
        tried[longest] = apart
    return tried[longest]


@torch.inference_mode()
def _keeps_branches_apart(model: Model, length: int) -> bool:
    """Whether a branch is as behind its prompt alone, whatever stands before it.

    A layer that counts places by itself would not see the prompt from there.
    """
    size = min(50, model.architecture.vocab_size)
    ids = [(3 + 7 * i) % size for i in range(_PROBE + 2)]
    last = Rendered([*ids, 0], _PROBE)
    count = max(1, ceil((length - len(ids)) / 2))
    try:
        one, other = (
            _tree_states(
                model, [_probe(ids, [(step * i) % size for i in range(2 * count)])]
            )[0, -2:]
            for step in (1, 2)
        )
        alone = predicting_states(model, [last])[0][1:]
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False
    except Exception:  # it takes no masks of this kind, or something else
        return False
    alike = torch.cosine_similarity(one.float(), alone.float(), dim=-1)
    enough = _EXACTLY if model.dtype == torch.float32 else _ALIKE
    return torch.equal(one, other) and bool((alike > enough).all())


def _probe(ids: Sequence[int], beside: Sequence[int]) -> "_Tree":
    """A prompt, branches of two tokens beside the last one, and that."""
    pairs = len(beside) // 2 + 1
    return _Tree(
        [*ids[:_PROBE], *beside, *ids[_PROBE:]],
        [*range(_PROBE), *[_PROBE, _PROBE + 1] * pairs],
        [*[-1] * _PROBE, *(i // 2 for i in range(2 * pairs))],
        [], [], [],
    )  # fmt: skip


def differentiable_answer_logprobs(
    model: Model,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    *,
    copies: int = 1,
) -> Float[Tensor, "copy answer"]:
    """The same with derivatives, in forward mode too; whoever edits may edit each copy.

    One pass over the prompt and, behind it, every answer, which sees the prompt and
    itself: nothing is cached, and the prompt's keys are not repeated for each answer.

    Args:
        model: The model.
        prompt: Token ids, ending where the answer begins.
        answers: Token ids of each answer, at least one token each.
        copies: How often all of it goes through the model, side by side.
    """
    tree = _tree(prompt, answers)
    device, count = model.device, len(tree.ids)
    ids = torch.tensor([tree.ids], device=device).expand(copies, count)
    positions = torch.tensor([tree.positions], device=device)
    is_answer = torch.arange(count, device=device) >= len(prompt)
    with completion_positions(model, is_answer.expand(copies, count)):
        hidden = model.module.base_model(
            input_ids=ids, position_ids=positions, use_cache=False,
            attention_mask=_masks(
                model, torch.tensor([tree.branch]), positions[:1].cpu(), added=True
            ),
        )[0]  # fmt: skip
    return torch.stack([_summed(model, states, tree) for states in hidden])


@dataclass(frozen=True)
class _Tree:
    """A prompt and the answers to it as one sequence, and what is read off where.

    Attributes:
        ids: [token].
        positions: [token]: as if each answer followed the prompt.
        branch: [token]: which answer it belongs to; −1 for the prompt.
        before: [predicted]: the place in the sequence that predicts a token.
        targets: [predicted]: that token.
        answers: [predicted]: whose it is.
    """

    ids: list[int]
    positions: list[int]
    branch: list[int]
    before: list[int]
    targets: list[int]
    answers: list[int]


def _tree(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> _Tree:
    ids, positions = list(prompt), list(range(len(prompt)))
    branch = [-1] * len(prompt)
    places: dict[tuple[int, ...], int] = {(): len(prompt) - 1}
    for number, head in enumerate(_longest_heads(answers)):
        for depth, token in enumerate(head):
            places.setdefault(tuple(head[: depth + 1]), len(ids))
            ids.append(token)
            positions.append(len(prompt) + depth)
            branch.append(number)
    predicted = [
        (places[tuple(answer[:end])], answer[end], number)
        for number, answer in enumerate(answers)
        for end in range(len(answer))
    ]
    before, targets, owners = (list(part) for part in zip(*predicted, strict=True))
    return _Tree(ids, positions, branch, before, targets, owners)


_PADDING = -2
"""The branch of what stands behind a tree that is shorter than others."""


def _masks(
    model: Model,
    branch: Int[Tensor, "tree token"],
    at: Int[Tensor, "tree token"],
    *,
    added: bool = False,
) -> Tensor | dict[str, Tensor]:
    """[tree, 1, query, key]: what is seen; by kind of layer where there are two.

    True where one looks, or if `added`, or where attention is not `sdpa`, to be added to
    scores.
    """
    key, query = branch[:, None], branch[:, :, None]
    own = (key == query) | ((key == -1) & (query != _PADDING))
    seen = own & (at[:, None] <= at[:, :, None])
    config = model.module.config.get_text_config()
    added = added or config._attn_implementation != "sdpa"
    window = getattr(config, "sliding_window", None)
    near = seen & (at[:, :, None] - at[:, None] < window) if window else seen
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"layers of kind {sorted(unknown)[0]!r}: only full and sliding attention can "
            "read answers in one pass; leave the forecast out (forecast=0)"
        )
    if "sliding_attention" in kinds:
        by_kind = {"full_attention": seen, "sliding_attention": near}
        return {kind: _mask(model, by_kind[kind], added=added) for kind in kinds}
    # Of models that name their layers' kinds those are all of full attention.
    return _mask(model, seen if kinds else near, added=added)


def _mask(model: Model, seen: Bool[Tensor, "tree query key"], *, added: bool) -> Tensor:
    if not added:
        return seen[:, None].to(model.device)
    mask = torch.zeros(seen.shape, dtype=model.module.dtype)
    mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
    return mask[:, None].to(model.device)


def _longest_heads(answers: Sequence[Sequence[int]]) -> list[list[int]]:
    """What has to be read so that every answer's last token is predicted."""
    heads = {tuple(answer[:-1]) for answer in answers if len(answer) > 1}
    inner = {head[:end] for head in heads for end in range(1, len(head))}
    return [list(head) for head in sorted(heads - inner)]


def _places(heads: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Row and column of every token of the padded heads."""
    pairs = [(r, c) for r, head in enumerate(heads) for c in range(len(head))]
    rows, columns = zip(*pairs, strict=True)
    return torch.tensor(rows), torch.tensor(columns)
