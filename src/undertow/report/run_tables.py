"""The tables of how a run was made: rows and refusals, time, versions and settings."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from undertow.report.tables import Cell, Row, Table, cells_of, value_cell
from undertow.report.text import MISSING, duration_text
from undertow.results import Results, RowCounts


def row_table(results: Results) -> Table:
    """Rows written, kept and used by teacher and control, summed over seeds."""
    rows: list[Row] = []
    for name, group in cells_of(results.conditions):
        teacher = _count_cells([c.rows for c in group])
        control = _count_cells([c.control_rows for c in group])
        rows += [
            (Cell(name),),
            (Cell("teacher", mark="role-teacher"), *teacher),
            (Cell("control", mark="role-control"), *control),
        ]
    columns = (
        "who", "#written", "#kept", "#share kept", "#trained on", "refused, by reason",
    )  # fmt: skip
    note = (
        "Summed over seeds. A row may be refused for several reasons. Traits of one "
        "teacher may share a control."
    )
    return Table("Rows", columns, tuple(rows), (note,))


def _count_cells(counts: Sequence[RowCounts]) -> Row:
    written = sum(c.generated for c in counts)
    kept = sum(c.kept for c in counts)
    reasons: dict[str, int] = {}
    for c in counts:
        for reason, count in c.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    ranked = sorted(reasons.items(), key=lambda item: -item[1])
    share = kept / written if written else None
    return (
        Cell(f"{written:,}"),
        Cell(f"{kept:,}"),
        value_cell(share, why="no rows were written"),
        Cell(f"{sum(c.used for c in counts):,}"),
        Cell("; ".join(f"{reason}: {count:,}" for reason, count in ranked) or "none"),
    )


_KINDS = {
    "provenance": "loading the model",
    "checkpoint": "storing noised bases",
    "readout": "reading preferences",
    "rows": "writing and filtering rows",
    "training": "training students",
    "cell": "reading shifts",
    "vectors": "extracting and sweeping vectors",
    "audits": "auditing rows blind",
}


def _kind(stage: str) -> str:
    parts = stage.split("/")
    folders = [part for part in ("vectors", "audits") if part in parts[:-1]]
    key = folders[0] if folders else parts[-1]
    return _KINDS.get(key, key)


def seconds_table(results: Results) -> Table:
    """Wall-clock time summed by kind of stage, the longest first."""
    stages = sorted(results.seconds.items(), key=lambda item: _kind(item[0]))
    kinds = [
        (kind, [seconds for _, seconds in group])
        for kind, group in groupby(stages, key=lambda item: _kind(item[0]))
    ]
    kinds.sort(key=lambda item: -sum(item[1]))
    total = sum(results.seconds.values())
    rows = tuple(
        (
            Cell(kind),
            Cell(str(len(times))),
            Cell(duration_text(sum(times))),
            value_cell(sum(times) / total if total else None),
        )
        for kind, times in kinds
    )
    return Table("Time by kind of stage", ("kind", "#stages", "#time", "#share"), rows)


def stage_table(results: Results) -> Table:
    """Wall-clock time of every stage, in order of name."""
    rows = tuple(
        (Cell(stage), Cell(duration_text(seconds)))
        for stage, seconds in results.seconds.items()
    )
    return Table("Every stage", ("stage", "#time"), rows)


_FACTS = {
    "undertow_version": "undertow",
    "commit": "commit",
    "model": "model",
    "model_fingerprint": "model fingerprint",
    "device": "device",
    "dtype": "dtype",
    "dtype_reason": "reason for the dtype",
    "template": "chat template",
    "template_digest": "template digest",
    "system": "system text",
    "sampler": "sampler",
    "time": "started",
    "python": "Python",
    "platform": "platform",
    "processor": "processor",
    "cores": "cores",
}


def provenance_table(results: Results) -> Table:
    """What the run was made with; well-known facts first, all others after them."""
    return facts_table(results.provenance)


def facts_table(facts: Mapping[str, Any], *, title: str = "Made with") -> Table:
    """Facts by name: those that have words of their own first, then all others."""
    names = [name for name in _FACTS if name in facts]
    names += [name for name in facts if name not in _FACTS]
    rows = tuple((Cell(_fact_name(name)), _fact(facts[name])) for name in names)
    return Table(title, ("what", "value"), rows)


def _fact_name(name: str) -> str:
    return _FACTS.get(name, name.removesuffix("_version").replace("_", " "))


def _fact(value: Any) -> Cell:
    if value is None:
        return Cell(MISSING, why="not set, not installed or not known")
    if isinstance(value, list):
        return Cell(", ".join(value))
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    return Cell(str(value))
