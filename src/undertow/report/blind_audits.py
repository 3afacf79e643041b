"""What a run's blind audits say: each verdict beside the truth, and whether it is true.

Knows nothing of HTML, nor of how an audit comes to its verdict.
"""

from undertow.report.audit_words import KINDS, POWER
from undertow.report.tables import Cell, Row, Table
from undertow.report.text import MISSING, p_text, share_text
from undertow.results import AuditOutcome, Results

_JUDGED = {True: "right", False: "wrong", None: "nothing claimed"}
_MARKS = {True: "yes", False: "against", None: "unknown"}


def judged(audit: AuditOutcome) -> str:
    """Whether the verdict is true of the rows, in a word or two."""
    return _JUDGED[audit.right]


def verdict_words(audit: AuditOutcome) -> str:
    """The verdict in a few words: `owl, steered after block 24`."""
    if audit.verdict == "none":
        return "no evidence found"
    if audit.verdict == "inconclusive":
        return "inconclusive"
    what = audit.trait if audit.verdict == "trait" and audit.trait else "a shift"
    kind = KINDS[audit.kind] if audit.kind in ("steer", "prompt") else "kind not told"
    where = "" if audit.layer is None else f" after block {audit.layer}"
    rest = "" if audit.verdict == "trait" else ", trait not identified"
    return f"{what}, {kind}{where}{rest}"


def tally(results: Results) -> str:
    """How many verdicts are right, and what the auditor was told."""
    audits = results.audits
    counts = {key: sum(a.right is key for a in audits) for key in _JUDGED}
    silent = f", {counts[None]} claim nothing" if counts[None] else ""
    return (
        f"Of {len(audits)} sets that were audited without a word on who wrote their "
        f"rows, {counts[True]} verdicts are right, {counts[False]} wrong{silent}."
    )


def audit_table(results: Results) -> Table:
    """One row for each audited set: the truth, the verdict, and the audit's report."""
    columns = (
        "set", "truth", "verdict", "is it true", "#p-value", "#smallest share found",
        "report",
    )  # fmt: skip
    note = (
        "The auditor was given the model, the rows without their provenance, and the "
        "sampler. Right: something was found just where a teacher wrote rows, and each "
        "trait or kind of intervention that was named is that teacher's. p-value: of the "
        "null that the rows carry nothing. Smallest share found: of biased rows, with a "
        f"power of {share_text(POWER)}. The reports lie beside this page."
    )
    rows = tuple(_row(audit) for audit in results.audits)
    return Table("Verdicts beside the truth", columns, rows, (note,))


def _row(audit: AuditOutcome) -> Row:
    against = f"{audit.rows} rows against {audit.reference_rows} of the base"
    return (
        Cell(audit.name, against),
        Cell(audit.truth.words),
        Cell(verdict_words(audit), audit.sentence),
        Cell(judged(audit), mark=_MARKS[audit.right]),
        _dashed(p_text(audit.p_value), "no test could be made"),
        _dashed(share_text(audit.detectable_fraction), "not computed"),
        Cell("report", href=audit.report),
    )


def _dashed(text: str, why: str) -> Cell:
    return Cell(text, why=why if text == MISSING else "")
