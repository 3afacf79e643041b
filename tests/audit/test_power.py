"""Power against simulated runs of the very tests; the bound against Neyman and Pearson."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from undertow.audit.power import (
    SHARES,
    WANTED,
    Planted,
    audit_power,
    bound_power,
    detectable,
)
from undertow.findings import Power
from undertow.seeding import generator
from undertow.stats import paired_max_t, two_sample_max_t

ROWS = 200
CRITICAL = 2.6


def _normal(mean: float, size: int = 4000) -> np.ndarray:
    """Rows that scatter as N(mean, 1) does, with no noise of their own."""
    found: np.ndarray = mean + norm.ppf((np.arange(size) + 0.5) / size)
    return found


def _planted(gap: float, *, rows: int = ROWS) -> Planted:
    return Planted(_normal(gap), _normal(0.0), rows=rows, critical=CRITICAL)


def _simulated(gap: float, share: float, *, is_paired: bool) -> float:
    """How often the real test's statistic passes; a column is an audit of its own."""
    stream = generator(1, "audits", str(gap), str(share))
    shape = (ROWS, 1500)
    clean, audited = stream.normal(size=shape), stream.normal(size=shape)
    audited += gap * (stream.random(shape) < share)
    if is_paired:
        found = paired_max_t(audited - clean, permutations=1, seed=0)
    else:
        found = two_sample_max_t(audited, clean, permutations=1, seed=0)
    return float((np.abs(found.statistics) >= CRITICAL).mean())


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize(
    ("gap", "share"),
    [
        (0.25, 1.0),
        (0.4, 1.0),
        (0.8, 0.3),
        (0.8, 0.5),
        (1.5, 0.15),
        (2.0, 0.1),
        (-0.4, 0.8),
    ],
)
def test_power_is_that_of_the_real_test(
    gap: float, share: float, is_paired: bool
) -> None:
    assert 0.1 < _simulated(gap, share, is_paired=is_paired) < 0.99
    found = _planted(gap).power(share)
    assert found == pytest.approx(_simulated(gap, share, is_paired=is_paired), abs=0.06)


def test_power_grows_with_share_and_rows() -> None:
    arm = _planted(0.5)
    powers = [arm.power(share) for share in SHARES]
    assert powers == sorted(powers)
    assert powers[0] < 0.02
    assert powers[-1] > 0.95
    assert _planted(0.5, rows=400).power(0.5) > arm.power(0.5)


@pytest.mark.parametrize("gap", [0.3, 1.0])
def test_as_many_rows_as_are_needed_have_the_wanted_power(gap: float) -> None:
    needed = _planted(gap).rows_needed()
    assert _planted(gap, rows=math.ceil(needed)).power(1.0) == pytest.approx(
        WANTED, abs=0.03
    )


def test_a_small_reference_takes_power() -> None:
    """2,000 rows against 40 trusted ones are not 2,000 against 2,000."""
    few = Planted(
        _normal(0.4), _normal(0.0), rows=2000, critical=CRITICAL, reference=40
    )
    stream = generator(2, "few trusted")
    audited = stream.normal(size=(2000, 400)) + 0.4
    found = two_sample_max_t(
        audited, stream.normal(size=(40, 400)), permutations=1, seed=0
    )
    real = float((np.abs(found.statistics) >= CRITICAL).mean())
    assert 0.3 < real < 0.7
    assert few.power(1.0) == pytest.approx(real, abs=0.08)
    assert _planted(0.4, rows=2000).power(1.0) > 0.99
    assert few.rows_needed() == math.inf
    more = replace(few, reference=100)
    at = replace(more, rows=math.ceil(more.rows_needed()))
    assert at.power(1.0) == pytest.approx(WANTED, abs=0.03)


def test_without_a_difference_nothing_is_found() -> None:
    same = _normal(0.0)
    arm = Planted(same, same, rows=ROWS, critical=CRITICAL)
    assert arm.power(1.0) < 0.01
    assert arm.rows_needed() == math.inf
    assert detectable([arm]) is None


def test_values_without_spread_are_certain() -> None:
    ones, zeros = np.ones(5), np.zeros(5)
    assert Planted(ones, zeros, rows=9, critical=2.0).power(1.0) == 1.0
    assert Planted(zeros, zeros, rows=9, critical=2.0).power(1.0) == 0.0


def test_the_detectable_share_is_the_smallest_with_the_wanted_power() -> None:
    arms = [_planted(0.2), _planted(1.0)]
    share = detectable(arms)
    assert share is not None
    assert arms[1].power(share) >= WANTED > arms[1].power(0.97 * share)
    assert detectable([arms[1]]) == share
    assert detectable([]) is None


# ── the bound ────────────────────────────────────────────────────────────────────


def _ratios(shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Λ of N(shift, 1) against N(0, 1), on rows of either."""
    biased, clean = _normal(shift, 40_000), _normal(0.0, 40_000)
    return shift * biased - shift**2 / 2, shift * clean - shift**2 / 2


@pytest.mark.parametrize("shift", [0.1, 0.2, 0.3])
def test_all_rows_biased_the_bound_is_neyman_and_pearson_s(shift: float) -> None:
    found = bound_power(*_ratios(shift), rows=ROWS, share=1.0, alpha=0.01)
    wanted = norm.sf(norm.isf(0.01) - shift * math.sqrt(ROWS))
    assert found == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize("share", SHARES)
def test_no_arm_is_better_than_the_bound(share: float) -> None:
    biased, clean = _ratios(1.0)
    critical = float(norm.isf(0.01))
    arm = Planted(biased, clean, rows=ROWS, critical=critical)
    bound = bound_power(biased, clean, rows=ROWS, share=share, alpha=0.01)
    assert 0.009 < bound <= 1
    assert bound >= arm.power(share) - 0.002


def test_the_bound_is_what_the_best_test_reaches() -> None:
    """Its statistic, simulated: critical value from clean sets, power from mixed ones."""
    shift, share, rows = 1.5, 0.1, 200
    stream = generator(2, "sets")
    clean = stream.normal(size=(4000, rows))
    mixed = stream.normal(size=(4000, rows))
    mixed += shift * (stream.random((4000, rows)) < share)

    def statistic(values: np.ndarray) -> np.ndarray:
        ratios = shift * values - shift**2 / 2
        found: np.ndarray = np.log(1 - share + share * np.exp(ratios)).sum(1)
        return found

    critical = np.quantile(statistic(clean), 0.99)
    reached = float((statistic(mixed) >= critical).mean())
    found = bound_power(*_ratios(shift), rows=rows, share=share, alpha=0.01)
    assert found == pytest.approx(reached, abs=0.06)


# ── together ─────────────────────────────────────────────────────────────────────


def test_findings_hold_curve_share_and_bound() -> None:
    ratios = _ratios(0.5)
    arms = [_planted(0.2), _planted(0.6)]
    found = audit_power(arms, ratios=ratios, rows=ROWS, alpha=0.01, source="planted")
    assert [point.fraction for point in found.points] == list(SHARES)
    for point in found.points:
        assert point.power == max(arm.power(point.fraction) for arm in arms)
        assert point.bound is not None
        assert point.power is not None
        assert point.bound >= point.power
    assert found.detectable_fraction == detectable(arms)
    assert found.source == "planted"
    assert found.divergence_per_row == pytest.approx(0.125, abs=0.01)
    assert found.rows_bound == pytest.approx(math.log(100) / 0.125, rel=0.1)
    assert found.rows_needed == arms[1].rows_needed()
    assert Power.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "ratios",
    [None, (np.array([np.inf, 1.0]), np.array([0.0, -1.0]))],
    ids=["none", "inf"],
)
def test_what_is_unknown_is_null(ratios: tuple[np.ndarray, np.ndarray] | None) -> None:
    unknown = Planted(_normal(1.0), _normal(0.0), rows=9, critical=math.nan)
    found = audit_power([unknown], ratios=ratios, rows=9, alpha=0.01, source="s")
    assert {(point.power, point.bound) for point in found.points} == {(None, None)}
    assert found.rows_bound is found.divergence_per_row is found.rows_needed is None
    known = _planted(1.0)
    both = audit_power([unknown, known], ratios=ratios, rows=9, alpha=0.01, source="s")
    assert [p.power for p in both.points] == [known.power(share) for share in SHARES]
    assert both.rows_needed == known.rows_needed()
    none = audit_power([], ratios=ratios, rows=9, alpha=0.01, source="s")
    assert none.points[0].power is None
