"""What the channels of a run mean together, and whether they foretell its transfers.

Reads what the stage "channel" has left, and values of `results`; loads no model. How a
channel is measured is `analysis.channel`'s business.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from undertow.experiment.estimates import estimate, number
from undertow.results import Channel, Estimate, Number, Prediction, Transfer
from undertow.runs import Run
from undertow.stats import mean_interval, rank_correlation, ratio_interval
from undertow.stats.correlation import FEWEST

Scope = Literal["vocabulary", "carrier"]
SCOPES: tuple[Scope, Scope] = ("vocabulary", "carrier")
_FIELDS = ("vocabulary", "carrier", "nats_a_row")
Measure = Literal["transfer", "from_base", "shift_size", "shift_cosine"]
_MEASURES: tuple[Measure, ...] = (
    "transfer",
    "from_base",
    "shift_size",
    "shift_cosine",
)


def scope_of(student: str) -> Scope:
    """Which channel a kind of student learns through."""
    return "vocabulary" if student == "soft" else "carrier"


def cell_channel(run: Run, place: str, name: str) -> Channel | None:
    """The channel of one teacher on one base, intervals over rows; None if not measured."""
    stage = f"{place}/{name}/channel"
    return _of_rows(run.payload(stage)) if run.is_done(stage) else None


def _of_rows(payload: dict[str, Any]) -> Channel:
    tokens = np.array(payload["tokens"], dtype=np.float64)
    vocabulary, carrier = (
        np.array(payload[scope], dtype=np.float64) for scope in SCOPES
    )
    values = (vocabulary / tokens.mean(), carrier / tokens.mean(), carrier)
    return Channel(
        **{
            field: estimate(mean_interval(each), "row")
            for field, each in zip(_FIELDS, values, strict=True)
        }
    )


def mean_channel(channels: Sequence[Channel | None]) -> Channel | None:
    """Means over seeds; a single seed's stays as it is, with its interval over rows."""
    there = [channel for channel in channels if channel is not None]
    if len(there) < 2:
        return there[0] if there else None
    return Channel(
        **{
            field: estimate(mean_interval(_means(there, field)), "seed")
            for field in _FIELDS
        }
    )


def _means(channels: Sequence[Channel], field: str) -> list[float]:
    means = [getattr(channel, field).mean for channel in channels]
    return [np.nan if mean is None else mean for mean in means]


def channel_ratio(
    noised: Sequence[Channel | None], clean: Sequence[Channel | None], *, scope: Scope
) -> Estimate | None:
    """Mean channel with noise over mean channel without, each of so many seeds.

    None if one is missing.
    """
    sides = [[c for c in side if c is not None] for side in (noised, clean)]
    if not all(sides):
        return None
    top, bottom = (_means(side, scope) for side in sides)
    return estimate(ratio_interval(top, bottom), "seed")


def predictions(transfers: Sequence[Transfer]) -> list[Prediction]:
    """Rank correlations of the channel with what students became, over the cells.

    Each cell is one teacher × noise × trait; students that were trained in different
    ways are not put together. Nothing where fewer than four have both.
    """
    ways = dict.fromkeys((item.student, item.way) for item in transfers)
    return [
        found
        for student, way in ways
        for of in _MEASURES
        for scope in SCOPES
        if (found := _prediction(transfers, student, way, scope, of)) is not None
    ]


def _prediction(
    transfers: Sequence[Transfer], student: str, way: str, scope: Scope, of: Measure
) -> Prediction | None:
    known = [
        (getattr(item.channel, scope).mean, became)
        for item in transfers
        if (item.student, item.way) == (student, way)
        and item.channel is not None
        and (became := _became(item, of)) is not None
        and getattr(item.channel, scope).mean is not None
    ]
    if len(known) < FEWEST:
        return None
    widths, became = np.array(known, dtype=np.float64).T
    found = rank_correlation(widths, became)
    return Prediction(
        student=student,
        way=way,
        scope=scope,
        of=of,
        correlation=estimate(found.interval, "cell"),
        p_value=number(found.p_value),
    )


def _became(item: Transfer, of: Measure) -> Number:
    found = getattr(item, of)
    return found.mean if isinstance(found, Estimate) else found
