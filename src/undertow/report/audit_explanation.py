"""The table of how far what an audit says explains the rows: each check and what it needs.

Read from `undertow.findings` alone; knows nothing of HTML.
"""

from undertow.findings import Explanation, Findings
from undertow.report.tables import Cell, Row, Table
from undertow.report.text import MISSING, number, p_text, share_text

_HELD = "held"
_TAKEN = "taken back"
_FEW = "too few rows to compare"


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
        "latter, the likeliest share. Each of the tests takes back what is true with a "
        "probability of about the error rate; the lot and the gain have no such rate."
    )


def _rows(told: Explanation) -> list[Row]:
    return [
        _test(
            "Likelihood, against rows of the mixture", told.lack_p_value, told,
            below=f"{number(told.lack, signed=True)} nats a row less",
            why=_FEW,
        ),
        _lot(told),
        _test(
            "Gradients, along all directions at all blocks", told.gradient_p_value, told,
            why=_reached(told) or "personas are not held to it",
        ),
        _gain(told),
    ]  # fmt: skip


def _reached(told: Explanation, *, gradients: bool = False) -> str:
    """Why a check was not reached; nothing if it was."""
    if told.lack_p_value is None:
        return _FEW
    p_values = [told.lack_p_value, *([told.gradient_p_value] if gradients else [])]
    refused = any(
        p is not None and told.limit is not None and p <= told.limit for p in p_values
    )
    if refused or _behind_the_lot(told):
        return "another check had taken it back"
    return ""


def _behind_the_lot(told: Explanation) -> bool:
    lead, limit = told.lot_lead, told.lot_limit
    return lead is not None and limit is not None and lead < limit


def _test(
    name: str, p_value: float | None, told: Explanation, *, why: str, below: str = ""
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
        return _absent(name, _reached(told) or "the rows are no lists of numbers")
    return (
        Cell(name, "nats by which it beats them"), Cell(number(lead, signed=True, digits=1)),
        Cell(f"≥ {number(limit, digits=1)}"), Cell(_HELD if lead >= limit else _TAKEN),
    )  # fmt: skip


def _gain(told: Explanation) -> Row:
    name = "Gain of rows that it may have written"
    gain, limit = told.gain, told.gain_limit
    if gain is None or limit is None:
        why = (
            _reached(told, gradients=True)
            or "asked of a named vector with a finite gain"
        )
        return _absent(name, why)
    own = number(told.own_gain, signed=True, digits=1)
    return (
        Cell(name, f"nats a row; such rows of its own mixture gain {own}"),
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
