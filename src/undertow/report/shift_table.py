"""The table of what students' shifts are like, by kind of teacher and trait.

Knows nothing of HTML. What each number means: `undertow.results`.
"""

from collections.abc import Sequence

from undertow.report.tables import Cell, Row, Table
from undertow.report.text import MISSING, noise_name, number
from undertow.results import Condition, Number, Results, ShiftByLayer, ShiftShape
from undertow.stats import onset

_NO_VECTOR = "its teacher has no vector"
_NO_RISE = "the cosine is nowhere above 0"
_BEFORE = "was not recorded, or nothing moved"


def shift_table(results: Results) -> Table:
    """Cosine, onset, constancy and spectrum of each cell, means over seeds."""
    cells: dict[tuple[str, float, str], list[Condition]] = {}
    for c in results.conditions:
        if c.shape is not None:
            cells.setdefault((c.teacher, c.noise, c.trait), []).append(c)
    noisy = any(noise for _, noise, _ in cells)
    rows = tuple(
        _row(trait, teacher + noise_name(noise, is_noisy=noisy), own)
        for (teacher, noise, trait), own in cells.items()
    )
    columns = (
        "student of", "#cosine", "#onset, block", "#after block", "#size",
        "#in the mean", "#first", "#first eight",
    )  # fmt: skip
    note = (
        "Means over the seeds that have a number. Cosine: of the student's shift with its teacher's vector, at "
        "the vector's block. Onset: the block from which that cosine is at least half of "
        "its largest. The others after the block named, the vector's, or the last one where "
        "there is none; sizes grow with depth, so compare those of one block: size relative to the stream; shares of the shift's energy in its mean over "
        "tokens and in its first singular directions."
    )
    return Table("The students' shifts", columns, rows, (note,))


def _row(trait: str, teacher: str, own: Sequence[Condition]) -> Row:
    shifts = [c.shift for c in own if c.shift is not None]
    begun = [_onset(shift) for shift in shifts]
    read = [_read(c.shape, _block(c)) for c in own if c.shape is not None]
    sizes, constancies, firsts, eights = zip(*read, strict=True)
    return (
        Cell(trait, teacher),
        _mean([s.student[s.layers.index(s.vector_layer)] for s in shifts], why=_NO_VECTOR),
        _mean(begun, digits=0 if len(begun) < 2 else 1,
              why=_NO_RISE if begun else _NO_VECTOR),
        Cell(" or ".join(map(str, sorted({_block(c) for c in own})))),
        _mean(sizes, digits=3),
        _mean(constancies),
        _mean(firsts),
        _mean(eights, why=_BEFORE),
    )  # fmt: skip


def _onset(shift: ShiftByLayer) -> Number:
    """The block from which the student's cosine is at least half of its largest."""
    place = onset(shift.student)
    return None if place is None else float(shift.layers[place])


def _block(condition: Condition) -> int:
    """The vector's block, or the last one."""
    assert condition.shape is not None
    if condition.shift is None:
        return condition.shape.layers[-1]
    return condition.shift.vector_layer


def _read(shape: ShiftShape, block: int) -> tuple[Number, ...]:
    """Size, constancy and shares after a block."""
    place = shape.layers.index(block)
    eight = _sum(shape.spectrum[place]) if shape.spectrum else None
    return shape.size[place], shape.constancy[place], shape.first[place], eight


def _sum(shares: Sequence[Number]) -> Number:
    known = [share for share in shares if share is not None]
    return sum(known) if len(known) == len(shares) else None


def _mean(
    values: Sequence[Number], *, digits: int = 2, why: str = "could not be computed"
) -> Cell:
    """The mean of those that are there, and of how many if some are not."""
    known = [value for value in values if value is not None]
    if not known:
        return Cell(MISSING, why=why)
    fewer = f"{len(known)} of {len(values)} seeds" if len(known) < len(values) else ""
    return Cell(number(sum(known) / len(known), digits=digits), fewer)
