"""Correlation of pairs: ranks with a permutation test, and straight lines.

Pure functions of numbers. What cannot be computed is NaN, and a p-value is never 0.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from undertow.seeding import generator
from undertow.stats.intervals import Interval, Vector

Matrix = np.ndarray[Any, np.dtype[np.float64]]

FEWEST = 4
"""Pairs below which no interval can be computed."""


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
    a, b = (np.asarray(v, dtype=np.float64).ravel() for v in (x, y))
    if len(a) != len(b):
        raise ValueError(f"pairs: {len(a)} numbers against {len(b)}")
    n = len(a)
    nothing = RankCorrelation(Interval(math.nan, math.nan, math.nan, n), math.nan, 0)
    if n < FEWEST or not (np.isfinite(a).all() and np.isfinite(b).all()):
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
    """y = a + b·x, how well it fits, and whether a bend would fit better.

    Attributes:
        slope: b, with Student's interval.
        correlation: Pearson's r, with Fisher's interval.
        curvature: c of y = a + b·x + c·x², with Student's interval; holding zero, no
            bend is shown.
    """

    slope: Interval
    correlation: Interval
    curvature: Interval


def linear_fit(x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95) -> LinearFit:
    """Least squares of independent pairs; NaN with fewer than four or without spread.

    Raises:
        ValueError: The two are not equally many.
    """
    a, b = (np.asarray(v, dtype=np.float64).ravel() for v in (x, y))
    if len(a) != len(b):
        raise ValueError(f"pairs: {len(a)} numbers against {len(b)}")
    n = len(a)
    nothing = Interval(math.nan, math.nan, math.nan, n)
    known = np.isfinite(a).all() and np.isfinite(b).all()
    if n < FEWEST or not known or np.ptp(a) == 0 or np.ptp(b) == 0:
        return LinearFit(nothing, nothing, nothing)
    r = float(np.corrcoef(a, b)[0, 1])
    low = high = math.nan
    if abs(r) < 1 - 1e-12:
        half = distributions.norm.ppf(0.5 + confidence / 2) / math.sqrt(n - 3)
        low, high = (math.tanh(math.atanh(r) + s * half) for s in (-1, 1))
    slope = _last_coefficient(np.stack([np.ones(n), a], 1), b, confidence)
    bend = nothing
    if len(np.unique(a)) > 2:
        bend = _last_coefficient(np.stack([np.ones(n), a, a**2], 1), b, confidence)
    return LinearFit(slope, Interval(r, low, high, n), bend)


def _last_coefficient(columns: Matrix, y: Vector, confidence: float) -> Interval:
    """The last column's, in ordinary least squares, with Student's interval."""
    n, k = columns.shape
    inverse = np.linalg.inv(columns.T @ columns)
    fitted = inverse @ columns.T @ y
    value, degrees = float(fitted[-1]), n - k
    if degrees < 1:
        return Interval(value, math.nan, math.nan, n)
    variance = float(((y - columns @ fitted) ** 2).sum()) / degrees * inverse[-1, -1]
    half = distributions.t.ppf(0.5 + confidence / 2, degrees) * math.sqrt(variance)
    return Interval(value, value - half, value + half, n)
