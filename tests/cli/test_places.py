"""Where a run directory is: a folder, or a URL."""

from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest

from undertow.cli.places import check_sources, command_line, opened_place
from undertow.errors import ConfigError

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
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.format(tiny=llama, pets=pets))
    store = fsspec.filesystem("memory")
    store.store.clear()
    url, kept = "memory://bucket/small", []
    for cache in ("one", "two"):
        monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / cache))
        found = command("run", recipe, "--out", url)
        assert found.status == 0, found.err
        assert "all of it lies at the URL that was given" in found.out
        (folder,) = (path.parent for path in tmp_path.glob(f"{cache}/runs/*/stages"))
        kept.append({p.relative_to(folder): p.read_bytes() for p in _markers(folder)})
    assert kept[0] == kept[1], "the second machine did nothing again"
    store.rm_file("/bucket/small/report.html")
    assert command("report", url).status == 0
    assert b"<html" in store.cat_file("/bucket/small/report.html")


def test_an_unfinished_run_is_continued_where_it_is(
    tmp_path: Path, command: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    fsspec.filesystem("memory").store.clear()
    found = command("report", "memory://bucket/none")
    assert found.status == 2
    assert "memory://bucket/none: holds no run, audit or measurement" in found.err
    with opened_place("memory://bucket/begun") as folder:
        (folder / "recipe.yaml").write_text("title: one\n")
    found = command("report", "memory://bucket/begun")
    assert found.status == 2
    assert f"{folder / 'recipe.yaml'} --out memory://bucket/begun" in found.err


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    with opened_place(f"file://{tmp_path}/run") as folder:
        assert folder == tmp_path / "run"


def _markers(folder: Path) -> list[Path]:
    return sorted((folder / "stages").rglob("*.json"))


def test_a_url_of_no_store_is_refused(tmp_path: Path, command: "Command") -> None:
    found = command("report", "nowhere://a/b")
    assert found.status == 2
    assert "no library here opens such a place" in found.err


def test_rows_on_standard_input_cannot_be_continued_elsewhere() -> None:
    check_sources(["-"], "folder")
    check_sources(["rows.jsonl"], "s3://bucket/run")
    with pytest.raises(ConfigError, match="write them to a file"):
        check_sources(["rows.jsonl", "-"], "s3://bucket/run")


def test_a_command_is_kept_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/bin/undertow", "audit", "a b.jsonl", "--out", "sftp://me:word@host/x"]
    monkeypatch.setattr("sys.argv", words)
    assert command_line() == "undertow audit 'a b.jsonl' --out sftp://me@host/x"
