"""Max-T by hand, against SciPy and a slow reference, and by its rate of errors."""

import itertools
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as scipy_stats

from undertow.seeding import generator
from undertow.stats import MaxT, paired_max_t, permutation, two_sample_max_t

Test = Callable[[np.ndarray], MaxT]


def correlated(stream: np.random.Generator, rows: int, tests: int) -> np.ndarray:
    """Columns that share half of their variance, with heavy tails."""
    shared = stream.standard_t(4, size=(rows, 1))
    return shared + stream.standard_t(4, size=(rows, tests))


def paired(differences: np.ndarray) -> MaxT:
    return paired_max_t(differences, permutations=499, seed=0)


def unpaired(rows: np.ndarray) -> MaxT:
    """The first 12 rows against the others."""
    return two_sample_max_t(rows[:12], rows[12:], permutations=499, seed=0)


BOTH = pytest.mark.parametrize("test", [paired, unpaired])


def step_down(observed: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Westfall and Young's step-down as the definition has it, [test], [draw, test]."""
    order = np.argsort(-observed)
    adjusted = np.zeros(len(observed))
    for rank, test in enumerate(order):
        rest = drawn[:, order[rank:]].max(axis=1)
        p = (1 + np.sum(rest >= observed[test] - 1e-9)) / (1 + len(drawn))
        adjusted[test] = max(p, adjusted[order[rank - 1]] if rank else 0)
    return adjusted


# ---- paired


def test_all_flips_by_hand() -> None:
    # Of 32 flips the plain one and its mirror have the largest sum.
    rising = np.arange(1.0, 6.0)[:, None]
    found = paired_max_t(rising, seed=0, winsorise=0.0)
    assert (found.p_value, found.permutations) == (2 / 32, 31)
    assert found.adjusted.tolist() == [2 / 32]
    above = paired_max_t(rising, seed=0, winsorise=0.0, alternative="greater")
    assert above.p_value == 1 / 32
    # Sum 13 of 15: only all positive is above, and both have mirrors.
    mixed = np.array([-1.0, 2, 3, 4, 5])[:, None]
    assert paired_max_t(mixed, seed=0, winsorise=0.0).p_value == 4 / 32
    below = paired_max_t(-rising, seed=0, winsorise=0.0, alternative="greater")
    assert below.p_value == 1.0


@pytest.mark.parametrize("n", [5, 9, 300])
def test_paired_statistics_are_scipys(n: int) -> None:
    rows = generator(n, "rows").normal(0.3, 2, (n, 7))
    found = paired_max_t(rows, permutations=99, seed=0, winsorise=0.0)
    reference = scipy_stats.ttest_1samp(rows, 0.0).statistic
    assert found.statistics == pytest.approx(reference)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_all_flips_are_scipys(alternative: permutation.Alternative) -> None:
    rows = generator(1, "rows").normal(0.5, 1, 8)

    def statistic(x: np.ndarray) -> float:
        t = float(scipy_stats.ttest_1samp(x, 0.0).statistic)
        return abs(t) if alternative == "two-sided" else t

    reference = scipy_stats.permutation_test(
        (rows,), statistic, permutation_type="samples", alternative="greater"
    )
    found = paired_max_t(rows[:, None], seed=0, winsorise=0.0, alternative=alternative)
    assert 0 < found.p_value < 0.6
    assert found.p_value == pytest.approx(reference.pvalue)


def test_the_step_down_is_the_definitions() -> None:
    rows = correlated(generator(2, "rows"), 7, 5) + np.array([0, 2, 0.5, 0, 4])
    flips = np.array(list(itertools.product([1, -1], repeat=7)))[1:]
    drawn = np.abs(
        [scipy_stats.ttest_1samp(rows * f[:, None], 0.0).statistic for f in flips]
    )
    observed = np.abs(scipy_stats.ttest_1samp(rows, 0.0).statistic)
    found = paired_max_t(rows, seed=0, winsorise=0.0)
    assert found.adjusted == pytest.approx(step_down(observed, drawn))
    assert len(set(found.adjusted)) > 2
    assert np.sort(found.draws) == pytest.approx(np.sort(drawn.max(axis=1)))


def test_paired_winsorising_cuts_both_tails_alike() -> None:
    rows = generator(3, "rows").standard_cauchy((60, 4))
    bound = np.quantile(np.abs(rows), 0.9, axis=0)
    found = paired_max_t(rows, permutations=99, seed=0, winsorise=0.1)
    cut = np.clip(rows, -bound, bound)
    reference = paired_max_t(cut, permutations=99, seed=0, winsorise=0.0)
    assert found.statistics == pytest.approx(reference.statistics)
    assert found.draws == pytest.approx(reference.draws)
    plain = paired_max_t(rows, permutations=99, seed=0, winsorise=0.0)
    assert np.abs(found.statistics - plain.statistics).max() > 0.1


# ---- two samples


@pytest.mark.parametrize(("n", "m"), [(5, 5), (6, 11), (11, 6), (400, 80)])
def test_two_sample_statistics_are_scipys(n: int, m: int) -> None:
    stream = generator(n, "rows")
    a, b = stream.normal(5, 3, (n, 6)), stream.normal(4, 1, (m, 6))
    found = two_sample_max_t(a, b, permutations=99, seed=0, winsorise=0.0)
    reference = scipy_stats.ttest_ind(a, b, equal_var=False).statistic
    assert found.statistics == pytest.approx(reference)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (9, 30), (30, 9)])
def test_float32_draws_are_those_of_float64(n: int, m: int) -> None:
    rows = correlated(generator(4, "rows"), n + m, 6) + 100
    rows[:n, 2] += 2
    small = np.arange(n + m) < n if n <= m else np.arange(n + m) >= n
    labels = np.concatenate(
        list(permutation._drawn_labels(small, [None] * (n + m), 300, 0))
    )
    assert (labels.sum(axis=1) == min(n, m)).all()
    audited = labels.astype(bool) if n <= m else ~labels.astype(bool)
    drawn = np.abs([
        scipy_stats.ttest_ind(rows[g], rows[~g], equal_var=False).statistic
        for g in audited
    ])  # fmt: skip
    found = two_sample_max_t(
        rows[:n], rows[n:], permutations=300, seed=0, winsorise=0.0
    )
    assert found.draws == pytest.approx(drawn.max(axis=1), rel=1e-4)
    observed = np.abs(found.statistics)
    assert found.adjusted == pytest.approx(step_down(observed, drawn))


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_two_sample_p_is_scipys(alternative: permutation.Alternative) -> None:
    stream = generator(5, "rows")
    a, b = stream.normal(0.8, 1, 6), stream.normal(0, 1, 7)

    def statistic(x: np.ndarray, y: np.ndarray) -> float:
        t = float(scipy_stats.ttest_ind(x, y, equal_var=False).statistic)
        return abs(t) if alternative == "two-sided" else t

    # All 1716 ways.
    reference = scipy_stats.permutation_test((a, b), statistic, alternative="greater")
    found = two_sample_max_t(
        a[:, None], b[:, None], seed=0, winsorise=0.0, alternative=alternative
    )
    assert 0.01 < reference.pvalue < 0.5
    spread = math.sqrt(reference.pvalue / 9999)
    assert found.p_value == pytest.approx(reference.pvalue, abs=4 * spread)


def test_two_sample_winsorising_cuts_both_sides_together() -> None:
    rows = generator(6, "rows").standard_cauchy((60, 4))
    low, high = np.quantile(rows, [0.1, 0.9], axis=0)
    found = two_sample_max_t(
        rows[:25], rows[25:], permutations=99, seed=0, winsorise=0.1
    )
    cut = np.clip(rows, low, high)
    reference = two_sample_max_t(
        cut[:25], cut[25:], permutations=99, seed=0, winsorise=0.0
    )
    assert found.statistics == pytest.approx(reference.statistics)
    assert found.draws == pytest.approx(reference.draws, rel=1e-4)


def test_sides_that_are_wholly_apart() -> None:
    # Of 252 ways two are as far apart: the plain one and its mirror.
    found = two_sample_max_t(np.ones((5, 1)), np.zeros((5, 1)), seed=0)
    assert found.p_value == pytest.approx(2 / 252, abs=4 * math.sqrt(2 / 252 / 9999))
    assert 1e5 < found.statistics[0] < math.inf
    assert np.isfinite(found.draws).all()


# ---- strata


def test_labels_move_within_strata_only() -> None:
    keys = [*"aaabbbbccd", *"ddeee"]
    small = np.arange(15) < 7
    labels = np.concatenate(list(permutation._drawn_labels(small, keys, 2000, 0)))
    for key in "abcde":
        places = [i for i, k in enumerate(keys) if k == key]
        assert (labels[:, places].sum(axis=1) == small[places].sum()).all()
    # Strata a, c, d and e lie on one side; b moves, each of its rows alike.
    assert (
        labels[:, [0, 1, 2, 7, 8, 9, 10, 11]] == small[[0, 1, 2, 7, 8, 9, 10, 11]]
    ).all()
    assert labels[:, 3:7].sum(axis=1).max() == 4


def test_rows_of_a_stratum_carry_a_label_equally_often() -> None:
    keys, small = [*"abababab"], np.arange(8) < 3
    labels = np.concatenate(list(permutation._drawn_labels(small, keys, 4000, 0)))
    # Two of the four rows of a, one of the four of b.
    spread = 4 * math.sqrt(0.25 / 4000)
    assert labels[:, 0::2].mean(axis=0) == pytest.approx([0.5] * 4, abs=spread)
    assert labels[:, 1::2].mean(axis=0) == pytest.approx([0.25] * 4, abs=spread)


def test_what_strata_differ_in_is_no_evidence() -> None:
    # Long rows are 80 % of one side and 20 % of the other, and score higher.
    stream = generator(7, "rows")
    keys = (["long"] * 40 + ["short"] * 10, ["long"] * 10 + ["short"] * 40)
    a, b = (
        stream.normal(size=(50, 3)) + np.array([[3.0 * (k == "long")] for k in side])
        for side in keys
    )
    assert two_sample_max_t(a, b, permutations=999, seed=0).p_value == 0.001
    found = two_sample_max_t(a, b, strata=keys, permutations=999, seed=0)
    assert found.p_value > 0.05
    # What is added within the strata is.
    found = two_sample_max_t(a + 1.0, b, strata=keys, permutations=999, seed=0)
    assert found.p_value < 0.01


def test_pairs_as_strata_are_flips() -> None:
    stream = generator(8, "rows")
    prompt = stream.normal(0, 5, (10, 1))
    a, b = (
        prompt + stream.normal(0.8, 1, (10, 1)),
        prompt + stream.normal(0, 1, (10, 1)),
    )
    names = list(range(10))
    flips = paired_max_t(a - b, seed=0, winsorise=0.0)
    # Balanced, so Welch's t rises with the difference of means as the paired t does.
    found = two_sample_max_t(a, b, strata=(names, names), seed=0, winsorise=0.0)
    spread = math.sqrt(flips.p_value / 9999)
    assert found.p_value == pytest.approx(flips.p_value, abs=4 * spread)
    assert two_sample_max_t(a, b, seed=0, winsorise=0.0).p_value > 0.3


def test_strata_of_one_side_leave_nothing_to_permute() -> None:
    stream = generator(9, "rows")
    a, b = stream.normal(size=(6, 3)), stream.normal(3, 1, (7, 3))
    found = two_sample_max_t(a, b, strata=(["a"] * 6, ["b"] * 7), seed=0)
    assert found.p_value == 1.0
    assert found.draws == pytest.approx(np.abs(found.statistics).max(), rel=1e-4)


# ---- what changes nothing


@BOTH
def test_the_order_of_columns_does_not_matter(test: Test) -> None:
    rows = correlated(generator(10, "rows"), 30, 300)
    rows[:, 17] = np.nan
    order = generator(10, "order").permutation(300)
    found, other = test(rows), test(rows[:, order])
    assert (other.statistics == found.statistics[order])[order != 17].all()
    assert (other.adjusted == found.adjusted[order])[order != 17].all()
    assert (other.draws == found.draws).all()
    assert other.p_value == found.p_value
    assert np.isnan(other.adjusted[order == 17]).all()


@BOTH
def test_other_columns_do_not_change_a_statistic(test: Test) -> None:
    rows = correlated(generator(11, "rows"), 30, 200)
    alone = test(rows[:, [150]])
    assert alone.statistics[0] == test(rows).statistics[150]


@BOTH
def test_copies_of_columns_cost_nothing(test: Test) -> None:
    rows = correlated(generator(12, "rows"), 30, 8)
    found, twice = test(rows), test(np.hstack([rows, 3 * rows, -rows]))
    assert twice.p_value == found.p_value
    assert twice.adjusted.tolist() == found.adjusted.tolist() * 3
    assert twice.draws == pytest.approx(found.draws, rel=1e-5)


@BOTH
def test_units_do_not_matter(test: Test) -> None:
    rows = correlated(generator(13, "rows"), 30, 8)
    factors = 10.0 ** np.arange(-140, 148, 36)
    found, scaled = test(rows), test(rows * factors)
    assert scaled.statistics == pytest.approx(found.statistics)
    assert scaled.adjusted.tolist() == found.adjusted.tolist()


def test_a_shift_of_both_sides_does_not_matter() -> None:
    rows = correlated(generator(14, "rows"), 30, 8)
    assert unpaired(rows + 1000).adjusted.tolist() == unpaired(rows).adjusted.tolist()


def test_sides_swapped_change_the_sign() -> None:
    rows = correlated(generator(15, "rows"), 30, 8)
    found = two_sample_max_t(rows[:12], rows[12:], permutations=99, seed=0)
    other = two_sample_max_t(rows[12:], rows[:12], permutations=99, seed=0)
    assert other.statistics == pytest.approx(-found.statistics)


@BOTH
def test_the_order_of_rows_changes_draws_only(test: Test) -> None:
    rows = correlated(generator(16, "rows"), 30, 8)
    found, other = test(rows), test(np.vstack([rows[11::-1], rows[12:]]))
    assert other.statistics == pytest.approx(found.statistics)
    assert other.p_value == pytest.approx(found.p_value, abs=0.1)


@BOTH
def test_the_seed_decides_and_more_draws_go_on(test: Test) -> None:
    rows = correlated(generator(17, "rows"), 40, 4)
    found = test(rows)
    assert (test(rows).draws == found.draws).all()
    longer = paired_max_t(rows, permutations=800, seed=0)
    if test is paired:
        assert longer.draws[:499] == pytest.approx(found.draws)
    other = paired_max_t(rows, permutations=800, seed=1)
    assert not np.isin(other.draws, longer.draws).any()


# ---- what takes no part


@BOTH
def test_columns_without_numbers_or_variance_take_no_part(test: Test) -> None:
    rows = correlated(generator(18, "rows"), 30, 6)
    bad = np.full((30, 4), 7.0)
    bad[3, 1], bad[4, 2], bad[:, 3] = np.nan, np.inf, 0.0
    found, plain = test(np.hstack([bad, rows])), test(rows)
    assert np.isnan(found.statistics[:4]).all()
    assert np.isnan(found.adjusted[:4]).all()
    assert found.adjusted[4:].tolist() == plain.adjusted.tolist()
    assert found.p_value == plain.p_value
    nothing = test(bad)
    assert np.isnan(nothing.p_value)
    assert (len(nothing.draws), nothing.permutations) == (0, 0)
    assert np.isnan(test(np.zeros((30, 0))).p_value)


def test_too_few_rows() -> None:
    rows = generator(19, "rows").normal(size=(20, 3))
    for found in (
        paired_max_t(rows[:4], seed=0),
        two_sample_max_t(rows[:4], rows[4:], seed=0),
        two_sample_max_t(rows[4:], rows[:4], seed=0),
    ):
        assert np.isnan([*found.statistics, *found.adjusted, found.p_value]).all()
        assert (found.statistics.shape, found.permutations) == ((3,), 0)


def test_what_is_asked_has_to_make_sense() -> None:
    rows = np.zeros((6, 2))
    with pytest.raises(ValueError, match=r"differences: expected \[row, test\], got 1"):
        paired_max_t([1.0, 2.0], seed=0)
    with pytest.raises(ValueError, match=r"reference: expected \[row, test\], got 3"):
        two_sample_max_t(rows, np.zeros((2, 2, 2)), seed=0)
    with pytest.raises(ValueError, match="2 columns audited, 3 in reference"):
        two_sample_max_t(rows, np.zeros((6, 3)), seed=0)
    with pytest.raises(
        ValueError, match=r"strata of \[6, 5\] rows for sides of \[6, 6\]"
    ):
        two_sample_max_t(rows, rows, strata=(["a"] * 6, ["a"] * 5), seed=0)
    with pytest.raises(ValueError, match="1 permutation or more, got 0"):
        paired_max_t(rows, permutations=0, seed=0)
    with pytest.raises(ValueError, match=r"winsorise lies in \[0, 0\.5\), got 0\.5"):
        paired_max_t(rows, winsorise=0.5, seed=0)


# ---- error rates


def test_p_is_never_zero_and_only_the_planted_column_is_found() -> None:
    rows = correlated(generator(20, "rows"), 200, 40)
    rows[:100, 11] += 3
    found = two_sample_max_t(rows[:100], rows[100:], permutations=499, seed=0)
    assert found.p_value == found.adjusted[11] == 1 / 500
    assert (np.delete(found.adjusted, 11) > 0.05).all()
    below = two_sample_max_t(
        rows[100:], rows[:100], permutations=499, seed=0, alternative="greater"
    )
    assert below.adjusted[11] > 0.9
    shifted = correlated(generator(21, "rows"), 100, 40) + 2 * (np.arange(40) == 5)
    assert paired_max_t(shifted, permutations=499, seed=0).adjusted[5] == 1 / 500


@BOTH
def test_a_null_is_refused_as_often_as_allowed(test: Test) -> None:
    stream = generator(22, "null")
    ps = np.array([test(correlated(stream, 32, 15)).p_value for _ in range(600)])
    for level in (0.05, 0.2, 0.5):
        spread = math.sqrt(level * (1 - level) / 600)
        assert np.mean(ps <= level) == pytest.approx(level, abs=3 * spread)


def test_a_wider_side_with_the_same_mean_is_no_evidence() -> None:
    stream = generator(24, "spread")

    def p_value() -> float:
        wide, narrow = stream.normal(0, 3, (60, 5)), stream.normal(0, 1, (180, 5))
        return two_sample_max_t(
            wide, narrow, permutations=199, seed=0, winsorise=0.0
        ).p_value

    found = np.mean([p_value() <= 0.05 for _ in range(500)])
    # A pooled variance is 1.53² times too small: it would refuse more than a third.
    assert found < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)


def test_true_effects_do_not_make_others_false() -> None:
    stream = generator(23, "step-down")
    effects = np.array([2.0] * 5 + [0.0] * 10)
    found = [
        paired_max_t(correlated(stream, 40, 15) + effects, permutations=199, seed=0)
        for _ in range(400)
    ]
    wrong = np.mean([(f.adjusted[5:] <= 0.05).any() for f in found])
    assert wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    # Step-down spends what the effects leave: more than Bonferroni over all would.
    assert np.mean([(f.adjusted[:5] <= 0.05).mean() for f in found]) > 0.9


def test_memory_is_bounded() -> None:
    sides = [generator(i, "large").normal(size=(1000, 1500)) for i in range(2)]
    tracemalloc.start()
    two_sample_max_t(sides[0], sides[1][:900], permutations=256, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
