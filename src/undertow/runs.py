"""The run directory: recipe, provenance, stage markers, lock, resume.

A stage is finished when its marker is there; the marker is written last and whole, so
a run that was killed goes on at the first stage without one. A marker keeps the sha256 of
itself and of the stage's files: what is damaged when a run is opened is set aside, and
made again. Knows nothing of what stages do. The recipe is text here, and a directory
belongs to exactly one.
"""

import difflib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from undertow.errors import DatasetError, RunError, shown
from undertow.storage import (
    DRAFT_PREFIX,
    file_sha256,
    read_json,
    write_json,
    write_text,
)
from undertow.storage.files import ASIDE, plain, watching, writing

RECIPE = "recipe.yaml"
_LONGEST = 1e12
"""Seconds of a stage; what is longer is no time."""
_LOCK, _HOLDER = ".lock", ".lock-holder"
_FIRST = {"stage", "finished", "seconds", "payload"}
"""What stood in markers before they answered for anything; such are read as they are."""
_MARKER = _FIRST | {"files", "scratch", "sha256"}
_DRAWN = {".html", ".csv"}
"""Files that are drawn from others, and never read again."""
_PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "peft", "gguf", "numpy",
    "scipy",
)  # fmt: skip


class Run:
    """An open run directory; made by `open_run`.

    Stage names may have parts, as in "noise-0/seed-1/training".
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._since = time.monotonic()
        self._written: set[Path] = set()

    def path(self, *parts: str) -> Path:
        """A place inside the run directory; the folders above it are made.

        Raises:
            RunError: The parts lead out of the directory or are no names.
        """
        place = self._inside(*parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def is_done(self, name: str) -> bool:
        """True if the stage's marker is there."""
        return self._marker(name).is_file()

    def finish(
        self,
        name: str,
        payload: Mapping[str, Any],
        *,
        files: Sequence[Path] | None = None,
        scratch: Sequence[Path] = (),
    ) -> None:
        """Marks a stage as done and keeps what it found.

        Its seconds are those since the last stage ended or the run was opened.

        Args:
            name: Of the stage.
            payload: What it found.
            files: What the stage left, to be checked whenever the run is opened; None:
                all that was written in the directory since the last stage ended.
            scratch: What only helped to go on after an interruption, or this stage
                alone; removed, and not missed by the stages that wrote it.

        Raises:
            RunError: The disk is full, or the name leads out of the directory.
        """
        now = time.monotonic()
        kept = (
            sorted(p for p in self._written if p.is_file()) if files is None else files
        )
        marker: dict[str, Any] = {
            "stage": name,
            "finished": timestamp(),
            "seconds": round(now - self._since, 3),
            "payload": plain(payload),
            "files": {self._relative(path): file_sha256(path) for path in kept},
            "scratch": [self._relative(path) for path in scratch],
        }
        write_json(self._marker(name), marker | {"sha256": _digest(marker)})
        self._since = now
        self._written.clear()
        self._clear(marker)

    def rest(self) -> None:
        """Lets the time until now belong to no stage: others did what was done."""
        self._since = time.monotonic()

    def payload(self, name: str) -> dict[str, Any]:
        """What a finished stage found; NaN and infinities come back as None.

        Raises:
            RunError: The stage is not finished, or its marker is damaged.
        """
        payload = _read_marker(self._marker(name), name)["payload"]
        if not isinstance(payload, dict):
            raise _damaged(self._marker(name))
        return payload

    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of every finished stage, by name."""
        folder = self.directory / "stages"
        markers = (_read_marker(path, path.stem) for path in folder.rglob("*.json"))
        found = {str(m["stage"]): float(m["seconds"]) for m in markers}
        return dict(sorted(found.items()))

    def _see(self, path: Path) -> None:
        """Takes note of a file that was written."""
        if path.suffix in _DRAWN or path.is_relative_to(self._stages.resolve()):
            return
        if path.name not in (RECIPE, _HOLDER) and path.is_relative_to(
            self.directory.resolve()
        ):
            self._written.add(path)

    def _relative(self, path: Path) -> str:
        return path.resolve().relative_to(self.directory.resolve()).as_posix()

    def _clear(self, marker: Mapping[str, Any]) -> None:
        """Removes what a finished stage needs no more."""
        for name in marker.get("scratch", ()):
            place = self._inside(*name.split("/"))
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
                continue
            with writing(place):
                place.unlink(missing_ok=True)

    @property
    def _stages(self) -> Path:
        return self.directory / "stages"

    def check(self) -> None:
        """Sets aside what is damaged or gone, so that its stage is done again.

        Warns of it. Reads every file that a marker names once. Markers that hold nothing
        say only that others are there; they go with the first of those.

        Raises:
            RunError: The directory cannot be written.
        """
        markers, faults = self._markers()
        scratch = {name for m in markers.values() for name in m.get("scratch", ())}
        for name, marker in markers.items():
            self._clear(marker)
            wrong = [
                file
                for file, told in marker.get("files", {}).items()
                if not self._fits(file, told) and not _is_in(file, scratch)
            ]
            if wrong:
                faults[name] = wrong
        if faults:
            empty = [n for n, m in markers.items() if not m["payload"]]
            self._put_aside(faults, [name for name in empty if name not in faults])

    def _markers(self) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
        """The sound markers by stage, and the files of the others."""
        markers: dict[str, dict[str, Any]] = {}
        faults: dict[str, list[str]] = {}
        for path in sorted(self._stages.rglob("*.json")):
            name = path.relative_to(self._stages).as_posix().removesuffix(".json")
            try:
                markers[name] = _read_marker(path, name)
            except RunError:
                faults[name] = [f"stages/{name}.json"]
        return markers, faults

    def _put_aside(self, faults: Mapping[str, list[str]], empty: Sequence[str]) -> None:
        """The markers last: until they are gone, the next process finds the same."""
        with writing(self.directory):
            for name in (*empty, *faults):
                for file in faults.get(name, ()):
                    _put_aside(self._inside(*file.split("/")))
                _put_aside(self._marker(name))
        damaged = sorted({file for wrong in faults.values() for file in wrong})
        warnings.warn(
            f"{self.directory}: damaged or gone since it was written: {shown(damaged)}; "
            f"set aside (names that end in {ASIDE!r}), and made again: "
            f"{shown(sorted(faults))}",
            RuntimeWarning,
            stacklevel=5,
        )

    def _fits(self, file: str, digest: str) -> bool:
        place = self._inside(*file.split("/"))
        return place.is_file() and file_sha256(place) == digest

    def _marker(self, name: str) -> Path:
        place = self._inside("stages", name)
        return place.with_name(place.name + ".json")

    def _inside(self, *parts: str) -> Path:
        names = [name for part in parts for name in part.split("/")]
        bad = [n for n in names if n in ("", ".", "..") or not _is_name(n)]
        place = self.directory.joinpath(*names) if not bad else self.directory
        # A link inside the directory may still point elsewhere.
        if bad or not place.resolve().is_relative_to(self.directory.resolve()):
            raise RunError(
                f"{'/'.join(parts)!r}: is no place inside the run directory "
                f"{self.directory}; expected plain names, none of them '..'"
            )
        return place


def _is_in(file: str, places: set[str]) -> bool:
    """Whether a file is one of these places, or lies in one."""
    return any(file == place or file.startswith(f"{place}/") for place in places)


def _put_aside(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.replace(path.with_name(path.name + ASIDE))


def _digest(marker: Mapping[str, Any]) -> str:
    """The sha256 of a marker's content, whatever its layout."""
    content = {key: value for key, value in marker.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _is_name(name: str) -> bool:
    # A disk takes 255 bytes; markers and drafts put something behind.
    return name.isprintable() and "\\" not in name and len(name.encode()) < 240


def _read_marker(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(
            f"{path}: stage {name!r} is not finished; continue the run with the same "
            "command"
        )
    try:
        marker = read_json(path)
    except DatasetError as error:
        raise _damaged(path) from error
    if not isinstance(marker, dict) or not _is_marker(marker):
        raise _damaged(path)
    return marker


def _is_marker(marker: dict[str, Any]) -> bool:
    if marker.keys() != _FIRST and marker.keys() != _MARKER:
        return False
    seconds = marker["seconds"]
    is_time = isinstance(seconds, int | float) and 0 <= seconds < _LONGEST
    is_whole = marker.keys() == _FIRST or _answers(marker)
    return is_time and isinstance(marker["stage"], str) and is_whole


def _answers(marker: dict[str, Any]) -> bool:
    """Whether a marker is as it was written, and says of what files."""
    files, scratch = marker["files"], marker["scratch"]
    is_said = (
        isinstance(files, dict)
        and all(isinstance(told, str) for told in files.values())
        and isinstance(scratch, list)
        and all(isinstance(name, str) for name in scratch)
    )
    return is_said and marker["sha256"] == _digest(marker)


def _damaged(path: Path) -> RunError:
    return RunError(
        f"{path}: the stage marker is damaged; continue the run with the same command: "
        "it is set aside and the stage is done again"
    )


def _as_it_is(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


@contextmanager
def open_run(
    directory: Path | str,
    *,
    recipe_text: str,
    resume: bool = True,
    resolve: Callable[[Path], str] = _as_it_is,
) -> Iterator[Run]:
    """Opens a run directory for one process, made if it is missing.

    Args:
        directory: The run directory.
        recipe_text: The resolved recipe; stored in a new directory, compared in one
            that is there.
        resume: Continue a run that is there; if False, refuse.
        resolve: Reads a stored recipe as it compares with the one that is given, such
            as with settings that did not exist when it was stored.

    Raises:
        RunError: The directory is locked by another process, belongs to another
            recipe, holds something else, or cannot be written.
    """
    place = Path(directory)
    with _locked(place):
        _settle_recipe(place, recipe_text, resume=resume, resolve=resolve)
        for draft in place.rglob(f"{DRAFT_PREFIX}*"):
            # Left by a process that was killed; the lock says that nobody writes.
            with suppress(OSError):
                draft.unlink()
        run = Run(place)
        run.check()
        with watching(run._see):
            yield run


@contextmanager
def open_copy(directory: Path) -> Iterator[Run]:
    """Opens a part of a run in a folder of one's own: neither locked nor checked."""
    run = Run(directory)
    with watching(run._see):
        yield run


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    holder = directory / _HOLDER
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / _LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"{directory}: is in use by another run{_who(holder)}; wait until it ends, "
            "stop it, or choose another directory"
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{directory}: cannot be used as a run directory: {reason}; choose another"
        ) from error
    try:
        write_json(
            holder, {"pid": os.getpid(), "host": platform.node(), "since": timestamp()}
        )
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        facts = read_json(holder)
        return f" (process {facts['pid']} on {facts['host']}, since {facts['since']})"
    except (DatasetError, TypeError, KeyError):
        return ""


def _settle_recipe(
    directory: Path, text: str, *, resume: bool, resolve: Callable[[Path], str]
) -> None:
    """Stores the recipe, or checks that the one there is the same."""
    path = directory / RECIPE
    if not path.exists():
        others = sorted(
            p.name for p in directory.iterdir()
            if p.name not in (_LOCK, _HOLDER) and not p.name.startswith(DRAFT_PREFIX)
        )  # fmt: skip
        if others:
            raise RunError(
                f"{directory}: holds {shown(others)} but no {RECIPE}, so it is not a "
                "run; choose an empty or new directory"
            )
        write_text(path, text)
        return
    if not resume:
        raise RunError(f"{directory}: holds a run already; choose a new directory")
    stored = _as_it_is(path)
    if stored != text:
        stored = resolve(path)
    change = [
        line
        for line in difflib.unified_diff(
            stored.splitlines(), text.splitlines(), lineterm="", n=0
        )
        if not line.startswith(("---", "+++", "@@"))
    ]
    if change:
        lines = "\n".join(f"  {line!r}"[:100] for line in change[:20])
        more = f"\n  … and {len(change) - 20} more" if len(change) > 20 else ""
        raise RunError(
            f"{directory}: belongs to another recipe (-: there, +: given):\n{lines}"
            f"{more}\nChoose another directory, or ask for the same again. Only if "
            f"{path} was damaged: put the lines marked + into it"
        )


def provenance(**extra: Any) -> dict[str, Any]:
    """What this was made with: versions, commit, processor, time; and what is given.

    `commit` is that of undertow's own checkout ("+changes" if edited), None if
    undertow was installed from elsewhere.
    """
    facts: dict[str, Any] = {
        "undertow_version": version("undertow"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "time": timestamp(),
    }
    versions = {f"{name}_version": version(name) for name in _PACKAGES}
    return facts | versions | extra


def timestamp() -> str:
    """The time in UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    package = Path(__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    # An installed package may lie inside somebody else's repository.
    if top is None or Path(top, "src", "undertow").resolve() != package:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changes else commit


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
