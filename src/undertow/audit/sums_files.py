"""Sums on disk: one file a shard, several put together as they become many.

What each file covers stands in it, so a shard counts once however often it was measured,
and a file that is damaged is set aside and costs its own shards alone: they are measured
again. No pickles. Knows nothing of what the sums mean.
"""

import hashlib
import io
import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from undertow.audit.sums import Compared, Side, Sums, Top
from undertow.errors import RunError, shown
from undertow.storage import replacing
from undertow.storage.files import read_bytes, set_aside

_TOGETHER = 32
"""Files of one size that become one."""
_VERSION = 2
_DAMAGE = (
    ValueError, LookupError, EOFError, NotImplementedError, TypeError, RuntimeError,
    OverflowError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading the bytes of a damaged archive may raise."""
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""How the header of an array is read, by its version."""
_LONGEST_HEADER = 500
"""Characters: more than ours have, and too few to nest deeper than Python can read."""

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


class SumsFolder:
    """The sums of shards, by key.

    Args:
        folder: Made if it is missing.
        nothing: Sums of no rows: every file has to have these shapes.
    """

    def __init__(self, folder: Path, nothing: Sums) -> None:
        self.folder, self._nothing = folder, nothing
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[Path, tuple[str, ...]] = {}
        self.damaged: list[str] = []
        self._look()

    def _look(self) -> None:
        """Learns what is there; puts away what is damaged, or covered by others."""
        for path in sorted(self.folder.glob("*.npz")):
            try:
                keys, _ = read_sums(path, self._nothing)
            except RunError as error:
                self.damaged.append(path.name)
                cause = error.__cause__
                set_aside(path, f"{type(cause).__name__}: {cause}")
                continue
            self._files[path] = keys
        # Put together first: then its parts are left over from an interruption.
        covered: set[str] = set()
        for path, keys in sorted(
            self._files.items(), key=lambda item: (-len(item[1]), item[0])
        ):
            if covered.isdisjoint(keys):
                covered.update(keys)
            else:
                path.unlink()
                del self._files[path]
        self.keys = covered

    def add(self, key: str, sums: Sums) -> None:
        """Keeps the sums of a shard; one that is there already counts no more.

        Raises:
            RunError: The disk is full, or the place cannot be written.
        """
        if key in self.keys:
            return
        self._write((key,), sums)
        self.keys.add(key)
        size = 1
        while len(alike := [p for p, k in self._files.items() if len(k) == size]) >= (
            _TOGETHER
        ):
            self._put_together(alike)
            size *= _TOGETHER

    def _put_together(self, paths: Sequence[Path]) -> None:
        keys = tuple(sorted(key for path in paths for key in self._files[path]))
        total = self._nothing
        for path in paths:
            total = total + read_sums(path, self._nothing)[1]
        self._write(keys, total)
        for path in paths:
            path.unlink()
            del self._files[path]

    def _write(self, keys: tuple[str, ...], sums: Sums) -> None:
        name = hashlib.sha256("".join(keys).encode("ascii")).hexdigest()[:32]
        path = self.folder / f"{len(keys):07d}-{name}.npz"
        write_sums(path, keys, sums)
        self._files[path] = keys

    def total(self, keys: Sequence[str]) -> Sums:
        """The sums of all shards, which have to be just these.

        Raises:
            RunError: One is missing, or another is there.
            DatasetError: A file cannot be read now.
        """
        if set(keys) != self.keys:
            missing, other = len(set(keys) - self.keys), len(self.keys - set(keys))
            raise RunError(
                f"{self.folder}: holds sums of {other} shards that the data do not have, "
                f"and lacks {missing} that they have; the data were changed or cut "
                "otherwise: choose a new directory"
            )
        total = self._nothing
        for _, sums in self._read():
            total = total + sums
        return total

    def _read(self) -> Iterator[tuple[Path, Sums]]:
        for path in sorted(self._files):
            yield path, read_sums(path, self._nothing)[1]


def write_sums(path: Path, keys: Sequence[str], sums: Sums) -> None:
    """Writes sums and what they cover, whole or not at all.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    arrays = _arrays(sums)
    facts = {"version": _VERSION, "keys": list(keys), "skipped": dict(sums.skipped),
             "most": sums.top.most, "check": _check(arrays)}  # fmt: skip
    text = json.dumps(facts).encode("ascii")
    arrays["facts"] = np.frombuffer(text, dtype=np.uint8)
    with replacing(path, lasting=False) as draft:
        np.savez(draft, allow_pickle=False, **arrays)


def read_sums(path: Path, nothing: Sums) -> tuple[tuple[str, ...], Sums]:
    """What a file covers, and its sums.

    Args:
        path: A file that `write_sums` wrote.
        nothing: Sums of no rows, with the shapes that are expected.

    Raises:
        RunError: The file is damaged, or of another census.
        DatasetError: It cannot be read now.
    """
    arrays = sound_arrays(path)
    try:
        facts = json.loads(bytes(arrays.pop("facts")))
        if facts["version"] != _VERSION or facts["check"] != _check(arrays):
            raise ValueError("its contents do not fit its checksum")
        sums = _sums(arrays, facts)
        if sums.compared.flipped.shape != nothing.compared.flipped.shape:
            raise ValueError("its sums have another shape")
        return tuple(facts["keys"]), sums
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def sound_arrays(path: Path) -> Arrays:
    """All arrays of an .npz file whose checksums fit, without pickles.

    Raises:
        RunError: It is damaged.
        DatasetError: It cannot be read now, which says nothing of what is in it.
    """
    data = read_bytes(path)
    try:
        # The sums of all parts first: parsing what is damaged may raise anything.
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            _check_sizes(parts, len(data))
            if (name := parts.testzip()) is not None:
                raise ValueError(f"the checksum of {name!r} does not fit")
            for info in parts.infolist():
                _check_array(parts, info)
        with np.load(io.BytesIO(data), allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _check_sizes(parts: zipfile.ZipFile, size: int) -> None:
    """Refuses what would unfold: `np.savez` packs nothing, so parts are in the file.

    Raises:
        ValueError: A part is packed, or all together are larger than the file.
    """
    packed = [p.filename for p in parts.infolist() if p.compress_type]
    if packed:
        raise ValueError(f"{shown(packed)} packed; expected arrays as they are")
    if (total := sum(p.file_size for p in parts.infolist())) > size:
        raise ValueError(f"parts of {total:,} bytes in a file of {size:,}")


def _check_array(parts: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """Refuses an array that says that it is larger than it is, before it has a place.

    Raises:
        ValueError: It is, or the part holds no array.
    """
    with parts.open(part) as file:
        read = _HEADERS.get(np.lib.format.read_magic(file))
        if read is None:
            raise ValueError(f"{part.filename!r} has another kind of header")
        shape, _, dtype = read(file, max_header_size=_LONGEST_HEADER)
        said, there = math.prod(shape) * dtype.itemsize, part.file_size - file.tell()
    if said != there or not dtype.itemsize:
        raise ValueError(
            f"{part.filename!r}: {dtype} of shape {shape} in {there:,} bytes"
        )


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{path}: cannot be understood: {type(error).__name__}: {error}; move the file "
        "away and give the same command again: what it held is made once more"
    )


def _arrays(sums: Sums) -> Arrays:
    found: Arrays = {"digest": np.array(sums.digest, dtype=np.uint64)}
    for part in ("own", "partner", "compared", "top"):
        value = getattr(sums, part)
        for f in fields(value):
            if f.name != "most":
                found[f"{part}_{f.name}"] = np.asarray(getattr(value, f.name))
    return found


def _sums(arrays: Arrays, facts: dict[str, Any]) -> Sums:
    def part(kind: Any, name: str, **known: int) -> Any:
        values = {
            f.name: arrays[f"{name}_{f.name}"]
            for f in fields(kind)
            if f.name not in known
        }
        plain = {k: v if v.ndim else int(v) for k, v in values.items()}
        return kind(**plain, **known)

    return Sums(
        own=part(Side, "own"), partner=part(Side, "partner"),
        compared=part(Compared, "compared"),
        top=part(Top, "top", most=int(facts["most"])), digest=int(arrays["digest"]),
        skipped={str(k): int(v) for k, v in facts["skipped"].items()},
    )  # fmt: skip


def _check(arrays: Arrays) -> str:
    said = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        said.update(f"{name} {array.dtype.str} {array.shape}".encode("ascii"))
        said.update(array.tobytes())
    return said.hexdigest()
