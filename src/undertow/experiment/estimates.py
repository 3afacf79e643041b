"""Intervals as the values that `results.json` holds."""

import math

from undertow.results import Estimate, Number
from undertow.stats import Interval


def number(value: float | None) -> Number:
    """A JSON number: None for what could not be computed or has no bound."""
    return None if value is None or not math.isfinite(value) else float(value)


def estimate(interval: Interval, clusters: str) -> Estimate:
    """A mean and its bounds, with what they were taken over."""
    return Estimate(
        mean=number(interval.mean),
        low=number(interval.low),
        high=number(interval.high),
        n=interval.n,
        clusters=clusters,
    )
