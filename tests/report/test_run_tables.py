"""Rows and seconds are summed by hand; every fact of the provenance is shown."""

from undertow.report import run_tables
from undertow.results import Results


def test_refusals_are_summed_over_seeds(realistic: Results) -> None:
    # 1211 − 10 × seed kept of 1500 in each of five seeds; 180 and 109 refused.
    head, teacher, control = run_tables.row_table(realistic).rows[:3]
    assert head[0].text == "owl by steer, no noise"
    assert [cell.text for cell in teacher] == [
        "teacher", "7,500", "5,955", "0.79", "5,900",
        "too many values: 900; not a list of numbers: 545",
    ]  # fmt: skip
    assert [cell.text for cell in control][-1] == "too many values: 335"


def test_seconds_are_summed_by_kind(realistic: Results) -> None:
    rows = run_tables.seconds_table(realistic).rows
    shown = {row[0].text: [cell.text for cell in row[1:3]] for row in rows}
    # 2 noise levels × 5 seeds × (control and two traits) × 61.25 s.
    assert rows[0][0].text == "writing and filtering rows"
    assert shown["writing and filtering rows"] == ["30", "30 min 37 s"]
    assert shown["loading the model"] == ["1", "12.4 s"]
    assert sum(int(row[1].text) for row in rows) == len(realistic.seconds)


def test_provenance_shows_every_fact(realistic: Results) -> None:
    rows = run_tables.provenance_table(realistic).rows
    assert len(rows) == len(realistic.provenance)
    shown = {row[0].text: row[1].text for row in rows}
    assert (
        shown["reason for the dtype"]
        == "the processor has bf16 matrix units (amx_bf16)"
    )
    assert shown["torch"] == "2.13.0"
    assert shown["system text"] == "—"
