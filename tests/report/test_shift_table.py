"""The table of shifts: means over seeds at the right block, and why a dash stands there."""

import pytest

from undertow.report.shift_table import shift_table
from undertow.results import Results


def _cells(results: Results) -> dict[str, list[str]]:
    table = shift_table(results)
    return {
        f"{row[0].text}, {row[0].below}": [cell.text for cell in row[1:]]
        for row in table.rows
    }


def test_numbers_are_those_at_the_vector_s_block(realistic: Results) -> None:
    shown = _cells(realistic)
    own = [c for c in realistic.conditions if c.trait == "owl" and not c.noise]
    cosine, onset, block, size, mean, first, eight = shown["owl, steer, no noise"]
    at = own[0].shift
    assert at is not None
    expected = sum(c.shift.student[24] or 0 for c in own if c.shift) / len(own)
    assert float(cosine.replace("\N{MINUS SIGN}", "-")) == pytest.approx(
        expected, abs=5.1e-3
    )
    assert 0 < float(onset) <= 24
    assert block == "24"
    assert size == "0.048", "2 thousandths a block"
    assert (first, eight) == ("0.50", "1.00")
    assert 0 < float(mean) <= 0.9


def test_dashes_have_reasons(realistic: Results) -> None:
    first = realistic.conditions[0]
    assert first.shape is not None
    bare = first.model_copy(
        update={"shift": None, "shape": first.shape.model_copy(update={"spectrum": []})}
    )
    table = shift_table(realistic.model_copy(update={"conditions": [bare]}))
    (row,) = table.rows
    size, constancy, share = (
        first.shape.size[29], first.shape.constancy[29], first.shape.first[29]
    )  # fmt: skip
    assert [cell.text for cell in row[1:]] == [
        "—", "—", "29", f"{size:.3f}", f"{constancy:.2f}", f"{share:.2f}", "—",
    ]  # fmt: skip
    (note, dashes) = table.all_notes
    assert note.startswith("Means over the seeds that have a number.")
    assert "its teacher has no vector; was not recorded, or nothing moved" in dashes


def test_seeds_without_a_number_are_counted(realistic: Results) -> None:
    own = [c for c in realistic.conditions if c.trait == "owl" and not c.noise]
    assert own[0].shift is not None
    flat = own[0].shift.model_copy(update={"student": [-0.1] * 30})
    some = [own[0].model_copy(update={"shift": flat}), *own[1:]]
    (row,) = shift_table(realistic.model_copy(update={"conditions": some})).rows
    assert row[2].below == f"{len(own) - 1} of {len(own)} seeds"
    assert row[1].below == ""


def test_without_shapes_there_is_no_row(empty: Results) -> None:
    assert shift_table(empty).rows == ()
