"""The table that holds the channel against the dose, which is known without measuring.

A channel that only tells how strongly a teacher was steered tells nothing new, so both
are ranked against what students became: over all cells, and where only the dose differs.
Which teacher was steered where, and how strongly, stands with the gradients of its rows.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from undertow.report.inner_tables import MEASURES, scope_of, way_words, ways_of
from undertow.report.tables import Cell, Row, Table, as_estimate, estimate_cell
from undertow.report.text import level_text
from undertow.results import Number, Results
from undertow.stats import rank_correlation
from undertow.stats.correlation import FEWEST


class Taught(NamedTuple):
    """One cell: how its teacher was made, and what its student became."""

    kind: str
    layer: int | None
    dose: Number
    width: Number
    transfer: Number
    from_base: Number


def dose_table(results: Results) -> Table:
    """Rank correlations of channel and of dose with what students became."""
    ways = ways_of(results)
    rows: list[Row] = []
    for student, way in ways:
        parts = subsets(list(_cells(results, student, way)))
        for of in ("transfer", "from_base") if parts else ():
            name = f"; students: {way_words(student, way)}" if ways[1:] else ""
            rows.append((Cell(MEASURES[of] + name),))
            rows += [
                (
                    Cell(part), Cell(str(len(cells))),
                    _ranked(results, cells, "width", of), _ranked(results, cells, "dose", of),
                )
                for part, cells in parts.items()
            ]  # fmt: skip
    note = (
        "Spearman's ρ of the channel that these students learn through, and of the dose of "
        "the teacher's vector, with what students became. Brackets: "
        f"{level_text(results.confidence)} intervals over cells, taken for independent."
    )
    columns = ("cells", "#n", "#ρ of the channel", "#ρ of the dose")
    return Table("The channel beside the dose", columns, tuple(rows), (note,))


def subsets(cells: Sequence[Taught]) -> dict[str, list[Taught]]:
    """All cells and parts of them, each of four or more; nothing without a dose.

    A part that is the whole is left out.
    """
    steered = [c for c in cells if c.kind == "steer"]
    parts = {
        "without fine-tuned teachers": [c for c in cells if c.kind != "finetune"],
        "steered": steered,
    }
    for layer in sorted({c.layer for c in steered if c.layer is not None}):
        parts[f"steered after block {layer}"] = [c for c in steered if c.layer == layer]
    if len(steered) < FEWEST:
        return {}
    kept = {
        name: part for name, part in parts.items() if FEWEST <= len(part) < len(cells)
    }  # fmt: skip
    return {"all": list(cells), **kept}


def _cells(results: Results, student: str, way: str) -> Iterator[Taught]:
    """Cells of students that were trained alike, by means over seeds."""
    made = {(a.teacher, a.trait, a.noise): a for a in results.alignments}
    for item in results.transfers:
        teacher = made.get((item.teacher, item.trait, item.noise))
        is_alike = (item.student, item.way) == (student, way)
        if teacher is None or item.channel is None or not is_alike:
            continue
        yield Taught(
            # Doses are measured: equal ones differ in their last digits.
            teacher.kind, teacher.vector_layer,
            None if teacher.dose is None else round(teacher.dose, 6),
            getattr(item.channel, scope_of(student)).mean,
            item.transfer.mean, item.from_base.mean if item.from_base else None,
        )  # fmt: skip


def _ranked(results: Results, cells: Sequence[Taught], by: str, of: str) -> Cell:
    """The correlation of two fields; a dash where some cell lacks one."""
    x, y = ([getattr(cell, field) for cell in cells] for field in (by, of))
    if None in x or None in y:
        return estimate_cell(None, absent="not every cell has it")
    found = rank_correlation(x, y, confidence=results.confidence, permutations=0)
    return estimate_cell(as_estimate(found.interval, "cell"))
