"""From sums to a verdict: whether the rows differ, where most, and what was missed.

Knows nothing of rows: everything here is computed from sums. It says *whether*, at an
error rate; *what* takes likelihoods of rows, and so an audit.
"""

import math
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats as distributions

from undertow.audit.census_plan import Plan
from undertow.audit.census_settings import CensusSettings
from undertow.audit.reference import GREEDY
from undertow.audit.sums import Compared, Side, Sums
from undertow.findings import CensusDirection
from undertow.stats.flip_sums import (
    FlipTest,
    SideSums,
    paired_flips,
    two_sample_flips,
)

FEWEST = 16
"""Different rows below which nothing is said."""
_POWER = 0.8
_RIDGE = 0.01
_LENGTHS = 4.0  # z of the lengths from which on a difference is mentioned
# Partners that repeat while rows do not: 7 are chance in one of 2⁷ sets where both repeat
# alike, and fewer move no mean that is over a hundred times as many rows.
_REPEATS, _SHARE = 7, 0.01
_ONCE = (
    "the base's answers repeat and the rows do not: either their copies were taken out, so "
    "that what is left is less likely than what the base draws, or something that repeats "
    "itself less wrote them; sums do not tell which"
)

Table = np.ndarray[Any, np.dtype[np.float64]]
Draws = np.ndarray[Any, np.dtype[np.float64]]
_NO_REFERENCE = (
    "without a reference neither a shift nor its absence can be claimed; let the base be "
    "sampled, or give rows that you trust (--reference FILE)"
)


class CensusTest(NamedTuple):
    """What the sums say.

    Attributes:
        verdict: The word.
        reasons: What it rests on.
        warnings: What is to be thought of.
        p_value: Of all columns; NaN if there is none.
        z: [layer, direction], over the error that copies leave; the test knows it
            through its draws.
        adjusted: [layer, direction].
        whitened: [layer, direction].
        effective: Different rows that would tell as much.
        detectable_fraction: See `Census`.
        detectable_shift: See `Census`.
        length_z: Of the lengths.
    """

    verdict: Literal["shift", "none", "inconclusive"]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    p_value: float
    z: Table
    adjusted: Table
    whitened: Table
    effective: float
    detectable_fraction: float
    detectable_shift: float
    length_z: float


def judge_sums(
    plan: Plan, sums: Sums, trusted: Sums | None, *, settings: CensusSettings
) -> CensusTest:
    """Tests the sums of the audited rows, against those of trusted rows in tier B."""
    shape = sums.compared.total.shape
    tested = _tested(sums, trusted, plan)
    adjusted = tested.max_t.adjusted.reshape(shape)
    copies = np.maximum(tested.spread, 1.0)
    z = (tested.max_t.statistics / copies).reshape(shape)
    effective = effective_rows(sums.compared, centred=plan.measuring.tier != "A")
    if trusted is not None:
        effective = min(effective, effective_rows(trusted.compared, centred=True))
    shift, fraction = _detectable(
        plan, sums, trusted, tested.max_t.draws, copies.reshape(shape), settings
    )
    length = _length_z(sums, trusted, plan)
    p_value = tested.max_t.p_value
    verdict, reasons = _verdict(p_value, effective, sums, plan, settings)
    return CensusTest(
        verdict, reasons, _warnings(plan, sums, length), p_value, z, adjusted,
        _whitened(sums, trusted, plan), effective, fraction, shift, length,
    )  # fmt: skip


def _tested(sums: Sums, trusted: Sums | None, plan: Plan) -> FlipTest:
    if plan.measuring.tier == "A":
        return paired_flips(_side(sums.compared))
    if trusted is not None:
        return two_sample_flips(_side(sums.compared), _side(trusted.compared))
    return paired_flips(replace(_side(sums.compared), count=0))


def _side(sums: Compared) -> SideSums:
    return SideSums(
        sums.count, sums.total.ravel(), sums.square.ravel(),
        sums.flipped.reshape(len(sums.flipped), -1), sums.signs,
    )  # fmt: skip


def effective_rows(sums: Compared, *, centred: bool) -> float:
    """How many different rows would vary as these do: n, or fewer with copies.

    Under its signs a sum of n different rows varies by Σx², with copies by more: the
    ratio, averaged over columns, is the multiplicity that counts. NaN if nothing varies.

    Args:
        sums: Of rows or pairs.
        centred: Whether the mean is taken off: not for pairs.
    """
    if not sums.count:
        return 0.0
    mean = sums.total / sums.count * centred
    flipped = sums.flipped - sums.signs[:, None, None] * mean
    square = sums.square - sums.count * mean**2
    known = square > 1e-9 * np.maximum(sums.square, 1)
    if not known.any():
        return math.nan
    ratio = (flipped**2).mean(axis=0)[known] / square[known]
    return float(sums.count / ratio.mean())


def _verdict(
    p_value: float, effective: float, sums: Sums, plan: Plan, settings: CensusSettings
) -> tuple[Literal["shift", "none", "inconclusive"], tuple[str, ...]]:
    if plan.measuring.tier == "C":
        greedy = plan.measuring.sampler.temperature == 0
        return "inconclusive", (GREEDY if greedy else _NO_REFERENCE,)
    if not effective >= FEWEST:
        count = "no" if math.isnan(effective) else f"about {effective:.0f}"
        few = f"{sums.own.count} rows are worth {count} different ones"
        return "inconclusive", (f"{few}; give {FEWEST} or more",)
    if math.isnan(p_value):
        return "inconclusive", ("no column of the sums varies",)
    if p_value <= settings.alpha:
        differ = (
            f"the reference does not have the rows' mean scores (p = {p_value:.2g})"
        )
        if stand_once(sums):
            return "inconclusive", (_ONCE, differ)
        return "shift", (differ,)
    same = (
        "no direction at any block has a mean score that differs from the reference's"
    )
    return "none", (f"{same} (p = {p_value:.2g})",)


def stand_once(sums: Sums) -> bool:
    """Whether partners repeat on their prompts and rows, in the same batches, do not.

    Then the two of a pair are not exchangeable: somebody took the copies of rows out.
    """
    rows, partners = sums.own.repeats, sums.partner.repeats
    few = rows == 0 and partners > _SHARE * sums.partner.count
    return few or partners >= _REPEATS + 4 * rows


def _warnings(plan: Plan, sums: Sums, length: float) -> tuple[str, ...]:
    found = list(plan.notes)
    if abs(length) >= _LENGTHS:
        found.append(
            f"the completions' lengths differ too (z = {length:+.1f}): a shift may be "
            "that of lengths alone; an audit compares within lengths"
        )
    if stand_once(sums):
        found.append(
            f"{_ONCE}: {sums.partner.repeats} partners and {sums.own.repeats} rows stood "
            "in their batch before; an audit draws such partners again"
        )
    left = sum(sums.skipped.values())
    if left > 0.01 * (left + sums.own.count):
        found.append(
            f"{left} rows are not in the sums (see data.skipped): nothing is said of them"
        )
    return tuple(found)


def _variance(side: Side | Compared) -> Table:
    """[layer, direction], in steps²; NaN for no rows."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.divide(side.total, side.count)
        found: Table = np.divide(side.square, side.count) - mean**2
    return found


def _detectable(
    plan: Plan,
    sums: Sums,
    trusted: Sums | None,
    draws: Draws,
    copies: Table,
    settings: CensusSettings,
) -> tuple[float, float]:
    """The smallest shift, in standard deviations, and share that 80 % power finds.

    A share f of rows that were steered by v at strength a moves the mean score along v
    by f·a·Var(s) to first order (the score's mean under a is its information times a).
    It is found with 80 % power once that is (c + 0.84·m)·se, c the largest statistic of
    the null at the error rate, which holds what copies add, se = √Σd²/n, and m how much
    wider copies make the statistic.
    """
    if not len(draws) or not sums.own.count:
        return math.nan, math.nan
    needed = float(distributions.norm.ppf(_POWER)) * copies
    needed = needed + float(np.quantile(draws, 1 - settings.alpha, method="higher"))
    grid = plan.measuring.grid
    if plan.measuring.tier == "A":
        error = np.sqrt(sums.compared.square) * grid.pair_step / sums.compared.count
        side: Side = sums.partner
    else:
        assert trusted is not None
        side = trusted.own
        error = grid.step * np.sqrt(
            _variance(sums.own) / sums.own.count + _variance(side) / side.count
        )
    information = _variance(side) * grid.step**2
    strength = settings.dose * np.asarray(plan.norms)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = needed * error / (strength * information)
        in_spreads = needed * error / np.sqrt(information)
    named = list(plan.measuring.named)
    best = np.nanmin(np.where(share > 0, share, np.nan)[:, named], axis=0)
    fraction = float(np.median(best)) if len(best) else math.nan
    known = in_spreads[np.isfinite(in_spreads)]
    shift = float(np.median(known)) if len(known) else math.nan
    return shift, fraction if fraction <= 1 else math.nan


def _worth(side: Compared, *, centred: bool) -> float:
    """Different rows that a mean rests on: all, or fewer with copies."""
    found = effective_rows(side, centred=centred)
    return float(side.count) if math.isnan(found) else min(found, float(side.count))


def _length_z(sums: Sums, trusted: Sums | None, plan: Plan) -> float:
    def moments(side: Compared, *, centred: bool) -> tuple[float, float]:
        mean = side.tokens / side.count
        square = max(0.0, side.tokens_square / side.count - mean**2)
        return mean, square / _worth(side, centred=centred)

    tier, own = plan.measuring.tier, sums.compared
    if not own.count or tier == "C" or (trusted and not trusted.own.count):
        return math.nan
    mean, error = moments(own, centred=tier != "A")
    if trusted is not None:
        other, more = moments(trusted.compared, centred=True)
        mean, error = mean - other, error + more
    return mean / math.sqrt(error) if error > 0 else (0.0 if mean == 0 else math.nan)


def _whitened(sums: Sums, trusted: Sums | None, plan: Plan) -> Table:
    """[layer, direction]: z of each direction with the block's others held fixed.

    Standardised, b = (R + 0.01)⁻¹ m with R the second moments and m the means, and z is
    b over its own error. Traits are centred over their family, so R alone has no inverse.
    """
    own = sums.compared
    shape = own.total.shape
    found = np.full(shape, np.nan)
    nothing = trusted is not None and not trusted.own.count
    if not own.count or nothing or plan.measuring.tier == "C":
        return found
    mean, moment = own.total / own.count, own.moments / own.count
    paired = plan.measuring.tier == "A"
    mine = 1 / _worth(own, centred=not paired)
    weight = mine
    if not paired:
        moment = moment - mean[:, :, None] * mean[:, None, :]
    if trusted is not None:
        other = trusted.compared
        there = other.total / other.count
        second = other.moments / other.count - there[:, :, None] * there[:, None, :]
        theirs = 1 / _worth(other, centred=True)
        mean, weight = mean - there, mine + theirs
        moment = (moment * mine + second * theirs) / weight
    for layer in range(shape[0]):
        spread = np.sqrt(np.diagonal(moment[layer]))
        at = np.flatnonzero(spread > 1e-6)
        if not len(at):
            continue
        r = moment[layer][np.ix_(at, at)] / np.outer(spread[at], spread[at])
        inverse = np.linalg.inv(r + _RIDGE * np.eye(len(at)))
        change = inverse @ (mean[layer, at] / spread[at])
        error = np.sqrt(np.diagonal(inverse @ r @ inverse) * weight)
        found[layer, at] = change / error
    return found


def directions_of(plan: Plan, test: CensusTest) -> list[CensusDirection]:
    """One entry a direction, for the findings."""
    return [
        CensusDirection(
            name=name, role=role, z=[known(v) for v in test.z[:, k]],
            adjusted_p=_least(test.adjusted[:, k]),
            whitened=[known(v) for v in test.whitened[:, k]],
        )
        for k, (name, role) in enumerate(zip(plan.names, plan.roles, strict=True))
    ]  # fmt: skip


def largest(test: CensusTest) -> tuple[int, int] | None:
    """Layer (a place) and direction of the largest statistic."""
    size = np.abs(test.z)
    if np.isnan(size).all():
        return None
    layer, direction = np.unravel_index(int(np.nanargmax(size)), size.shape)
    return int(layer), int(direction)


def known(value: float) -> float | None:
    """The value, or None if it could not be computed."""
    return float(value) if math.isfinite(value) else None


def _least(values: Table) -> float | None:
    fine = values[~np.isnan(values)]
    return float(fine.min()) if len(fine) else None
