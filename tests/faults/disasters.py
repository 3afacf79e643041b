"""What happens to a process: killed, out of disk, forbidden to write, its clock turned.

All of it at the n-th file operation inside one directory, which the interpreter's audit
events and a few wrapped functions tell, or at the n-th step of progress. Meant for a
process of its own: nothing here is taken back. Knows nothing of what the process does.
"""

import builtins
import errno
import io
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

What = Literal["none", "kill", "interrupt", "full", "limit", "read-only", "clock"]
How = Literal["before", "after", "within", "step"]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_WRAPPED = ("replace", "rename", "remove", "unlink", "mkdir", "rmdir", "ftruncate",
            "open", "fsync", "pwrite")  # fmt: skip
_GIVES_BACK = {"os.remove", "os.rmdir", "os.truncate"}
"""Operations that need no room."""


@dataclass(frozen=True)
class Disaster:
    """What happens, and where.

    Attributes:
        what: Of it.
        at: Number of the file operation, or of the step, from 0.
        how: Before it, after it, within it (half of it is written); or at a step of
            progress instead of an operation.
        days: By how many the clock jumps.
        more: Further signals, one at each of the next operations.
    """

    what: What = "none"
    at: int = -1
    how: How = "before"
    days: float = 0.0
    more: int = 0


@dataclass
class Watch:
    """Sees the operations of this process, and lets a disaster happen among them."""

    directory: Path
    disaster: Disaster
    seen: list[str] = field(default_factory=list)
    steps: int = 0
    status: int = 1
    _after: bool = False
    _busy: bool = False
    _begun: bool = False

    def install(self) -> None:
        """From now on; cannot be taken back."""
        self._root = os.path.realpath(self.directory)
        for name in _WRAPPED:
            setattr(os, name, self._wrapped(getattr(os, name), name))
        io.open = builtins.open = self._wrapped(io.open, "io.open")
        tensors: Any = import_module("safetensors.torch")
        tensors.serialize_file = self._saving(tensors.serialize_file)
        sys.addaudithook(self._hook)

    # ── what is seen ─────────────────────────────────────────────────────────────

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if any(c in (mode or "") for c in "wax+") or (flags or 0) & _WRITES:
                self._look(event, path)
        elif event in _PATHS:
            self._look(event, *arguments[:2] if event == "os.rename" else arguments[:1])

    def _look(self, event: str, *paths: Any) -> None:
        if self._busy:
            return
        self._busy = True  # looking opens files itself
        try:
            places = [self._place(path) for path in paths]
            if any(place is None for place in places):
                return
            number = len(self.seen)
            self.seen.append(f"{event} {_named(str(places[-1]))}")
            if self._after:
                _die()
            self._happen(number, event, [str(p) for p in paths])
        finally:
            self._busy = False

    def _place(self, path: Any) -> str | None:
        """A path inside the directory; None if it lies elsewhere."""
        try:
            if isinstance(path, int):
                path = Path(f"/proc/self/fd/{path}").readlink()
            found = str(Path(os.fsdecode(path)).absolute())
        except (OSError, TypeError):
            return None
        is_inside = f"{found}/".startswith(f"{self._root}/")
        return found[len(self._root) :] if is_inside else None

    def _wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **rest: Any) -> Any:
            if name in ("fsync", "pwrite"):
                self._look(f"os.{name}", arguments[0])
                if self._begun and self.disaster.how == "within" and name == "pwrite":
                    function(arguments[0], arguments[1][: len(arguments[1]) // 2],
                             *arguments[2:])  # fmt: skip
                    _die()
            found = function(*arguments, **rest)
            if self._after:
                _die()
            return found

        return call

    def _saving(self, function: Callable[..., Any]) -> Callable[..., Any]:
        from safetensors import SafetensorError

        def save(tensors: Any, path: Any, *rest: Any, **options: Any) -> Any:
            try:
                self._look("save", path)
            except OSError as error:
                said = f"I/O error: {error.strerror} (os error {error.errno})"
                raise SafetensorError(said) from None
            found = function(tensors, path, *rest, **options)
            if (
                self._begun
                and self.disaster.how == "within"
                and self.disaster.what == "kill"
            ):
                _cut(str(path))
                _die()
            if self._after:
                _die()
            return found

        return save

    def step(self) -> None:
        """A step of progress."""
        self.steps += 1
        if self.disaster.how == "step" and self.steps - 1 == self.disaster.at:
            self._happen(self.disaster.at, "step", [])

    # ── what happens ─────────────────────────────────────────────────────────────

    def _happen(self, number: int, event: str, paths: list[str]) -> None:
        disaster = self.disaster
        if disaster.what in ("full", "read-only") and number >= disaster.at >= 0:
            self._refuse(event, paths)
        if disaster.what == "interrupt" and 0 <= number - disaster.at <= disaster.more:
            os.kill(os.getpid(), signal.SIGINT)
        if number != disaster.at or (disaster.how == "step") != (event == "step"):
            return
        self._begun = True
        if disaster.what == "clock":
            _turn_clock(disaster.days)
        elif disaster.what == "limit":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        elif disaster.what == "kill":
            self._kill(event, paths)

    def _kill(self, event: str, paths: list[str]) -> None:
        how = self.disaster.how
        if how == "after" or (how == "within" and event == "open"):
            self._after = True  # as soon as it has returned
        elif how == "within" and event in ("save", "os.pwrite"):
            return  # those who do it end in the middle
        else:
            if how == "within" and event == "os.rename":
                _cut(paths[0])  # as if its writing had come half way
            _die()

    def _refuse(self, event: str, paths: list[str]) -> None:
        code = errno.ENOSPC if self.disaster.what == "full" else errno.EROFS
        if self.disaster.what == "full" and event in _GIVES_BACK:
            return
        raise OSError(code, os.strerror(code), *paths[:1])


def _named(place: str) -> str:
    return re.sub(r"\.undertow-[0-9a-f]{12}", ".undertow-DRAFT", place)


def _cut(path: str) -> None:
    os.truncate(path, Path(path).stat().st_size // 2)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _turn_clock(days: float) -> None:
    """The wall clock jumps; what only ever goes forward does not."""
    import datetime

    runs: Any = import_module("undertow.runs")
    real, jump = time.time, days * 86400

    class Turned(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Turned":
            return cls.fromtimestamp(real() + jump, tz)

    time.time = lambda: real() + jump
    runs.datetime = Turned
