"""Max-T: many correlated columns tested at once, by permutation.

Each row is one draw with a number a column (a score by direction and layer, say);
rows are flipped or relabelled whole, so the columns' correlation needs no model.
Knows nothing of what rows and columns are. Rows have to be independent: leave copies
of a row out first.

Both tests work on r = t/√(t² + ν) in [−1, 1], with the statistic's own ν. It rises
with t in the same way for every column, so the largest r belongs to the largest t,
and r needs only sums of permuted rows, which are one matrix product. The draws depend
on the seed and the number of rows, so other columns change none; they go by the place
of a row, so sort the rows by an id if they come in no order of their own.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int8, Int64, UInt8
from numpy.typing import ArrayLike

from undertow.seeding import generator

Alternative = Literal["two-sided", "greater"]
Kind = type[np.float32] | type[np.float64]
Draws = Iterator[Float[np.ndarray, "test draw"]]
Block = Float64[np.ndarray, "test row"]
# Of a block of columns: the same, standardised, and r of each as observed.
Standardised = tuple[Block, Float64[np.ndarray, " test"]]

# Permutations drawn together. Fixed, since it names the streams.
_CHUNK = 256
# Columns prepared together, to bound what float64 takes.
_BLOCK = 128
_FEWEST_ROWS = 5


class MaxT(NamedTuple):
    """Statistics of all columns, and what the largest of them are worth.

    Attributes:
        statistics: [test], t of each column; NaN for one that takes no part.
        adjusted: [test], step-down p-values that hold for all columns together.
        p_value: of the null of all columns, by the largest statistic.
        draws: [permutation], the largest |t| (or t) of each permutation.
        permutations: how many there were, the identity not counted.
    """

    statistics: Float64[np.ndarray, " test"]
    adjusted: Float64[np.ndarray, " test"]
    p_value: float
    draws: Float64[np.ndarray, " permutation"]
    permutations: int


class _Columns(NamedTuple):
    """Columns that take part, standardised, from the smallest r to the largest."""

    values: Float[np.ndarray, "test row"]
    observed: Float64[np.ndarray, " test"]
    places: Int64[np.ndarray, " test"]


def paired_max_t(
    differences: ArrayLike,
    *,
    permutations: int = 9999,
    seed: int,
    winsorise: float = 0.02,
    alternative: Alternative = "two-sided",
) -> MaxT:
    """Tests whether paired differences are symmetric about 0, for all columns.

    t = mean/(sd/√n), under random flips of the signs of whole rows. A flip leaves the
    mean of squares as it is, so r = Σd/√(n Σd²) with ν = n − 1. Over permutations
    p = (1 + #{T* ≥ T})/(1 + B), never 0. `adjusted` walks down from the largest
    statistic, each against the maximum over itself and all smaller ones.

    Args:
        differences: [row, test], audited minus reference, rows independent.
        permutations: B. If there are no more flips in all, each is taken once.
        seed: Seed of the flips.
        winsorise: Share of |d| in each column that is cut down to the quantile
            below. Both tails alike, so that flips leave the null as it is.
        alternative: "greater" takes t instead of |t|.

    Returns:
        A column with a value that is not finite, or whose values are all equal, has
        NaN and takes no part. Fewer than 5 rows give NaN throughout and no draws. A
        draw without variance counts as 10⁶·√ν.

    Raises:
        ValueError: `differences` is no table, or B < 1, or `winsorise` is not in
            [0, 0.5).

    *Cost*: one float32 product [test, row]·[row, B].

    *Source*: Westfall and Young 1993; Ge, Dudoit and Speed 2003 (step-down max-T).
    """
    table = _table("differences", differences)
    _check(permutations, winsorise)
    n, count = table.shape
    if n < _FEWEST_ROWS:
        return _nothing(count)
    # Few rows make ties, which float64 keeps apart from what is merely near.
    exact = n < 60 and 2**n <= permutations
    dtype: Kind = np.float64 if exact else np.float32
    cut = partial(_cut_size, share=winsorise)
    columns = _columns([table], cut, _standardised_pairs, dtype, alternative)
    flips = _all_flips(n) if exact else _drawn_flips(n, permutations, seed)
    blocks = (columns.values @ signs.astype(dtype).T for signs in flips)
    return _step_down(columns, blocks, count, n - 1, alternative)


def two_sample_max_t(
    audited: ArrayLike,
    reference: ArrayLike,
    *,
    strata: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    permutations: int = 9999,
    seed: int,
    winsorise: float = 0.02,
    alternative: Alternative = "two-sided",
) -> MaxT:
    """Tests whether two sets of rows have the same distribution, for all columns.

    t is Welch's, (mean a − mean b)/√(var a/n + var b/m), under random labels, with
    ν = n + m − 2; p-values and the step-down as in `paired_max_t`. Being studentised
    it also holds, with many rows, where only the means are equal, but for
    `winsorise` = 0 alone: cut tails come from the side that spreads more, and its
    mean then looks steadier than it is.

    Args:
        audited: [row, test].
        reference: [row, test], with the same columns.
        strata: The stratum of each row of the two sides, such as its prompt or a
            bucket of lengths. Labels move within strata only; a stratum with rows on
            one side keeps its labels. Differences between strata stay in the
            statistic and in its null alike: where strata are unlike, give residuals.
        permutations: B, drawn at random.
        seed: Seed of the labels.
        winsorise: In each column of both sides together, what lies beyond the
            quantiles w and 1 − w is cut down to them.
        alternative: "greater" takes t instead of |t|: audited above reference.

    Returns:
        As `paired_max_t`; fewer than 5 rows on a side give NaN throughout.

    Raises:
        ValueError: As there, or columns or strata do not match.

    *Cost*: one float32 product [test, row]·[row, B], two if the sides differ in size.

    *Source*: Janssen 1997, Chung and Romano 2013 (studentised permutation).
    """
    sides = [_table("audited", audited), _table("reference", reference)]
    _check(permutations, winsorise)
    sizes, count = [len(side) for side in sides], sides[0].shape[1]
    if sides[1].shape[1] != count:
        raise ValueError(f"{count} columns audited, {sides[1].shape[1]} in reference")
    keys = _keys(strata, sizes)
    if min(sizes) < _FEWEST_ROWS:
        return _nothing(count)
    # Sums are taken over the smaller side, where float32 loses least.
    small, large = sorted(sizes)
    sign = 1.0 if sizes[0] == small else -1.0
    labels = np.repeat(np.array([sign > 0, sign < 0]), sizes)
    cut = partial(_cut_tails, share=winsorise)
    standardise = partial(_standardised_sides, labels=labels, sign=sign)
    columns = _columns(sides, cut, standardise, np.float32, alternative)
    drawn = _drawn_labels(labels, keys, permutations, seed)
    blocks = _welch_blocks(columns.values, drawn, small, large, sign)
    return _step_down(columns, blocks, count, small + large - 2, alternative)


def _table(name: str, values: ArrayLike) -> Float64[np.ndarray, "row test"]:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"{name}: expected [row, test], got {table.ndim} axes")
    return table


def _check(permutations: int, winsorise: float) -> None:
    if permutations < 1:
        raise ValueError(f"expected 1 permutation or more, got {permutations}")
    if not 0 <= winsorise < 0.5:
        raise ValueError(f"winsorise lies in [0, 0.5), got {winsorise}")


def _keys(
    strata: tuple[Sequence[Hashable], Sequence[Hashable]] | None, sizes: list[int]
) -> list[Hashable]:
    if strata is None:
        return [None] * sum(sizes)
    found = [len(side) for side in strata]
    if found != sizes:
        raise ValueError(f"strata of {found} rows for sides of {sizes} rows")
    return [key for side in strata for key in side]


def _nothing(count: int) -> MaxT:
    empty = np.full(count, np.nan)
    return MaxT(empty, empty.copy(), float("nan"), np.empty(0), 0)


def _cut_size(block: Block, *, share: float) -> Block:
    bound: Block = np.quantile(np.abs(block), 1 - share, axis=1)[:, None]
    cut: Block = np.clip(block, -bound, bound)
    return cut


def _cut_tails(block: Block, *, share: float) -> Block:
    low, high = np.quantile(block, [share, 1 - share], axis=1)
    cut: Block = np.clip(block, low[:, None], high[:, None])
    return cut


def _standardised_pairs(block: Block) -> Standardised:
    # r of flipped rows is then their plain sum.
    norms = np.sqrt(block.shape[1] * (block**2).sum(axis=1))
    values = block / norms[:, None]
    return values, values.sum(axis=1)


def _standardised_sides(
    block: Block, *, labels: Bool[np.ndarray, " row"], sign: float
) -> Standardised:
    values = block - block.mean(axis=1)[:, None]
    values /= np.sqrt((values**2).mean(axis=1))[:, None]
    chosen = np.ascontiguousarray(values[:, labels])
    sums, squares = chosen.sum(axis=1), (chosen**2).sum(axis=1)
    small = chosen.shape[1]
    r = sign * _welch(sums, squares, small, block.shape[1] - small)
    return values, r


def _columns(
    sides: list[Float64[np.ndarray, "_ test"]],
    cut: Callable[[Block], Block],
    standardise: Callable[[Block], Standardised],
    dtype: Kind,
    alternative: Alternative,
) -> _Columns:
    """Cuts and standardises columns, drops those without variance, sorts by r."""
    count = sides[0].shape[1]
    values = np.empty((count, sum(len(side) for side in sides)), dtype)
    observed = np.full(count, np.nan)
    for start in range(0, count, _BLOCK):
        here = slice(start, start + _BLOCK)
        # One contiguous line a column: its sums then depend on no other column.
        block = np.ascontiguousarray(np.hstack([side[:, here].T for side in sides]))
        finite = np.isfinite(block).all(axis=1)
        block = cut(np.where(finite[:, None], block, 0.0))
        top = np.abs(block).max(axis=1)
        block /= np.where(top > 0, top, 1.0)[:, None]
        varies = np.ptp(block, axis=1) > 1e-12
        places = start + np.flatnonzero(varies)
        values[places], observed[places] = standardise(block[varies])
    ranked = np.abs(observed) if alternative == "two-sided" else observed
    # argsort puts NaN last.
    order = np.argsort(ranked, kind="stable")[: np.count_nonzero(~np.isnan(ranked))]
    return _Columns(values[order], observed[order], order)


def _step_down(
    columns: _Columns,
    blocks: Draws,
    count: int,
    degrees: int,
    alternative: Alternative,
) -> MaxT:
    """Compares r as observed with the running maxima of each permutation's r."""
    if not len(columns.places):
        return _nothing(count)
    two_sided = alternative == "two-sided"
    dtype = columns.values.dtype
    ranked = np.abs(columns.observed) if two_sided else columns.observed
    # Products round: what is within a hair of the observed counts as a tie.
    least = (ranked - 16 * np.finfo(dtype).eps).astype(dtype)[:, None]
    above = np.zeros(len(ranked), dtype=np.int64)
    largest = []
    for block in blocks:
        r = np.abs(block, out=block) if two_sided else block
        r = np.maximum.accumulate(r, axis=0)
        above += np.count_nonzero(r >= least, axis=1)
        largest.append(r[-1].astype(np.float64))
    draws = np.concatenate(largest)
    p = (1 + above) / (1 + len(draws))
    statistics, adjusted = np.full(count, np.nan), np.full(count, np.nan)
    statistics[columns.places] = _t(columns.observed, degrees)
    adjusted[columns.places] = np.maximum.accumulate(p[::-1])[::-1]
    return MaxT(statistics, adjusted, float(p[-1]), _t(draws, degrees), len(draws))


def _t(r: Float64[np.ndarray, " n"], degrees: int) -> Float64[np.ndarray, " n"]:
    r = np.clip(r, -(1 - 5e-13), 1 - 5e-13)
    return r * np.sqrt(degrees / (1 - r**2))


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    # Number of each chunk, and how many of its draws are wanted.
    for start in range(0, count, _CHUNK):
        yield start // _CHUNK, min(_CHUNK, count - start)


def _drawn_flips(
    n: int, permutations: int, seed: int
) -> Iterator[Int8[np.ndarray, "draw row"]]:
    for chunk, wanted in _chunks(permutations):
        stream = generator(seed, "sign flips", chunk)
        packed = stream.integers(0, 256, (_CHUNK, (n + 7) // 8), dtype=np.uint8)
        bits = np.unpackbits(packed, axis=1)[:wanted, :n]
        yield 1 - 2 * bits.astype(np.int8)


def _all_flips(n: int) -> Iterator[Int8[np.ndarray, "draw row"]]:
    # Every flip but the identity, which is the observed one.
    for chunk, wanted in _chunks(2**n - 1):
        codes = 1 + chunk * _CHUNK + np.arange(wanted)
        bits = (codes[:, None] >> np.arange(n)) & 1
        yield (1 - 2 * bits).astype(np.int8)


def _drawn_labels(
    labels: Bool[np.ndarray, " row"],
    keys: list[Hashable],
    permutations: int,
    seed: int,
) -> Iterator[UInt8[np.ndarray, "draw row"]]:
    movable = _movable(labels, keys)
    for chunk, wanted in _chunks(permutations):
        stream = generator(seed, "labels", chunk)
        drawn = np.tile(labels.astype(np.uint8), (_CHUNK, 1))
        for places in movable:
            drawn[:, places] = stream.permuted(drawn[:, places], axis=2)
        yield drawn[:wanted]


def _movable(
    labels: Bool[np.ndarray, " row"], keys: list[Hashable]
) -> list[Int64[np.ndarray, "stratum place"]]:
    """Rows of the strata that hold both labels, strata of like size together."""
    strata: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        strata.setdefault(key, []).append(row)
    alike: dict[int, list[list[int]]] = {}
    for rows in strata.values():
        if 0 < labels[rows].sum() < len(rows):
            alike.setdefault(len(rows), []).append(rows)
    return [np.array(rows, dtype=np.int64) for rows in alike.values()]


def _welch_blocks(
    values: Float[np.ndarray, "test row"],
    drawn: Iterator[UInt8[np.ndarray, "draw row"]],
    small: int,
    large: int,
    sign: float,
) -> Draws:
    # Sides of like size need no squares: they add up to the same in any case.
    squared = values**2 if small < large else None
    for labels in drawn:
        chosen = labels.astype(values.dtype).T
        squares = None if squared is None else squared @ chosen
        yield sign * _welch(values @ chosen, squares, small, large)


def _welch(
    sums: Float[np.ndarray, "*test"],
    squares: Float[np.ndarray, "*test"] | None,
    small: int,
    large: int,
) -> Float[np.ndarray, "*test"]:
    """Welch's r = d/√(d² + ν se²), smaller side minus larger, from the smaller's sums.

    Of columns with mean 0 and mean square 1 over all n = small + large rows, so the
    larger side sums to −S and its squares to n − Q. Then d = S·n/(small·large), and
    se² is linear in Q and S².
    """
    n = small + large
    degrees = n - 2
    slope = n / (small * large)
    of_small, of_large = 1 / (small * (small - 1)), 1 / (large * (large - 1))
    of_sums = of_small / small + of_large / large
    spread = (slope**2 - degrees * of_sums) * sums**2 + degrees * of_large * n
    if squares is not None:
        spread = spread + degrees * (of_small - of_large) * squares
    difference = slope * sums
    # Rounding may put se² a hair below 0.
    return difference / np.sqrt(np.maximum(spread, difference**2))
