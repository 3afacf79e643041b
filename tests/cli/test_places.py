"""Where a run directory is: a folder, or a URL."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undertow.cli.places import opened_place

if TYPE_CHECKING:
    from tests.conftest import Command

RECIPE = """\
title: small
question: does it travel?
model: {{name: {tiny}, dtype: float32}}
family: {pets}
traits: [owl]
teachers: [{{kind: prompt}}]
seeds: [0]
rows: {{count: 4, filter: false, sampler: {{max_new_tokens: 6}}}}
student: {{epochs: 1, batch_size: 4, rank: 2}}
evaluation: {{questions: 2, shift_rows: 2, gradient_rows: 0}}
"""


def test_a_folder_is_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened_place(str(tmp_path / "run")) as folder:
        assert folder == tmp_path / "run"
    assert capsys.readouterr().out == ""


def test_a_run_is_kept_at_a_url_and_reported_from_there(
    tmp_path: Path,
    command: "Command",
    llama: Path,
    pets: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "cache"))
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.format(tiny=llama, pets=pets))
    there = tmp_path / "there"
    found = command("run", recipe, "--out", f"file://{there}")
    assert found.status == 0, found.err
    assert "all of it lies at the URL that was given" in found.out
    assert {"recipe.yaml", "results.json", "report.html", "stages"} <= {
        path.name for path in there.iterdir()
    }
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "another"))
    again = command("run", recipe, "--out", f"file://{there}")
    assert again.status == 0
    stages = sorted((tmp_path / "another" / "runs").rglob("stages/**/*.json"))
    assert stages
    assert all(
        path.read_bytes() == (there / path.relative_to(_root(path))).read_bytes()
        for path in stages
    )
    (there / "report.html").unlink()
    assert command("report", f"file://{there}").status == 0
    assert "<html" in (there / "report.html").read_text()


def _root(path: Path) -> Path:
    return next(p.parent for p in path.parents if p.name == "stages")


def test_a_url_of_no_store_is_refused(tmp_path: Path, command: "Command") -> None:
    found = command("report", "nowhere://a/b")
    assert found.status == 2
    assert "no library here opens such a place" in found.err
