"""Correlation of pairs: ranks with a permutation test, and straight lines.

Pure functions of numbers. What cannot be computed is NaN, and a p-value is never 0.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from undertow.seeding import generator
from undertow.stats.intervals import Interval, Vector

FEWEST = 4
"""Pairs below which nothing is computed."""


class RankCorrelation(NamedTuple):
    """Spearman's ρ with its interval, and how often chance does as well."""

    interval: Interval
    p_value: float
    permutations: int


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    *,
    confidence: float = 0.95,
    permutations: int = 10_000,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's rank correlation of independent pairs.

    Ties share their mean rank. The interval is Fisher's, with the variance
    (1 + ρ²/2) / (n − 3) that ranks have (Bonett and Wright, Psychometrika 2000); at
    |ρ| = 1 it has no width and is NaN instead. p is two-sided: the share of orders of y
    with at least this |ρ|, the true one included.

    Args:
        x: [pair].
        y: [pair].
        confidence: Of the interval.
        permutations: Orders drawn.
        seed: Of the orders.

    Raises:
        ValueError: The two are not equally many.
    """
    a, b, known = _pairs(x, y)
    n = len(a)
    nothing = RankCorrelation(Interval(math.nan, math.nan, math.nan, n), math.nan, 0)
    if not known:
        return nothing
    ranks = [_standardised(distributions.rankdata(v)) for v in (a, b)]
    if any(np.isnan(r).any() for r in ranks):
        return nothing
    rho = float(np.clip(ranks[0] @ ranks[1], -1, 1))
    low = high = math.nan
    if abs(rho) < 1 - 1e-12:
        factor = distributions.norm.ppf(0.5 + confidence / 2)
        half = factor * math.sqrt((1 + rho**2 / 2) / (n - 3))
        low, high = (math.tanh(math.atanh(rho) + s * half) for s in (-1, 1))
    stream = generator(seed, "rank correlation")
    drawn = [ranks[0] @ stream.permutation(ranks[1]) for _ in range(permutations)]
    as_large = int((np.abs(drawn) >= abs(rho) - 1e-12).sum())
    p = (1 + as_large) / (1 + permutations)
    return RankCorrelation(Interval(rho, low, high, n), p, permutations)


@np.errstate(invalid="ignore")
def _standardised(ranks: Vector) -> Vector:
    """Centred and of length 1; NaN if all are equal."""
    centred = ranks - ranks.mean()
    result: Vector = centred / np.linalg.norm(centred)
    return result


class LinearFit(NamedTuple):
    """y = a + b·x: b, Pearson's r, and c of y = a + b·x + c·x² fitted instead."""

    slope: float
    correlation: float
    curvature: float


def linear_fit(x: ArrayLike, y: ArrayLike) -> LinearFit:
    """Least squares; NaN with fewer than four pairs or without spread.

    The curvature is NaN where x has only two places.

    Raises:
        ValueError: The two are not equally many.
    """
    a, b, known = _pairs(x, y)
    if not known or np.ptp(a) == 0 or np.ptp(b) == 0:
        return LinearFit(math.nan, math.nan, math.nan)
    bends = len(np.unique(a)) > 2
    return LinearFit(
        slope=float(np.polyfit(a, b, 1)[0]),
        correlation=float(np.corrcoef(a, b)[0, 1]),
        curvature=float(np.polyfit(a, b, 2)[0]) if bends else math.nan,
    )


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[Vector, Vector, bool]:
    """Both sides, and whether there are enough of them, all finite."""
    a, b = (np.asarray(v, dtype=np.float64).ravel() for v in (x, y))
    if len(a) != len(b):
        raise ValueError(f"pairs: {len(a)} numbers against {len(b)}")
    return a, b, len(a) >= FEWEST and bool(np.isfinite([a, b]).all())
