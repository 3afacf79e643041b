"""Lets other processes measure parts of an audit's rows.

What is measured is what `audit.meter` would measure itself: scores along the battery,
likelihoods under hypotheses, the base's own answers. An order names the model and holds
all else; a worker keeps the model that it loaded last. Knows nothing of verdicts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit.meter import AGAIN, TOGETHER, Array, Meter, OnRows
from undertow.audit.reference import (
    ATTEMPTS,
    Filter,
    Passing,
    Reference,
    passing_beside,
    prompt_digest,
    sampled_reference,
    without_partner,
)
from undertow.audit.signals import Battery, RowSignals
from undertow.execution.executor import Executor, Needs
from undertow.models.loading import Model
from undertow.models.reloading import ModelFacts, same_model
from undertow.models.sampling import SamplerSettings
from undertow.records import Row

Asked = TypeVar("Asked")

_LEAST, _MOST = 8, 256
"""Rows of a part: fewer are not worth a call, more would be lost with a worker."""
_PARTS, _FEW = 3, 32
"""Parts for each call that can be made at once, so that all end together; of no more rows
than so many each one, since who is measured together is measured faster."""


@dataclass(frozen=True)
class Order:
    """Rows to be measured, with all that it needs.

    Attributes:
        model: Which.
        battery: Directions of the scores.
        sampler: What all rows were drawn by.
        system: System setting of all rows.
        rows: To be measured.
        hypotheses: Under which rows are read, if they are; None is the base.
    """

    model: ModelFacts
    battery: Battery
    sampler: SamplerSettings
    system: str | None
    rows: tuple[Row, ...]
    hypotheses: tuple[RowHypothesis | None, ...] = ()


@dataclass(frozen=True)
class Draw:
    """Prompts to be answered by the base; see `sampled_reference`."""

    model: ModelFacts
    sampler: SamplerSettings
    system: str | None
    rows: tuple[Row, ...]
    passed: Filter
    seed: int
    passing: Passing


# ── parts of a reference ─────────────────────────────────────────────────────────


def prompt_parts(rows: Sequence[Row], count: int) -> list[list[int]]:
    """Places of rows in at most so many parts; rows with one prompt stay together.

    An answer depends on its prompt and on the rows before it that have the same one, so
    parts get the answers that all rows would get.
    """
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(prompt_digest(row), []).append(place)
    parts: list[list[int]] = [[] for _ in range(min(count, len(places)))]
    for group in places.values():
        min(parts, key=len).extend(group)
    return [sorted(part) for part in parts]


def merged_reference(
    parts: Sequence[tuple[Sequence[int], Reference]], *, rows: int, passed: Filter
) -> Reference:
    """Tier A of all rows out of that of their parts.

    Args:
        parts: Places of a part's rows among all, and its reference.
        rows: How many there are in all.
        passed: What answers had to pass.
    """
    found = {
        places[own]: row
        for places, reference in parts
        for own, row in zip(reference.paired, reference.rows, strict=True)
    }
    drawn = sum(
        round(len(own.rows) / own.accepted) if own.accepted else ATTEMPTS * len(places)
        for places, own in parts
    )
    pairs = tuple(sorted(found))
    return Reference(
        tier="A", rows=tuple(found[i] for i in pairs), paired=pairs,
        accepted=len(pairs) / drawn if drawn else None,
        notes=without_partner(rows - len(pairs), passed),
    )  # fmt: skip


# ── in a worker ──────────────────────────────────────────────────────────────────


def _meter(order: Order) -> Meter:
    return Meter(
        same_model(order.model), order.battery, order.sampler, system=order.system
    )


def measure_rows(order: Order) -> RowSignals:
    """Scores and log-likelihoods of an order's rows."""
    return _meter(order).signals(order.rows)


def read_rows_under(order: Order) -> list[Array]:
    """Log-likelihoods of an order's rows under each of its hypotheses."""
    meter = _meter(order)
    return [meter.logprobs(order.rows, each) for each in order.hypotheses]


def scan_rows(order: Order) -> dict[str, dict[str, float]]:
    """Log-likelihoods of an order's rows under its vectors, by name and row."""
    meter = _meter(order)
    vectors = [each for each in order.hypotheses if each is not None]
    meter.scan(order.rows, vectors)
    ids = [row.row_id for row in order.rows]
    read = {each.name: meter.logprobs(order.rows, each) for each in vectors}
    return {n: dict(zip(ids, own.tolist(), strict=True)) for n, own in read.items()}


def draw_reference(draw: Draw) -> Reference:
    """What the base answers to a draw's prompts."""
    return sampled_reference(
        same_model(draw.model), draw.rows, sampler=draw.sampler, filter=draw.passed,
        seed=draw.seed, system=draw.system, passing=draw.passing,
    )  # fmt: skip


# ── in the audit's process ───────────────────────────────────────────────────────


@dataclass(frozen=True)
class Others:
    """Those who measure for an audit.

    Attributes:
        executor: Who makes their calls.
        needs: What a call takes.
        name: Of the model, as it was asked for here.
        options: What `load_model` was given beside it.
    """

    executor: Executor
    needs: Needs
    name: str
    options: Mapping[str, Any]

    def facts(self, model: Model) -> ModelFacts:
        """What others have to load, to have this model."""
        return ModelFacts(self.name, model.fingerprint, self.options)

    def parts(self, rows: Sequence[Asked]) -> list[tuple[Asked, ...]]:
        """Rows in parts of which all can be measured at about the same time."""
        slots = self.executor.slots(self.needs)
        calls = slots * (1 if len(rows) <= _FEW * slots else _PARTS)
        size = min(max(-(-len(rows) // calls), _LEAST), _MOST)
        return [tuple(rows[i : i + size]) for i in range(0, len(rows), size)]

    def meter(
        self,
        model: Model,
        battery: Battery,
        sampler: SamplerSettings,
        **rest: Any,
    ) -> Meter:
        """A meter that lets others measure; arguments as those of `Meter`."""
        return _SharedMeter(self, model, battery, sampler, **rest)

    def sampled_reference(
        self,
        model: Model,
        rows: Sequence[Row],
        *,
        sampler: SamplerSettings,
        passed: Filter,
        seed: int,
        system: str | None,
        on_rows: Any = None,
    ) -> Reference:
        """Tier A, as `audit.reference.sampled_reference` would sample it here."""
        calls = _PARTS * self.executor.slots(self.needs)
        parts = prompt_parts(rows, min(calls, max(1, len(rows) // _LEAST)))
        passing = passing_beside(rows, passed, sampler)
        draws = (
            Draw(self.facts(model), sampler, system, tuple(rows[i] for i in places),
                 passed, seed, passing)
            for places in parts
        )  # fmt: skip
        found = []
        for place, own in self.executor.map(draw_reference, draws, needs=self.needs):
            found.append((parts[place], own))
            if on_rows is not None:
                done = sum(len(each.rows) for _, each in found)
                tokens = sum(len(row.completion_ids or ()) for row in own.rows)
                on_rows(done, len(rows), tokens)
        return merged_reference(found, rows=len(rows), passed=passed)


class _SharedMeter(Meter):
    """Remembers as a meter does, and lets others measure."""

    def __init__(self, others: Others, *arguments: Any, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self._others = others

    def _order(
        self, rows: tuple[Row, ...], hypotheses: Sequence[RowHypothesis | None] = ()
    ) -> Order:
        return Order(
            self._others.facts(self.model), self.battery, self.sampler, self.system,
            rows, tuple(hypotheses),
        )  # fmt: skip

    def _asked(
        self,
        function: Any,
        parts: Sequence[tuple[Row, ...]],
        hypotheses: Sequence[RowHypothesis | None],
        on_rows: OnRows | None,
    ) -> Iterator[tuple[tuple[Row, ...], Any]]:
        """Rows and what was found of them, part by part as they come."""
        done, total = 0, sum(map(len, parts))
        orders = (self._order(part, hypotheses) for part in parts)
        answers = self._others.executor.map(function, orders, needs=self._others.needs)
        for place, found in answers:
            yield parts[place], found
            done += len(parts[place])
            if on_rows is not None:
                on_rows(done, total)

    def _divided(
        self,
        rows: tuple[Row, ...],
        hypothesis: RowHypothesis | None,  # noqa: ARG002
    ) -> list[tuple[Row, ...]]:
        return self._others.parts(rows)

    def _measured(
        self, parts: Sequence[tuple[Row, ...]], on_rows: OnRows | None
    ) -> Iterator[RowSignals]:
        for _, found in self._asked(measure_rows, parts, (), on_rows) if parts else ():
            yield found

    def _scanned(
        self,
        rows: Sequence[Row],
        hypotheses: Sequence[RowHypothesis],
    ) -> Iterator[dict[str, dict[str, float]]]:
        parts = self._others.parts(rows)
        if self.model.device.type == "cpu":  # boundaries stay after an interruption
            parts = [
                tuple(rows[i : i + TOGETHER]) for i in range(0, len(rows), TOGETHER)
            ]
        for _, found in self._asked(scan_rows, parts, hypotheses, None):
            yield found

    def _read(
        self,
        parts: Sequence[tuple[Row, ...]],
        name: str,
        hypothesis: RowHypothesis | None,
        on_rows: OnRows | None,
    ) -> Iterator[tuple[tuple[Row, ...], Array]]:
        if name == AGAIN:  # a check of this process' own rounding
            yield from super()._read(parts, name, hypothesis, on_rows)
            return
        asked = self._asked(read_rows_under, parts, (hypothesis,), on_rows)
        for part, found in asked if parts else ():
            yield part, np.asarray(found[0], dtype=np.float64)
