"""The files of one audit: audit.json, scores.parquet, report.html, figures/*.csv."""

from pathlib import Path

from undertow.audit.audited import Audited
from undertow.audit.writeup import row_scores
from undertow.findings import Findings
from undertow.report.audit_data import write_audit_figure_data
from undertow.report.audit_page import write_audit_report
from undertow.storage import replacing, write_json

FINDINGS, SCORES, REPORT = "audit.json", "scores.parquet", "report.html"


def write_findings(findings: Findings, audited: Audited, directory: Path) -> None:
    """Writes all files of an audit, each whole or not at all.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with replacing(directory / SCORES) as draft:
        parquet.write_table(pa.table(row_scores(audited)), draft)
    write_audit_report(findings, directory / REPORT)
    write_audit_figure_data(findings, directory)
    write_json(directory / FINDINGS, findings.model_dump(mode="json"))
