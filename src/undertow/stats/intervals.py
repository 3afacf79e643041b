"""Intervals and one test: means over clusters, ratios, specificity.

Pure functions of numbers; knows nothing of traits, rows or models. What cannot be
computed is NaN, what has no bound is infinite, and a p-value is never 0. NaN among the
values makes the answer NaN; an infinite value leaves no interval.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from undertow.seeding import generator

Vector = np.ndarray[Any, np.dtype[np.float64]]


class Interval(NamedTuple):
    """A mean, its interval, and the number of clusters that it rests on."""

    mean: float
    low: float
    high: float
    n: int


def _half_width(variance: float, degrees: int, confidence: float) -> float:
    if degrees < 1:
        return math.nan
    factor = distributions.t.ppf(0.5 + confidence / 2, degrees)
    return float(factor * math.sqrt(variance))


@np.errstate(invalid="ignore")
def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of independent values with Student's interval.

    Equal values give an interval of no width; one value gives NaN bounds, none a NaN
    mean.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if not len(x):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    variance = float(x.var(ddof=1) / len(x)) if len(x) > 1 else math.nan
    half = _half_width(variance, len(x) - 1, confidence)
    return Interval(mean, mean - half, mean + half, len(x))


@np.errstate(invalid="ignore")
def clustered_interval(
    values: ArrayLike, clusters: Sequence[Hashable], *, confidence: float = 0.95
) -> Interval:
    """Mean of all values, with an interval that treats each cluster as one draw.

    Args:
        values: Numbers, possibly dependent within a cluster.
        clusters: The cluster of each value.
        confidence: Level of the interval.

    Source: Liang and Zeger 1986, with the factor G/(G-1); Student with G-1 degrees.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if len(x) != len(clusters):
        raise ValueError(f"{len(x)} values and {len(clusters)} clusters")
    sums: dict[Hashable, float] = {}
    mean = float(x.mean()) if len(x) else math.nan
    for value, cluster in zip(x - mean, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + float(value)
    count = len(sums)
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    variance = sum(s * s for s in sums.values()) / len(x) ** 2 * count / (count - 1)
    half = _half_width(variance, count - 1, confidence)
    return Interval(mean, mean - half, mean + half, count)


@np.errstate(invalid="ignore")
def two_way_interval(matrix: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of a [seed, question] table, when both are a sample of many more.

    The variance is that of the seeds plus that of the questions minus that of the
    single cells, and never less than either of the first two; Student with the
    smaller count less one. `n` is the smaller count.

    Source: Cameron, Gelbach and Miller 2011.
    """
    x = np.asarray(matrix, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"expected [seed, question], got {x.ndim} axes")
    count = min(x.shape)
    mean = float(x.mean()) if x.size else math.nan
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    rest = x - mean
    by_row = _one_way(rest.sum(axis=1), x.size)
    by_column = _one_way(rest.sum(axis=0), x.size)
    by_cell = float((rest**2).sum()) / x.size**2 * x.size / (x.size - 1)
    variance = max(by_row + by_column - by_cell, by_row, by_column)
    half = _half_width(variance, count - 1, confidence)
    return Interval(mean, mean - half, mean + half, count)


def _one_way(sums: Vector, size: int) -> float:
    count = len(sums)
    return float((sums**2).sum()) / size**2 * count / (count - 1)


@np.errstate(invalid="ignore")
def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """Ratio of two independent means.

    If the denominator's own interval holds zero the ratio has no bounds: they are
    infinite. With fewer than two values on a side they are NaN, and so is the ratio
    over a mean of exactly zero.

    Source: Fieller 1954; Student with the smaller count less one.
    """
    a, b = (
        np.asarray(numerators, float).ravel(),
        np.asarray(denominators, float).ravel(),
    )
    count = min(len(a), len(b))
    if not count:
        return Interval(math.nan, math.nan, math.nan, 0)
    top, bottom = float(a.mean()), float(b.mean())
    ratio = top / bottom if bottom else math.nan
    if count < 2 or not (math.isfinite(top) and math.isfinite(bottom)):
        return Interval(ratio, math.nan, math.nan, count)
    t = float(distributions.t.ppf(0.5 + confidence / 2, count - 1))
    var_top, var_bottom = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    square = bottom**2 - t**2 * var_bottom
    if square <= 0:
        return Interval(ratio, -math.inf, math.inf, count)
    root = math.sqrt(max(0.0, (top * bottom) ** 2 - square * (top**2 - t**2 * var_top)))
    bounds = ((top * bottom - root) / square, (top * bottom + root) / square)
    return Interval(ratio, float(min(bounds)), float(max(bounds)), count)


class Specificity(NamedTuple):
    """How much more a student moves on its own trait, with a permutation p."""

    lam: float
    low: float
    high: float
    p_value: float
    permutations: int


@np.errstate(invalid="ignore")
def specificity(
    lift: ArrayLike, *, permutations: int = 10_000, seed: int = 0
) -> Specificity:
    """Diagonal effect λ of `lift ~ student + trait + is_diagonal`.

    Args:
        lift: [student, trait], the same traits in the same order on both axes.
        permutations: How many relabelings of the columns are drawn; if there are
            fewer in all, each is taken once and p is exact.
        seed: Seed of the draw.

    Returns:
        λ, its Student interval over traits, and p = (1 + #{λ_π ≥ λ}) / (1 + B).
    """
    x = np.asarray(lift, dtype=np.float64)
    n = len(x)
    if x.shape != (n, n) or n < 2:
        raise ValueError(f"expected a square table of 2 or more, got {x.shape}")
    off = n - 1
    own = np.diag(x)
    others = (x.sum(axis=0) + x.sum(axis=1) - 2 * own) / (2 * off)
    mean, low, high, _ = mean_interval(own - others)

    def statistic(order: Sequence[int]) -> float:
        return float(x[np.arange(n), list(order)].sum())

    observed = statistic(range(n)) - 1e-12 * float(np.abs(x).sum())
    if math.factorial(n) - 1 <= permutations:
        orders = itertools.islice(itertools.permutations(range(n)), 1, None)
        drawn = [statistic(order) for order in orders]
    else:
        stream = generator(seed, "specificity")
        drawn = [statistic(stream.permutation(n).tolist()) for _ in range(permutations)]
    above = sum(value >= observed for value in drawn)
    p_value = math.nan if math.isnan(mean) else (1 + above) / (1 + len(drawn))
    return Specificity(mean, low, high, p_value, len(drawn))
