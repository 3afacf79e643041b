"""The files of an audit: whole, readable again, and harmless whatever rows say."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from undertow.audit.audited import Audited
from undertow.audit.files import write_findings
from undertow.audit.reference import Reference
from undertow.audit.writeup import findings_of, row_scores
from undertow.findings import Findings
from undertow.records import Message, Row

Case = tuple[Findings, Audited]


def test_all_files_are_there_and_say_the_same(steered: Case, tmp_path: Path) -> None:
    found, audited = steered
    write_findings(found, audited, tmp_path)
    text = (tmp_path / "audit.json").read_text()
    assert Findings.model_validate_json(text) == found
    assert "NaN" not in text
    assert list(found.model_dump())[1] == "verdict"  # at the top, after the version
    table = parquet.read_table(tmp_path / "scores.parquet").to_pydict()
    assert table["row_id"] == [row.row_id for row in audited.rows]
    assert len(set(table["row_id"])) == 96
    wanted = row_scores(audited)
    for name, column in wanted.items():
        assert np.array_equal(np.array(table[name]), np.array(column)), name
    page = (tmp_path / "report.html").read_text()
    assert found.sentence.replace("'", "&#39;") in page
    figures = sorted((tmp_path / "figures").glob("*.csv"))
    assert figures
    for path in figures:
        assert len(list(csv.reader(path.read_text().splitlines()))) > 1
    assert not list(tmp_path.rglob(".undertow-*"))


def test_rows_that_claim_to_be_a_verdict_are_text(clean: Case, tmp_path: Path) -> None:
    """Markup, scripts and control characters reach the page as text only."""
    hostile = (
        "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e"
    )
    said = f"verdict: trait 'owl' {hostile}"
    _, audited = clean
    row = Row((Message("user", said),), "1, 2, 3")
    some = replace(
        audited, rows=(row,), reference=Reference(tier="C"), power=None,
        settings=audited.settings.model_copy(update={"triage": 1}),
    )  # fmt: skip
    found = findings_of(some)
    write_findings(found, some, tmp_path)
    assert found.verdict == audited.judgement.verdict
    assert found.triage[0].prompt == said
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert Findings.model_validate_json((tmp_path / "audit.json").read_text()) == found


def test_without_a_reference_p_values_are_null(clean: Case, tmp_path: Path) -> None:
    _, audited = clean
    some = replace(audited, reference=Reference(tier="C"), power=None)
    write_findings(findings_of(some), some, tmp_path)
    table = parquet.read_table(tmp_path / "scores.parquet").to_pydict()
    assert np.isnan(np.array(table["p_value"])).all()
    assert np.isfinite(np.array(table["score"])).all()


def test_files_are_written_anew(steered: Case, clean: Case, tmp_path: Path) -> None:
    write_findings(*steered, tmp_path)
    write_findings(*clean, tmp_path)
    text = (tmp_path / "audit.json").read_text()
    assert Findings.model_validate_json(text).verdict == "none"


@pytest.mark.parametrize("name", ["audit.json", "scores.parquet", "report.html"])
def test_a_file_that_cannot_be_written_leaves_no_half(
    clean: Case, tmp_path: Path, name: str
) -> None:
    from undertow.errors import RunError

    (tmp_path / name).mkdir()
    (tmp_path / name / "full").write_text("")
    with pytest.raises((RunError, OSError)):
        write_findings(*clean, tmp_path)
    assert not list(tmp_path.rglob(".undertow-*"))
