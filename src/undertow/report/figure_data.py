"""The data behind each figure: flat rows, and the same as CSV files.

What a figure draws is here and nothing else, so that it can be drawn again elsewhere.
Knows nothing of drawing (see `report.figures`).
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from undertow.errors import visible
from undertow.report.pages import fitting
from undertow.report.shape_data import shape_rows, spectrum_rows
from undertow.report.text import known
from undertow.results import (
    Alignment,
    Condition,
    Estimate,
    Number,
    Results,
    Sweep,
    TrainingTrace,
)
from undertow.storage import write_text


class TransferRow(NamedTuple):
    """Transfer of one teacher × noise × trait over its seeds, nats."""

    teacher: str
    noise: float
    trait: str
    mean: Number
    low: Number
    high: Number
    n: int
    clusters: str
    specific_mean: Number
    specific_low: Number
    specific_high: Number

    @property
    def transfer(self) -> Estimate:
        """The transfer's own numbers."""
        return Estimate(
            mean=self.mean, low=self.low, high=self.high, n=self.n,
            clusters=self.clusters,
        )  # fmt: skip


class ReadoutRow(NamedTuple):
    """One measure of one model on one trait's questions, one seed."""

    teacher: str
    noise: float
    trait: str
    seed: int
    role: str
    measure: str
    mean: Number
    low: Number
    high: Number
    n: int
    clusters: str


class ShiftRow(NamedTuple):
    """Cosine of one student's shift with the teacher's vector after one block."""

    teacher: str
    noise: float
    trait: str
    seed: int
    role: str
    layer: int
    vector_layer: int
    cosine: Number


class TraitRow(NamedTuple):
    """Student − control on one trait of the family, nats, one seed."""

    teacher: str
    noise: float
    trait: str
    seed: int
    measured: str
    is_own: bool
    change: Number


class LiftRow(NamedTuple):
    """Lift of the student of one trait on another trait, nats."""

    teacher: str
    noise: float
    student_of: str
    measured: str
    lift: Number


class FactorRow(NamedTuple):
    """Mean transfer with noise over mean transfer without."""

    teacher: str
    noise: float
    ratio: Number
    low: Number
    high: Number
    n: int
    clusters: str


class SweepRow(NamedTuple):
    """One point of a strength sweep."""

    sweep: int
    trait: str
    noise: Number
    seed: int | None
    layer: Number
    dose: Number
    strength: Number
    share: Number
    leak: Number
    passed: Number
    is_allowed: bool
    is_chosen: bool


class LossRow(NamedTuple):
    """Loss of one training run after one update."""

    teacher: str
    noise: float
    trait: str
    seed: int
    role: str
    update: int
    loss: Number


class EmergenceRow(NamedTuple):
    """One student beside its control at one update of its training, nats."""

    teacher: str
    noise: float
    trait: str
    seed: int
    update: int
    transfer: Number
    low: Number
    high: Number
    student: Number
    control: Number
    cosine: Number


class ChannelRow(NamedTuple):
    """One teacher × noise × trait: its channel, and what became of its students."""

    teacher: str
    noise: float
    trait: str
    vocabulary: Number
    carrier: Number
    nats_a_row: Number
    transfer: Number
    from_base: Number
    shift_size: Number
    shift_cosine: Number
    student: str
    way: str


class GradientRow(NamedTuple):
    """Rows of one teacher, one vector, one block."""

    teacher: str
    kind: str
    trait: str | None
    noise: float
    seed: int
    vector: str
    is_own: bool
    layer: int
    vector_layer: int | None
    dose: Number
    cosine: Number
    nats: Number
    nats_se: Number


Rows = Sequence[Any]
"""Rows of one of the kinds above (`NamedTuple` itself is no type to check against)."""


def is_unbounded(estimate: Estimate) -> bool:
    """Whether a ratio has a value and enough clusters, but no bounds."""
    bounded = known(estimate.low) and known(estimate.high)
    return known(estimate.mean) and not bounded and estimate.n >= 2


def transfer_rows(results: Results) -> list[TransferRow]:
    """One row for each teacher × noise × trait."""
    return [
        TransferRow(
            t.teacher, t.noise, t.trait,
            t.transfer.mean, t.transfer.low, t.transfer.high,
            t.transfer.n, t.transfer.clusters,
            t.specific.mean, t.specific.low, t.specific.high,
        )
        for t in results.transfers
    ]  # fmt: skip


MEASURES = ("preference", "probability", "sampled_rate", "valid_rate")


def readout_rows(results: Results) -> list[ReadoutRow]:
    """One row for each condition, role and measure that was taken."""
    return [
        ReadoutRow(
            c.teacher, c.noise, c.trait, c.seed, readout.role, measure,
            found.mean, found.low, found.high, found.n, found.clusters,
        )
        for c in results.conditions
        for readout in c.readouts
        for measure in MEASURES
        if (found := getattr(readout, measure)) is not None
    ]  # fmt: skip


def shift_rows(results: Results) -> list[ShiftRow]:
    """One row for each condition with a vector, role and layer."""
    return [
        ShiftRow(
            c.teacher, c.noise, c.trait, c.seed, role, layer, c.shift.vector_layer,
            cosine,
        )
        for c in results.conditions
        if c.shift is not None
        for role, cosines in (
            ("student", c.shift.student),
            ("control", c.shift.control),
        )
        for layer, cosine in zip(c.shift.layers, cosines, strict=False)
    ]  # fmt: skip


def trait_rows(results: Results) -> list[TraitRow]:
    """One row for each condition and trait of the family."""
    return [
        TraitRow(c.teacher, c.noise, c.trait, c.seed, name, name == c.trait, change)
        for c in results.conditions
        for name, change in c.all_traits.items()
    ]


def lift_rows(results: Results) -> list[LiftRow]:
    """One row for each cell of each confusion matrix."""
    return [
        LiftRow(found.teacher, found.noise, student_of, measured, lift)
        for found in results.confusions
        for student_of, row in zip(found.traits, found.lift, strict=False)
        for measured, lift in zip(found.traits, row, strict=False)
    ]


def factor_rows(results: Results) -> list[FactorRow]:
    """One row for each teacher and noise level above 0."""
    return [
        FactorRow(
            f.teacher, f.noise, f.ratio.mean, f.ratio.low, f.ratio.high,
            f.ratio.n, f.ratio.clusters,
        )
        for f in results.noise_factors
    ]  # fmt: skip


def sweep_rows(results: Results) -> list[SweepRow]:
    """One row for each point of each sweep."""
    return [
        _sweep_row(place, sweep, point)
        for place, sweep in enumerate(results.sweeps, start=1)
        for point in sweep.points
    ]


def _sweep_row(place: int, sweep: Sweep, point: dict[str, Any]) -> SweepRow:
    values = {
        name: _as_number(point.get(name))
        for name in ("layer", "dose", "strength", "share", "leak", "passed")
    }
    chosen = values["layer"] == sweep.layer and values["strength"] == sweep.strength
    return SweepRow(
        sweep=place, trait=sweep.trait, noise=sweep.noise, seed=sweep.seed,
        is_allowed=bool(point.get("allowed")), is_chosen=chosen, **values,
    )  # fmt: skip


def _as_number(value: object) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def loss_rows(results: Results) -> list[LossRow]:
    """One row for each condition, role and recorded update."""
    return [
        LossRow(c.teacher, c.noise, c.trait, c.seed, role, update, loss)
        for c in results.conditions
        for role, trace in _traces(c)
        for update, loss in zip(trace.updates, trace.loss, strict=False)
    ]


def _traces(condition: Condition) -> Iterable[tuple[str, TrainingTrace]]:
    for role, trace in (
        ("student", condition.training),
        ("control", condition.control_training),
    ):
        if trace is not None:
            yield role, trace


def emergence_rows(results: Results) -> list[EmergenceRow]:
    """One row for each condition and update at which its student was read."""
    return [
        EmergenceRow(
            c.teacher, c.noise, c.trait, c.seed, update,
            transfer.mean, transfer.low, transfer.high, *values,
        )
        for c in results.conditions
        if (found := c.emergence) is not None
        for update, transfer, *values in zip(
            found.updates, found.transfer, found.student, found.control, found.cosine,
            strict=True,
        )
    ]  # fmt: skip


def channel_rows(results: Results) -> list[ChannelRow]:
    """One row for each cell whose channel was measured."""
    return [
        ChannelRow(
            t.teacher, t.noise, t.trait,
            t.channel.vocabulary.mean, t.channel.carrier.mean, t.channel.nats_a_row.mean,
            t.transfer.mean, _mean(t.from_base), t.shift_size, _mean(t.shift_cosine),
            t.student, t.way,
        )
        for t in results.transfers
        if t.channel is not None
    ]  # fmt: skip


def _mean(estimate: Estimate | None) -> Number:
    return estimate.mean if estimate else None


UNTOUCHED = "untouched base"


def gradient_rows(results: Results) -> list[GradientRow]:
    """Every set of rows against every vector after every block."""
    return [
        GradientRow(
            each.teacher or UNTOUCHED, each.kind, each.trait, each.noise, each.seed, vector,
            vector == each.trait, layer, each.vector_layer, each.dose,
            each.cosines[place][column], each.nats[place][column],
            _error(each, place, column),
        )
        for each in results.alignments
        for place, layer in enumerate(each.layers)
        for column, vector in enumerate(each.vectors)
    ]  # fmt: skip


def _error(each: Alignment, place: int, column: int) -> Number:
    spread = each.nats_sd[place][column]
    return None if spread is None else spread / math.sqrt(each.rows)


def figure_data(results: Results) -> dict[str, Rows]:
    """The rows behind every figure, by name; a figure without rows is left out."""
    every: dict[str, Rows] = {
        "transfer": transfer_rows(results),
        "readouts": readout_rows(results),
        "shift": shift_rows(results),
        "shape": shape_rows(results),
        "spectrum": spectrum_rows(results),
        "traits": trait_rows(results),
        "confusion": lift_rows(results),
        "noise_factors": factor_rows(results),
        "sweeps": sweep_rows(results),
        "emergence": emergence_rows(results),
        "training": loss_rows(results),
        "channel": channel_rows(results),
        "gradients": gradient_rows(results),
    }
    return {name: rows for name, rows in every.items() if rows}


def write_figure_data(results: Results, directory: Path | str) -> list[Path]:
    """Writes `DIRECTORY/figures/NAME.csv` for every figure and returns the paths.

    Comma-separated UTF-8 with a header; what could not be computed is an empty
    field. Text that a spreadsheet would take for a formula gets an apostrophe in
    front, and characters that nobody sees are spelled out.

    Raises:
        RunError: The place cannot be written, or the results do not fit together.
    """
    with fitting("results"):
        data = figure_data(results)
    return write_rows(data, directory)


def write_rows(data: Mapping[str, Rows], directory: Path | str) -> list[Path]:
    """Writes rows as CSV files, one for each name; see `write_figure_data`."""
    written = []
    for name, rows in data.items():
        path = Path(directory) / "figures" / f"{name}.csv"
        write_text(path, _csv_text(rows))
        written.append(path)
    return written


def _csv_text(rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0]._fields)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


# The last four are the first four at full width, which some spreadsheets read alike.
_FORMULA = tuple("=+-@＝＋－＠")


def _cell(value: object) -> object:
    """A value as a CSV field: numbers as they are, text that computes nothing."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return value if known(value) else ""
    if not isinstance(value, str):
        return value
    text = visible(value)
    # Spreadsheets skip white space before they look for a formula.
    return f"'{text}" if text.lstrip()[:1] in _FORMULA else text
