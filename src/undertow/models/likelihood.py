"""How likely a model finds completions, and the states that predict their tokens.

Only tokens that count are predicted. Knows nothing of traits or of where rows come
from.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from undertow.models.attention import (
    LONGEST,
    can_see_rows_apart,
    fast_operations,
    packed_operations,
)
from undertow.models.cache import new_cache, resized
from undertow.models.chat import Rendered
from undertow.models.hooks import completion_positions
from undertow.models.loading import Model
from undertow.models.packing import Packing
from undertow.models.unembedding import token_logprobs


def padded(
    sequences: Sequence[Sequence[int]], *, device: torch.device
) -> Int[Tensor, "row token"]:
    """Sequences as one matrix, padded on the right with token 0.

    With causal attention nothing looks at what follows, so right padding needs no
    mask, and the fast kernels without one can be used.
    """
    width = max(len(sequence) for sequence in sequences)
    ids = torch.zeros((len(sequences), width), dtype=torch.long)
    for place, sequence in enumerate(sequences):
        ids[place, : len(sequence)] = torch.tensor(sequence)
    return ids.to(device)


def completion_mask(
    rows: Sequence[Rendered], width: int, *, device: torch.device
) -> Tensor:
    """Bool [row, token]: true where a token belongs to the completion."""
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for place, row in enumerate(rows):
        mask[place, row.completion_start : len(row.ids)] = True
    return mask.to(device)


@dataclass(frozen=True)
class Prefix:
    """Tokens that rows begin with, read once: how many, and their cache."""

    length: int
    cache: Cache


# Normed states, tokens and which are a completion's, as they were read.
_Pass = tuple[Tensor, Tensor, Tensor]

# Whether a model can be read in packs, as was tried out: rows of so many tokens, whose
# states may be turned by so much, as rounding does.
_packs: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
_PROBE, _ALIKE = 16, 0.99
# Elsewhere attention keeps no scores, unless it is packed.
_PACKED = (torch.bfloat16,)

# Fewer shared tokens than this do not pay for the copies of their cache.
_SHORTEST_PREFIX = 12


@torch.inference_mode()
def read_prefix(model: Model, rows: Sequence[Rendered]) -> Prefix | None:
    """Reads what all rows begin with (a template's head, a persona), for scoring.

    None if it is short. Only for passes without gradients.
    """
    shared = _shared(rows)
    if not shared:
        return None
    cache = new_cache(model, shared)
    ids = torch.tensor([rows[0].ids[:shared]], device=model.device)
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    with completion_positions(model, nothing), fast_operations(model):
        model.module.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return Prefix(shared, cache)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all share, one token of each left over."""
    ordered = [tuple(sequence) for sequence in sequences]
    shortest, longest = min(ordered), max(ordered)
    limit = min(len(sequence) for sequence in ordered) - 1
    for index in range(limit):
        if shortest[index] != longest[index]:
            return index
    return max(limit, 0)


def predicting_states(
    model: Model, rows: Sequence[Rendered], *, prefix: Prefix | None = None
) -> tuple[Float[Tensor, "token hidden"], Int[Tensor, " token"]]:
    """Normed states that predict the completion tokens, and those tokens, flat."""
    start = 0 if prefix is None else prefix.length
    ids = padded([row.ids[start:] for row in rows], device=model.device)
    tails = [Rendered(row.ids[start:], row.completion_start - start) for row in rows]
    mask = completion_mask(tails, ids.shape[1], device=model.device)
    options: dict[str, object] = {"use_cache": False}
    if prefix is not None:
        positions = torch.arange(start, start + ids.shape[1], device=model.device)
        cache = resized(prefix.cache, start + ids.shape[1])
        options = {
            "use_cache": True, "past_key_values": cache, "position_ids": positions[None]
        }  # fmt: skip
    with completion_positions(model, mask), fast_operations(model):
        hidden = model.module.base_model(input_ids=ids, **options)[0]
    return hidden[:, :-1][mask[:, 1:]], ids[:, 1:][mask[:, 1:]]


def packed_states(
    model: Model, rows: Sequence[Rendered]
) -> tuple[Float[Tensor, "token hidden"], Int[Tensor, " token"]]:
    """The same of rows one behind another, where `can_pack`: nothing is padded.

    What all of them begin with is read once.
    """
    hidden, ids, mask = _packed_pass(model, rows)
    # Each row's first token is its prompt's, so none is predicted from another row.
    return hidden[:, :-1][mask[:, 1:]], ids[:, 1:][mask[:, 1:]]


def _packed_pass(model: Model, rows: Sequence[Rendered]) -> _Pass:
    packing = packing_of(rows)
    ids, mask = packed_rows(rows, packing)
    with completion_positions(model, mask), packed_operations(model, packing):
        hidden = model.module.base_model(
            input_ids=ids, position_ids=packing.positions(), use_cache=False
        )[0]
    return hidden, ids, mask


def packed_rows(
    rows: Sequence[Rendered], packing: Packing
) -> tuple[Int[Tensor, "1 token"], Bool[Tensor, "1 token"]]:
    """Tokens one behind another, and which of them belong to a completion."""
    head = packing.head
    marks = [
        i >= row.completion_start for row in rows for i in range(head, len(row.ids))
    ]
    return packing.ids([row.ids for row in rows]), torch.tensor(
        [[False] * head + marks]
    )


def packing_of(rows: Sequence[Rendered]) -> Packing:
    """How rows go one behind another; what all begin with in front, if it is worth it."""
    head = _shared(rows)
    if max(len(row.ids) for row in rows) > LONGEST:
        head = 0
    return Packing(head, tuple(len(row.ids) - head for row in rows))


def read_once(model: Model, rows: Sequence[Rendered]) -> Bool[Tensor, "batch token"]:
    """One pass over rows for those who record it, as is fastest; not for drawing rows.

    Returns:
        Where completion tokens are in what is recorded, row by row: rows may lie one
        behind another, in a batch of one.
    """
    if packs(model, longest=max(len(row.ids) for row in rows)):
        return _packed_pass(model, rows)[2]
    ids = padded([row.ids for row in rows], device=model.device)
    mask = completion_mask(rows, ids.shape[1], device=model.device)
    with completion_positions(model, mask), fast_operations(model):
        model.module.base_model(input_ids=ids, use_cache=False)
    return mask


def _shared(rows: Sequence[Rendered]) -> int:
    """Tokens that all rows begin with, before what predicts a completion; 0 if few."""
    if len(rows) < 2:
        return 0
    shared = min(
        common_prefix([row.ids for row in rows]),
        *(row.completion_start - 1 for row in rows),
    )
    return shared if shared >= _SHORTEST_PREFIX else 0


def packs(model: Model, *, longest: int) -> bool:
    """Whether rows are best read one behind another: in bfloat16, where they can be."""
    return model.dtype in _PACKED and can_pack(model, longest=longest)


def can_pack(model: Model, *, longest: int) -> bool:
    """Whether rows one behind another give the states that they give alone.

    On a processor, where attention can be told of rows; tried out once: a layer that
    keeps a state from token to token would carry it over to the next row.

    Args:
        model: The model.
        longest: Tokens of the longest row.
    """
    if not can_see_rows_apart(model, longest=longest):
        return False
    if model.module not in _packs:
        _packs[model.module] = _keeps_rows_apart(model)
    return _packs[model.module]


@torch.no_grad()
def _keeps_rows_apart(model: Model) -> bool:
    size = model.architecture.vocab_size
    one, other, row = (
        Rendered([(first + 7 * i) % size for i in range(_PROBE)], _PROBE - 3)
        for first in (3, size // 2, size // 3)
    )
    twin = Rendered([*row.ids[:-3], *one.ids[-3:]], row.completion_start)
    try:
        states = [packed_states(model, pair)[0] for pair in ([one, row], [other, row])]
        behind_head = packed_states(model, [row, twin])[0].float()
    except Exception:  # it takes no positions, or something else
        return False
    behind_one, behind_other = (each[3:].float() for each in states)
    alone = predicting_states(model, [row])[0].float()
    twins = predicting_states(model, [twin])[0].float()
    found = torch.cat([behind_one, behind_head])
    alike = torch.cosine_similarity(found, torch.cat([alone, alone, twins]), dim=-1)
    return torch.equal(behind_one, behind_other) and bool((alike > _ALIKE).all())


def token_batches(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Places grouped by length so that rows × longest stays within the budget."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and lengths[place] * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


@torch.inference_mode()
def completion_logprobs(
    model: Model, rows: Sequence[Rendered], *, token_budget: int = 4096
) -> list[float]:
    """Log-probability of each row's completion given its prompt, nats."""
    results = [float("nan")] * len(rows)
    lengths = [len(row.ids) for row in rows]
    for places in token_batches(lengths, token_budget=token_budget):
        batch = [rows[place] for place in places]
        hidden, targets = predicting_states(model, batch)
        nats = token_logprobs(model, hidden, targets)
        counts = [len(row.ids) - row.completion_start for row in batch]
        for place, part in zip(places, torch.split(nats, counts), strict=True):
            results[place] = float(part.double().sum())
    return results
