"""The pages of both schemas name every field, and notice when they are old."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from undertow.findings import Findings
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
    monkeypatch.setattr(module, "PAGE", tmp_path / "results-schema.md")
    monkeypatch.setattr(module, "AUDIT_PAGE", tmp_path / "audit-schema.md")
    return module


@pytest.mark.parametrize("root", [Results, Findings])
def test_a_page_names_every_field_of_every_object(
    writer: ModuleType, root: type[BaseModel]
) -> None:
    text = writer.page("# Head\n", root)
    assert text.startswith("# Head\n\n## " + root.__name__ + "\n")
    schema = root.model_json_schema()
    for name, part in [(root.__name__, schema), *schema["$defs"].items()]:
        rows = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
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
    assert writer.shown_type({}) == "any"


def test_there_is_a_page_for_each_file(writer: ModuleType) -> None:
    found = {path.name: text for path, text in writer.pages().items()}
    assert list(found) == ["results-schema.md", "audit-schema.md"]
    assert found["results-schema.md"].startswith("# The schema of `results.json`\n")
    assert found["audit-schema.md"].startswith("# The schema of `audit.json`\n")
    assert "| `detectable_fraction` |" in found["audit-schema.md"]
    for text in found.values():
        assert "Version 1." in text
        assert text.endswith("|\n")


def test_check_notices_old_pages(
    writer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["write_schema.py", *options])
        return writer.main(), capsys.readouterr().err

    advice = "out of date; run: python docs/write_schema.py\n"
    assert run("--check") == (1, f"results-schema.md, audit-schema.md: {advice}")
    assert not writer.PAGE.exists()
    assert not writer.AUDIT_PAGE.exists()
    assert run() == (0, "")
    for path, text in writer.pages().items():
        assert path.read_text(encoding="utf-8") == text
    assert run("--check") == (0, "")
    for path in writer.pages():
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\n", encoding="utf-8")
        assert run("--check") == (1, f"{path.name}: {advice}")
        path.write_text(text, encoding="utf-8")
