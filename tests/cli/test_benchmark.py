"""`benchmark audit`: runs, continues, refuses what it cannot do, and prints a table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undertow.audit.bench_scores import BenchmarkResult
from undertow.audit.contest import Answer, Workbench
from undertow.records import Row

if TYPE_CHECKING:
    from tests.conftest import Command


class LongestRow:
    """A plugged-in auditor."""

    def __init__(self, bench: Workbench) -> None:
        self.name = bench.carrier.name

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        longest = max(len(row.completion) for row in audited)
        return Answer(float(longest), trait="cat")


@pytest.fixture
def arguments(llama: Path, pets: Path) -> tuple[object, ...]:
    """A benchmark of a minute part of the tiny preset, without its `--out`."""
    changes = [
        "traits=[cat]", "interventions=[prompt]", "control_audits=0", "bound_rows=8",
        "designs=[{rows: 16, audits: 1, clean: 2}]", f"audit.family={pets}",
        "carriers.0.prompts=20", "carriers.0.teacher_prompts=16",
    ]  # fmt: skip
    sets = [part for change in changes for part in ("--set", change)]
    return (
        "benchmark", "audit", "--model", llama, "--dtype", "float32", "--preset", "tiny",
        *sets,
    )  # fmt: skip


def test_a_table_a_result_and_a_line_an_audit(
    command: "Command",
    arguments: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("undertow.cli.console.LongestRow", LongestRow, raising=False)
    plugged = "undertow.cli.console:LongestRow"
    arguments = (
        *arguments, "--out", tmp_path, "--auditor", "undertow", "--auditor", plugged
    )  # fmt: skip
    found = command(*arguments)
    assert found.status == 0, found.err
    lines = found.out.splitlines()
    assert lines[0].split()[:6] == ["auditor", "carrier", "rows", "by", "dose", "n"]
    assert lines[1].split()[:6] == ["undertow", "list", "prompt", "16", "100%", "1"]
    assert lines[2].split()[0] == plugged
    assert lines[-2:] == [
        f"benchmark  {tmp_path / 'benchmark.json'}", f"audits     {tmp_path / 'audits.jsonl'}"
    ]  # fmt: skip
    result = BenchmarkResult.model_validate_json(
        (tmp_path / "benchmark.json").read_text()
    )
    assert result.auditors == ["undertow", plugged]
    assert result.clean[0].audits == 2
    assert result.cells[1].right is not None
    assert result.cells[1].right.value == 1.0
    text = (tmp_path / "audits.jsonl").read_text()
    audits = [json.loads(line) for line in text.splitlines()]
    assert len(audits) == 2 * 3
    assert {audit["intervention"] for audit in audits} == {"none", "prompt"}
    assert all(len(audit["row_ids"]) == audit["rows"] == 16 for audit in audits)
    once_more = command(*arguments)
    assert once_more.out == found.out
    assert len((tmp_path / "audits.jsonl").read_bytes().splitlines()) == 6
    assert "audits" not in once_more.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--auditor", "oracle"), "got 'oracle', expected one of undertow, cosine"),
        (("--auditor", "json:nobody"), "got 'json:nobody'"),
        (("--auditor", ":"), "got ':'"),
        (("--auditor", ".json:x"), "got '.json:x'"),
        (("--set", "designs=[]"), "designs: "),
        (("--set", "carrier=3"), "did you mean 'carriers'?"),
        (
            ("--set", "traits=[unicorn]"),
            "no trait 'unicorn'; it has 'owl', 'cat', 'dog'",
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    command: "Command",
    arguments: tuple[object, ...],
    given: tuple[str, ...],
    message: str,
    tmp_path: Path,
) -> None:
    found = command(*arguments, "--out", tmp_path, *given)
    assert found.status == 2
    assert message in found.err
