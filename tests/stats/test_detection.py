"""Rates of detection by hand, against SciPy, by coverage, and on Gaussians."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from undertow.seeding import generator
from undertow.stats import (
    auroc,
    binomial_interval,
    chernoff_from_one,
    chernoff_information,
    rows_to_identify,
    stein_rows,
    true_positive_rate,
)

SCORES = st.lists(st.integers(0, 6), min_size=2, max_size=12)

# ---- shares


@settings(derandomize=True, max_examples=40)
@given(st.integers(0, 30), st.integers(1, 30))
def test_binomial_is_scipys(successes: int, n: int) -> None:
    successes = min(successes, n)
    reference = scipy_stats.binomtest(successes, n).proportion_ci(0.9)
    found = binomial_interval(successes, n, confidence=0.9)
    assert found.mean == successes / n
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=1e-9)
    assert found.n == n


def test_binomial_at_the_edges() -> None:
    # 0 of n: the upper bound solves (1 − p)ⁿ = 0.025.
    none = binomial_interval(0, 200)
    assert (none.mean, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 200))
    every = binomial_interval(200, 200)
    assert (every.mean, every.high) == (1, 1)
    assert every.low == pytest.approx(0.025 ** (1 / 200))
    nothing = binomial_interval(0, 0)
    assert nothing.n == 0
    assert all(map(math.isnan, nothing[:3]))
    with pytest.raises(ValueError, match="3 successes of 2"):
        binomial_interval(3, 2)


# ---- AUROC


@settings(derandomize=True, max_examples=60)
@given(SCORES, SCORES)
def test_auroc_counts_pairs(positives: list[int], negatives: list[int]) -> None:
    pairs = list(itertools.product(positives, negatives))
    wins = sum((p > n) + 0.5 * (p == n) for p, n in pairs)
    found = auroc(positives, negatives)
    assert found.mean == pytest.approx(wins / len(pairs))
    assert 0 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= 1
    assert found.n == min(len(positives), len(negatives))
    # Names of the sides swapped: the complement.
    other = auroc(negatives, positives)
    assert (1 - other.high, 1 - other.low) == pytest.approx((found.low, found.high))


def test_delong_by_hand() -> None:
    # 3 beats both of 1 2, 1.5 beats one, 4 both: V = 1 ½ 1, W = 2/3 … of 1: all 3 lie
    # above, of 2: two. Mean 5/6; var V = 1/12, var W = 1/18; 1/36 + 1/36 = 1/18.
    found = auroc([3, 1.5, 4], [1, 2])
    half = 1.959964 * math.sqrt(1 / 18) / (5 / 36)
    centre = math.log(5)
    assert found.mean == pytest.approx(5 / 6)
    assert found.low == pytest.approx(1 / (1 + math.exp(half - centre)), rel=1e-5)
    assert found.high == pytest.approx(1 / (1 + math.exp(-half - centre)), rel=1e-5)


def test_only_the_order_of_scores_matters() -> None:
    stream = generator(0, "auroc")
    x, y = stream.normal(1, 1, 30), stream.normal(0, 2, 20)
    assert auroc(np.exp(x), np.exp(y)) == auroc(x, y)
    assert auroc(stream.permutation(x), y) == pytest.approx(auroc(x, y))


def test_perfect_separation_is_not_certainty() -> None:
    found = auroc([5, 6, 7, 8], [1, 2, 3])
    assert (found.mean, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 3))
    worst = auroc([1, 2, 3], [5, 6, 7, 8])
    assert (worst.mean, worst.low) == (0, 0)
    assert worst.high == pytest.approx(1 - 0.025 ** (1 / 3))
    tied = auroc([1, 1, 1], [1, 1])
    assert tied.mean == 0.5
    assert tied.low < 0.2
    assert tied.high > 0.8


def test_auroc_of_too_few() -> None:
    one = auroc([2.0], [1.0, 3.0])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    for positives, negatives in [([], [1.0]), ([1.0, math.nan], [1.0, 2.0])]:
        assert all(map(math.isnan, auroc(positives, negatives)[:3]))
    assert auroc([math.inf, 2, 3], [-math.inf, 1, 2]).mean == pytest.approx(8.5 / 9)


@pytest.mark.parametrize("gap", [0.0, 1.0, 2.5])
def test_auroc_covers(gap: float) -> None:
    stream = generator(0, "coverage")
    truth = scipy_stats.norm.cdf(gap / math.sqrt(2))
    found = [
        auroc(stream.normal(gap, 1, 40), stream.normal(0, 1, 60)) for _ in range(1000)
    ]
    covered = np.mean([i.low <= truth <= i.high for i in found])
    assert 0.925 < covered < 0.985


# ---- rate at a false positive rate


def test_true_positive_rate_by_hand() -> None:
    # Of 200 negatives 0 … 199 two may lie above: the threshold is 197.
    negatives = list(range(200))
    found = true_positive_rate([197, 197.5, 300, 0], negatives, 0.01)
    assert found == binomial_interval(2, 4)
    # With 50 none may: the threshold is the largest.
    assert true_positive_rate([49, 50], list(range(50))).mean == 0.5
    # 0.29 · 100 are 29 although the product is a little less.
    assert true_positive_rate([70.5], list(range(100)), 0.29).mean == 1
    assert true_positive_rate([70], list(range(100)), 0.29).mean == 0


@settings(derandomize=True, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0, 0.9))
def test_negatives_themselves_are_found_at_most_at_that_rate(
    negatives: list[int], fpr: float
) -> None:
    assert true_positive_rate(negatives, negatives, fpr).mean <= fpr + 1e-9


def test_true_positive_rate_of_too_few() -> None:
    assert math.isnan(true_positive_rate([1.0], []).mean)
    assert math.isnan(true_positive_rate([], [1.0]).mean)
    assert math.isnan(true_positive_rate([math.nan], [1.0]).mean)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\), got 1\.0"):
        true_positive_rate([1.0], [1.0], 1.0)


# ---- bounds


def gaussian(gap: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Log ratios of N(gap, 1) against N(0, 1), at n quantiles of either."""
    y = scipy_stats.norm.ppf((np.arange(n) + 0.5) / n)
    return (y + gap) * gap - gap**2 / 2, y * gap - gap**2 / 2


@pytest.mark.parametrize("gap", [0.3, 1.0, 2.0])
def test_chernoff_of_gaussians(gap: float) -> None:
    # −log E₀ e^{sL} = s(1 − s) gap²/2, largest at s = 1/2.
    found = chernoff_information(*gaussian(gap, 20_000))
    assert found == pytest.approx(gap**2 / 8, rel=1e-3)


def test_chernoff_by_hand() -> None:
    # Two outcomes, 3/4 1/4 under H and the reverse under 0, in their very shares:
    # E₀ √ratio = 2 √(3/16) = √3/2, by symmetry at s = 1/2.
    a = math.log(3)
    found = chernoff_information([a, a, a, -a], [a, -a, -a, -a])
    assert found == pytest.approx(-math.log(math.sqrt(3) / 2))


def test_chernoff_where_the_best_exponent_is_not_a_half() -> None:
    # Outcomes 0.5 0.5 under H, 0.9 0.1 under 0, as frequencies of 10.
    up, down = math.log(0.5 / 0.1), math.log(0.5 / 0.9)
    found = chernoff_information([up] * 5 + [down] * 5, [up] + [down] * 9)
    s = np.linspace(0, 1, 100_001)
    curve = -np.log(0.1 * np.exp(s * up) + 0.9 * np.exp(s * down))
    assert found == pytest.approx(curve.max(), rel=1e-6)
    assert abs(s[curve.argmax()] - 0.5) > 0.03


def test_chernoff_is_symmetric_and_never_negative() -> None:
    h, null = gaussian(0.7, 200)
    assert chernoff_information(-null, -h) == pytest.approx(
        chernoff_information(h, null)
    )
    stream = generator(0, "nothing")
    for _ in range(20):
        # Ratios that say the contrary of the truth.
        assert (
            chernoff_information(stream.normal(-2, 1, 9), stream.normal(2, 1, 9)) == 0
        )
    assert chernoff_information([0.0, 0.0], [0.0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("gap", [0.02, 0.1, 0.5])
def test_chernoff_from_one_side_of_gaussians(gap: float) -> None:
    """C is gap²/8 = 5e-5 for 0.02, where the mean of L/2 alone is off by 5e-4."""
    drawn = generator(7, "one side").normal(size=400)
    found = chernoff_from_one((drawn + gap) * gap - gap**2 / 2)
    assert found == pytest.approx(gap**2 / 8, rel=0.25)


def test_noise_is_no_information() -> None:
    """A gap of 0.16, and noise of 0.125 nats² that looks like a gap of 0.39."""
    stream = generator(7, "noise")
    drawn = (stream.normal(size=4000) + 0.16) * 0.16 - 0.16**2 / 2
    noisy = drawn + math.sqrt(0.125) * stream.normal(size=4000)
    assert chernoff_from_one(noisy) > 5 * 0.16**2 / 8
    found = chernoff_from_one(noisy, noise=0.125)
    assert found == pytest.approx(0.16**2 / 8, rel=0.3)
    assert chernoff_from_one(drawn, noise=0.5) == 0


def test_chernoff_from_one_side_by_hand() -> None:
    """L = a, −b: s·log of one mean less log of another, on a grid."""
    a, b = 0.4, 0.3
    grid = np.linspace(0, 1, 2001)[:, None]
    cumulant = np.log(np.exp(-grid * [a, -b]).mean(1))
    found = chernoff_from_one([a, -b])
    assert found == pytest.approx((grid[:, 0] * cumulant[-1] - cumulant).max())
    assert found > 0
    # A filter shifts every L by one number, which tells nothing of the rows.
    assert chernoff_from_one([a + 0.7, 0.7 - b]) == pytest.approx(found)
    assert chernoff_from_one([0.2, 0.2]) == pytest.approx(0, abs=1e-9)
    assert math.isnan(chernoff_from_one([]))
    assert math.isnan(chernoff_from_one([0.1, math.nan]))


def test_chernoff_at_the_edges() -> None:
    assert chernoff_information([math.inf], [-math.inf]) == math.inf
    assert math.isnan(chernoff_information([], [1.0]))
    assert math.isnan(chernoff_information([math.nan], [1.0]))
    # Half of the null's rows are impossible under H, the others tell nothing.
    found = chernoff_information([0.0, 0.0], [0.0, -math.inf])
    assert 0 < found <= math.log(2)


def test_rows_by_hand() -> None:
    assert stein_rows(0.5, 0.01) == pytest.approx(math.log(100) / 0.5)
    assert stein_rows(0.0, 0.01) == math.inf
    assert stein_rows(-1.0, 0.01) == math.inf
    assert math.isnan(stein_rows(math.nan, 0.01))
    with pytest.raises(ValueError, match=r"between 0 and 1, got 0\.0"):
        stein_rows(0.5, 0.0)


def test_rows_to_identify_by_hand() -> None:
    # 20 kinds, nearest pair 0.1: ln(19/0.05)/0.1.
    expected = math.log(19 / 0.05) / 0.1
    assert rows_to_identify([0.3, 0.1, math.nan], 20, 0.05) == pytest.approx(expected)
    square = [[0.0, 0.3], [0.3, 0.0]]
    assert rows_to_identify(square, 2, 0.05) == pytest.approx(math.log(20) / 0.3)
    assert rows_to_identify([0.0, 1.0], 3, 0.05) == math.inf
    assert math.isnan(rows_to_identify([], 3, 0.05))
    assert math.isnan(rows_to_identify([[0.0]], 1, 0.05))
