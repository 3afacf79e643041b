"""The page of the results schema names every field, and notices when it is old."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from undertow.results import Results

SCRIPT = Path(__file__).parents[1] / "docs" / "write_schema.py"


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that writes beside the test."""
    spec = importlib.util.spec_from_file_location("write_schema", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGE", tmp_path / "results-schema.md")
    return module


def test_the_page_names_every_field_of_every_object(writer: ModuleType) -> None:
    text = writer.page()
    schema = Results.model_json_schema()
    for name, part in [("Results", schema), *schema["$defs"].items()]:
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


def test_check_notices_an_old_page(
    writer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["write_schema.py", "--check"])
    assert writer.main() == 1
    assert capsys.readouterr().err == (
        "results-schema.md is out of date; run: python docs/write_schema.py\n"
    )
    assert not writer.PAGE.exists()
    monkeypatch.setattr(sys, "argv", ["write_schema.py"])
    assert writer.main() == 0
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page()
    monkeypatch.setattr(sys, "argv", ["write_schema.py", "--check"])
    assert writer.main() == 0
    writer.PAGE.write_text(writer.page() + "\n")
    assert writer.main() == 1
