"""The table of what students' shifts are like, by kind of teacher and trait.

Knows nothing of HTML. What each number means: `undertow.results`.
"""

from collections.abc import Iterable, Sequence

from undertow.report.tables import Cell, Row, Table, value_cell
from undertow.report.text import MISSING, noise_name
from undertow.results import Condition, Number, Results
from undertow.stats import onset

_NO_VECTOR = "its teacher has no vector"
_NO_RISE = "the cosine is nowhere above 0"
_BEFORE = "was not recorded"


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
        "student of", "#cosine", "#onset, block", "#size", "#in the mean", "#first",
        "#first eight",
    )  # fmt: skip
    note = (
        "Means over seeds. Cosine: of the student's shift with its teacher's vector, at "
        "the vector's block. Onset: the block from which that cosine is at least half of "
        "its largest. The others after the vector's block, or the last one where there is "
        "none: size relative to the stream; shares of the shift's energy in its mean over "
        "tokens and in its first singular directions."
    )
    return Table("The students' shifts", columns, rows, (note,))


def _row(trait: str, teacher: str, own: Sequence[Condition]) -> Row:
    at = [c.shift.vector_layer if c.shift else len(c.shape.layers) - 1
          for c in own if c.shape]  # fmt: skip
    shapes = [c.shape for c in own if c.shape]
    spectra = [
        s.spectrum[place] for s, place in zip(shapes, at, strict=True) if s.spectrum
    ]
    begun = [onset(c.shift.student) for c in own if c.shift]
    blocks = [float(c.shift.layers[b]) for c, b in zip(own, begun, strict=False)
              if c.shift and b is not None]  # fmt: skip
    return (
        Cell(trait, teacher),
        _mean((c.shift.student[c.shift.layers.index(c.shift.vector_layer)]
               for c in own if c.shift), why=_NO_VECTOR),
        _mean(blocks, digits=0 if len(blocks) < 2 else 1,
              why=_NO_RISE if begun else _NO_VECTOR),
        _mean((s.size[place] for s, place in zip(shapes, at, strict=True)), digits=3),
        _mean(s.constancy[place] for s, place in zip(shapes, at, strict=True)),
        _mean(s.first[place] for s, place in zip(shapes, at, strict=True)),
        _mean((_sum(shares) for shares in spectra), why=_BEFORE),
    )  # fmt: skip


def _sum(shares: Sequence[Number]) -> Number:
    known = [share for share in shares if share is not None]
    return sum(known) if len(known) == len(shares) else None


def _mean(
    values: Iterable[Number], *, digits: int = 2, why: str = "could not be computed"
) -> Cell:
    known = [value for value in values if value is not None]
    if not known:
        return Cell(MISSING, why=why)
    return value_cell(sum(known) / len(known), digits=digits)
