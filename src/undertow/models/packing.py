"""Rows one behind another in one sequence, so that nothing is padded.

All that a decoder does between its attentions it does with each token alone; attention is
shown the rows side by side again (see `attention`), and nothing of another row. Whether a
model can be read that way is tried out once. Knows nothing of what is computed on states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Lengths = tuple[int, ...]


@dataclass(frozen=True)
class _Places:
    """Where numbers of packed tokens lie among those of rows side by side, and back.

    Attributes:
        padded: [token · head] in [row, head, column].
        by_token: [row · head · column] in [token, head]; anything where nothing is.
        by_head: The same in [head, token].
        nothing: Those of [row, head, column] where nothing is.
    """

    padded: Int[Tensor, " packed"]
    by_token: Int[Tensor, " spread"]
    by_head: Int[Tensor, " spread"]
    nothing: Int[Tensor, " hole"]


@lru_cache(maxsize=16)
def _places(lengths: Lengths, heads: int) -> _Places:
    sizes = torch.tensor(lengths)
    width, total = int(sizes.max()), int(sizes.sum())
    row = torch.arange(len(lengths)).repeat_interleave(sizes)
    column = torch.cat([torch.arange(size) for size in lengths])
    head = torch.arange(heads)
    padded = ((row * heads)[:, None] + head) * width + column[:, None]
    by_token = torch.zeros(len(lengths) * heads * width, dtype=torch.long)
    by_head, filled = by_token.clone(), torch.zeros_like(by_token, dtype=torch.bool)
    token = torch.arange(total)[:, None]
    by_token[padded] = token * heads + head
    by_head[padded] = head * total + token
    filled[padded] = True
    return _Places(padded.flatten(), by_token, by_head, (~filled).nonzero()[:, 0])


def _spread(x: Tensor, lengths: Lengths) -> Tensor:
    _, heads, _, width = x.shape
    places = _places(lengths, heads)
    if x.is_contiguous():
        found = x.view(-1, width).index_select(0, places.by_head)
    else:
        tokens = x.transpose(1, 2).reshape(-1, width)
        found = tokens.index_select(0, places.by_token)
    found.index_fill_(0, places.nothing, 0)
    return found.view(len(lengths), heads, max(lengths), width)


def _gathered(x: Tensor, lengths: Lengths) -> Tensor:
    heads, width = x.shape[1], x.shape[3]
    found = x.reshape(-1, width).index_select(0, _places(lengths, heads).padded)
    return found.view(1, sum(lengths), heads, width).transpose(1, 2)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: Lengths) -> Tensor:
        ctx.lengths = lengths
        return _spread(x, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradients[0], ctx.lengths), None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: Lengths) -> Tensor:
        ctx.lengths = lengths
        return _gathered(x, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _spread(gradients[0], ctx.lengths), None


def spread(
    x: Float[Tensor, "1 head token width"], lengths: Lengths
) -> Float[Tensor, "row head column width"]:
    """Packed rows side by side, zeros behind the shorter ones; differentiable."""
    found: Tensor = _Spread.apply(x, lengths)  # type: ignore[no-untyped-call]
    return found


def gathered(
    x: Float[Tensor, "row head column width"], lengths: Lengths
) -> Float[Tensor, "1 head token width"]:
    """Rows side by side packed again; differentiable."""
    found: Tensor = _Gathered.apply(x, lengths)  # type: ignore[no-untyped-call]
    return found


def packed_positions(lengths: Sequence[int]) -> Int[Tensor, "1 token"]:
    """Each token's place in its own row."""
    return torch.cat([torch.arange(length) for length in lengths])[None]
