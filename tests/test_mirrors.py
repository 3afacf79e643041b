import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from undertow import mirrors
from undertow.errors import ConfigError, RunError
from undertow.mirrors import is_url, mirrored
from undertow.runs import Run, open_run
from undertow.storage import read_json, write_json

URL = "memory://bucket/run"
RECIPE = "title: one\n"


@pytest.fixture(autouse=True)
def store() -> Iterator[MemoryFileSystem]:
    """An empty store; it is one for the whole process."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


def names(store: MemoryFileSystem) -> list[str]:
    return sorted(
        name.removeprefix("/bucket/run/") for name in store.find("/bucket/run")
    )


def do(run: Run, stage: str, value: int = 1) -> None:
    write_json(run.path("found", f"{stage}.json"), [value])
    run.finish(stage, {"value": value})


@contextmanager
def opened(cache: Path, recipe: str = RECIPE) -> Iterator[Run]:
    """The run at the URL, as one machine has it."""
    with (
        mirrored(URL, cache=cache) as folder,
        open_run(folder, recipe_text=recipe) as run,
    ):
        yield run


def work(cache: Path, *stages: str, recipe: str = RECIPE) -> dict[str, Any]:
    """Does the stages that are not done, and gives what all have found."""
    with opened(cache, recipe) as run:
        for stage in stages:
            if not run.is_done(stage):
                do(run, stage)
        return {stage: run.payload(stage) for stage in stages}


def test_what_is_a_url() -> None:
    assert is_url("s3://bucket/run")
    assert is_url(URL)
    assert not is_url("runs/one")
    assert not is_url("C:\\runs")


def test_a_run_lies_at_its_url_whole(tmp_path: Path, store: MemoryFileSystem) -> None:
    with opened(tmp_path) as run:
        do(run, "rows")
        do(run, "seed-1/training")
        write_json(run.path("results.json"), {"a": 1})
    assert names(store) == [
        "found/rows.json", "found/seed-1/training.json", "recipe.yaml", "results.json",
        "stages/rows.json", "stages/seed-1/training.json",
    ]  # fmt: skip
    assert store.cat_file("/bucket/run/recipe.yaml") == RECIPE.encode()
    there = store.cat_file("/bucket/run/found/rows.json")
    assert there == run.path("found", "rows.json").read_bytes()


def test_another_machine_goes_on_where_the_first_stood(tmp_path: Path) -> None:
    first = work(tmp_path / "a", "rows")
    with opened(tmp_path / "b") as run:
        assert run.payload("rows") == first["rows"]
        assert read_json(run.path("found", "rows.json")) == [1]
        do(run, "training", 2)
    assert work(tmp_path / "a", "rows", "training")["training"] == {"value": 2}


def test_stages_are_sent_while_others_are_worked_for(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_EVERY", 0.01)
    sent: list[str] = []
    arrived = threading.Event()
    put = MemoryFileSystem.put_file

    def noted(self: MemoryFileSystem, lpath: str, rpath: str, **given: Any) -> None:
        put(self, lpath, rpath, **given)
        sent.append(rpath.removeprefix("/bucket/run/"))
        if sent[-1] == "stages/rows.json":
            arrived.set()

    monkeypatch.setattr(MemoryFileSystem, "put_file", noted)
    half: list[Path] = []

    def broken_off() -> None:
        with opened(tmp_path) as run:
            do(run, "rows")
            assert arrived.wait(10)
            half.append(run.path("found", "half.json"))
            write_json(half[0], [0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert sent == ["recipe.yaml", "found/rows.json", "stages/rows.json"]
    assert "found/half.json" not in names(store)
    # What was not finished is still here, and goes on.
    assert half[0].exists()


def test_a_marker_never_arrives_before_its_files(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = MemoryFileSystem.put_file

    def failing(self: MemoryFileSystem, lpath: str, rpath: str, **given: Any) -> None:
        if "/found/" in rpath:
            raise OSError("no route to host")
        put(self, lpath, rpath, **given)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    with pytest.raises(RunError, match="cannot be written: no route to host") as told:
        work(tmp_path, "rows")
    assert "memory://bucket/run" in str(told.value)
    assert names(store) == ["recipe.yaml"]
    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    assert work(tmp_path, "rows") == {"rows": {"value": 1}}
    assert "stages/rows.json" in names(store)


def test_a_fault_of_the_network_is_told_once_and_tried_again(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_EVERY", 0.005)
    put, faults = MemoryFileSystem.put_file, [OSError("try"), OSError("again")]
    gone = threading.Event()

    def failing(self: MemoryFileSystem, lpath: str, rpath: str, **given: Any) -> None:
        if faults:
            raise faults.pop()
        put(self, lpath, rpath, **given)
        gone.set()

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)

    def patient() -> None:
        with opened(tmp_path) as run:
            do(run, "rows")
            assert gone.wait(10)

    with pytest.warns(RuntimeWarning, match="cannot be written: again") as told:
        patient()
    assert len(told) == 1
    assert "stages/rows.json" in names(store)


def test_a_run_that_is_gone_there_is_begun_anew(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    work(tmp_path, "rows")
    store.rm("/bucket/run", recursive=True)
    work(tmp_path, recipe="title: two\n")
    assert names(store) == ["recipe.yaml"]
    assert store.cat_file("/bucket/run/recipe.yaml") == b"title: two\n"


def test_a_run_that_never_got_there_is_kept(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: Any, **named: Any) -> None:
        raise OSError("down")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", failing)
        with pytest.raises(RunError, match="down"):
            work(tmp_path, "rows")
    assert names(store) == []
    with mirrored(URL, cache=tmp_path) as folder:
        assert (folder / "stages" / "rows.json").is_file()
    assert "stages/rows.json" in names(store)


def test_another_run_there_takes_the_place_of_the_one_here(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    work(tmp_path / "a", "rows")
    store.rm("/bucket/run", recursive=True)
    work(tmp_path / "b", "rows", recipe="title: two\n")
    with pytest.raises(RunError, match="belongs to another recipe"):
        work(tmp_path / "a", "rows")
    assert store.cat_file("/bucket/run/recipe.yaml") == b"title: two\n"


def test_a_stage_there_outranks_one_here(tmp_path: Path) -> None:
    work(tmp_path / "a", "rows")
    with mirrored(URL, cache=tmp_path / "b") as folder:
        marker = (folder / "stages" / "rows.json").read_bytes()
        (folder / "stages" / "rows.json").write_bytes(b"{}")
        (folder / "found" / "rows.json").write_text("[5]")
        with mirrored("memory://bucket/run/", cache=tmp_path / "c") as other:
            assert (other / "stages" / "rows.json").read_bytes() == marker
            (other / "stages" / "rows.json").write_bytes(b"{}")
            (other / "found" / "rows.json").write_text("[5]")
            mirror = mirrors._Mirror(URL, other)
            mirror.fetch()
            assert (other / "stages" / "rows.json").read_bytes() == marker
            assert json.loads((other / "found" / "rows.json").read_text()) == [1]


def test_a_damaged_file_there_is_made_again(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    work(tmp_path / "a", "rows")
    good = store.cat_file("/bucket/run/found/rows.json")
    store.pipe_file("/bucket/run/found/rows.json", b"[")
    with pytest.warns(RuntimeWarning, match="set aside"):
        assert work(tmp_path / "b", "rows") == {"rows": {"value": 1}}
    assert store.cat_file("/bucket/run/found/rows.json") == good
    assert not [name for name in names(store) if "aside" in name]


def test_files_of_whoever_works_stay_here(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    with opened(tmp_path) as run:
        do(run, "rows")
        for name in ("x.json.set-aside", ".undertow-abc", "stages/.undertow-abc.json"):
            (run.directory / name).write_text("{")
    assert names(store) == ["found/rows.json", "recipe.yaml", "stages/rows.json"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a\\b", "a\n", "/etc/x"])
def test_names_that_lead_out_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: MemoryFileSystem
) -> None:
    store.pipe_file("/bucket/run/recipe.yaml", b"")
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda *_, **__: [f"/bucket/run/{name}x/./b"]
    )
    with pytest.raises(RunError, match="no places inside a run directory"):
        work(tmp_path)
    assert not (tmp_path.parent / "x").exists()


def test_a_marker_cannot_name_files_outside(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    marker = {"files": {"../../secret": "0" * 64, "found/a": "0" * 64}}
    store.pipe_file("/bucket/run/stages/rows.json", json.dumps(marker).encode())
    store.pipe_file("/bucket/run/found/a", b"a")
    store.pipe_file("/bucket/secret", b"no")
    cache = tmp_path / "deep" / "cache"
    with mirrored(URL, cache=cache) as folder:
        assert (folder / "found" / "a").read_bytes() == b"a"
    assert not list(tmp_path.rglob("secret"))


def test_unknown_and_missing_libraries_are_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="no library here opens such a place"),
        mirrored("nowhere://a/b", cache=tmp_path),
    ):
        pass
    fsspec.register_implementation(
        "undertowtest", "no_such_module.Store", clobber=True, errtxt="Install nolib"
    )
    with (
        pytest.raises(ConfigError, match="Install nolib"),
        mirrored("undertowtest://a/b", cache=tmp_path),
    ):
        pass


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*given: Any, **named: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", forbidden)
    begun: list[Path] = []
    with (
        pytest.raises(RunError, match="cannot be written: Access Denied"),
        mirrored(URL, cache=tmp_path) as folder,
    ):
        begun.append(folder)
    assert not begun


def test_two_processes_of_a_machine_do_not_share_it(tmp_path: Path) -> None:
    with (
        mirrored(URL, cache=tmp_path),
        pytest.raises(RunError, match="is in use by another process"),
        mirrored(URL, cache=tmp_path),
    ):
        pass
    with mirrored(URL, cache=tmp_path) as folder:
        assert folder.is_dir()


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError) as told,
        mirrored("nowhere://me:secret@host/x", cache=tmp_path),
    ):
        pass
    assert "secret" not in str(told.value)
    assert "nowhere://me@host/x" in str(told.value)


def test_a_folder_is_a_place_like_another(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    with (
        mirrored(url, cache=tmp_path / "cache") as folder,
        open_run(folder, recipe_text=RECIPE) as run,
    ):
        do(run, "rows")
    there = Run(tmp_path / "there")
    assert there.payload("rows") == {"value": 1}
