"""Many p-values: adjusted, combined, made from scores, and checked for uniformity.

Knows nothing of the tests that the p-values come from. A NaN is no test: it stays
NaN, or is left out of what is combined. A combined p-value is never 0.
"""

import math
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

Vector = np.ndarray[Any, np.dtype[np.float64]]

# The smallest normal float: 1/p stays finite.
SMALLEST = sys.float_info.min
# Beyond it a p-value pulls a Cauchy combination no further towards 1.
_CAUCHY_CAP = 0.99


def benjamini_hochberg(p_values: ArrayLike) -> Vector:
    """Adjusted p-values that control the false discovery rate, in the given order.

    For independent or positively dependent tests. A NaN is no test: it stays NaN and
    the others are adjusted without it.

    Source: Benjamini and Hochberg 1995.
    """
    return _stepped_up(_probabilities(p_values), harmonic=False)


def benjamini_yekutieli(p_values: ArrayLike) -> Vector:
    """Adjusted p-values that control the false discovery rate under any dependence.

    Those of Benjamini and Hochberg times Σ 1/k over k = 1 … m, at most 1.

    Source: Benjamini and Yekutieli 2001.
    """
    return _stepped_up(_probabilities(p_values), harmonic=True)


def _probabilities(p_values: ArrayLike) -> Vector:
    p = np.asarray(p_values, dtype=np.float64).ravel()
    wrong = p[(p < 0) | (p > 1)]
    if len(wrong):
        raise ValueError(f"a p-value lies in [0, 1], got {wrong[0]}")
    return p


def _stepped_up(p: Vector, *, harmonic: bool) -> Vector:
    # argsort puts NaN last.
    order = np.argsort(-p)[: np.count_nonzero(~np.isnan(p))]
    ranks = np.arange(len(order), 0, -1)
    factor = len(order) * (float((1 / ranks).sum()) if harmonic else 1.0)
    adjusted = np.minimum.accumulate(p[order] * factor / ranks)
    result = np.full_like(p, np.nan)
    result[order] = np.minimum(adjusted, 1.0)
    return result


def cauchy_combination(p_values: ArrayLike, weights: ArrayLike | None = None) -> float:
    """One p-value of several dependent ones: p = arccot(Σ wᵢ cot(π pᵢ)) / π.

    Cauchy sums have the same tail whatever the dependence, so small results are right
    without knowing it; results near 0.5 are approximate. One p-value near 1 would
    outweigh all others, and permutation gives exact ones, so what exceeds 0.99 counts
    as 0.99; the result is never below the smallest p-value, which keeps that on the
    safe side, and one p-value alone is returned as it is.

    Args:
        p_values: NaN are left out; if none is left the result is NaN.
        weights: One a p-value, not negative; equal if not given. They are scaled to
            sum to 1 over the p-values that are left.

    Source: Liu and Xie 2020; the cap: Fang, Chang, Park and Tseng 2023.
    """
    p = _probabilities(p_values)
    w = np.ones_like(p) if weights is None else np.asarray(weights, float).ravel()
    if len(w) != len(p):
        raise ValueError(f"{len(p)} p-values and {len(w)} weights")
    if not (w >= 0).all():
        raise ValueError(f"weights are not negative, got {w.tolist()}")
    taken = ~np.isnan(p) & (w > 0)
    if not taken.any():
        return math.nan
    p, w = np.maximum(p[taken], SMALLEST), w[taken] / w[taken].sum()
    total = float((w / np.tan(np.pi * np.minimum(p, _CAUCHY_CAP))).sum())
    # arctan2 keeps the digits that 0.5 − arctan(total)/π would lose.
    return max(math.atan2(1.0, total) / math.pi, float(p.min()))


def conformal_p_values(scores: ArrayLike, calibration: ArrayLike) -> Vector:
    """For each score p = (1 + #{calibration ≥ score}) / (1 + n); larger is stranger.

    Right for a score that is exchangeable with the calibration's. The p-values share
    the calibration, so they are positively dependent. NaN among the calibration are
    left out; a NaN score, or a calibration of none, gives NaN.

    Source: Vovk, Gammerman and Shafer 2005; Bates et al. 2023.
    """
    s = np.asarray(scores, dtype=np.float64).ravel()
    known = np.asarray(calibration, dtype=np.float64).ravel()
    known = np.sort(known[~np.isnan(known)])
    if not len(known):
        return np.full_like(s, np.nan)
    above = len(known) - np.searchsorted(known, s, side="left")
    return np.where(np.isnan(s), np.nan, (1 + above) / (1 + len(known)))


class Uniformity(NamedTuple):
    """Largest distance of p-values from the uniform distribution, with its p."""

    statistic: float
    p_value: float


def ks_uniform(p_values: ArrayLike) -> Uniformity:
    """Two-sided Kolmogorov–Smirnov test of p-values against U(0, 1).

    NaN are left out; with none left both numbers are NaN. p-values of few
    permutations lie on a lattice of step 1/(1 + B), so with far more than (1 + B)²
    of them a correct test would be refused.
    """
    p = _probabilities(p_values)
    p = p[~np.isnan(p)]
    if not len(p):
        return Uniformity(math.nan, math.nan)
    found = distributions.kstest(p, "uniform")
    return Uniformity(float(found.statistic), max(float(found.pvalue), SMALLEST))
