"""Intervals by hand, against SciPy, and by how often they hold the truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from undertow.seeding import generator
from undertow.stats import (
    Interval,
    clustered_interval,
    mean_interval,
    ratio_interval,
    specificity,
    two_way_interval,
)

# Student's 97.5 % points for 1, 2 and 3 degrees of freedom, from a table.
T1, T2, T3 = 12.706205, 4.302653, 3.182446
FINITE = st.floats(-100, 100).map(lambda x: round(x, 3))


def coverage(draw: Callable[[np.random.Generator], Interval], truth: float) -> float:
    """How often the interval holds the truth in 1000 draws."""
    stream = generator(0, "coverage")
    found = [draw(stream) for _ in range(1000)]
    return float(np.mean([i.low <= truth <= i.high for i in found]))


def halves(interval: Interval) -> tuple[float, float]:
    """Distances of both bounds from the mean."""
    return interval.mean - interval.low, interval.high - interval.mean


# ---- mean_interval


def test_mean_interval_by_hand() -> None:
    # Sum of squares about 2.5 is 5; variance 5/3; of the mean 5/12.
    found = mean_interval([1, 2, 3, 4])
    half = T3 * math.sqrt(5 / 12)
    assert found.mean == 2.5
    assert found.n == 4
    assert halves(found) == pytest.approx((half, half), rel=1e-6)


@settings(derandomize=True, max_examples=30)
@given(st.lists(FINITE, min_size=2, max_size=20).filter(lambda x: len(set(x)) > 1))
def test_mean_interval_is_scipys(values: list[float]) -> None:
    reference = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    found = mean_interval(values, confidence=0.9)
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=1e-9)


def test_mean_interval_at_the_edges() -> None:
    assert mean_interval([2, 2, 2]) == (2, 2, 2, 3)
    one = mean_interval([5.0])
    assert (one.mean, one.n) == (5.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = mean_interval([])
    assert none.n == 0
    assert all(map(math.isnan, none[:3]))


def test_mean_interval_covers() -> None:
    assert 0.93 < coverage(lambda s: mean_interval(s.normal(3, 2, 6)), 3) < 0.97


# ---- clustered_interval


def test_equal_clusters_are_their_means() -> None:
    # Means 2, 6, 1: mean 3, variance 14/2 = 7, of the mean 7/3.
    found = clustered_interval([1, 3, 5, 7, 2, 0], list("aabbcc"))
    half = T2 * math.sqrt(7 / 3)
    assert (found.mean, found.n) == (3, 3)
    assert halves(found) == pytest.approx((half, half), rel=1e-6)


def test_unequal_clusters_by_hand() -> None:
    # Mean 1; sums of rests −3 and 3; variance 18/16 · 2/1 = 2.25.
    found = clustered_interval([0, 0, 0, 4], [1, 1, 1, 2])
    assert (found.mean, found.n) == (1, 2)
    assert halves(found) == pytest.approx((T1 * 1.5, T1 * 1.5), rel=1e-6)


@settings(derandomize=True, max_examples=25)
@given(st.lists(FINITE, min_size=2, max_size=12))
def test_clusters_of_one_are_the_plain_interval(values: list[float]) -> None:
    found = clustered_interval(values, range(len(values)))
    assert found == pytest.approx(mean_interval(values), abs=1e-9)


def test_the_order_of_values_does_not_matter() -> None:
    one = clustered_interval([1, 3, 5, 7, 2], list("aabbc"))
    two = clustered_interval([2, 7, 3, 5, 1], list("cbaba"))
    assert one == pytest.approx(two)


def test_copies_within_a_cluster_make_nothing_surer() -> None:
    values, names = [1.0, 2.0, 4.0, 9.0], ["a", "b", "c", "d"]
    many = clustered_interval(values * 50, names * 50)
    assert many == pytest.approx(mean_interval(values))


def test_one_cluster_has_no_interval() -> None:
    found = clustered_interval([1, 2, 3], ["a"] * 3)
    assert (found.mean, found.n) == (2, 1)
    assert math.isnan(found.low)
    assert clustered_interval([], []).n == 0
    assert math.isnan(clustered_interval([], []).mean)


def test_values_and_clusters_pair() -> None:
    with pytest.raises(ValueError, match="3 values and 2 clusters"):
        clustered_interval([1, 2, 3], ["a", "b"])


def test_clustered_interval_covers_where_the_plain_one_does_not() -> None:
    names = [i for i in range(20) for _ in range(5)]

    def values(stream: np.random.Generator) -> np.ndarray:
        return np.repeat(stream.normal(0, 1, 20), 5) + stream.normal(0, 0.5, 100)

    assert 0.93 < coverage(lambda s: clustered_interval(values(s), names), 0) < 0.97
    assert coverage(lambda s: mean_interval(values(s)), 0) < 0.75


# ---- two_way_interval


def test_two_way_by_hand() -> None:
    # Rests [-2 -1 0; -1 0 1; 0 1 2]. Seeds 18/81·3/2 = 1/3, questions the same,
    # cells 12/81·9/8 = 1/6: together 1/2.
    found = two_way_interval([[0, 1, 2], [1, 2, 3], [2, 3, 4]])
    half = T2 * math.sqrt(0.5)
    assert (found.mean, found.n) == (2, 3)
    assert halves(found) == pytest.approx((half, half), rel=1e-6)


def test_two_way_is_never_surer_than_one_axis() -> None:
    # Rests [-2 -1; 0 3]. Seeds 18/16·2 = 2.25, questions 8/16·2 = 1, cells
    # 14/16·4/3 = 7/6: the sum 2.083 is below the seeds' 2.25.
    found = two_way_interval([[1, 2], [3, 6]])
    assert halves(found) == pytest.approx((T1 * 1.5, T1 * 1.5), rel=1e-6)


def test_two_way_does_not_mind_which_axis_is_which() -> None:
    table = generator(0, "table").normal(size=(3, 7))
    assert two_way_interval(table) == pytest.approx(two_way_interval(table.T))


def test_two_way_at_the_edges() -> None:
    one = two_way_interval([[1.0, 2.0, 3.0]])
    assert (one.mean, one.n) == (2, 1)
    assert math.isnan(one.low)
    none = two_way_interval(np.zeros((0, 3)))
    assert none.n == 0
    assert math.isnan(none.mean)
    with pytest.raises(ValueError, match=r"expected \[seed, question\], got 1 axes"):
        two_way_interval([1, 2, 3])


def test_two_way_interval_covers() -> None:
    def draw(stream: np.random.Generator) -> Interval:
        seeds, questions = stream.normal(0, 1, (8, 1)), stream.normal(0, 1, (1, 12))
        return two_way_interval(seeds + questions + stream.normal(0, 1, (8, 12)))

    assert 0.93 < coverage(draw, 0) < 0.985


# ---- ratio_interval


def test_ratio_by_hand() -> None:
    # Means 4 and 2, variances of the means 1 and 0.01, t² = 161.4476:
    # 2.385524 r² − 16 r + (16 − 161.4476) = 0.
    found = ratio_interval([3, 5], [1.9, 2.1])
    assert found.mean == pytest.approx(2)
    assert found.low == pytest.approx(-5.1446, abs=2e-3)
    assert found.high == pytest.approx(11.8517, abs=2e-3)
    assert found.n == 2


@settings(derandomize=True, max_examples=40)
@given(
    st.lists(FINITE, min_size=2, max_size=8),
    st.lists(st.floats(5, 6).map(lambda x: round(x, 3)), min_size=3, max_size=8),
)
def test_ratio_bounds_solve_fiellers_equation(a: list[float], b: list[float]) -> None:
    found = ratio_interval(a, b)
    t = scipy_stats.t.ppf(0.975, found.n - 1)
    spread_a, spread_b = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    if not math.isfinite(found.low):
        assert np.mean(b) ** 2 <= t**2 * spread_b
        return
    assert found.low <= found.mean <= found.high
    for bound in (found.low, found.high):
        left = (np.mean(a) - bound * np.mean(b)) ** 2
        right = t**2 * (spread_a + bound**2 * spread_b)
        assert left == pytest.approx(right, rel=1e-6, abs=1e-6)


def test_ratio_of_exact_values_has_no_width() -> None:
    assert ratio_interval([4, 4], [2, 2]) == (2, 2, 2, 2)


def test_ratio_over_what_may_be_zero_has_no_bounds() -> None:
    found = ratio_interval([4, 5], [-1, 2])
    assert found == (9.0, -math.inf, math.inf, 2)
    # So with small values, and exact zeros.
    assert ratio_interval([4e-3, 5e-3], [-1e-3, 2e-3])[1:3] == (-math.inf, math.inf)
    assert ratio_interval([4, 5], [0, 0])[1:3] == (-math.inf, math.inf)
    nothing = ratio_interval([4, 5], [-1, 1])
    assert math.isnan(nothing.mean)
    assert (nothing.low, nothing.high) == (-math.inf, math.inf)


def test_ratio_of_too_few() -> None:
    found = ratio_interval([4.0], [2.0, 2.0])
    assert (found.mean, found.n) == (2, 1)
    assert math.isnan(found.low)
    assert ratio_interval([], [1.0]).n == 0
    assert math.isnan(ratio_interval([], [1.0]).mean)


def test_ratio_interval_covers() -> None:
    def draw(stream: np.random.Generator) -> Interval:
        return ratio_interval(stream.normal(6, 1, 8), stream.normal(3, 0.5, 8))

    # The smaller count's degrees make it a little wide.
    assert 0.94 < coverage(draw, 2) < 0.985


# ---- what cannot be computed


@pytest.mark.parametrize(
    "interval",
    [
        lambda bad: mean_interval([1, 2, bad]),
        lambda bad: clustered_interval([1, 2, bad], ["a", "b", "c"]),
        lambda bad: two_way_interval([[1, 2], [3, bad]]),
        lambda bad: ratio_interval([1, 2, bad], [1, 2, 3]),
        lambda bad: ratio_interval([1, 2, 3], [1, 2, bad]),
    ],
)
def test_nan_in_nan_out(interval: Callable[[float], Interval]) -> None:
    found = interval(math.nan)
    assert all(map(math.isnan, found[:3]))
    # Neither does an infinite value pass for a certainty (or warn).
    found = interval(math.inf)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_nan_makes_no_specificity() -> None:
    found = specificity([[1.0, 2.0], [math.nan, 3.0]])
    assert math.isnan(found.lam)
    assert math.isnan(found.p_value)


# ---- specificity


def test_two_traits_by_hand() -> None:
    # λ: (5 + 3)/2 − (1 + 2)/2 = 2.5; per trait 5 − 1.5 and 3 − 1.5. The one other
    # order sums to 3 < 8, so p = 1/2.
    found = specificity([[5, 1], [2, 3]])
    assert found.lam == 2.5
    assert (found.p_value, found.permutations) == (0.5, 1)
    assert found.high - 2.5 == pytest.approx(T1 * 1.0, rel=1e-6)
    assert specificity([[1, 5], [3, 2]]).p_value == 1.0


def test_three_traits_by_hand() -> None:
    # The own order sums to 7, the five others to 3, 2, 1, 1 and 4.
    best = specificity([[3, 0, 1], [0, 2, 0], [1, 0, 2]])
    assert best.lam == pytest.approx(7 / 3 - 2 / 6)
    assert best.p_value == pytest.approx(1 / 6)
    assert best.permutations == 5
    # Columns turned by one: the own order sums to 1, four others to more, and one
    # to as much.
    worst = specificity([[0, 1, 3], [2, 0, 0], [0, 2, 1]])
    assert worst.p_value == pytest.approx(1.0)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_lambda_is_the_regressions(n: int) -> None:
    lift = generator(n, "lift").normal(size=(n, n))
    rows, columns = np.divmod(np.arange(n * n), n)
    design = np.column_stack([
        np.ones(n * n),
        *(rows == i for i in range(1, n)),
        *(columns == i for i in range(1, n)),
        rows == columns,
    ])  # fmt: skip
    fitted = np.linalg.lstsq(design.astype(float), lift.ravel(), rcond=None)[0]
    assert specificity(lift).lam == pytest.approx(fitted[-1])


def test_effects_of_students_and_traits_change_nothing() -> None:
    stream = generator(0, "lift")
    lift = stream.normal(size=(5, 5))
    shifted = lift + stream.normal(size=(5, 1)) + 10 * stream.normal(size=(1, 5))
    one, two = specificity(lift), specificity(shifted)
    assert (one.lam, one.p_value) == pytest.approx((two.lam, two.p_value))


def test_p_is_never_zero_and_the_draw_is_seeded() -> None:
    lift = 10 * np.eye(9) + generator(0, "lift").normal(size=(9, 9))
    found = specificity(lift, permutations=99)
    assert (found.p_value, found.permutations) == (1 / 100, 99)
    assert found == specificity(lift, permutations=99)
    mixed = generator(1, "lift").normal(size=(9, 9))
    ps = {specificity(mixed, permutations=99, seed=s).p_value for s in range(4)}
    assert len(ps) > 1


def test_p_is_uniform_where_nothing_is_specific() -> None:
    stream = generator(0, "null")
    ps = np.array([specificity(stream.normal(size=(4, 4))).p_value for _ in range(800)])
    # 24 orders: P(p ≤ k/24) = k/24.
    for k in (1, 3, 6, 12, 18):
        expected = k / 24
        spread = math.sqrt(expected * (1 - expected) / 800)
        assert np.mean(ps <= expected + 1e-9) == pytest.approx(expected, abs=4 * spread)


def test_equal_lifts_tie() -> None:
    assert specificity(np.full((3, 3), 0.1)).p_value == 1.0
    assert specificity(np.zeros((3, 3))).p_value == 1.0
    assert specificity(np.full((3, 3), 0.1)).lam == pytest.approx(0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3,), (0, 0)])
def test_specificity_wants_a_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a square table of 2 or more, got"):
        specificity(np.zeros(shape))
