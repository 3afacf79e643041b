"""Walks the header of a GGUF file before anything else reads it.

The reader of the `gguf` package believes the lengths that stand there: an array of 2⁴⁰
numbers in a file of a kilobyte keeps it busy, and growing, until the memory ends. Here
every length has to fit the file and its counts have to be those of a language model.
Knows nothing of what the numbers mean.
"""

import mmap
import struct
from pathlib import Path

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_TEXT, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number, by its kind."""
_MOST = {"fields": 10_000, "tensors": 100_000, "items of an array": 10_000_000}
_DEPTH = 4
_BLOCKS = 2_000
"""Decoder blocks; each is built before a weight is looked for."""


class _Header:
    """A place in the bytes that never leads out of them."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._place = data, 0

    def skip(self, length: int) -> bytes:
        """The next bytes, cut at 64.

        Raises:
            ValueError: There are not as many.
        """
        if length > len(self._data) - self._place:
            raise ValueError(f"a length of {length:,} at byte {self._place:,} leads out "
                             "of the file")  # fmt: skip
        found = self._data[self._place : self._place + min(length, 64)]
        self._place += length
        return found

    def number(self, letter: str) -> int:
        """The next number, little-endian."""
        found: int = struct.unpack(f"<{letter}", self.skip(struct.calcsize(letter)))[0]
        return found

    def count(self, what: str) -> int:
        """The next number, if as many are believed."""
        found = self.number("Q")
        if found > _MOST[what]:
            raise ValueError(f"{found:,} {what}, expected at most {_MOST[what]:,}")
        return found

    def value(self, kind: int, depth: int = 0) -> bytes:
        """Passes a value over; its first bytes."""
        if kind == _TEXT:
            return self.skip(self.number("Q"))
        if kind in _SIZES:
            return self.skip(_SIZES[kind])
        if kind != _ARRAY or depth == _DEPTH:
            raise ValueError(f"a value of the unknown kind {kind}")
        inner, count = self.number("I"), self.count("items of an array")
        if inner in _SIZES:
            return self.skip(count * _SIZES[inner])
        for _ in range(count):
            self.value(inner, depth + 1)
        return b""


def check_gguf(path: Path) -> None:
    """Refuses a header whose lengths or counts cannot be true.

    Files of the other byte order are refused too: none of the models that run here are
    kept so.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no GGUF file, or its header leads out of it.

    Cost: a pass over the header: about a second for a vocabulary of 250,000 tokens.
    """
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError("no GGUF file: its magic number is another")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _walk(_Header(data))


def _walk(header: _Header) -> None:
    header.skip(4)
    if (version := header.number("I")) not in _VERSIONS:
        raise ValueError(f"GGUF of version {version}, expected one of {_VERSIONS}")
    tensors, fields = header.count("tensors"), header.count("fields")
    for _ in range(fields):
        name = header.skip(header.number("Q"))
        kind = header.number("I")
        value = header.value(kind)
        if name.endswith(b".block_count") and kind in _SIZES:
            blocks = int.from_bytes(value, "little")
            if blocks > _BLOCKS:
                raise ValueError(f"{blocks:,} blocks, expected at most {_BLOCKS:,}")
    for _ in range(tensors):
        header.skip(header.number("Q"))
        dimensions = header.number("I")
        header.skip(8 * dimensions + 4 + 8)
