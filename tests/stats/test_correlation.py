"""Correlations by hand, against SciPy, and by how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from undertow.seeding import generator
from undertow.stats import linear_fit, rank_correlation

X = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
Y = [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]


def test_ranks_by_hand() -> None:
    # Every rank is one off: ρ = 1 − 6·6/(6·35) = 29/35.
    found = rank_correlation(X, Y)
    rho = 29 / 35
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 3)
    assert found.interval.mean == pytest.approx(rho)
    assert found.interval.low == pytest.approx(math.tanh(math.atanh(rho) - half))
    assert found.interval.high == pytest.approx(math.tanh(math.atanh(rho) + half))
    assert found.interval.n == 6


def test_only_ranks_count_and_ties_share_theirs() -> None:
    steep = rank_correlation(np.exp(X), Y)
    assert steep == rank_correlation(X, Y)
    tied = [1.0, 1.0, 2.0, 3.0, 3.0, 3.0]
    assert rank_correlation(tied, Y).interval.mean == pytest.approx(
        scipy_stats.spearmanr(tied, Y).statistic
    )


def test_the_permutation_p_is_that_of_all_orders() -> None:
    # Of the 24 orders of four ranks two have |ρ| = 1.
    found = rank_correlation([1, 2, 3, 4], [1, 2, 3, 4], permutations=20_000)
    assert found.p_value == pytest.approx(2 / 24, abs=0.01)
    assert found.p_value >= 1 / 20_001
    assert found.interval.mean == 1
    assert math.isnan(found.interval.low)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 1, 1, 1], [1, 2, 3, 4]),
        ([1, 2, 3, math.nan], [1, 2, 3, 4]),
        ([], []),
    ],
)
def test_what_cannot_be_computed_is_nan(x: list[float], y: list[float]) -> None:
    found = rank_correlation(x, y)
    assert math.isnan(found.interval.mean)
    assert math.isnan(found.p_value)
    line = linear_fit(x, y)
    assert all(math.isnan(each) for each in line)


def test_unequal_sides_are_refused() -> None:
    for function in (rank_correlation, linear_fit):
        with pytest.raises(ValueError, match="pairs: 2 numbers against 3"):
            function([1, 2], [1, 2, 3])


def test_the_interval_of_ranks_holds_the_truth() -> None:
    stream, held = generator(0, "correlated"), []
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a normal pair with r 0.6
    for _ in range(400):
        x = stream.normal(size=24)
        y = 0.6 * x + 0.8 * stream.normal(size=24)
        found = rank_correlation(x, y, permutations=1).interval
        held.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_a_line_against_scipy() -> None:
    stream = generator(1, "line")
    x = stream.uniform(size=12)
    y = 3 - 2 * x + 0.3 * stream.normal(size=12)
    found, scipy = linear_fit(x, y), scipy_stats.linregress(x, y)
    assert found.slope == pytest.approx(scipy.slope)
    assert found.correlation == pytest.approx(scipy.rvalue)


def test_a_bend_is_found_by_hand() -> None:
    x = np.array([0.0, 1, 2, 3, 4, 5])
    assert linear_fit(x, 1 + x + 0.5 * x**2).curvature == pytest.approx(0.5)
    assert linear_fit(x, 1 + x).curvature == pytest.approx(0, abs=1e-9)
    two = linear_fit([0, 0, 1, 1], [0, 1, 2, 3])
    assert math.isnan(two.curvature), "two places show no bend"
    assert two.slope == pytest.approx(2)
