"""The data behind each figure of an audit: flat rows, and the same as CSV files.

What a figure draws is here and nothing else, so that it can be drawn again elsewhere.
Knows nothing of drawing (see `report.audit_figures`).
"""

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from undertow.findings import Direction, Findings, MaxNull, Number
from undertow.report.audit_words import ROLES
from undertow.report.figure_data import Rows, write_rows
from undertow.report.pages import fitting
from undertow.report.text import known


class HeatRow(NamedTuple):
    """One direction at one layer: studentised difference and max-T p-value."""

    direction: str
    role: str
    layer: int
    z: Number
    adjusted_p: Number


class HypothesisRow(NamedTuple):
    """One hypothesis: nats a row on both sets, and behind the leader."""

    name: str
    kind: str
    trait: str
    role: str
    layer: int | None
    strength: Number
    rows: int
    nats_per_row: Number
    reference_nats_per_row: Number
    behind: Number
    behind_low: Number
    behind_high: Number
    log_evalue: Number
    dropped: str


class NullRow(NamedTuple):
    """One largest statistic: `permuted` under shuffled labels, or `observed`."""

    source: str
    statistic: Number


class PowerRow(NamedTuple):
    """Power at one share of biased rows, and the best that any test could do."""

    fraction: Number
    power: Number
    bound: Number


class BaselineRow(NamedTuple):
    """How well one shortcut tells the two sets apart."""

    name: str
    auroc: Number
    low: Number
    high: Number
    separates: bool


class BatteryRow(NamedTuple):
    """Change of one trait's log-odds when steered along the discovered direction."""

    trait: str
    change: Number


def peak(values: Sequence[Number]) -> int | None:
    """Place of the value that is largest in size; None of nothing."""
    sizes = [(abs(v), -n) for n, v in enumerate(values) if v is not None and known(v)]
    return -max(sizes)[1] if sizes else None


def ordered_directions(findings: Findings) -> list[Direction]:
    """Directions by role, traits first; within a role by the size of their largest z."""
    roles = list(ROLES)

    def place(direction: Direction) -> tuple[int, float]:
        at = peak(direction.z)
        top = direction.z[at] if at is not None else None
        return roles.index(direction.role), 0.0 if top is None else -abs(top)

    return sorted(findings.directions, key=place)


def heat_rows(findings: Findings) -> list[HeatRow]:
    """One row for each direction and layer, in the order of the figure."""
    return [
        HeatRow(d.name, d.role, layer, z, d.adjusted_p)
        for d in ordered_directions(findings)
        for layer, z in zip_longest(findings.layers, d.z[: len(findings.layers)])
    ]


def hypothesis_rows(findings: Findings) -> list[HypothesisRow]:
    """One row for each hypothesis: the leader first, then by how far behind."""
    rows = [
        HypothesisRow(
            h.name, h.kind, h.trait or "", h.role, h.layer, h.strength, h.rows,
            h.nats_per_row, h.reference_nats_per_row,
            h.behind.mean if h.behind else None,
            h.behind.low if h.behind else None,
            h.behind.high if h.behind else None,
            h.log_evalue, h.dropped or "",
        )
        for h in findings.hypotheses
    ]  # fmt: skip
    return sorted(rows, key=_rank)


def best_doses(rows: Sequence[HypothesisRow]) -> list[HypothesisRow]:
    """Of each vector the dose that went on in the race: the others are no rivals.

    That is the one scored on the most rows, and of those the likeliest.
    """
    went_on: dict[tuple[str, str], HypothesisRow] = {}
    for row in rows:
        other = went_on.setdefault((row.kind, row.trait or row.name), row)
        if _went(row) > _went(other):
            went_on[row.kind, row.trait or row.name] = row
    return [row for row in rows if row in went_on.values()]


def _went(row: HypothesisRow) -> tuple[int, float]:
    return row.rows, -_downward(row.log_evalue)


def _rank(row: HypothesisRow) -> tuple[bool, float, float]:
    behind = row.behind if row.behind is not None and known(row.behind) else 0.0
    return bool(row.dropped), behind, _downward(row.nats_per_row)


def _downward(value: Number) -> float:
    """A key that sorts the largest first and what is missing last."""
    return -value if value is not None and known(value) else math.inf


def line_names(rows: Sequence[HypothesisRow]) -> list[str]:
    """Names, with the layer where several hypotheses share one."""
    names = [r.name for r in rows]
    return [
        f"{r.name} @{r.layer}" if names.count(r.name) > 1 and r.layer is not None
        else r.name
        for r in rows
    ]  # fmt: skip


def null_rows(findings: Findings) -> list[NullRow]:
    """The observed statistic, then every permuted one."""
    return _chance_rows(findings.max_null)


def explanation_rows(findings: Findings) -> list[NullRow]:
    """The same of the rows' gradients against those of the explanation's mixture."""
    told = findings.explanation
    return _chance_rows(told.gradient_null if told else None)


def _chance_rows(found: MaxNull | None) -> list[NullRow]:
    if found is None:
        return []
    permuted = [NullRow("permuted", draw) for draw in found.draws if known(draw)]
    return [NullRow("observed", found.observed), *permuted]


def power_rows(findings: Findings) -> list[PowerRow]:
    """One row for each share of biased rows, smallest first."""
    points = findings.power.points if findings.power else []
    rows = [PowerRow(p.fraction, p.power, p.bound) for p in points]
    return sorted(rows, key=lambda row: row.fraction or 0.0)


def baseline_rows(findings: Findings) -> list[BaselineRow]:
    """One row for each shortcut, the best first."""
    rows = [
        BaselineRow(b.name, b.auroc.mean, b.auroc.low, b.auroc.high, b.separates)
        for b in findings.baselines
    ]
    return sorted(rows, key=lambda row: _downward(row.auroc))


def battery_rows(findings: Findings) -> list[BatteryRow]:
    """One row for each trait of the battery, the most raised first."""
    battery = findings.discovery.battery if findings.discovery else {}
    rows = [BatteryRow(trait, change) for trait, change in battery.items()]
    return sorted(rows, key=lambda row: _downward(row.change))


def audit_figure_data(findings: Findings) -> dict[str, Rows]:
    """The rows behind every figure, by name; a figure without rows is left out."""
    every: dict[str, Rows] = {
        "directions": heat_rows(findings),
        "hypotheses": hypothesis_rows(findings),
        "null": null_rows(findings),
        "explanation": explanation_rows(findings),
        "power": power_rows(findings),
        "baselines": baseline_rows(findings),
        "battery": battery_rows(findings),
    }
    return {name: rows for name, rows in every.items() if rows}


def write_audit_figure_data(findings: Findings, directory: Path | str) -> list[Path]:
    """Writes `DIRECTORY/figures/NAME.csv` for every figure and returns the paths.

    Comma-separated UTF-8 as `report.figure_data.write_figure_data` writes it.

    Raises:
        RunError: The place cannot be written, or the findings do not fit together.
    """
    with fitting("findings"):
        data = audit_figure_data(findings)
    return write_rows(data, directory)
