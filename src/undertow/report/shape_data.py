"""How students' shifts are made, as rows of plain values for figures and CSV files."""

from collections.abc import Iterator
from typing import NamedTuple

from undertow.results import Condition, Number, Results, ShiftShape


class ShapeRow(NamedTuple):
    """How one student's shift is made after one block."""

    teacher: str
    noise: float
    trait: str
    seed: int
    role: str
    layer: int
    size: Number
    constancy: Number
    first: Number


class SpectrumRow(NamedTuple):
    """A student's shift after one block, along one of its singular directions."""

    teacher: str
    noise: float
    trait: str
    seed: int
    role: str
    layer: int
    direction: int
    share: Number


def shape_rows(results: Results) -> list[ShapeRow]:
    """One row for each condition × {student, control} × layer."""
    return [
        ShapeRow(c.teacher, c.noise, c.trait, c.seed, role, *values)
        for c, role, shape in _shapes(results)
        for values in zip(
            shape.layers, shape.size, shape.constancy, shape.first, strict=False
        )
    ]


def spectrum_rows(results: Results) -> list[SpectrumRow]:
    """One row for each condition × {student, control} × layer × direction."""
    return [
        SpectrumRow(c.teacher, c.noise, c.trait, c.seed, role, layer, direction, share)
        for c, role, shape in _shapes(results)
        for layer, shares in zip(shape.layers, shape.spectrum, strict=False)
        for direction, share in enumerate(shares, 1)
    ]


def _shapes(results: Results) -> Iterator[tuple[Condition, str, ShiftShape]]:
    for c in results.conditions:
        for role, shape in (("student", c.shape), ("control", c.control_shape)):
            if shape is not None:
                yield c, role, shape
