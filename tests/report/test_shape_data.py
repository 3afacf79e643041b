"""Rows of shapes and spectra: one for each student, block and direction."""

from undertow.report.shape_data import shape_rows, spectrum_rows
from undertow.results import Results


def test_a_row_for_every_block_and_direction(realistic: Results) -> None:
    students = [
        shape
        for c in realistic.conditions
        for shape in (c.shape, c.control_shape)
        if shape
    ]
    assert len(shape_rows(realistic)) == sum(len(s.layers) for s in students)
    spectra = spectrum_rows(realistic)
    assert len(spectra) == sum(len(part) for s in students for part in s.spectrum)
    assert {r.direction for r in spectra} == set(range(1, 9))
    last = [r for r in spectra if r.layer == 29 and r.role == "student"][:8]
    assert [r.share for r in last] == [0.5**place for place in range(1, 9)]


def test_nothing_gives_no_rows(empty: Results) -> None:
    assert shape_rows(empty) == []
    assert spectrum_rows(empty) == []
