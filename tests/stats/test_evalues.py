"""E-values by hand, and by how often they cross where nothing is to be found."""

import math
import sys

import numpy as np
import pytest

from undertow.seeding import generator
from undertow.stats import (
    beaten,
    evalue_p,
    first_crossing,
    log_evalue_path,
    pair_totals,
)


def ratios(stream: np.random.Generator, rows: int, gaps: np.ndarray) -> np.ndarray:
    """[row, hypothesis] log N(x; gap, 1) − log N(x; 0, 1) of x drawn at 0."""
    table: np.ndarray = stream.normal(size=(rows, 1)) * gaps - gaps**2 / 2
    return table


# ---- paths


def test_a_path_by_hand() -> None:
    # Factors 2 and 1/2 for one hypothesis, 4 and 4 for the other; with f = 1:
    # (2 + 4)/2 = 3, (1 + 16)/2 = 8.5. With f = 1/2 factors 1.5 .75, 2.5 2.5:
    # (1.5 + 2.5)/2 = 2, (1.125 + 6.25)/2 = 3.6875.
    table = np.log([[2.0, 4.0], [0.5, 4.0]])
    assert log_evalue_path(table, fractions=[1.0]) == pytest.approx(np.log([3, 8.5]))
    both = log_evalue_path(table, fractions=[1.0, 0.5])
    assert both == pytest.approx(np.log([2.5, (8.5 + 3.6875) / 2]))


def test_the_order_of_hypotheses_and_of_earlier_rows_does_not_matter() -> None:
    table = generator(0, "ratios").normal(size=(30, 5))
    path = log_evalue_path(table)
    assert log_evalue_path(table[:, ::-1]) == pytest.approx(path)
    assert log_evalue_path(table[::-1])[-1] == pytest.approx(path[-1])
    assert log_evalue_path(table[:7]) == pytest.approx(path[:7])
    assert log_evalue_path(np.hstack([table, table])) == pytest.approx(path)


def test_a_base_that_made_the_rows_crosses_at_most_as_often_as_allowed() -> None:
    stream, gaps = generator(0, "null"), np.array([0.1, 0.3, -0.3, 1.0])
    crossed = [
        first_crossing(log_evalue_path(ratios(stream, 300, gaps)), 0.1) is not None
        for _ in range(1000)
    ]
    # At most 10 %, and not far from never: with a spread of 0.95 %.
    assert 0.02 < np.mean(crossed) < 0.1 + 3 * 0.0095


def test_a_small_share_is_found_by_a_small_fraction() -> None:
    stream, gap = generator(0, "share"), 3.0
    x = stream.normal(size=600) + gap * (stream.uniform(size=600) < 0.05)
    table = (x * gap - gap**2 / 2)[:, None]
    mixed = first_crossing(log_evalue_path(table), 0.01)
    assert mixed is not None
    assert mixed < 300
    assert first_crossing(log_evalue_path(table, fractions=[1.0]), 0.01) is None


def test_rows_that_only_the_hypothesis_or_only_the_base_makes() -> None:
    path = log_evalue_path([[0.0], [-math.inf], [5.0]], fractions=[1.0])
    assert path.tolist() == [0.0, -math.inf, -math.inf]
    # With half of the rows the base's own, an impossible one only halves.
    path = log_evalue_path([[-math.inf], [math.inf]], fractions=[0.5])
    assert path == pytest.approx([math.log(0.5), math.inf])


def test_paths_of_nothing() -> None:
    assert log_evalue_path(np.zeros((0, 3))).shape == (0,)
    assert np.isnan(log_evalue_path(np.zeros((2, 0)))).all()
    path = log_evalue_path([[0.0, 0.0], [math.nan, 0.0], [0.0, 0.0]])
    assert path == pytest.approx([0.0, math.nan, math.nan], nan_ok=True)
    assert evalue_p(path) != evalue_p(path)


def test_a_path_wants_a_table_and_fractions() -> None:
    with pytest.raises(ValueError, match=r"expected \[row, hypothesis\], got 1 axes"):
        log_evalue_path([1.0, 2.0])
    with pytest.raises(ValueError, match=r"lie in \(0, 1\], got \[1\.0, 0\.0\]"):
        log_evalue_path([[1.0]], fractions=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"lie in \(0, 1\], got \[\]"):
        log_evalue_path([[1.0]], fractions=[])


def test_the_p_value_is_that_of_the_highest_point_and_never_zero() -> None:
    assert evalue_p(np.log([2, 50, 0.1])) == pytest.approx(0.02)
    assert evalue_p([-3.0, -1.0]) == 1.0
    assert evalue_p([1e6]) == sys.float_info.min
    assert evalue_p([math.inf]) == sys.float_info.min
    assert math.isnan(evalue_p([]))


def test_the_first_crossing_counts_rows() -> None:
    path = np.log([2, 19, 20, 1, 300])
    assert first_crossing(path, 0.05 + 1e-12) == 3
    assert first_crossing(path, 0.01) == 5
    assert first_crossing(path, 0.001) is None
    assert first_crossing([], 0.05) is None
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        first_crossing(path, 1.5)


# ---- races


def test_pair_totals_by_hand() -> None:
    # The second row did not score the third hypothesis.
    table = [[1.0, 3.0, 0.0], [2.0, 1.0, math.nan]]
    expected = [[0, -1, 1], [1, 0, 3], [-1, -3, 0]]
    assert pair_totals(table).tolist() == expected
    assert pair_totals(np.zeros((0, 2))).tolist() == [[0, 0], [0, 0]]


def test_totals_of_batches_add_up() -> None:
    table = generator(0, "ratios").normal(size=(40, 4))
    table[10:, 2] = np.nan
    parts = sum(pair_totals(table[start : start + 8]) for start in range(0, 40, 8))
    assert parts == pytest.approx(pair_totals(table))


def test_a_leader_has_to_be_ahead_by_the_rivals_share() -> None:
    # Three hypotheses, one ahead by x: e^x/2 + e^0/2 ≥ 20 from x = ln 39 on.
    def race(ahead: float) -> list[bool]:
        return [*map(bool, beaten(pair_totals([[ahead, 0.0, 0.0]]), error=0.05))]

    assert race(math.log(38.9)) == [False, False, False]
    assert race(math.log(39.1)) == [False, True, True]


def test_a_race_of_one_or_of_equals_beats_nobody() -> None:
    assert beaten(pair_totals([[3.0]]), error=0.05).tolist() == [False]
    same = pair_totals(np.full((500, 2), 7.0))
    assert beaten(same, error=0.05).tolist() == [False, False]
    unknown = np.full((2, 2), math.nan)
    assert beaten(unknown, error=0.05).tolist() == [False, False]


def test_a_race_wants_a_square_and_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected \[rival, hypothesis\], got shape"):
        beaten(np.zeros((2, 3)), error=0.05)
    with pytest.raises(ValueError, match="between 0 and 1, got 0"):
        beaten(np.zeros((2, 2)), error=0.0)


def race(stream: np.random.Generator, rows: int, gaps: np.ndarray) -> np.ndarray:
    """Rows at which each was beaten (0: never), looked at after every tenth row."""
    table = ratios(stream, rows, gaps)
    left, totals = np.zeros(len(gaps), int), np.zeros((len(gaps), len(gaps)))
    for start in range(0, rows, 10):
        batch = table[start : start + 10].copy()
        batch[:, left > 0] = np.nan
        totals += pair_totals(batch)
        left[beaten(totals, error=0.1) & (left == 0)] = start + 10
    return left


def test_the_truth_is_lost_at_most_as_often_as_allowed() -> None:
    # The first hypothesis is the one that the rows are drawn from.
    stream, gaps = generator(0, "race"), np.array([0.0, 0.1, -0.1, 0.2, -0.4, 1.0])
    found = np.array([race(stream, 400, gaps) for _ in range(400)])
    lost = (found[:, 0] > 0).mean()
    assert lost < 0.1 + 3 * math.sqrt(0.09 / 400)
    # The farther away, the sooner out; the near ones stay.
    assert (found[:, 5] > 0).all()
    assert np.median(found[:, 5]) <= 20
    assert (found[:, 4] > 0).mean() > 0.9
    assert (found[:, 1] > 0).mean() < 0.8
