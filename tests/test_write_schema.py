"""The pages of the schemas name every field, and notice when they are old."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from undertow.audit.bench_scores import BenchmarkResult, Record
from undertow.findings import Census, Findings
from undertow.measurements import (
    ChannelMeasurement,
    EntanglementMeasurement,
    VectorMeasurement,
)
from undertow.results import Results

SCRIPT = Path(__file__).parents[1] / "docs" / "write_schema.py"


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that writes into the test's own folder."""
    spec = importlib.util.spec_from_file_location("write_schema", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in (
        "PAGE", "AUDIT_PAGE", "CENSUS_PAGE", "MEASUREMENT_PAGE", "BENCHMARK_PAGE",
    ):  # fmt: skip
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).name)
    return module


@pytest.mark.parametrize(
    ("name", "roots"),
    [
        ("results-schema.md", [Results]),
        ("audit-schema.md", [Findings]),
        ("census-schema.md", [Census]),
        ("benchmark-schema.md", [BenchmarkResult, Record]),
        (
            "measurements-schema.md",
            [ChannelMeasurement, VectorMeasurement, EntanglementMeasurement],
        ),
    ],
)
def test_a_page_names_every_field_of_every_object(
    writer: ModuleType, name: str, roots: list[type[BaseModel]]
) -> None:
    (text,) = [page for path, page in writer.pages().items() if path.name == name]
    schemas = {root.__name__: root.model_json_schema() for root in roots}
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings[: len(roots)] == list(schemas)
    parts = dict(schemas)
    for schema in schemas.values():
        parts |= schema.get("$defs", {})
    assert sorted(headings) == sorted(parts)
    for heading, part in parts.items():
        rows = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        for field, value in part["properties"].items():
            (line,) = [r for r in rows.splitlines() if r.startswith(f"| `{field}` |")]
            assert value.get("description", "") in line
            assert line.count("|") >= 5


def test_types_are_told_in_words(writer: ModuleType) -> None:
    number = {"anyOf": [{"type": "number"}, {"type": "null"}]}
    assert writer.shown_type(number) == "number or null"
    assert writer.shown_type({"type": "array", "items": number}) == (
        "list of number or null"
    )
    assert writer.shown_type({"$ref": "#/$defs/RowCounts"}) == "[RowCounts](#rowcounts)"
    assert writer.shown_type({"enum": ["a", "b"]}) == "`a`, `b`"
    assert writer.shown_type({"type": "object", "additionalProperties": number}) == (
        "map of text to number or null"
    )
    anything = {"type": "object", "additionalProperties": True}
    assert writer.shown_type(anything) == "map of text to any"
    assert writer.shown_type({}) == "any"


def test_there_is_a_page_for_each_file(writer: ModuleType) -> None:
    found = {path.name: text for path, text in writer.pages().items()}
    assert list(found) == [
        "results-schema.md",
        "audit-schema.md",
        "census-schema.md",
        "measurements-schema.md",
        "benchmark-schema.md",
    ]
    assert found["results-schema.md"].startswith("# The schema of `results.json`\n")
    assert found["audit-schema.md"].startswith("# The schema of `audit.json`\n")
    assert found["census-schema.md"].startswith("# The schema of `census.json`\n")
    benchmark = found["benchmark-schema.md"]
    title = "# The schema of `benchmark.json` and `audits.jsonl`\n"
    assert benchmark.startswith(title)
    measured = found["measurements-schema.md"]
    assert measured.startswith("# The schema of measurements\n")
    for name in ("audit-schema.md", "census-schema.md"):
        assert "| `detectable_fraction` |" in found[name]
    for text in found.values():
        assert re.match(r"# .+\n\n(Version|Format) 1\. ", text)
        assert text.endswith("|\n")


def test_the_pages_in_the_docs_are_up_to_date(writer: ModuleType) -> None:
    for path, text in writer.pages().items():
        stored = SCRIPT.with_name(path.name).read_text(encoding="utf-8")
        assert stored == text, f"{path.name}: run: python docs/write_schema.py"


def test_check_notices_old_pages(
    writer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["write_schema.py", *options])
        return writer.main(), capsys.readouterr().err

    advice = "out of date; run: python docs/write_schema.py\n"
    names = ", ".join(path.name for path in writer.pages())
    assert run("--check") == (1, f"{names}: {advice}")
    assert not any(path.exists() for path in writer.pages())
    assert run() == (0, "")
    for path, text in writer.pages().items():
        assert path.read_text(encoding="utf-8") == text
    assert run("--check") == (0, "")
    for path in writer.pages():
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\n", encoding="utf-8")
        assert run("--check") == (1, f"{path.name}: {advice}")
        path.write_text(text, encoding="utf-8")
