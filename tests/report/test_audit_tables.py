"""The tables of an audit: every number, and a reason beside every dash."""

from undertow.findings import Findings
from undertow.report import audit_tables as tables
from undertow.report.tables import Table


def cells(table: Table) -> list[list[str]]:
    return [
        [cell.text.replace("\N{NO-BREAK SPACE}", " ") for cell in row]
        for row in table.rows
    ]


def test_every_test_has_its_statistic_p_and_assumption(trait_found: Findings) -> None:
    table = tables.arms_table(trait_found)
    found = cells(table)
    assert [row[1:4] for row in found] == [
        ["+26.30", "1.0×10⁻⁴", "1,000"], ["+7.90", "0.0023", "256"],
        ["+110.10", "1.5×10⁻⁴⁸", "256"], ["—", "—", "0"],
    ]  # fmt: skip
    assert [row[0].below for row in table.rows] == [
        "gradient", "likelihood", "exact", "discovery",
    ]  # fmt: skip
    assert found[0][4].startswith("labels can be exchanged")
    assert table.all_notes == (
        "— means: discovery: fewer than 32 rows in a half. It never means zero.",
    )


def test_directions_are_told_at_their_largest_z(trait_found: Findings) -> None:
    owl = trait_found.directions[0]
    at = max(range(30), key=lambda n: abs(owl.z[n] or 0))
    row = cells(tables.directions_table(trait_found))[0]
    assert row == [
        "owl", f"+{owl.z[at]:.2f}", str(at), "1.0×10⁻⁴", "0.0020",
    ]  # fmt: skip


def test_hypotheses_say_how_far_they_are_behind(trait_found: Findings) -> None:
    table = tables.hypotheses_table(trait_found)
    leader, second = table.rows[:2]
    assert [c.text for c in leader][3] == "—"
    assert leader[0].below == "vector, layer 24, strength 5.25"
    assert (second[3].text, second[3].below) == ("+0.140", "[−0.003, +0.283]")
    dropped = [row for row in table.rows if row[6].text != "stayed to the end"]
    assert dropped
    assert {row[5].text for row in dropped} == {"48"}


def test_efficiency_is_the_bound_over_what_is_needed(trait_found: Findings) -> None:
    # 10.7 rows at least, 17 needed.
    assert cells(tables.power_table(trait_found)) == [
        ["smallest share of biased rows found", "9.8 %"],
        ["divergence, nats a row", "0.430"],
        ["rows needed, all of them biased", "17"],
        ["rows that any test needs at least", "11"],
        ["efficiency: the bound over what is needed", "0.63"],
    ]


def test_the_forecast_shows_what_moves_most_first(trait_found: Findings) -> None:
    table = tables.forecast_table(trait_found, most=3)
    assert cells(table) == [
        ["owl", "+3.10", "+3.60", "+0.41"],
        ["monkey", "−1.00", "−0.82", "−0.28"],
        ["deer", "−0.90", "−0.74", "−0.26"],
    ]
    assert len(tables.forecast_table(trait_found).rows) == 20


def test_what_was_not_measured_has_no_column(inconclusive: Findings) -> None:
    assert tables.forecast_table(inconclusive).columns == (
        "trait",
        "#raw",
        "#with Adam",
    )


def test_shortcuts_that_separate_are_marked(trait_found: Findings) -> None:
    rows = tables.baselines_table(trait_found).rows
    assert [row[2].text for row in rows] == ["no", "yes", "no", "no"]
    assert (rows[1][1].text, rows[1][1].below) == ("0.71", "[0.67, 0.75]")
    assert rows[3][1].why == "no interval could be computed"


def test_data_and_reference_are_told(trait_found: Findings) -> None:
    data = dict(cells(tables.data_table(trait_found)))
    assert data["rows read"] == "1,012"
    assert data["rows left out"] == "no prompt: 2; empty completion: 1"
    reference = dict(cells(tables.reference_table(trait_found)))
    assert reference["how it was sampled"] == (
        "temperature 1, top_k 0, allowed list, seed —"
    )
    assert reference["share of the base's rows that pass it"] == "87 %"


def test_every_dash_has_a_reason(inconclusive: Findings) -> None:
    every = [
        tables.arms_table(inconclusive), tables.directions_table(inconclusive),
        tables.hypotheses_table(inconclusive), tables.power_table(inconclusive),
        tables.baselines_table(inconclusive), tables.forecast_table(inconclusive),
    ]  # fmt: skip
    dashes = [c for t in every for row in t.rows for c in row if c.text == "—"]
    assert len(dashes) > 15
    assert all(cell.why for cell in dashes)
