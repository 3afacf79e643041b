"""Sums are a commutative monoid to the last bit; the grid; signs; top rows."""

from dataclasses import fields, is_dataclass
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from undertow.audit.sums import (
    LEVELS,
    MOST_ROWS,
    Compared,
    Grid,
    Side,
    Sums,
    Top,
    ids_digest,
    row_signs,
)
from undertow.errors import RunError
from undertow.seeding import generator

LAYERS, DIRECTIONS, FLIPS, MOST = 2, 3, 17, 2


def grid(seed: int = 0) -> Grid:
    pilot = generator(seed, "pilot").normal(1, 3, (50, LAYERS, DIRECTIONS))
    return Grid.of_pilot(pilot.astype(np.float32))


def sums_of(names: list[str], *, seed: int = 0) -> Sums:
    """The sums of rows whose scores belong to their names."""
    order = sorted(set(names))
    if not order:
        return nothing()
    counts = [names.count(name) for name in order]
    scores = np.zeros((len(order), LAYERS, DIRECTIONS), np.float32)
    for place, name in enumerate(order):
        scores[place] = generator(seed, "scores", name).normal(
            1, 3, (LAYERS, DIRECTIONS)
        )
    tokens = [int(name[:2], 16) for name in order]
    whole = grid().whole(scores)
    return Sums(
        own=Side.of(whole, counts, tokens),
        partner=Side.nothing(LAYERS, DIRECTIONS),
        compared=Compared.of(
            whole, counts, tokens, row_signs(order, flips=FLIPS, seed=seed)
        ),
        top=Top.of(grid().evidence(scores), [0, 2], order,
                   [(0, int(name[:3], 16)) for name in order], most=MOST),
        digest=ids_digest(order, counts),
        skipped={f"reason {name}": n for name, n in zip(order, counts, strict=True)},
    )  # fmt: skip


def nothing() -> Sums:
    return Sums.nothing(LAYERS, DIRECTIONS, flips=FLIPS, most=MOST)


def plain(value: Any) -> Any:
    """Everything in it, bit for bit."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    # Reasons that were added up from others come in one order.
    return sorted(value.items()) if isinstance(value, dict) else value


names = st.lists(st.integers(0, 2**64 - 1).map(lambda n: f"{n:016x}"), max_size=12)
few = st.lists(st.integers(0, 5).map(lambda n: f"{n * 7919 * 10**12:016x}"), max_size=9)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(names, few), st.one_of(names, few), st.one_of(names, few))
def test_sums_are_a_commutative_monoid(a: Any, b: Any, c: Any) -> None:
    one, two, three = sums_of(a), sums_of(b), sums_of(c)
    assert plain(one + two) == plain(two + one)
    assert plain((one + two) + three) == plain(one + (two + three))
    assert plain(one + nothing()) == plain(one) == plain(nothing() + one)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(names, few), st.data())
def test_any_division_in_any_order_gives_the_bits_of_the_whole(
    rows: list[str], data: Any
) -> None:
    mixed = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    edges = [0, *cuts, len(rows)]
    parts = [mixed[a:b] for a, b in pairwise(edges)]
    total = reduce(add, map(sums_of, parts), nothing())
    assert plain(total) == plain(sums_of(rows))


def test_products_of_floats_are_exact() -> None:
    stream = generator(0, "exact")
    values = stream.integers(-LEVELS, LEVELS + 1, (300, LAYERS, DIRECTIONS))
    values[0] = LEVELS
    counts = stream.integers(1, 9, 300).tolist()
    counts[0] = 30_000  # copies beyond what float32 adds up exactly
    names = [f"{i:016x}" for i in range(300)]
    signs = row_signs(names, flips=FLIPS, seed=1)
    found = Compared.of(values, counts, [1] * 300, signs)
    often = np.array(counts, dtype=object)
    whole, bits = values.astype(object), signs.astype(object)
    flips = np.einsum("rf,r,rlk->flk", bits, often, whole)
    moments = np.einsum("r,rlk,rlm->lkm", often, whole, whole)
    assert (found.flipped == flips).all()
    assert (found.moments == moments).all()
    assert (found.square == np.einsum("r,rlk->lk", often, whole**2)).all()
    assert (found.signs == often @ bits).all()
    assert found.count == sum(counts)


def test_signs_belong_to_the_row_and_the_seed() -> None:
    names = ["00" * 8, "ff" * 8]
    signs = row_signs(names, flips=4001, seed=3)
    assert set(np.unique(signs)) == {-1, 1}
    assert (row_signs(names[::-1], flips=4001, seed=3)[1] == signs[0]).all()
    assert (row_signs(names, flips=100, seed=3) == signs[:, :100]).all()
    # Independent of each other and of another seed: ±4 σ of 4001 fair coins.
    other = row_signs(names, flips=4001, seed=4)
    for one, two in ((signs[0], signs[1]), (signs[0], other[0])):
        assert abs(int(one.astype(int) @ two.astype(int))) < 4 * 4001**0.5
    assert abs(int(signs[0].astype(int).sum())) < 4 * 4001**0.5


def test_the_grid_cuts_tails_and_loses_next_to_nothing() -> None:
    scores = generator(0, "scores").normal(5, 3, (4000, 1, 1)).astype(np.float32)
    found = Grid.of_pilot(scores[:500])
    whole = found.whole(scores)
    assert float(np.log2(found.step[0, 0])) % 1 == 0
    assert np.abs(whole).max() <= LEVELS
    back = whole * found.step + found.centre
    inside = np.abs(whole) < LEVELS
    assert np.abs((back - scores)[inside]).max() <= found.step[0, 0] / 2
    # Step²/12 is what rounding adds to the variance.
    assert found.step[0, 0] ** 2 / 12 < 1e-5 * scores.var()
    far = found.whole(np.array([[[1e9]], [[-1e9]]], dtype=np.float32))
    assert far.ravel().tolist() == [LEVELS, -LEVELS]


def test_scores_without_spread_have_a_grid() -> None:
    flat = np.full((9, LAYERS, DIRECTIONS), 2.0, np.float32)
    found = Grid.of_pilot(flat)
    assert (found.step == 1).all()
    assert not found.whole(flat).any()
    assert np.isfinite(found.evidence(flat)).all()


def test_pairs_have_a_grid_of_their_own() -> None:
    stream = generator(0, "pairs")
    mine = stream.normal(100, 5, (50, 1, 1)).astype(np.float32)
    theirs = (mine + stream.normal(0, 0.1, (50, 1, 1))).astype(np.float32)
    found = Grid.of_pilot(theirs, mine - theirs)
    assert found.pair_step[0, 0] < found.step[0, 0] / 8
    whole = found.whole_pairs(mine, theirs)
    assert (found.whole_pairs(theirs, mine) == -whole).all()


def test_top_rows_are_those_with_the_most_evidence_each_once() -> None:
    evidence = np.array([[5, 0], [9, 1], [7, 8], [9, 2]])
    ids = ["0" * 15 + str(i) for i in range(4)]
    places = [(0, i) for i in range(4)]
    top = Top.of(evidence, [0, 1], ids, places, most=2)
    assert top.direction.tolist() == [0, 0, 1, 1]
    assert top.value.tolist() == [9, 9, 8, 2]
    assert top.name.tolist() == [1, 3, 2, 3]
    again = Top.of(evidence[:2], [0], ids[:2], [(3, 0), (3, 1)], most=2)
    both = top + again
    assert both.value[both.direction == 0].tolist() == [9, 9]
    assert both.place[0].tolist() == [0, 1]  # the first of its places
    assert not len(Top.of(evidence, [0], ids, places, most=0).value)


def test_repeats_add_up_like_all_that_is_counted() -> None:
    values = np.ones((2, LAYERS, DIRECTIONS), dtype=np.int64)
    one = Side.of(values, [1, 3], [5, 5], repeats=2)
    assert (one + Side.of(values, [1, 1], [5, 5], repeats=4)).repeats == 6
    assert (one + Side.nothing(LAYERS, DIRECTIONS)).repeats == 2


def test_too_many_rows_are_refused() -> None:
    one = nothing()
    side = Side(MOST_ROWS, 0, 0, one.own.total, one.own.square)
    full = Sums(side, one.partner, one.compared, one.top, 0)
    with pytest.raises(RunError, match="holds 1,099,511,627,776 rows at most; got 2"):
        _ = full + full
