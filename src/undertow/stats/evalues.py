"""E-values: tests that hold at any time of stopping, from running log ratios.

A likelihood ratio of sampled data has mean 1 if the denominator made them, so a
running product is a martingale and by Ville's inequality reaches 1/ε with
probability at most ε, whenever one looks. Everything is in nats. Knows nothing of
how the ratios were made; they have to be of the exact sampling distribution.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import ArrayLike

from undertow.stats.multiplicity import SMALLEST

FRACTIONS = (1.0, 0.3, 0.1, 0.03)


def log_evalue_path(
    log_ratios: ArrayLike, *, fractions: Sequence[float] = FRACTIONS
) -> Float64[np.ndarray, " row"]:
    """Running log e-value against the base, for a share of the rows unknown.

    After n rows it is log mean_{h, f} Π_{i ≤ n} (1 − f + f·exp(L_ih)). Each product
    is a martingale under the base, for hypothesis h having made a share f of the
    rows, and so is their mean: at most ε of clean sets ever reach log(1/ε).

    Args:
        log_ratios: L [row, hypothesis], log p_h − log p_0 in nats. A hypothesis that
            is no longer scored keeps its e-value: give 0 for the rows that it
            skips, provided that only earlier rows decided so.
        fractions: Shares f in (0, 1].

    Returns:
        One value a row, in the rows' order. NaN from the first NaN on.

    Source: Ville 1939; Ramdas, Grünwald, Vovk and Shafer 2023.
    """
    table = _table(log_ratios)
    wrong = [f for f in fractions if not 0 < f <= 1]
    if wrong or not len(fractions):
        raise ValueError(f"fractions lie in (0, 1], got {list(fractions)}")
    if not table.shape[1]:
        return np.full(len(table), np.nan)
    path = np.full(len(table), -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for f in fractions:
            factors = np.logaddexp(np.log1p(-f), math.log(f) + table)
            products = np.cumsum(factors, axis=0)
            path = np.logaddexp(path, np.logaddexp.reduce(products, axis=1))
    return path - math.log(table.shape[1] * len(fractions))


def _table(log_ratios: ArrayLike) -> Float64[np.ndarray, "row hypothesis"]:
    table = np.asarray(log_ratios, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"expected [row, hypothesis], got {table.ndim} axes")
    return table


def evalue_p(path: ArrayLike) -> float:
    """The p-value of a path of log e-values: min(1, exp(−max path)), never 0.

    It holds at any time of stopping. NaN without rows, or with a NaN on the path.
    """
    values = np.asarray(path, dtype=np.float64).ravel()
    if not len(values):
        return math.nan
    top = max(0.0, float(values.max())) if not np.isnan(values).any() else math.nan
    return math.nan if math.isnan(top) else max(math.exp(-top), SMALLEST)


def first_crossing(path: ArrayLike, error: float) -> int | None:
    """Rows after which a path of log e-values first reaches log(1/error), or None.

    Raises:
        ValueError: `error` is not between 0 and 1.
    """
    values = np.asarray(path, dtype=np.float64).ravel()
    crossed = np.flatnonzero(values >= _threshold(error))
    return int(crossed[0]) + 1 if len(crossed) else None


def _threshold(error: float) -> float:
    if not 0 < error < 1:
        raise ValueError(f"an error rate lies between 0 and 1, got {error}")
    return math.log(1 / error)


def pair_totals(
    log_ratios: ArrayLike,
) -> Float64[np.ndarray, "rival hypothesis"]:
    """Σ_i (L_i,rival − L_i,hypothesis) for each pair, over rows that scored both.

    Totals of batches add up to those of all rows. NaN marks a row on which a
    hypothesis was not scored: a pair gains nothing there, which freezes the totals of
    a hypothesis that has left the race.

    Args:
        log_ratios: L [row, hypothesis] in nats, all against the same denominator.
    """
    table = _table(log_ratios)
    with np.errstate(invalid="ignore"):
        totals = [np.nansum(rival[:, None] - table, axis=0) for rival in table.T]
    return np.array(totals).reshape(table.shape[1], table.shape[1])


def beaten(totals: ArrayLike, *, error: float) -> Bool[np.ndarray, " hypothesis"]:
    """Which hypotheses of a race are refuted by the others.

    Hypothesis h is beaten once mean_{g ≠ h} exp(totals[g, h]) ≥ 1/error. If h made
    the rows, each term is a martingale that starts at 1, and so is their mean:
    whoever made the rows is *ever* beaten with probability at most `error`, however
    often one looks and whenever rivals leave. The leader is chosen by the data, which
    is why h meets the mean of all K − 1 rivals; a leader alone has to be
    ln((K − 1)/error) nats ahead. All K(K − 1) pairs are looked at, but only those of
    the one hypothesis that is true can err, so no further factor K is due. Nothing
    is promised if none of the hypotheses made the rows, and of two equal ones neither
    is beaten by the other.

    Args:
        totals: [rival, hypothesis] running sums of log ratios, in nats, from
            `pair_totals`; all that started, those beaten earlier too. The diagonal
            is not read. NaN counts as no evidence.
        error: Probability with which the true hypothesis may be lost.
    """
    table = np.array(totals, dtype=np.float64)
    kinds = len(table)
    if table.shape != (kinds, kinds):
        raise ValueError(f"expected [rival, hypothesis], got shape {table.shape}")
    threshold = _threshold(error)
    table[np.isnan(table)] = -np.inf
    np.fill_diagonal(table, -np.inf)
    evidence = np.logaddexp.reduce(table, axis=0) - math.log(max(kinds - 1, 1))
    refuted: Bool[np.ndarray, " hypothesis"] = evidence >= threshold
    return refuted
