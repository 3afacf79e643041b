"""Different rows out of a stream: all of them, or a stratified part in bounded memory.

Rows are told apart by their content and drawn by it and their number, so neither the
order of rows nor their division into files changes which are kept. Knows nothing of files.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from undertow.records import Row
from undertow.seeding import stream_seed

_POOL = 4
"""Rows held, as a multiple of those wanted."""
_RESERVE = 16
"""Rows held of every stratum, however small its share."""
_TOP = 1 << 64


class Stratum(NamedTuple):
    """Lengths of prompt and completion, floor(log2(characters)) + 1 each; 0 if empty."""

    prompt: int
    completion: int


@dataclass(slots=True)
class _Held:
    key: int
    place: int
    stratum: Stratum
    row: Row


class Sample:
    """Rows that are added one by one, each kept once and counted.

    With a limit, each copy of a row has a key, a hash of (seed, row id, number of the
    copy), and the row has the smallest of them; its stratum is the lengths of its prompt
    and its completion, in powers of two. A stratum's share of the limit is its share of
    all rows (largest remainders), and it gives its rows with the smallest keys: those
    that one would meet first, drawing rows at random until there are so many different
    ones. Each different row alike would be another draw: the less likely rows, which
    whatever is drawn to compare with them does not share.

    The sizes of strata are known only at the end, so the 4·limit rows with the smallest
    keys are held, and the 16 smallest of each stratum: by chance a stratum falls short of
    its share about once in 10¹³, and then the smallest keys left fill up.

    Memory: about 100 bytes for each different row (its id and its count), and the rows
    themselves: all without a limit, else at most 5·limit + 16 a stratum (+ 256).
    """

    def __init__(self, limit: int | None = None, seed: int = 0) -> None:
        self._limit = limit
        self._secret = stream_seed(seed, "subsample").to_bytes(8, "little")
        self._counts: dict[int, int] = {}
        self._sizes: Counter[Stratum] = Counter()
        self._held: dict[int, _Held] = {}
        # A row whose key lies beyond both cuts can never be chosen.
        self._cut = _TOP
        self._cuts: dict[Stratum, int] = {}
        self._room = 0 if limit is None else 5 * limit + 256

    @property
    def unique(self) -> int:
        """How many different rows were added."""
        return len(self._counts)

    @property
    def strata(self) -> int:
        """How many strata they fall into."""
        return len(self._sizes)

    @property
    def held(self) -> int:
        """How many rows are held at this moment."""
        return len(self._held)

    def add(self, row: Row) -> None:
        """Counts a row, and holds it if it may be among those chosen.

        Of rows with one id, the one with recorded tokens is kept, whatever came first (of
        those that stood there while it was held).
        """
        name = int(row.row_id, 16)
        copy = self._counts.get(name, 0)
        self._counts[name] = copy + 1
        stratum, key = stratum_of(row), self._key(name, copy)
        self._sizes[stratum] += 1
        held = self._held.get(name)
        if held is not None:
            held.key = min(held.key, key)
            if detail(row) < detail(held.row):
                held.row = row
        elif key <= self._cut or key <= self._cuts.get(stratum, _TOP):
            self._held[name] = _Held(key, len(self._counts), stratum, row)
            if self._limit is not None and len(self._held) > self._room:
                self._let_go(self._limit)

    def _key(self, name: int, copy: int) -> int:
        number = copy.to_bytes(8, "big") if copy else b""
        digest = hashlib.blake2b(
            name.to_bytes(8, "big") + number, digest_size=8, key=self._secret
        ).digest()
        return int.from_bytes(digest, "big")

    def _ranked(self) -> list[tuple[int, _Held]]:
        """Names and rows held, by key."""
        return sorted(self._held.items(), key=lambda item: (item[1].key, item[0]))

    def _let_go(self, limit: int) -> None:
        """Forgets rows that are neither among the smallest keys of all, nor of theirs."""
        kept: dict[int, _Held] = {}
        seen: Counter[Stratum] = Counter()
        for place, (name, held) in enumerate(self._ranked()):
            seen[held.stratum] += 1
            if place < _POOL * limit or seen[held.stratum] <= _RESERVE:
                kept[name] = held
            if place == _POOL * limit - 1:
                self._cut = held.key
            if seen[held.stratum] == _RESERVE:
                self._cuts[held.stratum] = held.key
        self._held = kept
        self._room = len(kept) + limit + 256

    def chosen(self) -> dict[str, Row]:
        """The rows by their ids: all in order of arrival, or a part in order of key."""
        limit = self._limit
        if limit is None or self.unique <= limit:
            arrived = sorted(self._held.items(), key=lambda item: item[1].place)
            return {f"{name:016x}": held.row for name, held in arrived}
        self._let_go(limit)  # what is held beyond that depends on the order
        wanted = _shares(self._sizes, limit)
        ranked = self._ranked()
        taken = set()
        for name, held in ranked:
            if wanted[held.stratum] > 0:
                wanted[held.stratum] -= 1
                taken.add(name)
        rest = [name for name, _ in ranked if name not in taken]
        taken |= set(rest[: limit - len(taken)])
        return {f"{name:016x}": held.row for name, held in ranked if name in taken}

    def count_of(self, row_id: str) -> int:
        """How often a row was added."""
        return self._counts[int(row_id, 16)]

    def digest(self) -> str:
        """16 digits of the sha256 over all sorted row ids, each with a line end."""
        told = hashlib.sha256()
        for name in sorted(self._counts):
            told.update(f"{name:016x}\n".encode("ascii"))
        return told.hexdigest()[:16]


def stratum_of(row: Row) -> Stratum:
    """The stratum of a row: its lengths in powers of two."""
    asked = sum(len(message.content) for message in row.messages)
    return Stratum(asked.bit_length(), len(row.completion).bit_length())


def detail(row: Row) -> tuple[bool, tuple[int, ...], str]:
    """The smaller, the more is known of a row; the same in any order."""
    return row.completion_ids is None, row.completion_ids or (), row.finish or "~"


def _shares(sizes: Mapping[Stratum, int], limit: int) -> Counter[Stratum]:
    """Each stratum's part of the limit, by largest remainders."""
    total = sum(sizes.values())
    shares = Counter({name: limit * size // total for name, size in sizes.items()})
    by_remainder = sorted(
        sizes, key=lambda name: (-(limit * sizes[name] % total), name)
    )
    for name in by_remainder[: limit - shares.total()]:
        shares[name] += 1
    return shares
