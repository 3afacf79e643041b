"""Trackers hear what a run says, and nothing that they do changes or breaks it."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import tracking as accelerate_tracking
from accelerate.tracking import GeneralTracker, register_tracker_class

from undertow.errors import ConfigError, MissingDependencyError
from undertow.experiment import Recipe, run_experiment
from undertow.experiment.tracking import (
    FOLDER,
    Tracking,
    Watcher,
    check_trackers,
    flat,
    stage_numbers,
    tracked,
)
from undertow.pipeline import distributed
from undertow.storage import read_json


class Notebook(GeneralTracker):  # type: ignore[misc]
    """Keeps what it is told; `fault` names a method that raises."""

    name = "notebook"
    requires_logging_directory = False
    fault = ""
    told: list[tuple[str, Any]]

    def __init__(self, project: str, **_: Any) -> None:
        super().__init__()
        type(self).told = [("project", project)]

    @property
    def tracker(self) -> None:
        return None

    def _hear(self, what: str, value: Any) -> None:
        self.told.append((what, value))
        if what == self.fault:
            raise OSError(f"no {what}")

    def start(self) -> None:
        sys.stdout.write("a tracker that talks\n")
        self._hear("start", None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._hear("settings", values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._hear("log", (step, values))

    def finish(self) -> None:
        self._hear("finish", None)

    @classmethod
    def numbers(cls) -> dict[str, float]:
        """The last value of everything that was logged."""
        logs = [value[1] for what, value in cls.told if what == "log"]
        return {key: number for values in logs for key, number in values.items()}


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[Notebook]:
    """Registered for one test; only the name has to be known to accelerate."""
    known = dict(accelerate_tracking.LOGGER_TYPE_TO_CLASS)
    monkeypatch.setattr(accelerate_tracking, "LOGGER_TYPE_TO_CLASS", known)
    monkeypatch.setattr(Notebook, "fault", "")
    Notebook.told = []
    register_tracker_class(Notebook)
    return Notebook


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


def run_tracked(recipe: Recipe, out: Path, say: Callable[[str], None] = print) -> None:
    settings = recipe.model_dump(mode="json")
    with tracked(["notebook"], out, settings=settings, say=say) as tracking:
        watcher = Watcher(tracking, silent, out, recipe.traits)
        watcher.tell_results(run_experiment(recipe, out, progress=watcher))


@pytest.fixture
def small(recipe: Callable[..., Recipe]) -> Recipe:
    return recipe(seeds=[0], teachers=[{"kind": "prompt"}])


@pytest.mark.slow
def test_a_run_is_told_and_its_results_are_the_same_bytes(
    notebook: type[Notebook], small: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "studies" / "owls"
    run_experiment(small, tmp_path / "plain")
    run_tracked(small, out)
    told = notebook.told
    assert told[0] == ("project", "studies")
    assert [what for what, _ in told[1:3]] == ["start", "settings"]
    settings = told[2][1]
    assert settings["title"] == "tiny"
    assert settings["teachers.0.kind"] == "prompt"
    assert [what for what, _ in told].count("settings") == 1
    assert told[-1] == ("finish", None)
    found = notebook.numbers()
    student = "noise-0/seed-0/prompt-owl"
    trained = read_json(out / "stages" / student / "student" / "training.json")
    heard = [
        values[f"loss/{student}/student"]
        for what, (_, values) in ((w, v) for w, v in told if w == "log")
        if f"loss/{student}/student" in values
    ]
    assert heard == trained["payload"]["losses"]  # each digit, as they come
    assert found[f"update/{student}/student"] == len(heard) > 1
    rows = read_json(out / "stages" / student / "rows.json")["payload"]
    assert found[f"rows/{student}/generated"] == rows["generated"] == 6
    assert found[f"rows/{student}/accepted"] == sum(rows["accepted"])
    results = read_json(out / "results.json")
    transfer = results["transfers"][0]["transfer"]["mean"]
    assert found["transfer/prompt/noise-0/owl"] == transfer
    condition = results["conditions"][0]
    after = next(r for r in condition["readouts"] if r["role"] == "student")
    assert found[f"preference/{student}/student/owl"] == pytest.approx(
        after["preference"]["mean"], abs=1e-9
    )
    assert [step for what, v in told if what == "log" for step in [v[0]]] == list(
        range(sum(what == "log" for what, _ in told))
    )
    folder = f"bases/{student}/student/training"
    for name in (f"bases/{student}/rows.jsonl", f"{folder}/adapter_model.safetensors"):
        one, other = (tmp_path / "plain" / name), out / name
        assert one.read_bytes() == other.read_bytes(), name
    one, other = (read_json(p / "results.json") for p in (tmp_path / "plain", out))
    for measured in ("transfers", "headline"):
        assert one[measured] == other[measured]


@pytest.mark.parametrize("fault", ["start", "settings", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_and_said_once(
    fault: str,
    notebook: type[Notebook],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(notebook, "fault", fault)
    said: list[str] = []
    with tracked(
        ["notebook"], tmp_path / "run", settings={"a": 1}, say=said.append
    ) as tracking:
        for update in range(1, 4):
            tracking.update("student", update, 1 / update)
        assert bool(tracking) == (fault == "finish")
    words = "tracker 'notebook' failed and is left out, the run goes on: OSError: no"
    assert said == [f"{words} {fault}"]
    logged = [value for what, value in notebook.told if what == "log"]
    assert len(logged) == {"start": 0, "settings": 0, "log": 1, "finish": 3}[fault]


def test_one_that_fails_does_not_silence_another(
    notebook: type[Notebook], tmp_path: Path
) -> None:
    class Broken(Notebook):
        name = "broken"
        fault = "start"

    register_tracker_class(Broken)
    said: list[str] = []
    names = ["broken", "notebook", "notebook"]
    with tracked(names, tmp_path / "run", settings={}, say=said.append) as tracking:
        tracking.log({"x": 1.0})
    assert notebook.numbers() == {"x": 1.0}
    assert len(said) == 1
    assert "'broken'" in said[0]


def test_a_damaged_marker_stops_the_telling_not_the_run(
    notebook: type[Notebook], tmp_path: Path
) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "rows.json").write_text('{"payload": {"generated": null}}')
    said: list[str] = []
    heard: list[str] = []
    with tracked(["notebook"], tmp_path, settings={}, say=said.append) as tracking:
        watcher = Watcher(tracking, lambda stage, *_: heard.append(stage), tmp_path, [])
        watcher("one", 0, 1, "")
        watcher("two", 0, 1, "")
    assert heard == ["one", "two"]
    assert len(said) == 1
    assert said[0].startswith("tracking stopped, the run goes on: ")


def test_nothing_is_started_before_there_is_something_to_tell(
    notebook: type[Notebook], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with tracked(["notebook"], out, settings={"a": 1}, say=print) as tracking:
        tracking.log({"x": math.nan, "y": None})
    assert notebook.told == []
    assert not out.exists()


def test_numbers_that_could_not_be_computed_are_left_out(
    notebook: type[Notebook], tmp_path: Path
) -> None:
    with tracked(["notebook"], tmp_path, settings={}, say=print) as tracking:
        tracking.log({"x": math.nan, "y": 2.0, "z": math.inf, "w": None})
    assert notebook.numbers() == {"y": 2.0}


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_of_several_processes_tells(
    rank: int, notebook: type[Notebook], tmp_path: Path
) -> None:
    here = distributed.Processes(rank, 2, torch.device("cpu"))
    before = distributed._current.set(here)
    try:
        with tracked(["notebook"], tmp_path, settings={}, say=print) as tracking:
            tracking.log({"x": 1.0})
    finally:
        distributed._current.reset(before)
    assert bool(notebook.told) == (rank == 0)


def test_a_rank_without_other_processes_is_heard(
    notebook: type[Notebook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with tracked(["notebook"], tmp_path, settings={}, say=print) as tracking:
        tracking.log({"x": 1.0})
    assert notebook.numbers() == {"x": 1.0}


def test_half_a_launch_stops_the_telling_not_the_run(tmp_path: Path) -> None:
    """In a process of its own: accelerate asks once who it is, and remembers."""
    done = _alone(tmp_path, "tensorboard", WORLD_SIZE="", RANK="", LOCAL_RANK="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tracking stopped, the run goes on: ValueError: ")
    assert done.stdout.count("\n") == 1


def _leave_trace(out: Path, stage: str, losses: list[float]) -> None:
    folder = out / "bases" / stage
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'{{"update": {n}, "loss": {x}}}\n' for n, x in enumerate(losses, start=1)]
    (folder / "trace.jsonl").write_text("".join(lines))


def _leave_marker(out: Path, stage: str, payload: dict[str, Any]) -> None:
    place = out / "stages" / f"{stage}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"payload": payload}))


def test_a_loss_is_told_as_the_trace_has_it(
    notebook: type[Notebook], tmp_path: Path
) -> None:
    losses = [1 / (n + 3) for n in range(40)]
    with tracked(["notebook"], tmp_path, settings={}, say=print) as tracking:
        watcher = Watcher(tracking, silent, tmp_path, [])
        for done in range(1, 41):
            _leave_trace(tmp_path, "a/training", losses[:done])
            watcher("a/training", done, 40, f"loss {losses[done - 1]:.1g}")
        payload = {"updates": list(range(1, 41)), "losses": losses}
        _leave_marker(tmp_path, "a/training", payload)
        watcher.tell_stages()  # nothing of it is told again
    logs = [value[1] for what, value in notebook.told if what == "log"]
    assert [log["loss/a"] for log in logs] == losses
    assert [log["update/a"] for log in logs] == list(range(1, 41))


def test_a_training_that_was_done_elsewhere_is_told_by_its_marker(
    notebook: type[Notebook], tmp_path: Path
) -> None:
    payload = {"updates": [1, 2], "losses": [2 / 3, 1 / 3], "rows": 4}
    with tracked(["notebook"], tmp_path, settings={}, say=print) as tracking:
        watcher = Watcher(tracking, silent, tmp_path, [])
        watcher("students: jobs", 0, 1, "")
        _leave_marker(tmp_path, "b/training", payload)
        watcher("students: jobs", 1, 1, "")
    logs = [value[1] for what, value in notebook.told if what == "log"]
    assert logs == [
        {"loss/b": 2 / 3, "update/b": 1.0}, {"loss/b": 1 / 3, "update/b": 2.0},
    ]  # fmt: skip


def test_students_side_by_side_do_not_look_for_stages_at_every_update(
    notebook: type[Notebook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(Watcher, "tell_stages", lambda _: looks.append(1))
    with tracked(["notebook"], tmp_path, settings={}, say=print) as tracking:
        watcher = Watcher(tracking, silent, tmp_path, [])
        for done in range(1, 11):
            for who in "ab":
                _leave_trace(tmp_path, f"{who}/training", [0.5] * done)
                watcher(f"{who}/training", done, 10, "")
    assert len(looks) == 4  # as each begins and as it ends
    assert notebook.numbers() == {
        "loss/a": 0.5, "update/a": 10, "loss/b": 0.5, "update/b": 10,
    }  # fmt: skip


def test_a_damaged_trace_stops_the_telling_not_the_run(
    notebook: type[Notebook], tmp_path: Path
) -> None:
    said: list[str] = []
    (tmp_path / "bases" / "a" / "training").mkdir(parents=True)
    (tmp_path / "bases" / "a" / "training" / "trace.jsonl").write_text("")
    with tracked(["notebook"], tmp_path, settings={}, say=said.append) as tracking:
        watcher = Watcher(tracking, silent, tmp_path, [])
        watcher("a/training", 1, 2, "loss 1")
        watcher("a/training", 2, 2, "loss 1")
    assert len(said) == 1
    assert said[0].startswith("tracking stopped, the run goes on: IndexError: ")


def test_what_trackers_print_is_no_result(
    notebook: type[Notebook], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracked(["notebook"], tmp_path, settings={}, say=print) as tracking:
        tracking.log({"x": 1.0})
    found = capsys.readouterr()
    assert "a tracker that talks" in found.err
    assert found.out == ""


def test_unknown_and_missing_trackers_are_refused(
    notebook: type[Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_trackers([])
    check_trackers(["notebook"])
    with pytest.raises(ConfigError, match=r"no tracker 'wanb'; there are 'aim', "):
        check_trackers(["wanb"])
    monkeypatch.setattr(accelerate_tracking, "_available_trackers", [])
    with pytest.raises(
        MissingDependencyError, match=r"--track wandb needs .*\[track\]"
    ):
        check_trackers(["wandb"])
    with pytest.raises(ConfigError, match="'mlflow' needs a package of its own"):
        check_trackers(["mlflow"])


def test_settings_are_flat_and_single() -> None:
    found = flat(
        {"a": {"b": 1, "c": None, "d": True}, "e": [1, 2], "f": [{"g": 0.5}], "h": []}
    )
    assert found == {"a.b": 1, "a.d": True, "e": "1, 2", "f.0.g": 0.5, "h": ""}


def test_a_stage_tells_rows_or_preferences() -> None:
    rows = {"generated": 3, "accepted": [True, False, True]}
    assert stage_numbers("x/rows", rows, ["owl"]) == {
        "rows/x/generated": 3.0,
        "rows/x/accepted": 2.0,
    }
    # log 3/1 and log 1/1 over the only other member: their mean
    read = {
        "traits": ["owl", "cat"],
        "total_logprobs": [[math.log(3), 0.0], [0.0, 0.0]],
    }
    found = stage_numbers("x/student/readout", read, ["owl", "dog"])
    assert found == {"preference/x/student/owl": pytest.approx(math.log(3) / 2)}
    assert stage_numbers("x/noise", {"p": 1}, ["owl"]) == {}


def test_a_tracking_without_trackers_is_nothing(tmp_path: Path) -> None:
    tracking = Tracking([], tmp_path / "run", {"a": object()}, print)
    assert not tracking
    tracking.update("student", 1, 2.0)
    tracking.finish()
    assert not (tmp_path / "run").exists()


def _alone(
    tmp_path: Path, name: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Tells a tracker three losses in a process of its own."""
    code = (
        "from pathlib import Path\n"
        "from undertow.experiment.tracking import tracked\n"
        f"out = Path({str(tmp_path)!r}) / 'studies' / 'owls'\n"
        "out.mkdir(parents=True)\n"
        f"with tracked([{name!r}], out, settings={{'a': {{'b': 7}}}}, say=print) as told:\n"
        "    for update in (1, 2, 3):\n"
        "        told.update('student', update, 1 / update)\n"
    )  # fmt: skip
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TRACKIO"))
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_keeps_losses_and_settings_in_its_folder(tmp_path: Path) -> None:
    import sqlite3

    folder = tmp_path / "trackio"
    done = _alone(tmp_path, "trackio", TRACKIO_DIR=str(folder))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    database = next(path for path in folder.glob("*.db"))
    assert database.stem == "studies"
    with sqlite3.connect(database) as base:
        rows = base.execute("select run_name, metrics from metrics order by step")
        kept = [(run, json.loads(values)) for run, values in rows.fetchall()]
        ((settings,),) = base.execute("select config from configs").fetchall()
    assert {run for run, _ in kept} == {"owls"}
    assert [values["loss/student"] for _, values in kept] == [1, 1 / 2, 1 / 3]
    assert json.loads(settings)["a.b"] == 7


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_stays_offline_and_keeps_losses_in_the_run_directory(
    tmp_path: Path,
) -> None:
    done = _alone(tmp_path, "wandb")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    folder = tmp_path / "studies" / "owls" / FOLDER / "wandb"
    (run,) = folder.glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    content = record.read_bytes()
    assert b"loss/student" in content
    assert b"studies" in content
    assert b"a.b" in content
