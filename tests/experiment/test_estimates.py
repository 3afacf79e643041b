"""Intervals as JSON values."""

import math

import pytest

from undertow.experiment.estimates import estimate, number
from undertow.results import Estimate
from undertow.stats import Interval


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(value: float | None) -> None:
    assert number(value) is None
    assert number(0.0) == 0.0


def test_an_interval_without_bounds_keeps_its_mean() -> None:
    assert estimate(Interval(2.0, math.nan, math.inf, 1), "row") == Estimate(
        mean=2.0, low=None, high=None, n=1, clusters="row"
    )
