"""The table of how far what an audit says explains the rows: each check and what it needs.

Read from `undertow.findings` alone; knows nothing of HTML.
"""

from undertow.findings import Explanation, Findings
from undertow.report.tables import Cell, Row, Table
from undertow.report.text import MISSING, number, p_text, share_text

_HELD = "held"
_TAKEN = "taken back"


def explanation_table(findings: Findings) -> Table:
    """Every check in order; those that were not made say why."""
    told = findings.explanation
    rows = () if told is None else tuple(_rows(told))
    columns = ("held against it", "#found", "#needed", "result")
    notes = () if told is None else (_note(told),)
    return Table("Does it explain the rows?", columns, rows, notes)


def _note(told: Explanation) -> str:
    share = share_text(told.share)
    return (
        f"Of {told.hypothesis}, on {told.rows} prompts. The base wrote rows there untouched "
        f"and under it; the audited ones are held against a mixture with {share} of the "
        "latter, the likeliest share. The two tests share the error rate: what is true is "
        "taken back with a probability of the whole rate at most."
    )


def _rows(told: Explanation) -> list[Row]:
    p_values = {
        "Likelihood, against rows of the mixture": (
            told.lack_p_value, f"{number(told.lack, signed=True)} nats a row less",
            "too few rows to compare"),
        "Gradients, along all directions at all blocks": (
            told.gradient_p_value, "", "asked of vectors whose likelihoods hold"),
    }  # fmt: skip
    (likely, gradients) = (
        _test(name, p_value, below, why, told)
        for name, (p_value, below, why) in p_values.items()
    )
    return [likely, _lot(told), gradients, _gain(told)]


def _test(
    name: str, p_value: float | None, below: str, why: str, told: Explanation
) -> Row:
    if p_value is None:
        return _absent(name, why)
    held = told.limit is not None and p_value > told.limit
    return (
        Cell(name, below), Cell(f"p {p_text(p_value)}"), Cell(f"p > {p_text(told.limit)}"),
        Cell(_HELD if held else _TAKEN),
    )  # fmt: skip


def _lot(told: Explanation) -> Row:
    name = "Numbers drawn by lot"
    lead, limit = told.lot_lead, told.lot_limit
    if lead is None or limit is None:
        return _absent(name, "asked of lists of numbers whose likelihoods hold")
    return (
        Cell(name, "nats by which it beats them"), Cell(number(lead, signed=True, digits=1)),
        Cell(f"≥ {number(limit, digits=1)}"), Cell(_HELD if lead >= limit else _TAKEN),
    )  # fmt: skip


def _gain(told: Explanation) -> Row:
    name = "Gain of rows that it may have written"
    gain, limit = told.gain, told.gain_limit
    if gain is None or limit is None:
        return _absent(name, "asked of a named vector")
    own = number(told.own_gain, signed=True, digits=1)
    return (
        Cell(name, f"nats a row; its own rows gain {own}"),
        Cell(number(gain, signed=True, digits=1)), Cell(f"≥ {number(limit, digits=1)}"),
        Cell(_HELD if gain >= limit else "name taken back"),
    )  # fmt: skip


def _absent(name: str, why: str) -> Row:
    return (
        Cell(name),
        Cell(MISSING, why=why),
        Cell(MISSING, why=why),
        Cell("not asked"),
    )
