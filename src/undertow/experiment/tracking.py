"""Tells experiment trackers (trackio, wandb, tensorboard, …) how a run goes.

The one module that owns accelerate's trackers. It listens to the progress of a run and
reads what its stages leave: traces and markers; what runs knows nothing of it. A tracker that fails is
left out, which is said once, and the run goes on. Nothing is sent anywhere unless the
user's own settings (`WANDB_MODE`, `TRACKIO_SPACE_ID`, …) say so.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from undertow.errors import ConfigError, MissingDependencyError, shown
from undertow.experiment.stages import Progress
from undertow.pipeline.distributed import processes
from undertow.pipeline.evaluation import Preference
from undertow.pipeline.training_state import TRACE
from undertow.results import Estimate, Results
from undertow.storage import read_json

FOLDER = "tracking"
"""Where in the run directory trackers write that need a place."""
_EXTRA = ("trackio", "wandb")
_TRAINING = "/training"
_LINE = 200  # bytes; an update and its loss take less


def check_trackers(names: Sequence[str]) -> None:
    """Makes sure that there are such trackers, before anything is computed.

    Raises:
        ConfigError: A name that accelerate does not know, or a package that is missing.
        MissingDependencyError: The same for a package of the extra `track`.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = shown(sorted(LOGGER_TYPE_TO_CLASS))
            raise ConfigError("--track", [f"no tracker {name!r}; there are {known}"])
        known_names = {kind.value for kind in LoggerType}
        if name not in known_names or LoggerType(name) in get_available_trackers():
            continue
        if name in _EXTRA:
            raise MissingDependencyError(f"--track {name}", "track")
        fault = f"{name!r} needs a package of its own, which is not installed"
        raise ConfigError("--track", [fault])


class Tracking:
    """Trackers that are told numbers, each until it fails; made by `tracked`.

    They are started by the first number, so an experiment that is refused leaves
    nothing, and a run directory is there before they write in it.
    """

    def __init__(
        self,
        names: Sequence[str],
        directory: Path,
        settings: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._names, self._directory = tuple(dict.fromkeys(names)), directory
        self._settings, self._say = flat(settings), say
        self._trackers: dict[str, Any] | None = None
        self._step = 0

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._names if self._trackers is None else self._trackers)

    def log(self, values: Mapping[str, float | None]) -> None:
        """Tells all trackers; numbers that could not be computed are left out."""
        found = {
            key: float(value)
            for key, value in values.items()
            if value is not None and math.isfinite(value)
        }
        if not self or not found:
            return
        if self._trackers is None:
            self._start()
        self._each(lambda _, tracker: tracker.log(found, step=self._step))
        self._step += 1

    def update(self, student: str, update: int, loss: float) -> None:
        """Tells the loss of a student's update."""
        self.log({f"loss/{student}": loss, f"update/{student}": update})

    def finish(self) -> None:
        """Closes whatever was started."""
        self._each(_close)
        self._trackers = {}

    def fail(self, error: Exception) -> None:
        """Stops telling: what was to be told cannot be made of the run."""
        self._say(f"tracking stopped, the run goes on: {_words(error)}")
        self.finish()

    def _start(self) -> None:
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        try:
            PartialState(cpu=True)  # its trackers ask who they are
        except Exception as error:  # variables of a launcher may be half there
            self.fail(error)
            return
        self._trackers = {name: LOGGER_TYPE_TO_CLASS[name] for name in self._names}
        self._each(self._open)

    def _open(self, name: str, kind: Any) -> None:
        assert self._trackers is not None  # it was set to be gone through
        place = self._directory / FOLDER
        project, options = _project(self._directory), _options(name, self._directory)
        if kind.requires_logging_directory:
            place.mkdir(parents=True, exist_ok=True)
            tracker = kind(project, str(place), **options)
        else:
            tracker = kind(project, **options)
        tracker.start()
        self._trackers[name] = tracker
        tracker.store_init_configuration(dict(self._settings))

    def _each(self, act: Callable[[str, Any], None]) -> None:
        """Lets each tracker act; one that fails is told of and left out."""
        for name, tracker in list((self._trackers or {}).items()):
            try:
                # Standard output is the command's own results.
                with redirect_stdout(sys.stderr):
                    act(name, tracker)
            except Exception as error:
                self._leave(name)
                self._say(
                    f"tracker {name!r} failed and is left out, the run goes on: "
                    f"{_words(error)}"
                )

    def _leave(self, name: str) -> None:
        """Drops a tracker, and closes it as far as it lets itself be closed."""
        left = (self._trackers or {}).pop(name)
        if not isinstance(left, type):
            with suppress(Exception):
                _close(name, left)


def _close(name: str, tracker: Any) -> None:
    # trackio's own finish forgets the run as well, which is else closed again at exit.
    (import_module(name) if name == "trackio" else tracker).finish()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _project(directory: Path) -> str:
    """The folder that holds the run's, as a name that every tracker takes."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", directory.resolve().parent.name).strip("-.")
    return name[:100] or "undertow"


def _options(name: str, directory: Path) -> dict[str, Any]:
    """The run's name where a tracker takes one; what keeps a tracker to itself."""
    run = directory.resolve().name
    if name == "trackio":
        return {"name": run, "embed": False}
    if name != "wandb":
        return {}
    options: dict[str, Any] = {"name": run, "settings": {"console": "off"}}
    if "WANDB_MODE" not in os.environ:
        options["mode"] = "offline"
        # It reports its own crashes over the network, even offline.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if "WANDB_DIR" not in os.environ:
        place = directory / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        options["dir"] = str(place)
    return options


@contextmanager
def tracked(
    names: Sequence[str],
    directory: Path,
    *,
    settings: Mapping[str, Any],
    say: Callable[[str], None],
) -> Iterator[Tracking]:
    """Gives trackers to tell, and closes them whatever happens.

    Args:
        names: As accelerate knows them; none is fine, and nothing is told then.
        directory: The run's; its name is the run's, its parent's the project's.
        settings: Told once, at the start.
        say: Called with a line when a tracker fails.
    """
    heard = names if processes().is_first else ()
    tracking = Tracking(heard, directory, settings, say)
    try:
        yield tracking
    finally:
        tracking.finish()


def flat(settings: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Settings as trackers take them: dotted names, single values; no unset ones."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, prefix=f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and any(
            isinstance(item, Mapping) for item in value
        ):
            places = {str(place): item for place, item in enumerate(value)}
            found |= flat(places, prefix=f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            found[f"{prefix}{key}"] = ", ".join(map(str, value))
        elif value is not None:
            found[f"{prefix}{key}"] = (
                value if isinstance(value, bool | int | float) else str(value)
            )
    return found


class Watcher:
    """A run's progress, passed on; trackers are told of losses and finished stages.

    Args:
        tracking: Who is told.
        progress: Whom it is passed on to, first.
        directory: The run's, whose stage markers are read.
        traits: Whose preference is told of each read-out.
    """

    def __init__(
        self,
        tracking: Tracking,
        progress: Progress,
        directory: Path,
        traits: Sequence[str],
    ) -> None:
        self._tracking, self._progress = tracking, progress
        self._stages, self._traits = directory / "stages", tuple(traits)
        self._bases = directory / "bases"
        self._seen: set[Path] = set()
        self._begun: set[str] = set()

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """As `Progress`."""
        self._progress(stage, done, total, note)
        if not self._tracking:
            return
        # Students that are trained side by side speak by turns.
        if stage not in self._begun or done == total:
            self._begun.add(stage)
            self.tell_stages()
        if stage.endswith(_TRAINING):
            self._tell_update(stage)

    def _tell_update(self, stage: str) -> None:
        """Tells the loss that stands last in the trace, of which a note has a few digits."""
        try:
            update, loss = last_update(self._bases / stage / TRACE)
            self._tracking.update(stage.removesuffix(_TRAINING), update, loss)
        except Exception as error:
            self._tracking.fail(error)

    def tell_stages(self) -> None:
        """Tells of stages that were finished since the last time."""
        try:
            for path in sorted(set(self._stages.rglob("*.json")) - self._seen):
                self._seen.add(path)
                name = path.relative_to(self._stages).with_suffix("").as_posix()
                self._tell_stage(name, read_json(path)["payload"])
        except Exception as error:
            self._tracking.fail(error)

    def _tell_stage(self, name: str, payload: Mapping[str, Any]) -> None:
        # A training that was not heard was done elsewhere, or before.
        if name.endswith(_TRAINING) and name not in self._begun:
            told = zip(payload["updates"], payload["losses"], strict=True)
            for update, loss in told:
                self._tracking.update(name.removesuffix(_TRAINING), update, loss)
        self._tracking.log(stage_numbers(name, payload, self._traits))

    def tell_results(self, results: Results) -> None:
        """Tells of the last stages, and of what the run found."""
        if self._tracking:
            self.tell_stages()
            self._tracking.log(result_numbers(results))


def last_update(trace: Path) -> tuple[int, float]:
    """The last line of a trace: an update, and its loss in nats a token."""
    with trace.open("rb") as file:
        file.seek(max(0, trace.stat().st_size - _LINE))
        line = json.loads(file.read().splitlines()[-1])
    return int(line["update"]), float(line["loss"])


def stage_numbers(
    name: str, payload: Mapping[str, Any], traits: Sequence[str]
) -> dict[str, float | None]:
    """What a finished stage has to tell: rows, or mean preferences in nats.

    Args:
        name: Of the stage.
        payload: What it found.
        traits: Those whose preference is wanted.
    """
    where, _, kind = name.rpartition("/")
    if kind == "rows":
        return {
            f"rows/{where}/generated": float(payload["generated"]),
            f"rows/{where}/accepted": float(sum(payload["accepted"])),
        }
    if kind != "readout":
        return {}
    table = np.array(payload["total_logprobs"], dtype=np.float64)
    read = Preference(traits=tuple(payload["traits"]), total_logprobs=table)
    return {
        f"preference/{where}/{trait}": float(read.of(trait).mean())
        for trait in traits
        if trait in read.traits
    }


def result_numbers(results: Results) -> dict[str, float | None]:
    """Transfer and its specific part, with intervals, of each teacher, noise, trait."""
    found: dict[str, float | None] = {}
    for item in results.transfers:
        way = f" {item.way}" if item.way else ""
        where = f"{item.teacher}{way}/noise-{item.noise:g}/{item.trait}"
        found |= _estimate(f"transfer/{where}", item.transfer)
        found |= _estimate(f"specific/{where}", item.specific)
    return found


def _estimate(name: str, value: Estimate) -> dict[str, float | None]:
    return {name: value.mean, f"{name}/low": value.low, f"{name}/high": value.high}
