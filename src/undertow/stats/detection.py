"""How well two samples are told apart, and how well anyone could.

Rates of detection with intervals, and the rows that no test can do without, from
log-likelihood ratios in nats. Knows nothing of what the scores measure: larger means
more like the positives. NaN in, NaN out.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special
from scipy import stats as distributions

from undertow.stats.intervals import Interval, Vector


def binomial_interval(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Share of successes with the exact interval; NaN for n = 0.

    It covers with at least the confidence, whatever the true share.

    Source: Clopper and Pearson 1934.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    return _beta_interval(float(successes), n, confidence=confidence)


def _beta_interval(successes: float, n: int, *, confidence: float) -> Interval:
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    tail, failures = (1 - confidence) / 2, n - successes
    low = special.betaincinv(successes, failures + 1, tail) if successes > 0 else 0.0
    high = special.betainccinv(successes + 1, failures, tail) if failures > 0 else 1.0
    return Interval(successes / n, float(low), float(high), n)


def auroc(
    positives: ArrayLike, negatives: ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """P(a positive scores above a negative), ties counting half, with its interval.

    The variance is DeLong's and the bounds are symmetric on the logit scale, so they
    stay inside [0, 1]. Where that variance is 0 (perfect separation, or all tied) it
    says nothing; then the k = min(m, n) disjoint pairs that one could form, of which
    a share AUROC is in the right order, are k independent trials and give Clopper and
    Pearson's bounds: wide, and safe.

    Returns:
        `n` is the smaller of the two counts. NaN without a value on a side or with a
        NaN; one value on a side leaves NaN bounds.

    Source: DeLong, DeLong and Clarke-Pearson 1988; Pepe 2003 (logit).
    """
    x, y = _sample(positives), _sample(negatives)
    count = min(len(x), len(y))
    if not count or np.isnan(x).any() or np.isnan(y).any():
        return Interval(math.nan, math.nan, math.nan, count)
    # Share of the other side below each value, from ranks.
    ranks = distributions.rankdata(np.concatenate([x, y]))
    wins = (ranks[: len(x)] - distributions.rankdata(x)) / len(y)
    losses = (ranks[len(x) :] - distributions.rankdata(y)) / len(x)
    area = float(wins.mean())
    if count < 2:
        return Interval(area, math.nan, math.nan, count)
    variance = float(wins.var(ddof=1) / len(x) + losses.var(ddof=1) / len(y))
    # Equal shares leave rounding, not variance.
    if variance < 1e-20:
        area = round(area, 12)
        return _beta_interval(area * count, count, confidence=confidence)
    half = special.ndtri(0.5 + confidence / 2) * math.sqrt(variance)
    half, centre = half / (area * (1 - area)), special.logit(area)
    low, high = special.expit([centre - half, centre + half])
    return Interval(area, float(low), float(high), count)


def _sample(values: ArrayLike) -> Vector:
    return np.asarray(values, dtype=np.float64).ravel()


def true_positive_rate(
    positives: ArrayLike,
    negatives: ArrayLike,
    fpr: float = 0.01,
    *,
    confidence: float = 0.95,
) -> Interval:
    """Share of positives found where at most a share `fpr` of the negatives is.

    The threshold is the negative of which at most ⌊fpr·n⌋ others lie above; what is
    larger is found. Clopper and Pearson's interval of the positives *at that
    threshold*: it leaves out that other negatives would have moved it, which matters
    where fpr·n is below about 10. With fpr·n < 1 the threshold is the largest
    negative.

    Returns:
        `n` counts the positives. NaN without negatives or with a NaN.
    """
    if not 0 <= fpr < 1:
        raise ValueError(f"a false positive rate lies in [0, 1), got {fpr}")
    x, y = _sample(positives), _sample(negatives)
    if not len(y) or np.isnan(x).any() or np.isnan(y).any():
        return Interval(math.nan, math.nan, math.nan, len(x))
    # 0.29 · 100 is 28.999…: a hair is added before cutting.
    allowed = math.floor(fpr * len(y) + 1e-9)
    threshold = np.sort(y)[len(y) - 1 - allowed]
    found = int(np.count_nonzero(x > threshold))
    return binomial_interval(found, len(x), confidence=confidence)


def chernoff_information(log_ratios_h: ArrayLike, log_ratios_0: ArrayLike) -> float:
    """C = max over s in [0, 1] of −log E₀[exp(s·L)], in nats a row, never below 0.

    With n rows the best test of H against 0 errs with about exp(−n·C). The mean is
    taken from both samples: E₀[e^{sL}] = E_H[e^{−(1−s)L}], weighted 1 − s and s, since
    the first is steady for small s and the second for large ones. Swapping the two
    (and the sign of L) changes nothing. The maximum of a noisy curve is a little too
    large: with n rows a side by the order of 1/n.

    Args:
        log_ratios_h: L = log p_H − log p_0 on rows that H made.
        log_ratios_0: L on rows that 0 made.

    Returns:
        NaN without rows on a side or with a NaN; infinite if the samples cannot both
        have been made by either.

    Source: Chernoff 1952.
    """
    h, null = _sample(log_ratios_h), _sample(log_ratios_0)
    if not (len(h) and len(null)) or np.isnan(h).any() or np.isnan(null).any():
        return math.nan

    def log_mean(s: float) -> float:
        from_null = math.log((1 - s) / len(null)) + np.logaddexp.reduce(s * null)
        from_h = math.log(s / len(h)) + np.logaddexp.reduce((s - 1) * h)
        return float(np.logaddexp(from_null, from_h))

    grid = np.linspace(0, 1, 41)[1:-1]
    best = float(grid[np.argmin([log_mean(float(s)) for s in grid])])
    if not math.isfinite(log_mean(best)):
        return max(0.0, -log_mean(best))
    around = (best - 1 / 40 + 1e-9, best + 1 / 40 - 1e-9)
    found = optimize.minimize_scalar(log_mean, bounds=around, method="bounded")
    return max(0.0, -float(found.fun), -log_mean(best))


def chernoff_from_one(log_ratios: ArrayLike, *, noise: float = 0.0) -> float:
    """Chernoff information of H against 0 from rows of H alone, nats a row.

    C = max over s of s·K(1) − K(s) with K(s) = log E_H[e^{−sL}]. K(1) is 0 in truth;
    keeping its estimate takes off the noise of the mean of L, so hypotheses that lie
    close together can be told from equal ones, and a filter's normalisation, which is
    one number. Convexity of K keeps it from below 0. For L of several nats e^{−L} is
    heavy-tailed: take `chernoff_information` there.

    Args:
        log_ratios: L = log p_H − log p_0 on rows that H made.
        noise: Variance of what L carries besides, nats²: rounding, say. Independent and
            normal it adds s²·noise/2 to K(s), which would count as information.

    Returns:
        NaN without rows or with a NaN; never below 0.
    """
    h = _sample(log_ratios)
    if not len(h) or np.isnan(h).any():
        return math.nan

    def cumulant(s: float) -> float:
        mean = float(np.logaddexp.reduce(-s * h)) - math.log(len(h))
        return mean - s * s * noise / 2

    at_one = cumulant(1.0)
    found = optimize.minimize_scalar(
        lambda s: cumulant(s) - s * at_one, bounds=(0.0, 1.0), method="bounded"
    )
    return max(0.0, -float(found.fun))


def stein_rows(divergence: float, error: float) -> float:
    """ln(1/error)/D: fewer rows than this no test needs to reach that error.

    Args:
        divergence: D = E_H[L], nats a row. Infinitely many rows if it is 0 or less.
        error: The rate of false alarms.

    Source: Stein's lemma, as in Cover and Thomas 2006, section 11.8.
    """
    return _rows(1.0, divergence, error)


def rows_to_identify(gaps: ArrayLike, kinds: int, error: float) -> float:
    """ln((K − 1)/error)/C: about the rows at which the true one of K can be named.

    A union bound over the K − 1 others, each as hard as the nearest pair.

    Args:
        gaps: Chernoff information of pairs, nats a row; NaN are left out, and so is
            the diagonal of a square table. C is the smallest.
        kinds: K, how many hypotheses there are.
        error: Probability of a wrong name.

    Returns:
        NaN if there are no pairs, infinite if a pair cannot be told apart.

    Source: Leang and Johnson 1997 (the smallest pairwise C rules).
    """
    table = np.array(gaps, dtype=np.float64)
    if table.ndim == 2 and table.shape[0] == table.shape[1]:
        np.fill_diagonal(table, np.nan)
    known = table[~np.isnan(table)]
    if kinds < 2 or not len(known):
        return math.nan
    return _rows(kinds - 1.0, float(known.min()), error)


def _rows(alternatives: float, nats: float, error: float) -> float:
    if not 0 < error < 1:
        raise ValueError(f"an error rate lies between 0 and 1, got {error}")
    if math.isnan(nats):
        return math.nan
    return math.log(alternatives / error) / nats if nats > 0 else math.inf
