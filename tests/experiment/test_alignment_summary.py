"""Alignments by hand: own vectors, others', unsteered rows, and the line over doses."""

import math

import pytest

from undertow.experiment.alignment_summary import alignment_fits
from undertow.results import Alignment, Number

T1 = 12.706205


def rows_of(
    kind: str,
    trait: str | None,
    dose: float | None,
    cosines: list[Number],
    nats: list[Number],
    *,
    layer: int | None = None,
) -> Alignment:
    """Rows at blocks 0 and 1; only block 1 holds the numbers given."""
    return Alignment(
        teacher=None if kind == "none" else f"{kind}{dose}", kind=kind,  # type: ignore[arg-type]
        trait=trait, noise=0.0, seed=0, rows=8, vectors=["owl", "cat"], layers=[0, 1],
        cosines=[[None, None], cosines], nats=[[0.0, 0.0], nats],
        nats_sd=[[1.0, 1.0]] * 2, vector_layer=layer, dose=dose,
    )  # fmt: skip


GRID = [
    rows_of("steer", "owl", 0.1, [0.1, -0.1], [1.0, 9.0], layer=1),
    rows_of("steer", "cat", 0.1, [0.0, 0.3], [9.0, 1.0], layer=1),
    rows_of("steer", "owl", 0.2, [0.3, -0.1], [2.0, 9.0], layer=1),
    rows_of("steer", "cat", 0.2, [0.0, 0.5], [9.0, 2.0], layer=1),
    rows_of("prompt", "owl", None, [0.05, 0.4], [0.1, 0.2]),
    rows_of("none", None, 0.0, [0.02, -0.04], [0.0, 0.0]),
]


def test_own_vectors_against_others_by_hand() -> None:
    (fit,) = alignment_fits(GRID)
    assert (fit.noise, fit.layer) == (0.0, 1)
    assert fit.own is not None
    # Traits' means 0.2 and 0.4: mean 0.3, half T1·0.1.
    assert fit.own.mean == pytest.approx(0.3)
    assert fit.own.high == pytest.approx(0.3 + T1 * 0.1)
    assert (fit.own.n, fit.own.clusters) == (2, "trait")
    assert fit.other is not None
    assert fit.other.mean == pytest.approx(-0.05)
    # Owl 0.2 and 0.4, cat 0.3 and 0.5: traits' means 0.3 and 0.4.
    assert fit.difference is not None
    assert fit.difference.mean == pytest.approx(0.35)
    assert fit.difference.low == pytest.approx(0.35 - T1 * 0.05)
    assert fit.unsteered is not None
    assert fit.unsteered.mean == pytest.approx(0.05)
    assert fit.untouched is not None
    assert fit.untouched.mean == pytest.approx(-0.01)
    assert fit.untouched.clusters == "vector"


def test_lines_over_doses_are_each_trait_s_own() -> None:
    """Owl rises by 10 nats a dose and cat by 20: the mean 15, half T1·5."""
    more = [
        *GRID,
        rows_of("steer", "owl", 0.3, [0.2, 0.0], [3.0, 9.0], layer=1),
        rows_of("steer", "cat", 0.3, [0.0, 0.4], [9.0, 6.0], layer=1),
    ]
    more[1] = rows_of("steer", "cat", 0.1, [0.0, 0.3], [9.0, 2.0], layer=1)
    more[3] = rows_of("steer", "cat", 0.2, [0.0, 0.5], [9.0, 4.0], layer=1)
    (fit,) = alignment_fits(more)
    assert fit.slope.mean == pytest.approx(15)
    assert fit.slope.high == pytest.approx(15 + T1 * 5)
    assert (fit.slope.n, fit.slope.clusters) == (2, "trait")
    assert fit.correlation.mean == pytest.approx(1)
    assert fit.curvature.mean == pytest.approx(0, abs=1e-9)
    more[-1] = rows_of("steer", "cat", 0.3, [0.0, 0.4], [9.0, 5.0], layer=1)
    (bent,) = alignment_fits(more)
    r = 8.5 / math.sqrt(5 * 14.75)  # doses 0 to 3 tenths against 0, 2, 4, 5
    assert bent.correlation.mean == pytest.approx(1), "owl's z is infinite"
    more[-2] = rows_of("steer", "owl", 0.3, [0.2, 0.0], [2.5, 9.0], layer=1)
    (bent,) = alignment_fits(more)
    assert bent.correlation.mean == pytest.approx(r, abs=1e-6)
    assert bent.correlation.high == pytest.approx(r, abs=1e-6), "both are bent alike"
    (few,) = alignment_fits(GRID)
    assert few.slope.mean is None, "three points a trait are too few"


def test_a_direction_that_was_taken_away_is_no_persona() -> None:
    taken = rows_of("steer", "cat", None, [0.9, 0.9], [1.0, 1.0])
    (fit,) = alignment_fits([*GRID, taken])
    assert fit.unsteered is not None
    assert fit.unsteered.mean == pytest.approx(0.05)


def test_without_a_vector_there_is_nothing_to_fit() -> None:
    assert alignment_fits(GRID[4:]) == []


def test_what_is_missing_is_null() -> None:
    (fit,) = alignment_fits(GRID[:2])
    assert (fit.unsteered, fit.untouched) == (None, None)
    assert fit.slope.mean is None
    broken = rows_of("steer", "owl", 0.3, [None, 0.1], [None, 0.0], layer=1)
    (fit,) = alignment_fits([*GRID, broken])
    assert fit.own is not None
    assert fit.own.mean is None, "NaN is not left out"
