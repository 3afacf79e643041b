"""Read-outs as log-odds, and intervals as the values that `results.json` holds."""

import math
from typing import Any

import numpy as np

from undertow.results import Estimate, Number
from undertow.stats import Interval

Matrix = np.ndarray[Any, np.dtype[np.float64]]


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


def log_odds(payload: dict[str, Any]) -> Matrix:
    """[question, trait]: log of each trait's share over all others' together, nats."""
    nats = np.array(payload["total_logprobs"], dtype=np.float64)
    result = np.empty_like(nats)
    for column in range(nats.shape[1]):
        others = np.delete(nats, column, axis=1)
        result[:, column] = nats[:, column] - np.logaddexp.reduce(others, axis=1)
    return result
