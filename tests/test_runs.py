"""A run's directory: one process, one recipe, stages that are done or not."""

import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from undertow import __version__
from undertow.errors import RunError
from undertow.runs import Run, open_run, provenance
from undertow.storage import DRAFT_PREFIX, write_json, write_text

RECIPE = "title: one\nseeds: [0]\n"
HOLDER = """
import sys
from undertow.runs import open_run
with open_run(sys.argv[1], recipe_text=sys.argv[2]) as run:
    run.finish("first", {})
    print("open", flush=True)
    sys.stdin.readline()
"""


def opened(directory: Path, recipe: str = RECIPE, *, resume: bool = True) -> Run:
    """A run, opened and let go again."""
    with open_run(directory, recipe_text=recipe, resume=resume) as run:
        return run


# ---- opening


def test_a_new_directory_is_made_and_holds_the_recipe(tmp_path: Path) -> None:
    place = tmp_path / "runs" / "one"
    with open_run(place, recipe_text=RECIPE) as run:
        assert run.directory == place
        assert (place / "recipe.yaml").read_text() == RECIPE
    assert not (place / ".lock-holder").exists()


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with open_run(tmp_path, recipe_text=RECIPE) as run:
        run.finish("a", {"x": 1})
    with open_run(tmp_path, recipe_text=RECIPE) as run:
        assert run.is_done("a")
        assert run.payload("a") == {"x": 1}
    with pytest.raises(RunError, match=r"holds a run already; choose a new directory"):
        opened(tmp_path, resume=False)


def test_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(RunError) as caught:
        opened(tmp_path, "title: one\nseeds: [0, 1]\n")
    assert str(caught.value) == (
        f"{tmp_path}: belongs to another recipe (-: there, +: given):\n"
        "  '-seeds: [0]'\n"
        "  '+seeds: [0, 1]'\n"
        "Choose another directory, or ask for the same again. Only if "
        f"{tmp_path}/recipe.yaml was damaged: put the lines marked + into it"
    )
    assert (tmp_path / "recipe.yaml").read_text() == RECIPE
    opened(tmp_path)


def test_a_long_difference_is_cut(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(RunError, match=r"\n  … and 12 more\nChoose another directory"):
        opened(tmp_path, "".join(f"k{i}: {'x' * 500}\n" for i in range(30)))


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / f"{DRAFT_PREFIX}old").write_text("x")
    with pytest.raises(RunError) as caught:
        opened(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds 'thesis.tex' but no recipe.yaml, so it is not a run; "
        "choose an empty or new directory"
    )
    assert (tmp_path / "thesis.tex").read_text() == "x"
    # What is no run is not tidied up either.
    assert (tmp_path / f"{DRAFT_PREFIX}old").exists()


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"file: cannot be used as a run directory: Fil"):
        opened(tmp_path / "file")


def test_drafts_of_a_killed_process_are_cleaned(tmp_path: Path) -> None:
    opened(tmp_path)
    inner = tmp_path / "bases" / "noise-0"
    inner.mkdir(parents=True)
    for folder in (tmp_path, inner):
        (folder / f"{DRAFT_PREFIX}abc.json").write_text("half")
    (inner / "rows.jsonl").write_text("whole")
    opened(tmp_path)
    left = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert [name for name in left if name != ".lock"] == ["recipe.yaml", "rows.jsonl"]


# ---- the lock


def test_a_second_process_is_refused_while_the_first_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), RECIPE]
    first = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "open\n"
        with pytest.raises(RunError) as caught:
            opened(tmp_path)
        text = str(caught.value)
        assert text.startswith(f"{tmp_path}: is in use by another run (process ")
        assert f"(process {first.pid} on {os.uname().nodename}, since 2" in text
        assert text.endswith(
            "; wait until it ends, stop it, or choose another directory"
        )
    finally:
        first.communicate("\n", timeout=30)
    assert first.returncode == 0
    assert opened(tmp_path).is_done("first")


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), RECIPE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        first.kill()
        first.wait(timeout=30)
    assert (tmp_path / ".lock-holder").exists()
    assert opened(tmp_path).is_done("first")


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, recipe_text=RECIPE),
        pytest.raises(
            RunError, match=rf"in use by another run \(process {os.getpid()} "
        ),
        open_run(tmp_path, recipe_text=RECIPE),
    ):
        pass


def test_an_error_lets_the_lock_go(tmp_path: Path) -> None:
    def fail() -> None:
        with open_run(tmp_path, recipe_text=RECIPE):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()
    opened(tmp_path)


def test_a_damaged_holder_does_not_hide_the_lock(tmp_path: Path) -> None:
    with open_run(tmp_path, recipe_text=RECIPE):
        for text in ("[1]", "{", '{"pid": 1}'):
            (tmp_path / ".lock-holder").write_text(text)
            with pytest.raises(RunError, match=r"in use by another run; wait until it"):
                opened(tmp_path)


# ---- stages


def test_a_stage_is_done_when_its_marker_is_there(tmp_path: Path) -> None:
    with open_run(tmp_path, recipe_text=RECIPE) as run:
        name = "noise-0/seed-1/training"
        assert not run.is_done(name)
        run.finish(name, {"loss": [1.5, float("nan")], "path": Path("a/b")})
        assert run.is_done(name)
        assert not run.is_done("noise-0/seed-1")
        assert not run.is_done("noise-0/seed-1/train")
        assert run.payload(name) == {"loss": [1.5, None], "path": "a/b"}
    marker = json.loads((tmp_path / "stages" / f"{name}.json").read_text())
    assert set(marker) == {
        "stage", "finished", "seconds", "payload", "files", "scratch", "sha256",
    }  # fmt: skip
    assert marker["stage"] == name


def test_names_with_dots_are_different_stages(tmp_path: Path) -> None:
    with open_run(tmp_path, recipe_text=RECIPE) as run:
        run.finish("noise-0.1", {"n": 1})
        assert not run.is_done("noise-0")
        assert not run.is_done("noise-0.15")
        run.finish("noise-0.15", {"n": 2})
        assert run.payload("noise-0.1") == {"n": 1}


def test_a_stage_that_is_not_done_has_no_payload(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        opened(tmp_path).payload("rows")
    assert str(caught.value) == (
        f"{tmp_path}/stages/rows.json: stage 'rows' is not finished; continue the run "
        "with the same command"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"stage": "a"}',
        '{"stage": "a", "seconds": 1, "payload": 3}',
        '{"stage": "a", "seconds": "long", "payload": {}}',
        '{"stage": "a", "seconds": [1], "payload": {}}',
        '{"stage": "a", "seconds": 1e999, "payload": {}}',
        '{"stage": ["a"], "seconds": 1, "payload": {}}',
    ],
)
def test_a_damaged_marker_is_named(tmp_path: Path, text: str) -> None:
    run = opened(tmp_path)
    run.finish("a", {})
    path = tmp_path / "stages" / "a.json"
    path.write_text(text)
    with pytest.raises(RunError) as caught:
        run.payload("a")
    assert str(caught.value) == (
        f"{path}: the stage marker is damaged; continue the run with the same command: "
        "it is set aside and the stage is done again"
    )


@pytest.fixture
def two_stages(tmp_path: Path) -> Path:
    """A run of a stage with a file, and of one without; a third says that both are there."""
    with open_run(tmp_path, recipe_text=RECIPE) as run:
        write_json(run.path("bases", "rows.json"), [1, 2])
        write_text(run.path("page.html"), "drawn")
        run.finish("rows", {"n": 2})
        run.finish("student", {"loss": 0.5})
        run.finish("complete", {})
    return tmp_path


def test_a_marker_names_what_was_written_since_the_last_one(two_stages: Path) -> None:
    files = {
        name: json.loads((two_stages / "stages" / f"{name}.json").read_text())["files"]
        for name in ("rows", "student")
    }
    digest = hashlib.sha256(b"[\n 1,\n 2\n]\n").hexdigest()
    assert files == {"rows": {"bases/rows.json": digest}, "student": {}}


@pytest.mark.parametrize("content", ["[1, 3]", "", None])
def test_a_damaged_or_lost_file_is_set_aside_with_its_stage(
    two_stages: Path, content: str | None
) -> None:
    path = two_stages / "bases" / "rows.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.warns(RuntimeWarning) as told:
        run = opened(two_stages)
    assert str(told[0].message) == (
        f"{two_stages}: damaged or gone since it was written: 'bases/rows.json'; set "
        "aside (names that end in '.set-aside'), and made again: 'rows'"
    )
    # Who says no more than that all are there goes too.
    assert [run.is_done(n) for n in ("rows", "student", "complete")] == [
        False, True, False,
    ]  # fmt: skip
    assert not path.exists()
    aside = path.with_name("rows.json.set-aside")
    assert (aside.read_text() if aside.exists() else None) == content
    opened(two_stages)  # nothing is left to be said


@pytest.mark.parametrize("place", range(0, 400, 7))
def test_any_byte_of_a_marker_counts(two_stages: Path, place: int) -> None:
    path = two_stages / "stages" / "rows.json"
    before = json.loads(path.read_text())
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 4
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = opened(two_stages)
    if run.is_done("rows"):  # white space for other white space
        assert json.loads(path.read_text()) == before
    else:
        assert "'stages/rows.json'" in str(told[0].message)


def test_markers_of_earlier_versions_are_read(tmp_path: Path) -> None:
    opened(tmp_path)
    old = {"stage": "a", "finished": "2026", "seconds": 1.5, "payload": {"n": 1}}
    write_json(tmp_path / "stages" / "a.json", old)
    assert opened(tmp_path).payload("a") == {"n": 1}
    write_json(tmp_path / "stages" / "a.json", old | {"files": {}})
    with pytest.warns(RuntimeWarning, match=r"'stages/a\.json'"):
        assert not opened(tmp_path).is_done("a")


def test_scratch_goes_with_the_marker_or_when_the_run_is_opened(tmp_path: Path) -> None:
    with open_run(tmp_path, recipe_text=RECIPE) as run:
        partial, kept = run.path("rows.partial"), run.path("updates", "1.json")
        write_json(kept, 1)
        run.finish("training", {"n": 1}, files=[kept])
        partial.write_text("1\n")
        run.finish("read", {"n": 2}, scratch=[partial, kept.parent])
        assert not partial.exists()
        assert not kept.exists()
    partial.write_text("1\n")  # as if it had been killed before it was removed
    run = opened(tmp_path)
    assert not partial.exists()
    assert run.is_done("training")  # what another stage removed is not missed


def test_a_check_that_was_killed_goes_on(
    two_stages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the marker is gone, the next process finds the damage again."""
    (two_stages / "bases" / "rows.json").write_text("[]")
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(source).name == "rows.json" and Path(source).parent.name == "stages":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(two_stages)
    with pytest.warns(RuntimeWarning, match="made again: 'rows'"):
        assert not opened(two_stages).is_done("rows")


def test_seconds_are_those_since_the_last_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = opened(tmp_path)
    assert run.seconds() == {}
    now[0] += 2.5
    run.finish("b", {})
    now[0] += 1.25
    run.finish("a/x", {})
    assert run.seconds() == {"a/x": 1.25, "b": 2.5}
    assert list(run.seconds()) == ["a/x", "b"]


# ---- places


def test_places_lie_inside_and_their_folders_are_made(tmp_path: Path) -> None:
    run = opened(tmp_path)
    place = run.path("bases", "noise-0/seed-1", "rows.jsonl")
    assert place == tmp_path / "bases/noise-0/seed-1/rows.jsonl"
    assert place.parent.is_dir()
    assert not place.exists()
    assert run.path("sea lion", "été").parent.name == "sea lion"


@pytest.mark.parametrize(
    "name",
    [
        "..", "../x", "a/../../x", "/etc/passwd", "a//b", "", "a/", ".", "a/./b",
        "a\\b", "a\nb", "a\0b", "a\x1bb", "\ud800", "é" * 120,
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    run = opened(tmp_path)
    for use in (run.path, run.is_done, run.payload, lambda n: run.finish(n, {})):
        with pytest.raises(RunError, match="is no place inside the run directory"):
            use(name)


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    (tmp_path / "run" / "bases").symlink_to(tmp_path)
    with pytest.raises(RunError, match=r"'bases/x': is no place inside"):
        run.path("bases", "x")


# ---- provenance


def test_provenance_says_what_it_was_made_with() -> None:
    facts = provenance(model="m", device="cpu")
    assert facts["undertow_version"] == __version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["cores"] == os.cpu_count()
    assert facts["torch_version"]
    assert facts["transformers_version"]
    assert facts["processor"]
    assert facts["time"].endswith("+00:00")
    assert (facts["model"], facts["device"]) == ("m", "cpu")
    assert set(facts) >= {"platform", "commit", "peft_version", "numpy_version"}
    json.dumps(facts, allow_nan=False)


def test_the_commit_is_that_of_undertows_own_checkout() -> None:
    top = Path(__file__).parents[1]
    done = subprocess.run(
        ["git", "-C", str(top), "rev-parse", "HEAD"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    commit = provenance()["commit"]
    if done.returncode:
        assert commit is None
    else:
        assert commit.removesuffix("+changes") == done.stdout.strip()
