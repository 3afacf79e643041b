"""The table of what an explanation was held against."""

from undertow.findings import Findings
from undertow.report.audit_explanation import explanation_table
from undertow.report.audit_page import render_audit_report


def _cells(findings: Findings) -> list[list[str]]:
    return [[cell.text for cell in row] for row in explanation_table(findings).rows]


def test_every_check_has_what_it_found_and_needs(trait_found: Findings) -> None:
    assert [row[1:] for row in _cells(trait_found)] == [
        ["p 0.71", "p > 0.0050", "held"],
        ["+214.6", "≥ 8.9", "held"],
        ["p 0.38", "p > 0.0050", "held"],
        ["+7.4", "≥ 5.5", "held"],
    ]
    (note,) = explanation_table(trait_found).notes
    assert note.startswith("Of owl vector, block 24, dose 0.3, on 64 prompts.")
    assert "mixture with 96\N{NO-BREAK SPACE}% of the latter" in note
    page = render_audit_report(trait_found)
    assert 'id="explanation"' in page
    assert "figure-explanation" in page


def test_what_was_taken_back_and_what_was_not_asked(shift_found: Findings) -> None:
    assert [row[1:] for row in _cells(shift_found)][2:] == [["—", "—", "not asked"]] * 2
    told = shift_found.explanation
    assert told is not None
    worse = {
        "lack_p_value": 1e-5, "lot_lead": -3.0, "gain": 1.0, "gain_limit": 2.0,
        "gradient_p_value": 0.004,
    }  # fmt: skip
    assert [row[3] for row in _cells(_with(shift_found, **worse))] == [
        "taken back", "taken back", "taken back", "name taken back",
    ]  # fmt: skip


def _with(findings: Findings, **update: object) -> Findings:
    assert findings.explanation is not None
    told = findings.explanation.model_copy(update=update)
    return findings.model_copy(update={"explanation": told})


def _why(findings: Findings) -> list[str]:
    return [row[1].why for row in explanation_table(findings).rows]


def test_a_check_that_was_not_asked_says_why(
    shift_found: Findings, trait_found: Findings
) -> None:
    personas = "personas are not held to it"
    named = "asked of a named vector with a finite gain"
    before = "another check had taken it back"
    few = "too few rows to compare"
    lists = "the rows are no lists of numbers"
    assert _why(shift_found) == ["", "", personas, named]
    none = dict.fromkeys(
        ("gradient_p_value", "gain", "own_gain", "gain_limit", "lot_lead", "lot_limit")
    )
    assert _why(_with(trait_found, **none, lack_p_value=None)) == [few] * 4
    assert _why(_with(trait_found, **none, lack_p_value=0.001)) == ["", *[before] * 3]
    assert _why(_with(trait_found, **none))[1] == lists
    behind = none | {"lot_lead": -4.0, "lot_limit": 8.9}
    assert _why(_with(trait_found, **behind)) == ["", "", before, before]
    refused = {"gradient_p_value": 0.001, "gain": None}
    assert _why(_with(trait_found, **refused)) == ["", "", "", before]


def test_without_an_explanation_there_is_no_section(none_found: Findings) -> None:
    assert explanation_table(none_found).rows == ()
    assert 'id="explanation"' not in render_audit_report(none_found)
