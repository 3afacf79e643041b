"""A run at a URL: what is sent, what is fetched, which side is the newer one."""

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from undertow import mirrors
from undertow.errors import ConfigError, RunError
from undertow.mirrors import LIST, as_folder, mirrored
from undertow.runs import Run, open_run
from undertow.storage import append_jsonl, read_json, write_json

URL = "memory://bucket/run"
RECIPE = "title: one\n"
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def store() -> Iterator[MemoryFileSystem]:
    """An empty store; it is one for the whole process."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


def names(store: MemoryFileSystem) -> list[str]:
    """All that lies there but the list."""
    found = [name.removeprefix("/bucket/run/") for name in store.find("/bucket/run")]
    return sorted(name for name in found if name != LIST)


def listed(store: MemoryFileSystem) -> list[str]:
    return sorted(json.loads(store.cat_file(f"/bucket/run/{LIST}"))["files"])


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


def work(cache: Path, *stages: str, recipe: str = RECIPE) -> list[str]:
    """Does the stages that are not done, and gives those that it did."""
    did = []
    with opened(cache, recipe) as run:
        for stage in stages:
            if not run.is_done(stage):
                do(run, stage)
                did.append(stage)
    return did


def broken_off(cache: Path, *stages: str, error: type[BaseException]) -> Path:
    """Does stages, and ends by an error; the folder of the run."""
    kept: list[Path] = []

    def until_then() -> None:
        with opened(cache) as run:
            kept.append(run.directory)
            for stage in stages:
                do(run, stage)
            write_json(run.path("found", "half.json"), [0])
            raise error

    with pytest.raises(error):
        until_then()
    return kept[0]


def failing(patch: Patch, method: str, error: Exception, *, at: str = "") -> None:
    """Lets a method of the store fail wherever a path has `at` in it."""
    real = getattr(MemoryFileSystem, method)

    def call(self: MemoryFileSystem, *paths: Any, **given: Any) -> Any:
        if at in str(paths):
            raise error
        return real(self, *paths, **given)

    patch.setattr(MemoryFileSystem, method, call)


# ── what is there ────────────────────────────────────────────────────────────────


def test_a_local_url_is_a_folder() -> None:
    assert as_folder("file:///runs/one") == Path("/runs/one")
    assert as_folder("runs/one") == Path("runs/one")


def test_a_run_lies_at_its_url_whole(tmp_path: Path, store: MemoryFileSystem) -> None:
    with opened(tmp_path) as run:
        do(run, "rows")
        do(run, "seed-1/training")
        write_json(run.path("results.json"), {"a": 1})
    assert names(store) == listed(store) == [
        "found/rows.json", "found/seed-1/training.json", "recipe.yaml", "results.json",
        "stages/rows.json", "stages/seed-1/training.json",
    ]  # fmt: skip
    assert store.cat_file("/bucket/run/recipe.yaml") == RECIPE.encode()
    there = store.cat_file("/bucket/run/found/rows.json")
    assert there == run.path("found", "rows.json").read_bytes()


def test_another_machine_goes_on_where_the_first_stood(tmp_path: Path) -> None:
    work(tmp_path / "a", "rows")
    with opened(tmp_path / "b") as run:
        assert run.payload("rows") == {"value": 1}
        assert read_json(run.path("found", "rows.json")) == [1]
        do(run, "training", 2)
    with opened(tmp_path / "a") as run:
        assert run.payload("training") == {"value": 2}


def test_files_of_whoever_works_stay_here(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    with opened(tmp_path) as run:
        do(run, "rows")
        for name in ("x.json.set-aside", ".undertow-abc", "stages/.undertow-abc.json"):
            (run.directory / name).write_text("{")
    assert names(store) == ["found/rows.json", "recipe.yaml", "stages/rows.json"]


def test_what_goes_here_goes_there(tmp_path: Path, store: MemoryFileSystem) -> None:
    with opened(tmp_path) as run:
        write_json(run.path("checkpoint.json"), [1])
        do(run, "rows")
    assert "checkpoint.json" in names(store)
    with opened(tmp_path) as run:
        run.path("checkpoint.json").unlink()
        do(run, "training")
    assert "checkpoint.json" not in names(store)
    assert "checkpoint.json" not in listed(store)


# ── while the work goes on ───────────────────────────────────────────────────────


def test_stages_are_sent_while_others_are_worked_for(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(mirrors, "_LOOK", 0.01)
    order: list[str] = []
    arrived = threading.Event()
    put, mv = MemoryFileSystem.put_file, MemoryFileSystem.mv

    def noted(self: MemoryFileSystem, lpath: str, rpath: str, **given: Any) -> None:
        put(self, lpath, rpath, **given)
        order.append(rpath.removeprefix("/bucket/run/"))

    def moved(self: MemoryFileSystem, one: str, two: str, **given: Any) -> None:
        mv(self, one, two, **given)
        order.append(LIST)
        if "stages/rows.json" in listed(store):
            arrived.set()

    monkeypatch.setattr(MemoryFileSystem, "put_file", noted)
    monkeypatch.setattr(MemoryFileSystem, "mv", moved)
    with opened(tmp_path) as run:
        do(run, "rows")
        assert arrived.wait(20)
    files = [name for name in order if name != LIST]
    assert files.index("found/rows.json") < files.index("stages/rows.json")
    assert order[-1] == LIST


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_is_done_before_an_error_is_sent(
    error: type[BaseException], tmp_path: Path, store: MemoryFileSystem
) -> None:
    broken_off(tmp_path / "a", "rows", error=error)
    assert "stages/rows.json" in names(store)
    assert "found/half.json" in listed(store), "what is half done goes on there too"
    assert work(tmp_path / "b", "rows", "training") == ["training"]


def test_half_done_files_are_sent_from_time_to_time(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(mirrors, "_LOOK", 0.01)
    monkeypatch.setattr(mirrors, "_SEND", 0.05)
    seen = threading.Event()
    mv = MemoryFileSystem.mv

    def moved(self: MemoryFileSystem, one: str, two: str, **given: Any) -> None:
        mv(self, one, two, **given)
        if "audits.jsonl" in listed(store):
            seen.set()

    monkeypatch.setattr(MemoryFileSystem, "mv", moved)
    with opened(tmp_path) as run:
        append_jsonl(run.path("audits.jsonl"), {"a": 1})
        assert seen.wait(20)


def test_a_marker_never_arrives_before_its_files(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: Patch
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "put_file", OSError("no route to host"), at="/found/")
        with pytest.raises(RunError, match="cannot be written: no route") as told:
            work(tmp_path, "rows")
    assert "memory://bucket/run" in str(told.value)
    assert "stages/rows.json" not in names(store)
    assert work(tmp_path, "rows") == [], "nothing is lost here"
    assert "stages/rows.json" in listed(store)


def test_a_fault_of_the_network_is_told_once_and_tried_again(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(mirrors, "_LOOK", 0.005)
    put, faults = MemoryFileSystem.put_file, [OSError("try"), OSError("again")]
    gone = threading.Event()

    def faulty(self: MemoryFileSystem, lpath: str, rpath: str, **given: Any) -> None:
        if faults:
            raise faults.pop()
        put(self, lpath, rpath, **given)
        gone.set()

    monkeypatch.setattr(MemoryFileSystem, "put_file", faulty)

    def patient() -> None:
        with opened(tmp_path) as run:
            do(run, "rows")
            assert gone.wait(20)

    with pytest.warns(RuntimeWarning, match=r"written: again.*tried again") as told:
        patient()
    assert len(told) == 1
    assert "stages/rows.json" in listed(store)


def test_a_file_that_changes_while_it_is_sent_is_sent_again(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: Patch
) -> None:
    put, lines = MemoryFileSystem.put_file, iter([2])

    def meanwhile(self: MemoryFileSystem, lpath: str, rpath: str, **given: Any) -> None:
        put(self, lpath, rpath, **given)
        if lpath.endswith("audits.jsonl"):
            for line in lines:
                append_jsonl(lpath, {"a": line})

    monkeypatch.setattr(MemoryFileSystem, "put_file", meanwhile)
    with opened(tmp_path) as run:
        append_jsonl(run.path("audits.jsonl"), {"a": 1})
    assert "audits.jsonl" not in listed(store), "the list says nothing that is untrue"
    with opened(tmp_path) as run:
        pass
    there = store.cat_file("/bucket/run/audits.jsonl")
    assert there == (run.directory / "audits.jsonl").read_bytes()
    assert "audits.jsonl" in listed(store)


# ── which side is the newer one ──────────────────────────────────────────────────


def test_newer_files_there_are_not_put_back(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    for cache, value in (("a", 1), ("b", 2)):
        with opened(tmp_path / cache) as run:
            append_jsonl(run.path("audits.jsonl"), {"a": value})
            write_json(run.path("results.json"), value)
    with opened(tmp_path / "a") as run:
        assert read_json(run.path("results.json")) == 2
    assert store.cat_file("/bucket/run/audits.jsonl").count(b"\n") == 2
    assert json.loads(store.cat_file("/bucket/run/results.json")) == 2


def test_where_both_changed_the_url_stands(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as run:
        write_json(run.path("results.json"), 1)
    place = run.directory / "results.json"
    with opened(tmp_path / "b") as run:
        write_json(run.path("results.json"), 2)
    place.write_text("3")
    with opened(tmp_path / "a") as run:
        assert read_json(run.path("results.json")) == 2


def test_what_went_there_goes_here(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as run:
        write_json(run.path("checkpoint.json"), [1])
        write_json(run.path("changed.json"), [1])
    place = run.directory
    with opened(tmp_path / "b") as run:
        run.path("checkpoint.json").unlink()
        run.path("changed.json").unlink()
    (place / "changed.json").write_text("[2]")
    with opened(tmp_path / "a") as run:
        assert not run.path("checkpoint.json").exists()
        assert read_json(run.path("changed.json")) == [2], "what is newer here stays"


def test_a_stage_that_was_set_aside_here_is_not_fetched_again(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    """A last marker that speaks of others must not undo what was mended."""
    stages = ("a", "b", "c")
    with opened(tmp_path) as run:
        for stage in stages:
            do(run, stage)
        markers = [run.directory / "stages" / f"{stage}.json" for stage in stages]
        run.finish("complete", {}, files=markers)
    (run.directory / "found" / "a.json").write_text("[")
    with pytest.warns(RuntimeWarning, match="set aside"):
        broken_off_at_once(tmp_path, "a")
    assert "stages/complete.json" not in listed(store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert work(tmp_path, *stages) == []
        assert work(tmp_path / "other", *stages) == []


def broken_off_at_once(cache: Path, *stages: str) -> None:
    """Mends stages, and is interrupted before the last word."""

    def until_then() -> None:
        with opened(cache) as run:
            for stage in stages:
                assert not run.is_done(stage)
                do(run, stage)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        until_then()


def test_a_damaged_file_there_is_made_again(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    work(tmp_path / "a", "rows")
    good = store.cat_file("/bucket/run/found/rows.json")
    store.pipe_file("/bucket/run/found/rows.json", b"[")
    with pytest.warns(RuntimeWarning, match="set aside"):
        assert work(tmp_path / "b", "rows") == ["rows"]
    assert store.cat_file("/bucket/run/found/rows.json") == good
    assert not [name for name in names(store) if "aside" in name]
    assert work(tmp_path / "a", "rows") == []


def test_what_is_missing_there_is_sent_again(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    work(tmp_path, "rows")
    store.rm_file("/bucket/run/found/rows.json")
    assert work(tmp_path, "rows") == []
    assert "found/rows.json" in names(store)


# ── faults ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["cat_file", "ls", "info", "get_file"])
def test_a_fault_at_the_start_costs_nothing_here(
    method: str, tmp_path: Path, store: MemoryFileSystem, monkeypatch: Patch
) -> None:
    work(tmp_path, "rows")
    with monkeypatch.context() as patch:
        failing(patch, "put_file", OSError("down"))
        with pytest.raises(RunError, match="down"):
            work(tmp_path, "training")
    with monkeypatch.context() as patch:
        failing(patch, method, OSError("connection reset"))
        # Some of these are not asked for anything at the start.
        with suppress(RunError), mirrored(URL, cache=tmp_path) as folder:
            assert (folder / "stages" / "training.json").is_file()
    assert work(tmp_path, "rows", "training") == []
    assert work(tmp_path / "other", "rows", "training") == []


def test_a_run_that_is_gone_there_is_sent_again(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    work(tmp_path, "rows")
    store.rm("/bucket/run", recursive=True)
    assert work(tmp_path, "rows") == []
    assert "stages/rows.json" in listed(store)


def test_another_run_there_sets_the_one_here_aside(
    tmp_path: Path, store: MemoryFileSystem
) -> None:
    work(tmp_path / "a", "rows")
    store.rm("/bucket/run", recursive=True)
    work(tmp_path / "b", "rows", recipe="title: two\n")
    with pytest.warns(RuntimeWarning, match="another run lies there"):
        assert work(tmp_path / "a", "rows", recipe="title: two\n") == []
    (aside,) = (tmp_path / "a").glob("*.set-aside")
    assert (aside / "stages" / "rows.json").is_file()
    with pytest.raises(RunError, match="belongs to another recipe"):
        work(tmp_path / "a", "rows")
    assert store.cat_file("/bucket/run/recipe.yaml") == b"title: two\n"


def test_a_place_with_other_things_is_refused_before_they_are_fetched(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: Patch
) -> None:
    store.pipe_file("/bucket/run/huge.bin", b"0")
    failing(monkeypatch, "get_file", AssertionError("fetched"))
    with pytest.raises(RunError, match=r"'huge.bin' but no mirror.json"):
        work(tmp_path)
    assert names(store) == ["huge.bin"]


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"files": []}', b'{"files": {"a": 1}}', b""]
)
def test_a_damaged_list_is_named_and_can_be_mended(
    content: bytes, tmp_path: Path, store: MemoryFileSystem
) -> None:
    work(tmp_path, "rows")
    store.pipe_file(f"/bucket/run/{LIST}", content)
    with pytest.raises(RunError, match=r"mirror.json: is damaged; got .*Remove it"):
        work(tmp_path, "rows")
    store.rm_file(f"/bucket/run/{LIST}")
    assert work(tmp_path, "rows") == []
    assert "stages/rows.json" in listed(store)


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "a\\secret", "a\n", "/secret", "", ".lock"]
)
def test_a_list_cannot_name_places_outside(
    name: str, tmp_path: Path, store: MemoryFileSystem
) -> None:
    store.pipe_file(f"/bucket/run/{LIST}", json.dumps({"files": {name: "0"}}).encode())
    store.pipe_file("/bucket/secret", b"no")
    with pytest.raises(RunError, match="is damaged"):
        work(tmp_path / "deep" / "cache")
    assert not list(tmp_path.rglob("*secret*"))


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


def test_a_host_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"ftp://me@127\.0\.0\.1:1/x: cannot be reached"),
        mirrored("ftp://me:secret@127.0.0.1:1/x", cache=tmp_path),
    ):
        pass


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    failing(monkeypatch, "pipe_file", PermissionError("Access Denied"))
    begun: list[Path] = []
    with (
        pytest.raises(RunError, match="cannot be written: Access Denied"),
        mirrored(URL, cache=tmp_path) as folder,
    ):
        begun.append(folder)
    assert not begun


@pytest.mark.parametrize("again", [URL, f"{URL}/"])
def test_two_processes_of_a_machine_do_not_share_it(again: str, tmp_path: Path) -> None:
    with (
        mirrored(URL, cache=tmp_path),
        pytest.raises(RunError, match="is in use by another process"),
        mirrored(again, cache=tmp_path),
    ):
        pass
    with mirrored(again, cache=tmp_path) as folder:
        assert folder.is_dir()


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError) as told,
        mirrored("nowhere://me:secret@host/x", cache=tmp_path),
    ):
        pass
    assert "secret" not in str(told.value)
    assert "nowhere://me@host/x" in str(told.value)
