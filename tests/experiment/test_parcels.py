"""Parts of a run that travel: what is packed, what comes back, in which order."""

from pathlib import Path

import pytest

from undertow.errors import RunError
from undertow.experiment.parcels import Made, accept, changes, pack, unpack
from undertow.runs import Run, open_run


def _fill(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_a_place_is_its_marker_its_files_and_what_lies_below(tmp_path: Path) -> None:
    _fill(
        tmp_path, "stages/a/rows.json", "bases/a/rows.jsonl", "bases/a/rows.partial",
        "bases/a/rows/deep/x", "stages/a/rows/y.json", "bases/a/rowstoo.jsonl",
        "bases/b/rows.jsonl", "recipe.yaml",
    )  # fmt: skip
    assert sorted(pack(tmp_path, ["a/rows"])) == [
        "bases/a/rows.jsonl", "bases/a/rows.partial", "bases/a/rows/deep/x",
        "stages/a/rows.json", "stages/a/rows/y.json",
    ]  # fmt: skip


def test_a_marker_may_be_meant_alone(tmp_path: Path) -> None:
    _fill(tmp_path, "stages/a/noise.json", "bases/a/noise/checkpoint/model.safetensors")
    assert list(pack(tmp_path, ["a/noise.json"])) == ["stages/a/noise.json"]


def test_drafts_and_what_is_not_there_are_left_out(tmp_path: Path) -> None:
    _fill(tmp_path, "bases/a/rows/.undertow-12", "bases/a/rows/x")
    assert list(pack(tmp_path, ["a/rows", "no/where"])) == ["bases/a/rows/x"]


def test_what_was_unpacked_is_no_change(tmp_path: Path) -> None:
    files = {"stages/a.json": b"1", "bases/b/c": b"\x00\xff", "bases/b/d": b"2"}
    unpack(tmp_path, files)
    assert changes(tmp_path, files) == Made({})
    (tmp_path / "bases/b/c").write_bytes(b"new")
    (tmp_path / "bases/b/d").unlink()
    _fill(tmp_path, "stages/e.json", "audits/measured/signals.npz")
    assert changes(tmp_path, files) == Made(
        {"bases/b/c": b"new", "stages/e.json": b"stages/e.json"}, ("bases/b/d",)
    )


def test_markers_are_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    with open_run(tmp_path / "run", recipe_text="a: 1\n") as run:
        real = Run.path

        def seen(self: Run, *parts: str) -> Path:
            written.append("/".join(parts))
            return real(self, *parts)

        monkeypatch.setattr(Run, "path", seen)
        made = {"stages/a.json": b"{}", "bases/z": b"1", "stages/b.json": b"{}"}
        accept(run, Made(made))
    assert written == ["bases/z", "stages/a.json", "stages/b.json"]


def test_what_was_taken_away_goes(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", recipe_text="a: 1\n") as run:
        _fill(run.directory, "bases/a.partial")
        accept(run, Made({}, ("bases/a.partial", "bases/never")))
        assert not (run.directory / "bases/a.partial").exists()


def test_a_path_that_leads_out_is_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "run", recipe_text="a: 1\n") as run,
        pytest.raises(RunError, match="no place inside"),
    ):
        accept(run, Made({"../out": b"1"}))
    assert not (tmp_path / "out").exists()
