"""Where records come from: files, folders of shards, URLs, standard input and the hub.

JSON lines, CSV, Parquet and Arrow are read as they come: what is held is one line, or a
thousand rows of Parquet or Arrow (one batch of a file that somebody wrote in larger
ones). A JSON file is read whole. Text is hostile: nothing is unpickled, no code of a
dataset is run, and file names that a folder's own description gives must be plain.
Knows nothing of columns (see `storage.columns`).
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from undertow.errors import DatasetError, UndertowError, shown
from undertow.storage.columns import is_conversation
from undertow.storage.files import (
    Fault,
    fault,
    got_text,
    parse,
    read_json,
    unreadable,
)
from undertow.storage.hub import hub_files
from undertow.storage.remote import RemoteFile, is_url, remote_files, without_secrets

File = Path | RemoteFile
"""A file here, or at a URL."""
STDIN = Path("-")
"""Stands for standard input, as JSON lines."""

_PACKED = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_KINDS = (*_PACKED, ".parquet", ".arrow")
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "state.json")
_LISTS = ("rows", "data", "train")
_BOM = b"\xef\xbb\xbf"
_LINE = 1 << 28
"""Bytes of the longest line; without a bound a file of one line is read whole."""
_WHOLE = 1 << 30
"""Bytes of the largest file that is read whole, unpacked; it takes several times that."""
_FIELD = 1 << 26
"""Characters of the longest field of CSV."""
_PART = 1 << 22
_BATCH = 1_000
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Record:
    """One value of a file, before anybody looks for a row in it.

    Attributes:
        where: "path:line", or "path: row n" where lines mean nothing.
        value: What stands there, as JSON has it; None if it cannot be read.
        line: The bytes of a line of JSON lines, as they stand.
        fault: Why it cannot be read.
    """

    where: str
    value: Any
    line: bytes | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """The files behind a name that a user gave, in the order in which they are read."""

    name: str
    files: tuple[File, ...]


def file_size(file: File) -> int:
    """Bytes of a file."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def find_source(source: Path | str, split: str | None = None) -> Source:
    """The files behind a name; see `open_rows` for the kinds of names.

    Raises:
        DatasetError: There is nothing of that name, nothing that can be read in it,
            or no such split.
    """
    name = str(source)
    path = Path(name)
    if name.startswith("hub:"):
        return _hub(name.removeprefix("hub:"), split)
    if is_url(name):
        return _remote(name, split)
    try:
        if path.is_dir():
            return _folder(path, split)
        there = path == STDIN or path.exists()
    except OSError as error:
        raise unreadable(name, error) from error
    if not there and _kind(path) is None and _HUB.fullmatch(name):
        return _hub(name, split)
    if there and _kind(path) is None and path.is_file():
        raise DatasetError(
            f"{name}: unknown kind of file; got {path.name!r}, expected one that ends "
            f"in {shown(_KINDS)}, all but the last two also in .gz; rename or convert it"
        )
    if split is not None:
        raise DatasetError(
            f"{name}: is one file and has no splits; got split {split!r}, expected "
            "none; leave it out"
        )
    return Source("stdin" if path == STDIN else name, (path,))


def _hub(name: str, split: str | None) -> Source:
    def choose(names: list[str]) -> list[str]:
        return _of_split(f"hub:{name}", names, split, default="train")

    kinds = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv", ".json")
    return Source(f"hub:{name}", hub_files(name, kinds, choose))


def _remote(url: str, split: str | None) -> Source:
    files = {str(file): file for file in remote_files(url, _KINDS)}
    name = without_secrets(url)
    return Source(name, tuple(files[n] for n in _of_split(name, list(files), split)))


def _kind(path: File) -> str | None:
    """The kind of a file by its name, without .gz; None if it is unknown."""
    name = path.name.lower()
    kind = Path(name.removesuffix(".gz")).suffix
    known = _PACKED if name.endswith(".gz") else _KINDS
    return kind if kind in known else None


def _folder(path: Path, split: str | None) -> Source:
    """A folder of shards, one written by `datasets`, or one of those for each split."""
    if (path / "dataset_dict.json").is_file():
        chosen = _chosen(path, read_json(path / "dataset_dict.json"), split)
        inner = _folder(path / chosen, None)
        return Source(f"{path} (split {chosen})", inner.files)
    if (path / "state.json").is_file() and split is None:
        return Source(str(path), _saved(path))
    shards = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if _kind(file) and file.name not in _DESCRIPTIONS and file.is_file()
    )
    names = [name for name in shards if not re.search(r"(^|/)[._]", name)]
    if not names:
        inside = sorted(item.name for item in path.iterdir())
        raise DatasetError(
            f"{path}: holds no files of rows; got {shown(inside)}, "
            f"expected some that end in {shown(_KINDS)}; check that it is the right one"
        )
    chosen_names = _of_split(str(path), names, split)
    return Source(str(path), tuple(path / name for name in chosen_names))


def _chosen(path: Path, description: object, split: str | None) -> str:
    """The split of a folder that holds several: the named one, the only one, train."""
    found = description.get("splits") if isinstance(description, dict) else None
    if not isinstance(found, list) or not found or not all(map(_is_plain, found)):
        raise fault(
            str(path / "dataset_dict.json"), "splits cannot be understood",
            got_text(description), "a list of names of folders", "save it again",
        )  # fmt: skip
    chosen = split or (found[0] if len(found) == 1 else "train")
    if chosen not in found:
        raise DatasetError(
            f"{path}: which split? got {split!r}, expected one of {shown(found)}; "
            "name one"
        )
    return str(chosen)


def _saved(path: Path) -> tuple[Path, ...]:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote, in its order."""
    state = read_json(path / "state.json")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    names = [
        item.get("filename") if isinstance(item, dict) else None
        for item in (listed if isinstance(listed, list) else [])
    ]
    if not names or not all(map(_is_plain, names)):
        raise fault(
            str(path / "state.json"), "data files cannot be understood",
            got_text(listed), "a list of names of files in that folder", "save it again",
        )  # fmt: skip
    return tuple(path / str(name) for name in names)


def _is_plain(name: object) -> bool:
    """Whether a name that a file gives stays in its folder."""
    if not isinstance(name, str) or name in ("", "..") or "\0" in name:
        return False
    return Path(name).name == name


def _of_split(
    where: str, names: list[str], split: str | None, default: str | None = None
) -> list[str]:
    """The names that belong to a split, which stands in them as a word."""
    wanted = split or default
    if wanted is None:
        return names
    word = re.compile(rf"(^|[/._-]){re.escape(wanted)}([/._-]|$)", re.IGNORECASE)
    chosen = [name for name in names if word.search(name)]
    if not chosen and split is not None:
        raise DatasetError(
            f"{where}: no such split; got {split!r}, expected a word in the name of a "
            f"file, which are {shown(names)}; name another"
        )
    return chosen or names


# ---- the records of a file


def read_records(path: File) -> Iterator[Record]:
    """The values of one file, in order, with their places.

    A line that cannot be read comes with its fault; the others go on. A file at a URL is
    fetched by parts, as it is read.

    Raises:
        DatasetError: The file is missing, damaged or of another kind, or it cannot be
            read on: quotes of CSV that do not close, a line longer than 256 MiB, a JSON
            file of more than 1 GiB, a URL that answers no more.
    """
    try:
        yield from _records(path)
    except UndertowError:
        raise
    except Exception as error:  # each store has errors of its own
        if isinstance(path, Path):
            raise
        raise path.unreachable(error) from error


def _records(path: File) -> Iterator[Record]:
    kind = _kind(path)
    if kind == ".parquet":
        yield from _parquet_records(path)
    elif kind == ".arrow":
        yield from _arrow_records(path)
    else:
        name = "stdin" if path == STDIN else str(path)
        with _opened(path) as file:
            if kind == ".json":
                yield from _json_records(_whole(file, name), name)
            elif kind in (".csv", ".tsv"):
                yield from _csv_records(file, name, "," if kind == ".csv" else "\t")
            else:
                yield from _line_records(file, name)


@contextmanager
def _opened(path: File) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked if its name says so."""
    if path == STDIN:
        yield cast("io.BufferedIOBase", sys.stdin.buffer)
        return
    try:
        file: Any = path.open("rb")
    except (OSError, ValueError) as error:
        raise unreadable(str(path), error) from error
    with file:
        try:
            packed = path.name.lower().endswith(".gz")
            yield cast("Any", gzip.GzipFile(fileobj=file) if packed else file)
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(str(path), error) from error


def _whole(file: io.BufferedIOBase, name: str) -> bytes:
    """All bytes of a file; a packed one may hold a thousand times what it weighs."""
    data = bytearray()
    while part := file.read(_PART):
        data += part
        if len(data) > _WHOLE:
            raise fault(
                name, "the file is too large to be read whole", f"over {_WHOLE:,} bytes",
                "less, or JSON lines", "write one row a line, in .jsonl",
            )  # fmt: skip
    return bytes(data)


def _lines(file: io.BufferedIOBase, name: str) -> Iterator[bytes]:
    """Lines with their ends, the first without a byte order mark."""
    number = 0
    while line := file.readline(_LINE + 1):
        number += 1
        if len(line) > _LINE:
            raise fault(
                f"{name}:{number}", "the line is too long", f"over {_LINE:,} bytes",
                "one row a line", "check that it is the right file",
            )  # fmt: skip
        yield line.removeprefix(_BOM) if number == 1 else line


def _line_records(file: io.BufferedIOBase, name: str) -> Iterator[Record]:
    for number, line in enumerate(_lines(file, name), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            value = parse(
                line.removesuffix(b"\n"), where, "one JSON value a line", lines=False
            )
        except Fault as error:
            yield Record(where, None, line, error)
        else:
            yield Record(where, value, line)


def _json_records(data: bytes, name: str) -> Iterator[Record]:
    data = data.removeprefix(_BOM)
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        # Many a .json holds JSON lines.
        if error.msg == "Extra data" and error.lineno > 1:
            yield from _line_records(io.BytesIO(data), name)
            return
        value = parse(data, name, "a JSON list of rows")
    except (ValueError, RecursionError):
        value = parse(data, name, "a JSON list of rows")
    if isinstance(value, dict):
        value = next(
            (value[n] for n in _LISTS if isinstance(value.get(n), list)), value
        )
    if isinstance(value, dict) or is_conversation(value):
        value = [value]
    if not isinstance(value, list):
        raise fault(
            name, "not rows", got_text(value), "a JSON list of rows", "convert it"
        )
    for number, item in enumerate(value, start=1):
        yield Record(f"{name}: row {number}", item)


def _csv_records(
    file: io.BufferedIOBase, name: str, delimiter: str
) -> Iterator[Record]:
    """Rows of CSV as RFC 4180 has them, the first one the header."""
    # The limit belongs to the whole process; nobody here wants it lower.
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD))
    # Bytes that are not UTF-8 become lone surrogates, which nothing else does.
    lines = (line.decode("utf-8", "surrogateescape") for line in _lines(file, name))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    first = 1
    try:
        for fields in reader:
            where, first = f"{name}:{first}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = _header(fields, where)
            else:
                yield _csv_record(header, fields, where)
    except csv.Error as error:
        raise fault(
            f"{name}:{first}", f"bad CSV: {error}", f"line {reader.line_num}",
            'fields with commas, quotes or line ends in "quotes", a quote as ""',
            "mend or convert it", reason="bad CSV",
        ) from error  # fmt: skip


def _header(fields: list[str], where: str) -> list[str]:
    twice = sorted(name for name, n in Counter(fields).items() if n > 1)
    if twice or _not_utf8("".join(fields)):
        what = "columns stand twice" if twice else "the header is not UTF-8"
        raise fault(
            where, what, shown(twice or fields), "a header with a name for each column",
            "rename the columns",
        )  # fmt: skip
    return fields


def _csv_record(header: list[str], fields: list[str], where: str) -> Record:
    if len(fields) != len(header):
        what = "another number of fields than columns"
        wrong = fault(
            where, what, str(len(fields)), str(len(header)), "mend or delete the row"
        )
        return Record(where, fields, fault=wrong)
    if any(map(_not_utf8, fields)):
        wrong = fault(
            where, "text that is not UTF-8", got_text(fields), "UTF-8",
            "convert the file", reason="not UTF-8",
        )  # fmt: skip
        return Record(where, fields, fault=wrong)
    return Record(where, dict(zip(header, fields, strict=True)))


def _not_utf8(text: str) -> bool:
    return not text.isascii() and re.search("[\udc80-\udcff]", text) is not None


def _parquet_records(path: File) -> Iterator[Record]:
    from pyarrow import parquet

    with (
        _arrow_faults(path),
        path.open("rb") as source,
        # Both are needed, or a column of a whole row group is read at once.
        parquet.ParquetFile(source, buffer_size=1 << 18, pre_buffer=False) as file,
    ):
        yield from _numbered(file.iter_batches(_BATCH), path)


def _arrow_records(path: File) -> Iterator[Record]:
    with _arrow_faults(path), _mapped(path) as source:
        yield from _numbered(_arrow_batches(source), path)


def _mapped(path: File) -> Any:
    import pyarrow as pa

    if isinstance(path, Path):
        return pa.memory_map(str(path))
    return pa.PythonFile(path.open(), mode="r")


def _arrow_batches(source: Any) -> Iterator[Any]:
    """The batches of an Arrow stream or file, checked: offsets may be hostile."""
    import pyarrow as pa

    magic = source.read(6)
    source.seek(0)
    if magic == b"ARROW1":
        file = pa.ipc.open_file(source)
        batches = map(file.get_batch, range(file.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(source))
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _BATCH):
            yield batch.slice(start, _BATCH)


def _numbered(batches: Iterator[Any], path: File) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield Record(f"{path}: row {number}", value)


@contextmanager
def _arrow_faults(path: File) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: text that is not UTF-8: {error}") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(str(path), error) from error
