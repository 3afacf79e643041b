"""Rows that go one behind another come back as they were, and their gradients too."""

import pytest
import torch
from torch import Tensor

from undertow.models.packing import Packing, apart, joined

# Two tokens in front, then 1, 3 and 2 of the rows; and rows that share nothing.
SHARED, NONE = Packing(2, (1, 3, 2)), Packing(0, (3, 5))


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _packed(heads: int, *, by_token: bool) -> Tensor:
    if by_token:  # as a projection leaves values: heads lie inside tokens
        return _numbers(1, 8, heads, 4).transpose(1, 2)
    return _numbers(1, heads, 8, 4)


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
def test_rows_stand_side_by_side_behind_what_they_share(
    heads: int, by_token: bool
) -> None:
    x = _packed(heads, by_token=by_token)
    head, rows = apart(x, SHARED, with_head=False)
    assert torch.equal(head, x[:, :, :2])
    assert rows.shape == (3, heads, 3, 4)
    for place, (start, length) in enumerate(((2, 1), (3, 3), (6, 2))):
        assert torch.equal(rows[place, :, :length], x[0, :, start : start + length])
        assert not rows[place, :, length:].any()
    again, longer = apart(x, SHARED, with_head=True)
    assert torch.equal(again, head)
    assert torch.equal(longer[:, :, :2], head.expand(3, -1, -1, -1))
    assert torch.equal(longer[:, :, 2:], rows)
    assert torch.equal(joined(head, rows, SHARED), x)


def test_rows_that_share_nothing_have_nothing_in_front() -> None:
    x = _packed(2, by_token=True)
    head, rows = apart(x, NONE, with_head=True)
    assert head.shape == (1, 2, 0, 4)
    assert torch.equal(rows[0, :, :3], x[0, :, :3])
    assert torch.equal(rows[1], x[0, :, 3:])
    assert torch.equal(joined(head, rows, NONE), x)


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize("packing", [SHARED, NONE])
def test_gradients_are_those_of_plain_indexing(
    packing: Packing, with_head: bool, by_token: bool
) -> None:
    x = _packed(2, by_token=by_token).requires_grad_()

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        rows, start, width = [], packing.head, max(packing.tails)
        for length in packing.tails:
            own = x[0, :, start : start + length]
            if with_head:
                own = torch.cat([x[0, :, : packing.head], own], 1)
            rows.append(torch.nn.functional.pad(own, (0, 0, 0, width - length)))
            start += length
        return x[:, :, : packing.head], torch.stack(rows)

    found = apart(x, packing, with_head=with_head)
    weights = [_numbers(*part.shape, seed=7) for part in found]
    backs = []
    for parts in (found, plain(x)):
        (back,) = torch.autograd.grad(list(parts), x, weights)
        backs.append(back)
    torch.testing.assert_close(backs[0], backs[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("packing", [SHARED, NONE])
def test_what_is_packed_takes_gradients_from_where_it_lies(packing: Packing) -> None:
    parts = apart(_packed(2, by_token=True), packing, with_head=False)
    own = [part.clone().requires_grad_() for part in parts]
    weights = _packed(2, by_token=False)
    backs = torch.autograd.grad(joined(own[0], own[1], packing), own, weights)
    for mine, wanted in zip(
        backs, apart(weights, packing, with_head=False), strict=True
    ):
        assert torch.equal(mine, wanted)


def test_tokens_and_their_places() -> None:
    rows = [[7, 8, 1], [7, 8, 2, 3, 4], [7, 8, 5, 6]]
    assert SHARED.ids(rows).tolist() == [[7, 8, 1, 2, 3, 4, 5, 6]]
    assert SHARED.positions().tolist() == [[0, 1, 2, 2, 3, 4, 2, 3]]
    assert NONE.positions().tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
