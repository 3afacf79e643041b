"""Every example is short and runs, here on a tiny model."""

import runpy
import sys
from pathlib import Path

import pytest

from undertow.models.tiny import save_tiny

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny Llama."""
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny")


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_prints_what_it_found(
    path: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [path.name, str(tiny)])
    runpy.run_path(str(path), run_name="__main__")
    assert any(char.isdigit() for char in capsys.readouterr().out)
