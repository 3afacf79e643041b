"""Max-T from sums alone: the rows themselves are gone.

Whoever read the rows has kept, beside Σx and Σx², the sums Σ εx under B random signs
that each row carries with it. That is all that a sign-flip test and a multiplier
bootstrap of many correlated columns need, however many rows there were. Rows that are
copies of each other have the same signs, so they count as one draw of that weight.
Knows nothing of what rows and columns are.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from undertow.stats.permutation import MaxT

Columns = Float64[np.ndarray, " test"]
Flips = Float64[np.ndarray, "draw test"]

_FEWEST = 5


@dataclass(frozen=True)
class SideSums:
    """One set of rows.

    Attributes:
        count: n.
        total: [test], Σx.
        square: [test], Σx².
        flipped: [draw, test], Σ ε_b x.
        signs: [draw], Σ ε_b.
    """

    count: int
    total: ArrayLike
    square: ArrayLike
    flipped: ArrayLike
    signs: ArrayLike


class FlipTest(NamedTuple):
    """A max-T test from sums.

    Attributes:
        max_t: Statistics and p-values.
        spread: [test]: root mean square of the statistic under the signs, in units of
            what it would be if all rows were different: 1, and more with copies.
    """

    max_t: MaxT
    spread: Columns


def paired_flips(sums: SideSums) -> FlipTest:
    """Tests whether differences are symmetric about 0, for all columns together.

    t = mean/(sd/√n), under the signs. Flips leave Σx² as it is, so Σx/√Σx² rises with t
    in the same way for all columns and is compared with Σεx/√Σx². p = (1 + #{T* ≥ T}) /
    (1 + B), never 0; `adjusted` walks down from the largest statistic.

    Exact if, given |x| and how often each row stands there, every row is as likely as
    its mirror image.

    Returns:
        A column without variance has NaN and takes no part. Fewer than 5 rows give NaN
        throughout.

    Source: as `paired_max_t`.
    """
    total, square = _row(sums.total), _row(sums.square)
    if sums.count < _FEWEST:
        return _nothing(len(total))
    scale = _inverse(np.sqrt(square))
    observed, draws = total * scale, _table(sums.flipped) * scale
    r = observed / math.sqrt(sums.count)
    return _tested(observed, draws, _t(r, sums.count - 1), _scatter(draws))


def two_sample_flips(audited: SideSums, reference: SideSums) -> FlipTest:
    """Tests whether two sets of rows have the same means, for all columns together.

    z = (mean a − mean r)/se, Welch's, held against the multiplier bootstrap: each row's
    distance from its own side's mean under its random sign, over the se that those
    signed distances themselves have. So variances may differ between sides, and with
    few rows a draw is as wide as z is. A row that stands on both sides has one sign.

    Asymptotic: with few rows, or columns ruled by a few, it is not exact.

    Returns:
        As `paired_flips`; fewer than 5 rows on a side give NaN throughout.

    Source: Chernozhukov, Chetverikov and Kato 2013 (multiplier bootstrap of maxima).
    """
    count = len(_row(audited.total))
    if min(audited.count, reference.count) < _FEWEST:
        return _nothing(count)
    sides = (audited, reference)
    (mine, my_spread), (theirs, their_spread) = (_moments(side) for side in sides)
    error = np.sqrt(my_spread / audited.count + their_spread / reference.count)
    scale = _inverse(error)
    observed = (mine - theirs) * scale
    a, r = _centred(audited, mine), _centred(reference, theirs)
    change, wide = a - r, _error(audited, my_spread, a)
    wide += _error(reference, their_spread, r)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Signs that leave no spread at all put everything into the mean.
        draws = np.where(wide > 0, change / np.sqrt(wide), np.inf)
    return _tested(observed, draws, observed, _scatter(change * scale))


def _moments(side: SideSums) -> tuple[Columns, Columns]:
    """Mean and unbiased variance of each column."""
    mean = _row(side.total) / side.count
    spread = (_row(side.square) - side.count * mean**2) / (side.count - 1)
    # Values that are all alike leave rounding, not variance.
    alike = spread <= 1e-12 * np.maximum(mean**2, 1e-300)
    return mean, np.where(alike, 0.0, spread)


def _centred(side: SideSums, mean: Columns) -> Flips:
    signs = np.asarray(side.signs, dtype=np.float64)[:, None]
    found: Flips = (_table(side.flipped) - signs * mean) / side.count
    return found


def _error(side: SideSums, spread: Columns, flipped: Flips) -> Flips:
    """Square of the standard error of a mean of signed distances, of each draw.

    Signs leave Σx² as it is, so the variance is known from the mean.
    """
    left = spread * (side.count - 1) - side.count * flipped**2
    found: Flips = np.maximum(left, 0.0) / ((side.count - 1) * side.count)
    return found


def _scatter(draws: Flips) -> Columns:
    """Root mean square of each column."""
    found: Columns = np.sqrt((draws**2).mean(axis=0)) if len(draws) else draws.sum(0)
    return found


def _inverse(values: Columns) -> Columns:
    """1/x; NaN for 0."""
    positive = values > 0
    found: Columns = np.where(positive, 1 / np.where(positive, values, 1.0), np.nan)
    return found


def _row(values: ArrayLike) -> Columns:
    found: Columns = np.asarray(values, dtype=np.float64).ravel()
    return found


def _table(values: ArrayLike) -> Flips:
    found = np.asarray(values, dtype=np.float64)
    return found.reshape(len(found), -1)


def _nothing(count: int) -> FlipTest:
    empty = np.full(count, np.nan)
    return FlipTest(
        MaxT(empty, empty.copy(), math.nan, np.empty(0), 0), np.full(count, np.nan)
    )


def _tested(
    observed: Columns, draws: Flips, statistics: Columns, scatter: Columns
) -> FlipTest:
    count = len(observed)
    known = np.flatnonzero(np.isfinite(observed))
    if not len(known) or not len(draws):
        return _nothing(count)
    order = known[np.argsort(np.abs(observed[known]), kind="stable")]
    size = np.abs(draws[:, order])
    spread = np.full(count, np.nan)
    spread[order] = scatter[order]
    np.maximum.accumulate(size, axis=1, out=size)
    # Sums are exact and their quotients round: a hair below counts as a tie.
    least = np.abs(observed[order]) * (1 - 1e-12)
    p = (1 + np.count_nonzero(size >= least, axis=0)) / (1 + len(draws))
    adjusted, shown = np.full(count, np.nan), np.full(count, np.nan)
    adjusted[order] = np.maximum.accumulate(p[::-1])[::-1]
    shown[order] = statistics[order]
    largest = np.ascontiguousarray(size[:, -1])
    return FlipTest(MaxT(shown, adjusted, float(p[-1]), largest, len(draws)), spread)


def _t(r: Columns, degrees: int) -> Columns:
    r = np.clip(r, -(1 - 5e-13), 1 - 5e-13)
    found: Columns = r * np.sqrt(degrees / (1 - r**2))
    return found
