"""Max-T from sums: against the same test of the rows, copies, calibration."""

import math

import numpy as np
import pytest

from undertow.seeding import generator
from undertow.stats import ks_uniform, paired_max_t
from undertow.stats.flip_sums import SideSums, paired_flips, two_sample_flips

FLIPS = 399


def summed(values: np.ndarray, signs: np.ndarray) -> SideSums:
    return SideSums(
        len(values), values.sum(0), (values**2).sum(0), signs.T @ values, signs.sum(0)
    )


def drawn_signs(rows: int, *, seed: int, flips: int = FLIPS) -> np.ndarray:
    return generator(seed, "signs").choice([-1.0, 1.0], (rows, flips))


def test_sums_give_the_statistics_of_the_rows() -> None:
    values = generator(0, "values").normal(0.1, 1, (80, 6))
    found = paired_flips(summed(values, drawn_signs(80, seed=0))).max_t
    rows = paired_max_t(values, seed=0, winsorise=0.0, permutations=FLIPS)
    np.testing.assert_allclose(found.statistics, rows.statistics, rtol=1e-6)
    assert abs(found.p_value - rows.p_value) < 0.1
    # By hand, from the rows: the largest of a column and of all smaller ones.
    signs, least = drawn_signs(80, seed=0), 0.0
    order = np.argsort(-np.abs(found.statistics))
    for place in range(6):
        left = values[:, order[place:]]
        draws = np.abs(signs.T @ left / np.sqrt((left**2).sum(0))).max(1)
        own = abs(left[:, 0].sum()) / math.sqrt((left[:, 0] ** 2).sum())
        least = max(least, (1 + int((draws >= own).sum())) / (1 + FLIPS))
        assert found.adjusted[order[place]] == pytest.approx(least)
    assert len(np.unique(found.adjusted)) > 2


def test_p_values_are_worked_by_hand() -> None:
    # Five rows of 1: only the signs that are all alike reach the observed sum.
    signs = np.array([[1, 1, -1], [1, -1, -1], [1, 1, -1], [1, 1, -1], [1, 1, -1]])
    found = paired_flips(summed(np.ones((5, 1)), signs.astype(float)))
    assert found.max_t.p_value == (1 + 2) / (1 + 3)
    assert found.spread[0] == pytest.approx(math.sqrt((25 + 9 + 25) / 3 / 5))


def test_step_down_is_monotone_and_worked_by_hand() -> None:
    signs = np.array([[1.0, -1.0]] * 3 + [[1.0, 1.0]] * 3)
    values = np.array([[1.0, 0.1]] * 3 + [[1.0, -0.1]] * 2 + [[1.0, -0.05]])
    found = paired_flips(summed(values, signs)).max_t
    # Draw 0 is the identity; draw 1 flips the first half, and column 1 nearly lines up.
    assert found.p_value == (1 + 1) / 3
    assert found.adjusted[0] == found.p_value
    assert found.adjusted[1] == 1.0


def test_what_cannot_be_computed_is_nan() -> None:
    few = paired_flips(summed(np.ones((4, 2)), drawn_signs(4, seed=0)))
    assert np.isnan(few.max_t.statistics).all()
    assert math.isnan(few.max_t.p_value)
    flat = paired_flips(summed(np.zeros((9, 1)), drawn_signs(9, seed=0)))
    assert math.isnan(flat.max_t.p_value)
    alike = summed(np.full((9, 1), 3.0), drawn_signs(9, seed=1))
    assert math.isnan(two_sample_flips(alike, alike).max_t.p_value)
    assert math.isnan(
        two_sample_flips(alike, summed(np.ones((3, 1)), drawn_signs(3, seed=0)))
        .max_t.p_value
    )  # fmt: skip


def test_two_sets_have_welch_s_statistic() -> None:
    stream = generator(0, "sides")
    one, other = stream.normal(0, 1, (60, 3)), stream.normal(0.3, 2, (90, 3))
    found = two_sample_flips(
        summed(one, drawn_signs(60, seed=0)), summed(other, drawn_signs(90, seed=1))
    )
    error = np.sqrt(one.var(0, ddof=1) / 60 + other.var(0, ddof=1) / 90)
    expected = (one.mean(0) - other.mean(0)) / error
    np.testing.assert_allclose(found.max_t.statistics, expected, rtol=1e-9)


def kept(p_values: list[float]) -> None:
    """Not more often small than it says, at three levels, within 2.5 σ."""
    for level in (0.05, 0.1, 0.25):
        share = np.mean(np.array(p_values) <= level)
        assert share <= level + 2.5 * math.sqrt(level * (1 - level) / len(p_values))


def calibrated(p_values: list[float]) -> None:
    """Uniform, and never more often small than it says."""
    assert ks_uniform(p_values).p_value > 0.01
    kept(p_values)


def columns(stream: np.random.Generator, rows: int) -> np.ndarray:
    """Correlated columns with heavy tails, symmetric about 0."""
    common = stream.standard_t(4, (rows, 1))
    mixed: np.ndarray = common + stream.standard_t(4, (rows, 8))
    return mixed


def test_pairs_without_a_difference_have_uniform_p_values() -> None:
    found = []
    for seed in range(200):
        values = columns(generator(seed, "null"), 60)
        found.append(paired_flips(summed(values, drawn_signs(60, seed=seed))).max_t)
    calibrated([each.p_value for each in found])


def test_sets_with_other_variances_have_uniform_p_values() -> None:
    found = []
    for seed in range(200):
        stream = generator(seed, "null")
        one, other = columns(stream, 150), 2 * columns(stream, 400)
        signs = drawn_signs(550, seed=seed)
        sides = summed(one, signs[:150]), summed(other, signs[150:])
        found.append(two_sample_flips(*sides).max_t.p_value)
    calibrated(found)


def test_few_rows_against_many_do_not_look_different() -> None:
    # Of 300 columns the largest t of 16 rows is far from normal.
    stream = generator(0, "many")
    many = summed(stream.normal(size=(2000, 300)), drawn_signs(2000, seed=1))
    found = []
    for seed in range(200):
        few = generator(seed, "few").normal(size=(16, 300))
        signs = drawn_signs(16, seed=1000 + seed)
        found.append(two_sample_flips(summed(few, signs), many).max_t.p_value)
    assert np.mean(np.array(found) <= 0.01) <= 0.03


def test_signs_that_put_everything_into_the_mean_reach_every_statistic() -> None:
    # One row, four times, as its own side: any signs shared by all leave no spread.
    one = summed(np.array([[1.0], [-1.0]] * 3), np.array([[1.0], [-1.0]] * 3))
    none = summed(np.full((5, 1), 9.0), np.ones((5, 1)))
    found = two_sample_flips(one, none)
    assert found.max_t.p_value == 1.0
    assert found.max_t.draws[0] == np.inf
    assert np.isfinite(found.spread).all()


@pytest.mark.parametrize("shared", [True, False])
def test_copies_that_flip_together_keep_the_null(shared: bool) -> None:
    p_values = []
    for seed in range(200):
        stream = generator(seed, "copies")
        often = stream.integers(1, 30, 60)  # how often each row stands there
        values = np.repeat(columns(stream, 60), often, axis=0)
        signs = drawn_signs(len(values), seed=seed)
        if shared:
            signs = np.repeat(drawn_signs(60, seed=seed), often, axis=0)
        p_values.append(paired_flips(summed(values, signs)).max_t.p_value)
    if shared:
        calibrated(p_values)
    else:  # signs of their own take copies for rows that were drawn anew
        assert np.mean(np.array(p_values) <= 0.05) > 0.2


def test_copies_in_two_sets_keep_the_null() -> None:
    p_values = []
    for seed in range(200):
        stream = generator(seed, "copies")
        values, often = columns(stream, 160), stream.integers(1, 20, 160)
        signs = drawn_signs(160, seed=seed)
        each, every = np.repeat(values, often, axis=0), np.repeat(signs, often, axis=0)
        edge = int(often[:80].sum())
        sides = summed(each[:edge], every[:edge]), summed(each[edge:], every[edge:])
        p_values.append(two_sample_flips(*sides).max_t.p_value)
    kept(p_values)


def test_the_spread_says_what_copies_add() -> None:
    values = columns(generator(0, "spread"), 500)
    signs = drawn_signs(500, seed=0)
    once = paired_flips(summed(values, signs)).spread
    four = paired_flips(summed(np.repeat(values, 4, 0), np.repeat(signs, 4, 0))).spread
    np.testing.assert_allclose(once, 1, atol=0.15)
    np.testing.assert_allclose(four, 2 * once, rtol=1e-9)


def test_answers_that_the_sampler_repeats_are_no_evidence() -> None:
    # Few answers, some likelier and with larger scores: copies say which those are. One
    # partner for each different answer, as its signs are one.
    scores = generator(0, "scores").normal(size=(30, 5))
    chances = np.exp(scores[:, 0]) / np.exp(scores[:, 0]).sum()
    p_values = []
    for seed in range(200):
        stream = generator(seed, "answers")
        said, often = np.unique(stream.choice(30, 120, p=chances), return_counts=True)
        partners = stream.choice(30, len(said), p=chances)
        change = np.repeat(scores[said] - scores[partners], often, axis=0)
        signs = np.repeat(drawn_signs(len(said), seed=seed), often, axis=0)
        p_values.append(paired_flips(summed(change, signs)).max_t.p_value)
    kept(p_values)


def test_answers_that_stand_once_against_answers_that_repeat_look_like_a_shift() -> (
    None
):
    # The same sampler, but somebody took the copies out: what is left is less likely
    # than the partners. Signs cannot know, so whoever tests has to look for it.
    scores = generator(0, "scores").normal(size=(200, 5))
    chances = np.exp(scores[:, 0]) / np.exp(scores[:, 0]).sum()
    p_values = []
    for seed in range(200):
        stream = generator(seed, "answers")
        said = np.unique(stream.choice(200, 120, p=chances))
        partners = stream.choice(200, len(said), p=chances)
        change = scores[said] - scores[partners]
        signs = drawn_signs(len(said), seed=seed)
        p_values.append(paired_flips(summed(change, signs)).max_t.p_value)
    assert np.mean(np.array(p_values) <= 0.05) > 0.2
