"""Text and JSON on disk: written whole or not at all, read with faults that name lines.

Text is hostile here: JSON is stored as ASCII with escapes, so no content can end a
line, move a terminal's cursor or fail to encode. Knows nothing of rows (see
`storage.rows`), models or runs. Tensors are written by those who own them, through
`replacing`.
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from undertow.errors import DatasetError, RunError

DRAFT_PREFIX = ".undertow-"
"""Begins the name of every file that is still being written."""

ASIDE = ".set-aside"
"""Ends the name of a file that was found damaged, and is not read any more."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHECK = "undertow_crc32"
_watchers: list[Callable[[Path], None]] = []


@contextmanager
def watching(seen: Callable[[Path], None]) -> Iterator[None]:
    """While open, `seen` is told of every file that `replacing` has put in its place."""
    _watchers.append(seen)
    try:
        yield
    finally:
        _watchers.remove(seen)


def set_aside(path: Path, why: str) -> None:
    """Renames a damaged file, so that what it held is made again, and says so."""
    with writing(path):
        path.replace(path.with_name(path.name + ASIDE))
    warnings.warn(
        f"{path}: damaged: {why}; it is set aside as {path.name + ASIDE!r}, and what it "
        "held is made again",
        RuntimeWarning,
        stacklevel=3,
    )


@contextmanager
def replacing(path: Path | str, *, lasting: bool = True) -> Iterator[Path]:
    """Yields a draft's path; when the block ends well, the draft becomes the file.

    The draft lies in the same folder (parents are made), is synced and renamed, so
    whoever looks sees the old file or the whole new one. After an error, or Ctrl-C,
    the old file stands and the draft is gone.

    Args:
        path: The file.
        lasting: False for what only helps to go on after an interruption and answers
            for itself; those who watch are not told of it.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    path = Path(path)
    draft: Path | None = None
    try:
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise RunError(f"{path}: is not a regular file; choose another name")
        name = f"{DRAFT_PREFIX}{secrets.token_hex(6)}{target.suffix[:16]}"
        draft = target.with_name(name)
        yield draft
        _sync(draft)
        draft.replace(target)
        _sync(target.parent)
        for seen in _watchers if lasting else ():
            seen(target)
    except OSError as error:
        # A fault in something that the block read is not ours to explain.
        if error.filename is None or draft is None or str(draft) in str(error):
            raise _unwritable(path, error) from error
        raise
    except SafetensorError as error:
        raise _unwritable(path, _cause(error)) from error
    except ValueError as error:
        if draft is None:
            raise _no_path(path, error) from error
        raise
    finally:
        if draft is not None:
            with suppress(OSError):
                draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Explains a full disk or a forbidden place, for what other libraries write.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise _unwritable(Path(path), error) from error
    except SafetensorError as error:
        raise _unwritable(Path(path), _cause(error)) from error


def _cause(error: SafetensorError) -> OSError:
    """What the system said; safetensors gives it as text only."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        raise error
    return OSError(int(found[1]), os.strerror(int(found[1])))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> RunError:
    if error.errno in _FULL:
        return RunError(
            f"{path}: the disk is full ({error.strerror}); what was there before is "
            "untouched. Free some space and run the same command again"
        )
    return RunError(
        f"{path}: cannot be written: {error.strerror or error}; choose a place that "
        "can, or mend its permissions"
    )


def _no_path(path: Path, error: ValueError) -> RunError:
    return RunError(f"{str(path)!r}: is no path: {error}; choose another name")


def write_text(path: Path | str, text: str) -> None:
    r"""Writes UTF-8 text, whole or not at all; lone surrogates become `\udcff`.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    with replacing(path) as draft:
        draft.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, value: object) -> None:
    """Writes a value as indented JSON, whole or not at all.

    Strict JSON: NaN and infinities become null. Arrays and NumPy scalars become
    lists and numbers, paths become text, keys become text.

    Raises:
        RunError: The disk is full, or the place cannot be written.
        TypeError: The value holds something that JSON has no word for.
    """
    text = json.dumps(plain(value), indent=1, allow_nan=False)
    write_text(path, text + "\n")


def append_jsonl(path: Path | str, value: object) -> None:
    """Adds one line to a JSONL file, which is made if it is missing.

    A line that a killed process left without its end is cut off first. If the disk
    is full the file stays as it was. One writer at a time. A mapping gets a last entry,
    the CRC-32 of the line without it, which `read_jsonl` checks and leaves out.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    path = Path(path)
    line = _checked(line_of(value))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            end = _whole_length(handle)
            os.ftruncate(handle, end)
            _append(handle, line, end)
        finally:
            os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from error
    except ValueError as error:
        raise _no_path(path, error) from error


def _checked(line: bytes) -> bytes:
    """A line with its checksum, if it holds a mapping that is not empty."""
    if not line.startswith(b"{") or line == b"{}\n":
        return line
    return line[:-2] + f', "{_CHECK}": "{zlib.crc32(line):08x}"}}\n'.encode("ascii")


_CHECKED = re.compile(rb', "([^"]*)": "([0-9a-f]{8})"\}\s*$')


def _unchecked(value: Any, line: bytes, where: str) -> Any:
    """A line's value without its checksum.

    Raises:
        DatasetError: The line is not what was written.
    """
    found = _CHECKED.search(line)
    fits = found is not None and int(found[2], 16) == zlib.crc32(
        line[: found.start()] + b"}\n"
    )
    # What fits under another name has a damaged name; other keys are none of ours.
    if not isinstance(value, dict) or (_CHECK in value) == fits:
        if isinstance(value, dict):
            value.pop(_CHECK, None)
        return value
    raise fault(
        where, "the line is not what was written: its checksum does not fit",
        got_text(line), "the line as it was", "delete the line: what it held is made "
        f"again; or, if the change is yours, delete its entry {_CHECK!r}",
    )  # fmt: skip


def _append(handle: int, line: bytes, end: int) -> None:
    """Writes a line at `end`; takes it back if it does not fit."""
    written = 0
    try:
        while written < len(line):
            written += os.pwrite(handle, line[written:], end + written)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, end)
        raise


def _whole_length(handle: int) -> int:
    """Bytes up to and with the last line end."""
    end = os.fstat(handle).st_size
    step = 1
    while end:
        start = max(0, end - step)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end, step = start, 1 << 16
    return 0


def line_of(value: object) -> bytes:
    """The value as one line of JSON, its end included."""
    return json.dumps(plain(value), allow_nan=False).encode("ascii") + b"\n"


def plain(value: object) -> Any:
    """The value as JSON has it: strict numbers, lists, text keys.

    Raises:
        DatasetError: Lists in it are nested too deeply to be written.
        TypeError: It holds something that JSON has no word for.
    """
    try:
        return _plain(value)
    except RecursionError as error:
        raise DatasetError(
            "a value is nested too deeply to be written as JSON; expected lists in "
            "lists, a few hundred at most; flatten it"
        ) from error


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # NumPy's and torch's values, without importing either.
    listed: Callable[[], object] | None = getattr(value, "tolist", None)
    if listed is None:
        raise TypeError(
            f"JSON has no word for {type(value).__name__}: {got_text(value)}"
        )
    return _plain(listed())


def _key(key: object) -> str:
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise TypeError(f"a JSON key must be text or an integer; got {key!r}")
    return str(key)


def read_json(path: Path | str) -> Any:
    """Reads one JSON value.

    Raises:
        DatasetError: The file is missing or not JSON; the message names the line.
    """
    path = Path(path)
    data = read_bytes(path)
    return parse(data, str(path), "one JSON value")


def read_jsonl(path: Path | str, *, tolerate_torn_tail: bool = True) -> list[Any]:
    """Reads the values of a JSONL file, one a line; empty lines are passed over.

    Args:
        path: The file.
        tolerate_torn_tail: Leave out a last line without its line end, which is what
            a killed writer leaves behind. `append_jsonl` cuts the same line off.

    Raises:
        DatasetError: The file is missing, or a line is not JSON; names the line.
    """
    path = Path(path)
    lines = read_bytes(path).split(b"\n")
    tail = lines.pop() if tolerate_torn_tail else b""
    del tail
    return [value for _, value in values_of(lines, path)]


def values_of(lines: Sequence[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    """Each line's value with its place, "path:line"; empty lines are passed over.

    Raises:
        DatasetError: A line is not JSON.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}:{number}"
            value = parse(line, where, "one JSON value a line", lines=False)
            yield where, _unchecked(value, line, where)


def whole_lines(path: Path) -> list[Any]:
    """The values of lines that `append_jsonl` wrote and that can be made again.

    If a line is damaged the file is set aside, and the others stay in a new one.

    Raises:
        RunError: The new file cannot be written.
    """
    if not path.exists():
        return []
    good, why = [], ""
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], start=1):
        try:
            good += [value for _, value in values_of([line], path)]
        except DatasetError:
            why = why or f"line {number} is not what was written"
    if why:
        set_aside(path, why)
        with replacing(path, lasting=False) as draft:
            draft.write_bytes(b"".join(_checked(line_of(value)) for value in good))
    return good


def file_sha256(path: Path | str) -> str:
    """The sha256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        DatasetError: The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, without a byte order mark.

    Raises:
        DatasetError: The file cannot be read.
    """
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path | str, error: Exception) -> DatasetError:
    """The error for a file that cannot be opened."""
    reason = getattr(error, "strerror", None) or str(error)
    return DatasetError(f"{path}: cannot be read: {reason}; check the name")


def parse(data: bytes, where: str, expected: str, *, lines: bool = True) -> Any:
    """Parses JSON; `lines` says that the parser counts the lines, not the caller."""
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        got = repr(data[max(0, error.start - 20) : error.start + 20])
        what, reason = f"byte {error.start + 1} is not UTF-8", "not UTF-8"
    except json.JSONDecodeError as error:
        if lines:
            where = f"{where}:{error.lineno}"
        got = repr(error.doc[max(0, error.pos - 30) : error.pos + 30])
        what, reason = f"bad JSON at column {error.colno}: {error.msg}", "bad JSON"
    except (RecursionError, ValueError) as error:
        got, what, reason = got_text(data), f"bad JSON: {error}", "bad JSON"
    raise fault(where, what, got, expected, "mend or delete it", reason=reason)


class Fault(DatasetError):
    """Something in a file that cannot be understood.

    Attributes:
        reason: What is wrong without its place, for those who count: one of a few.
    """

    def __init__(self, message: str, reason: str) -> None:
        self.reason = reason
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """So that it comes back whole from another process."""
        return type(self), (str(self), self.reason)


def fault(
    where: str,
    what: str,
    got: str,
    expected: str,
    todo: str,
    *,
    reason: str | None = None,
) -> Fault:
    """The error for something in a file that cannot be understood."""
    message = f"{where}: {what}; got {got}, expected {expected}; {todo}"
    return Fault(message, reason or what)


def got_text(value: object) -> str:
    """A value for a message, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
