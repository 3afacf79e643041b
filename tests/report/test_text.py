"""Numbers and foreign text as a reader sees them."""

import math

import pytest

from undertow.report import text
from undertow.results import Estimate


def estimate(mean: float | None, low: float | None, high: float | None) -> Estimate:
    return Estimate(mean=mean, low=low, high=high, n=5, clusters="seed")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "—"),
        (math.nan, "—"),
        (math.inf, "—"),
        (0.0, "0.00"),
        (-0.001, "0.00"),
        (0.415, "+0.41"),
        (-1.5, "−1.50"),
        (12.0, "+12.00"),
    ],
)
def test_numbers_have_a_real_minus_and_missing_ones_are_no_zero(
    value: float | None, shown: str
) -> None:
    assert text.number(value, signed=True) == shown


def test_an_interval_is_as_precise_as_its_distance_from_zero_needs() -> None:
    assert text.estimate_text(estimate(0.5, 0.25, 0.75)) == "+0.50 [+0.25, +0.75]"
    assert text.estimate_text(estimate(0.5, 0.003, 0.997)) == "+0.500 [+0.003, +0.997]"
    assert text.estimate_text(estimate(-0.5, -1.0, 0.0)) == "−0.50 [−1.00, 0.00]"
    # Nothing is shown beyond four places.
    assert text.estimate_text(estimate(0.5, 1e-7, 1.0)) == "+0.5000 [0.0000, +1.0000]"


def test_missing_parts_of_an_estimate_are_dashes() -> None:
    assert text.estimate_text(estimate(None, None, None)) == "—"
    assert text.estimate_text(estimate(0.25, None, None)) == "+0.25 —"
    assert text.estimate_text(estimate(0.25, -math.inf, math.inf)) == "+0.25 —"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0.0 s"), (59.94, "59.9 s"), (61.25, "1 min 01 s"), (7322.0, "2 h 02 min")],
)
def test_durations_read_like_a_clock(seconds: float, shown: str) -> None:
    assert text.duration_text(seconds) == shown


def test_cells_are_named_by_their_noise_where_there_is_any() -> None:
    assert text.cell_name("steer", 0.0, "owl", is_noisy=False) == "owl by steer"
    assert (
        text.cell_name("steer", 0.0, "owl", is_noisy=True) == "owl by steer, no noise"
    )
    assert text.cell_name("steer", 0.05, "owl", is_noisy=True) == (
        "owl by steer, noise 0.05"
    )
    assert text.teacher_name("steer", 0.1, is_noisy=True) == "Teacher: steer, noise 0.1"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "—"),
        (math.nan, "—"),
        (-0.1, "—"),
        (1.0, "1.00"),
        (0.432, "0.43"),
        (0.05, "0.050"),
        (0.0043, "0.0043"),
        (0.00010, "1.0×10⁻⁴"),
        (0.000996, "1.0×10⁻³"),
        (1.5e-48, "1.5×10⁻⁴⁸"),
        (0.0, "< 10⁻³⁰⁰"),
    ],
)
def test_p_values_keep_two_digits_and_are_never_zero(
    value: float | None, shown: str
) -> None:
    assert text.p_text(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "—"),
        (math.nan, "—"),
        (0.0, "0 %"),
        (0.01, "1 %"),
        (0.031, "3.1 %"),
        (0.256, "26 %"),
        (1.0, "100 %"),
        (0.0005, "0.05 %"),
        (1e-6, "1.0×10⁻⁴ %"),
    ],
)
def test_shares_are_percent(value: float | None, shown: str) -> None:
    assert text.share_text(value).replace("\N{NO-BREAK SPACE}", " ") == shown


@pytest.mark.parametrize(
    ("log_evalue", "shown"),
    [
        (None, "—"),
        (0.0, "1"),
        (math.log(148), "148"),
        (math.log(3.2e23), "3.2×10²³"),
        (math.log(0.25), "0.25"),
        (math.log(9.99e-5), "1.0×10⁻⁴"),
        # Beyond what a float holds.
        (1000 * math.log(10), "1.0×10¹⁰⁰⁰"),
    ],
)
def test_evalues_are_told_from_their_logarithm(
    log_evalue: float | None, shown: str
) -> None:
    assert text.evalue_text(log_evalue) == shown
