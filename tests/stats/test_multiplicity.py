"""Many p-values: by hand, against SciPy, and by how often a null is refused."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from undertow.seeding import generator
from undertow.stats import (
    benjamini_hochberg,
    benjamini_yekutieli,
    cauchy_combination,
    conformal_p_values,
    ks_uniform,
)

# ---- Benjamini and Hochberg, Benjamini and Yekutieli


@settings(derandomize=True, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_both_are_scipys(p_values: list[float]) -> None:
    reference = scipy_stats.false_discovery_control(p_values)
    assert benjamini_hochberg(p_values) == pytest.approx(reference)
    reference = scipy_stats.false_discovery_control(p_values, method="by")
    assert benjamini_yekutieli(p_values) == pytest.approx(reference)


def test_benjamini_hochberg_by_hand() -> None:
    # Sorted .01 .02 .04 .5: ×4/1, ×4/2, ×4/3, ×1 → .04 .04 .0533 .5.
    found = benjamini_hochberg([0.5, 0.01, 0.04, 0.02])
    assert found == pytest.approx([0.5, 0.04, 0.16 / 3, 0.04])
    assert benjamini_hochberg([]).shape == (0,)


def test_benjamini_yekutieli_by_hand() -> None:
    # 1 + 1/2 + 1/3 + 1/4 = 25/12 times the above.
    found = benjamini_yekutieli([0.5, 0.01, 0.04, 0.02])
    assert found == pytest.approx([1.0, 1 / 12, 1 / 9, 1 / 12])
    assert benjamini_yekutieli([]).shape == (0,)


def test_a_nan_is_no_test() -> None:
    found = benjamini_hochberg([0.01, math.nan, 0.5])
    assert found == pytest.approx([0.02, math.nan, 0.5], nan_ok=True)
    found = benjamini_yekutieli([0.01, math.nan, 0.5])
    assert found == pytest.approx([0.03, math.nan, 0.75], nan_ok=True)


def test_a_p_value_lies_between_0_and_1() -> None:
    with pytest.raises(ValueError, match=r"a p-value lies in \[0, 1\], got 1\.5"):
        benjamini_hochberg([0.5, 1.5])
    with pytest.raises(ValueError, match=r"got -0\.5"):
        cauchy_combination([-0.5])


# ---- Cauchy combination


def test_cauchy_by_hand() -> None:
    # cot(π/4) = 1 and cot(π/2) = 0: the mean is 1/2, arccot(1/2)/π = 0.352416.
    assert cauchy_combination([0.25, 0.5]) == pytest.approx(0.3524164, abs=1e-7)
    # Weights 3 and 1: 3/4, arccot(3/4)/π = 0.295167.
    assert cauchy_combination([0.25, 0.5], [3, 1]) == pytest.approx(0.2951672, abs=1e-7)


@settings(derandomize=True, max_examples=40)
@given(st.lists(st.floats(0.001, 0.98), min_size=1, max_size=12))
def test_cauchy_is_the_sum_of_cauchy_variables(p_values: list[float]) -> None:
    total = np.mean(scipy_stats.cauchy.isf(p_values))
    found = cauchy_combination(p_values)
    assert found == pytest.approx(scipy_stats.cauchy.sf(total))
    assert found >= min(p_values) - 1e-12


@pytest.mark.parametrize("p", [1e-300, 1e-17, 0.03, 0.5, 0.995, 1.0])
def test_one_p_value_or_many_alike_stay_what_they_are(p: float) -> None:
    assert cauchy_combination([p]) == pytest.approx(p, rel=1e-9)
    assert cauchy_combination([p, math.nan, p, p]) == pytest.approx(p, rel=1e-9)


def test_a_p_value_of_one_does_not_outweigh_the_others() -> None:
    # Mean of cot(π/1000) = 318.3 and cot(0.99 π) = −31.8: 143.2, so p = 0.0022.
    assert cauchy_combination([0.001, 1.0]) == pytest.approx(0.00222, abs=1e-5)
    assert cauchy_combination([0.001, 1.0]) == cauchy_combination([0.001, 0.9999])


def test_the_smallest_p_values_are_kept_apart() -> None:
    assert cauchy_combination([1e-200, 0.5]) == pytest.approx(2e-200)
    assert cauchy_combination([0.0, 0.5]) >= sys.float_info.min


def test_cauchy_leaves_nan_out_with_its_weight() -> None:
    found = cauchy_combination([0.25, math.nan, 0.5], [3, 100, 1])
    assert found == cauchy_combination([0.25, 0.5], [3, 1])
    assert math.isnan(cauchy_combination([math.nan, math.nan]))
    assert math.isnan(cauchy_combination([]))
    assert math.isnan(cauchy_combination([0.1, math.nan], [0, 1]))


def test_cauchy_weights_pair_and_are_not_negative() -> None:
    with pytest.raises(ValueError, match="2 p-values and 1 weights"):
        cauchy_combination([0.1, 0.2], [1])
    with pytest.raises(ValueError, match=r"weights are not negative, got \[1\.0, -1"):
        cauchy_combination([0.1, 0.2], [1, -1])


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
def test_cauchy_holds_its_level_under_dependence(correlation: float) -> None:
    stream = generator(0, "cauchy")
    shared = stream.normal(size=(4000, 1))
    own = stream.normal(size=(4000, 6))
    z = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    found = [cauchy_combination(p) for p in scipy_stats.norm.sf(z)]
    # 1 % of 4000 is 40, with a spread of 6.3.
    assert 15 < np.sum(np.array(found) <= 0.01) < 60


# ---- conformal p-values


def test_conformal_by_hand() -> None:
    # Of 4 none, two (a tie counts), all: (1 + 0, 2, 4)/5.
    found = conformal_p_values([9, 3, -1], [1, 2, 3, 4])
    assert found == pytest.approx([1 / 5, 3 / 5, 1.0])


def test_conformal_without_numbers() -> None:
    found = conformal_p_values([1.0, math.nan], [0.0, math.nan, 2.0])
    assert found == pytest.approx([2 / 3, math.nan], nan_ok=True)
    assert np.isnan(conformal_p_values([1.0], [])).all()
    assert np.isnan(conformal_p_values([1.0], [math.nan])).all()
    assert conformal_p_values([], [1.0]).shape == (0,)


def test_conformal_p_values_are_uniform_for_rows_like_the_calibration() -> None:
    stream = generator(0, "conformal")
    found = [
        conformal_p_values(stream.exponential(size=1), stream.exponential(size=19))[0]
        for _ in range(4000)
    ]
    for k in (1, 2, 10):
        spread = math.sqrt(k / 20 * (1 - k / 20) / 4000)
        share = np.mean(np.array(found) <= k / 20 + 1e-9)
        assert share == pytest.approx(k / 20, abs=4 * spread)


# ---- uniformity


def test_ks_by_hand() -> None:
    # Steps at .1 .2 .9 reach 1/3, 2/3, 1: farthest at .2, by 2/3 − .2.
    found = ks_uniform([0.9, 0.1, 0.2, math.nan])
    assert found.statistic == pytest.approx(2 / 3 - 0.2)
    assert found.p_value == pytest.approx(scipy_stats.kstwo.sf(2 / 3 - 0.2, 3))


def test_ks_tells_uniform_from_squares() -> None:
    p = generator(0, "uniform").uniform(size=500)
    assert ks_uniform(p).p_value > 0.05
    assert ks_uniform(p**2).p_value < 1e-6
    assert ks_uniform(np.full(5000, 1e-9)).p_value >= sys.float_info.min
    assert all(map(math.isnan, ks_uniform([math.nan])))
