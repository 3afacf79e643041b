"""`--track` reaches trackers, refuses those there are not, and warns of those that fail."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from accelerate import tracking as accelerate_tracking
from accelerate.tracking import GeneralTracker, register_tracker_class

from undertow.cli.tracking import check, tracking
from undertow.errors import ConfigError

if TYPE_CHECKING:
    from tests.conftest import Command


class Diary(GeneralTracker):  # type: ignore[misc]
    """Keeps the settings and the numbers that it is told, for the whole class."""

    name = "diary"
    requires_logging_directory = True
    settings: dict[str, Any]
    logs: list[dict[str, float]]
    full = False

    def __init__(self, project: str, place: str) -> None:
        super().__init__()
        assert Path(place).is_dir()
        type(self).settings, type(self).logs = {"project": project}, []

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings.update(values)

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        if self.full:
            raise OSError("the diary is full\x1b[2J")
        self.logs.append(values)


@pytest.fixture(autouse=True)
def diary(monkeypatch: pytest.MonkeyPatch) -> type[Diary]:
    """Registered for one test."""
    known = dict(accelerate_tracking.LOGGER_TYPE_TO_CLASS)
    monkeypatch.setattr(accelerate_tracking, "LOGGER_TYPE_TO_CLASS", known)
    monkeypatch.setattr(Diary, "full", False)
    register_tracker_class(Diary)
    return Diary


@pytest.fixture
def training(llama: Path, number_rows: Path) -> tuple[object, ...]:
    """Four updates on eight rows, without an `--out`."""
    return (
        "train", number_rows, "--model", llama, "--dtype", "float32",
        "--batch-size", 2, "--seed", 5, "--rank", 2, "--control", number_rows,
    )  # fmt: skip


def adapter(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_training_is_told_and_its_students_are_the_same(
    command: "Command", training: tuple[object, ...], tmp_path: Path
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "studies" / "told"
    assert command(*training, "--out", plain).status == 0
    found = command(*training, "--out", out, "--track", "diary")
    assert found.status == 0, found.err
    assert Diary.settings["project"] == "studies"
    assert Diary.settings["seed"] == 5
    assert Diary.settings["training.rank"] == 2
    losses = {
        role: [log[f"loss/{role}"] for log in Diary.logs if f"loss/{role}" in log]
        for role in ("student", "control")
    }
    assert len(losses["student"]) == 4
    assert losses["student"] == losses["control"]  # the same rows and seed
    assert {"rows/student": 8.0} in Diary.logs
    assert adapter(out) == adapter(plain)
    assert adapter(out / "control") == adapter(plain / "control")


def test_a_tracker_that_fails_is_a_warning(
    command: "Command", training: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Diary, "full", True)
    found = command(*training, "--out", tmp_path / "out", "--track", "diary")
    assert found.status == 0, found.err
    warning = (
        "warning: tracker 'diary' failed and is left out, the run goes on: OSError: "
        "the diary is full\\u001b[2J"
    )
    assert found.err.count(warning) == found.err.count("warning: tracker") == 1
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("verb", ["run", "train"])
def test_an_unknown_tracker_is_refused_before_anything_is_done(
    verb: str, command: "Command", tmp_path: Path, llama: Path, number_rows: Path
) -> None:
    wanted: dict[str, tuple[object, ...]] = {
        "run": ("run", "steer"),
        "train": ("train", number_rows, "--model", llama),
    }
    out = tmp_path / "out"
    found = command(*wanted[verb], "--out", out, "--track", "diery")
    assert found.status == 2
    assert "--track: 1 fault(s):" in found.err
    assert "no tracker 'diery'; there are " in found.err
    assert "'diary'" in found.err
    assert not out.exists()


def test_no_tracker_is_nothing(tmp_path: Path) -> None:
    check(None)
    with pytest.raises(ConfigError, match="no tracker 'x'"):
        check(["x"])
    with tracking(None, tmp_path / "out", {"a": 1}) as told:
        told.log({"x": 1.0})
    assert not (tmp_path / "out").exists()
