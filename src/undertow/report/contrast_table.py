"""The table of teachers against each other: transfers on the same questions, subtracted.

Whether one teacher's transfer has an interval above zero and another's has not says
little of whether they differ. Knows nothing of HTML.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from undertow.report.tables import Cell, Row, Table, estimate_cell
from undertow.report.text import level_text, noise_name
from undertow.results import Condition, Estimate, Results
from undertow.stats import mean_interval, two_way_interval

_Values = NDArray[np.float64]
_LEAST = 2  # questions or seeds that an interval is over


def contrast_table(results: Results) -> Table:
    """Each teacher's transfer minus that of the first one, of the same trait and noise."""
    rows = tuple(_rows(results))
    columns = ("trait", "teacher − teacher", "#difference, nats", "#clusters")
    level = level_text(results.confidence)
    note = (
        "Transfer (student − control) of one teacher's students minus that of another's, "
        f"question by question; brackets: {level} intervals. Teachers are not matched in "
        "strength: the table of channels says how far each is from the base."
    )
    return Table("Teachers compared", columns, rows, (note,) if rows else ())


def _rows(results: Results) -> Iterator[Row]:
    # Ways of training are not put together.
    ways = {(t.teacher, t.noise, t.trait): t.way for t in results.transfers}
    groups: dict[tuple[str, float, str, str], dict[str, list[Condition]]] = {}
    for each in results.conditions:
        way = ways.get((each.teacher, each.noise, each.trait), "")
        own = groups.setdefault((each.trait, each.noise, each.student, way), {})
        own.setdefault(each.teacher, []).append(each)
    is_noisy = any(each.noise for each in results.conditions)
    for (trait, noise, *_), teachers in groups.items():
        first, *others = teachers
        for other in others:
            found = _contrast(teachers[other], teachers[first])
            if found is not None:
                where = noise_name(noise, is_noisy=is_noisy).removeprefix(", ")
                yield (
                    Cell(trait, where), Cell(f"{other} − {first}"),
                    estimate_cell(found), Cell(str(found.n), found.clusters),
                )  # fmt: skip


def _contrast(
    ours: Sequence[Condition], theirs: Sequence[Condition]
) -> Estimate | None:
    """Over the seeds and questions that both have; None if that is not enough."""
    other = {each.seed: _transfer(each) for each in theirs}
    pairs = [(_transfer(each), other.get(each.seed)) for each in ours]
    found = [
        own - its
        for own, its in pairs
        if own is not None and its is not None and len(own) == len(its)
    ]
    if not found or len(found[0]) < _LEAST or len({len(own) for own in found}) > 1:
        return None
    if len(found) == 1:
        interval, clusters = mean_interval(found[0]), "question"
    else:
        interval, clusters = two_way_interval(np.stack(found)), "seed and question"
    low, high = (x if np.isfinite(x) else None for x in (interval.low, interval.high))
    return Estimate(
        mean=interval.mean, low=low, high=high, n=interval.n, clusters=clusters
    )


def _transfer(condition: Condition) -> _Values | None:
    """[question]: student − control, nats; None if one of them has a gap."""
    by_role = {each.role: each.by_question for each in condition.readouts}
    student, control = by_role.get("student", []), by_role.get("control", [])
    if not student or len(student) != len(control) or None in (*student, *control):
        return None
    return np.array(student, dtype=np.float64) - np.array(control, dtype=np.float64)
