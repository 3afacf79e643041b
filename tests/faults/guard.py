"""What reading one input may do: end in time, write in its folder, and nothing more.

A hook of the interpreter's own audit events sees every file that is opened for writing,
every process, every connection and every class that a pickle asks for. Knows nothing of
what is read. Not seen: what a library written in C writes by itself.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from undertow.errors import UndertowError, visible

SECONDS = 10.0
"""Of the processor; an example that takes longer hangs, or one that waits six times that."""

_CLOCKS = (
    (signal.ITIMER_PROF, signal.SIGPROF, 1),
    (signal.ITIMER_REAL, signal.SIGALRM, 6),
)

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FOLDERS = {"os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}
_PAIRS = {"os.rename", "os.link", "os.symlink"}
_NEVER = {
    "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
    "os.fork", "os.forkpty", "socket.connect", "socket.getaddrinfo", "urllib.Request",
    "ctypes.dlopen",
}  # fmt: skip
_places: list[Path] = []
_broken: list[str] = []


class Hung(BaseException):
    """An example took too long; no `except Exception` may swallow it."""


class Forbidden(AssertionError):
    """An example did what reading never needs."""


@contextmanager
def guarded(folder: Path, seconds: float = SECONDS) -> Iterator[None]:
    """Watches what is done inside.

    Raises:
        Hung: It took more than `seconds` of the processor; on the main thread only.
        Forbidden: Something was written outside `folder`, a process was started, a
            connection was opened, or a pickle was read.
    """
    _install()
    is_main = threading.current_thread() is threading.main_thread()
    _broken.clear()
    _places.append(Path(os.path.realpath(folder)))
    try:
        with _timed(seconds) if is_main else nullcontext():
            yield
    finally:
        _places.clear()
    if _broken:
        raise Forbidden("; ".join(_broken[:5]))


@contextmanager
def _timed(seconds: float) -> Iterator[None]:
    before = [signal.signal(sign, _ring) for _, sign, _ in _CLOCKS]
    try:
        for clock, _, times in _CLOCKS:
            # Again and again: a callback of the interpreter's may swallow the first.
            signal.setitimer(clock, times * seconds, 1.0)
        yield
    finally:
        for (clock, sign, _), handler in zip(_CLOCKS, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(sign, handler)


def _ring(_: int, __: FrameType | None) -> None:
    raise Hung


_installed: list[bool] = []


def _install() -> None:
    if not _installed:
        _installed.append(True)
        sys.addaudithook(_seen)  # cannot be taken off; silent outside `guarded`


def _seen(event: str, arguments: tuple[Any, ...]) -> None:
    if not _places:
        return
    if event == "open":
        path, mode, flags = arguments
        written = any(c in (mode or "") for c in "wax+") or (flags or 0) & _WRITES
        if written and not isinstance(path, int):
            _look(event, path)
    elif event in _FOLDERS:
        _look(event, arguments[0])
    elif event in _PAIRS:
        _look(event, arguments[0])
        _look(event, arguments[1])
    elif event in _NEVER:
        _broken.append(f"{event}{arguments!r}"[:300])


def _look(event: str, path: object) -> None:
    if isinstance(path, int):  # a handle, which was looked at when it was opened
        return
    place = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
    inside = any(Path(place).is_relative_to(folder) for folder in _places)
    if not inside and place != os.devnull:
        _broken.append(f"{event}: {place!r} lies outside")


def is_harmless(text: str) -> bool:
    """Whether a terminal shows a text as it is: no controls, no escapes, no bidi."""
    return visible(text) == text


def told(error: UndertowError) -> str:
    """The kind of an error on purpose, whose message says something."""
    assert str(error).strip(), "an error without a message"
    return type(error).__name__
