"""Rows one behind another in one sequence: nothing is padded, what they share is read once.

All that a decoder does between its attentions it does with each token alone; attention is
shown the rows side by side again (see `attention`), each behind the tokens that all begin
with and with nothing of another row. Knows nothing of what is computed on states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """How rows lie one behind another.

    Attributes:
        head: Tokens that all rows begin with, which stand in front, once.
        tails: Tokens of each row after those, row by row.
    """

    head: int
    tails: tuple[int, ...]

    @property
    def spread(self) -> int:
        """Tokens as attention sees them: rows side by side, each behind the head."""
        return len(self.tails) * (self.head + max(self.tails))

    def ids(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, "1 token"]:
        """The tokens of rows as they are packed."""
        tokens = [*rows[0][: self.head], *(t for row in rows for t in row[self.head :])]
        return torch.tensor([tokens])

    def positions(self) -> Int[Tensor, "1 token"]:
        """Each token's place in its own row."""
        own = [self.head + torch.arange(length) for length in self.tails]
        return torch.cat([torch.arange(self.head), *own])[None]


@dataclass(frozen=True)
class _Places:
    """Where numbers of packed tokens lie among those of rows side by side, and back.

    Attributes:
        columns: Of the rows side by side.
        padded: [tail token · head of attention] in [row, head, column].
        by_token: [row · head · column] in [token, head]; anything where nothing is.
        by_head: The same in [head, token].
        nothing: Those of [row, head, column] where nothing is.
    """

    columns: int
    padded: Int[Tensor, " packed"]
    by_token: Int[Tensor, " spread"]
    by_head: Int[Tensor, " spread"]
    nothing: Int[Tensor, " hole"]


@lru_cache(maxsize=8)
def _places(packing: Packing, heads: int, first: int) -> _Places:
    """Of rows that begin with so many tokens of the head: all or none of them."""
    sizes, total = torch.tensor(packing.tails), packing.head + sum(packing.tails)
    rows, columns = len(packing.tails), first + max(packing.tails)
    row = torch.arange(rows).repeat_interleave(sizes)
    column = first + torch.cat([torch.arange(size) for size in packing.tails])
    token = torch.full((rows, columns), -1)
    token[:, :first] = torch.arange(first)
    token[row, column] = torch.arange(packing.head, total)
    head = torch.arange(heads)
    padded = ((row * heads)[:, None] + head) * columns + column[:, None]
    known, head = token.clamp(min=0)[:, None], head[:, None]
    missing = (token < 0)[:, None].expand(rows, heads, columns)
    return _Places(
        columns, padded.flatten(), (known * heads + head).flatten(),
        (head * total + known).flatten(), missing.flatten().nonzero()[:, 0],
    )  # fmt: skip


def _apart(x: Tensor, packing: Packing, first: int) -> tuple[Tensor, Tensor]:
    _, heads, _, width = x.shape
    places = _places(packing, heads, first)
    if x.is_contiguous():
        rows = x.view(-1, width).index_select(0, places.by_head)
    else:
        tokens = x.transpose(1, 2).reshape(-1, width)
        rows = tokens.index_select(0, places.by_token)
    rows.index_fill_(0, places.nothing, 0)
    shape = (len(packing.tails), heads, places.columns, width)
    return x[:, :, : packing.head].contiguous(), rows.view(shape)


def _joined(head: Tensor, rows: Tensor, packing: Packing, first: int) -> Tensor:
    """Packed again; what rows have of the head is added to the head's own."""
    heads, width = rows.shape[1], rows.shape[3]
    total = packing.head + sum(packing.tails)
    found = rows.new_empty((1, total, heads, width))
    if first:
        head = head + rows[:, :, :first].sum(0, keepdim=True)
    found[:, : packing.head] = head.transpose(1, 2)
    padded = _places(packing, heads, first).padded
    tails = found.view(-1, width)[packing.head * heads :]
    torch.index_select(rows.reshape(-1, width), 0, padded, out=tails)
    return found.transpose(1, 2)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packing: Packing, first: int
    ) -> tuple[Tensor, Tensor]:
        ctx.packing, ctx.first = packing, first
        return _apart(x, packing, first)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        head, rows = gradients
        return _joined(head, rows, ctx.packing, ctx.first), None, None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Tensor, rows: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return _joined(head, rows, packing, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return *_apart(gradients[0], ctx.packing, 0), None


def apart(
    x: Float[Tensor, "1 head token width"], packing: Packing, *, with_head: bool
) -> tuple[Float[Tensor, "1 head first width"], Float[Tensor, "row head column width"]]:
    """The tokens in front, and rows side by side; differentiable.

    Args:
        x: Of packed tokens.
        packing: How they lie.
        with_head: Whether each row begins with the tokens in front, as keys do for
            queries behind them. Behind rows that are shorter than others there are zeros.
    """
    first = packing.head if with_head else 0
    found: tuple[Tensor, Tensor] = _Apart.apply(x, packing, first)  # type: ignore[no-untyped-call]
    return found


def joined(
    head: Float[Tensor, "1 head first width"],
    rows: Float[Tensor, "row head column width"],
    packing: Packing,
) -> Float[Tensor, "1 head token width"]:
    """The tokens in front and rows side by side, packed again; differentiable."""
    found: Tensor = _Joined.apply(head, rows, packing)  # type: ignore[no-untyped-call]
    return found
