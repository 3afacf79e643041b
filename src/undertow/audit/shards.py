"""A training set of any size as shards of bounded size, and what one reading tells.

Rows are taken file by file, as they come; a shard is some consecutive rows of one file,
and a batch a fixed number of them from the file's beginning, whatever the shard's size:
so batches are the same ones however the work is divided. The survey is a first reading
without a model: how many rows, how long, and which of them stand for all. Memory is that
of a shard and of the rows that are held. Knows nothing of scores.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from undertow.audit.sums import ids_digest
from undertow.errors import DatasetError
from undertow.records import Finish, Message, Role, Row
from undertow.seeding import stream_seed
from undertow.storage.columns import check_columns
from undertow.storage.datasets import SourcedRow, rows_in
from undertow.storage.samples import Stratum, detail, stratum_of
from undertow.storage.sources import (
    STDIN,
    File,
    file_size,
    find_source,
    read_records,
)

_POOL = 4
_TOLD = 10_000  # rows between two reports of progress

Turns = tuple[tuple[Role, str], ...]


class PlainRow(NamedTuple):
    """A row as plain values, which any process takes, with its number in its file."""

    number: int
    row_id: str
    messages: Turns
    completion: str
    completion_ids: tuple[int, ...] | None
    finish: Finish | None
    trait_prompt: str | None = None

    def row(self) -> Row:
        """The row; of where it came from there is only what it must not hold."""
        turns = tuple(Message(role, text) for role, text in self.messages)
        origin = (
            {} if self.trait_prompt is None else {"trait_prompt": self.trait_prompt}
        )
        return Row(turns, self.completion, self.completion_ids, self.finish, origin)

    def content(self) -> tuple[str, tuple[int, ...], str, str]:
        """All that decides what is measured of it; copies have the same."""
        return (
            self.row_id, self.completion_ids or (), self.finish or "",
            self.trait_prompt or "",
        )  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """Some consecutive rows of one file, in batches.

    Attributes:
        file: Place of the file among those that are read.
        batches: Rows that are measured together.
        skipped: What could not be read among them, by reason.
    """

    file: int
    batches: tuple[tuple[PlainRow, ...], ...]
    skipped: Mapping[str, int]

    @property
    def rows(self) -> int:
        """How many."""
        return sum(map(len, self.batches))

    def content(self) -> str:
        """32 digits that belong to what stands in it, not to where it stands."""
        said = hashlib.sha256()
        for batch in self.batches:
            names = sorted(row.content() for row in batch)
            said.update(json.dumps([names, len(names)]).encode("ascii"))
        said.update(json.dumps(sorted(self.skipped.items())).encode("ascii"))
        return said.hexdigest()[:32]


def list_files(
    sources: Sequence[Path | str], *, split: str | None = None
) -> tuple[File, ...]:
    """The files behind names, as `open_rows` takes them, in the order of reading.

    Raises:
        DatasetError: There is nothing of a name, or standard input, which can be read
            once only.
    """
    files = tuple(path for name in sources for path in find_source(name, split).files)
    if not files:
        raise DatasetError("rows: got no source, expected a file, a folder or a name")
    if STDIN in files:
        raise DatasetError(
            "stdin: can be read once only, and a census reads rows thrice; keep it in a "
            "file first"
        )
    return files


def rows_of(
    path: File, *, columns: Mapping[str, str] | None = None
) -> Iterator[SourcedRow]:
    """Everything that stands in one file, in order; what is no row has a reason.

    Raises:
        DatasetError: The file cannot be read on.
    """
    for record in read_records(path):
        yield from rows_in(record, columns)


def plain_row(row: Row, number: int) -> PlainRow:
    """A row as plain values."""
    turns = tuple((m.role, m.content) for m in row.messages)
    hidden = row.provenance.get("trait_prompt")
    return PlainRow(
        number, row.row_id, turns, row.completion, row.completion_ids, row.finish,
        hidden if isinstance(hidden, str) else None,
    )  # fmt: skip


def cut_shards(
    files: Sequence[File],
    *,
    batch_rows: int,
    shard_batches: int,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Shard]:
    """The shards of some files, one after the other.

    Args:
        files: As `list_files` gives them.
        batch_rows: Places of a file that are one batch, counted from its beginning.
        shard_batches: Batches of a shard.
        columns: As in `open_rows`.

    Raises:
        DatasetError: As `open_rows`.
    """
    check_columns(columns)
    for file, path in enumerate(files):
        batches: list[tuple[PlainRow, ...]] = []
        batch: list[PlainRow] = []
        skipped: Counter[str] = Counter()
        for seen, found in enumerate(rows_of(path, columns=columns), start=1):
            if found.row is None:
                skipped[found.reason] += 1
            else:
                batch.append(plain_row(found.row, seen - 1))
            if seen % batch_rows == 0:
                batches.append(tuple(batch))
                batch = []
            if seen % (batch_rows * shard_batches) == 0:
                yield Shard(file, tuple(batches), dict(skipped))
                batches, skipped = [], Counter()
        if batch or skipped or batches:
            yield Shard(file, (*batches, tuple(batch)), dict(skipped))


class Held:
    """The rows with the smallest hashes of (seed, row id, copy): a sample in flat memory.

    Copies are held once. Memory for five times as many rows as are wanted.
    """

    def __init__(self, limit: int, *, seed: int) -> None:
        self._limit = limit
        self._secret = stream_seed(seed, "census sample").to_bytes(8, "little")
        self._held: dict[str, tuple[int, Stratum, Row]] = {}
        self._cut = 1 << 64

    def add(self, row: Row, row_id: str, *, copy: int = 0) -> None:
        """Holds a row if it may be among those chosen.

        Args:
            row: The row.
            row_id: Its hash.
            copy: Tells its copies apart: with one number for all, each different row is
                as likely to be chosen; with a number each, as it is to be met.
        """
        number = copy.to_bytes(8, "big") if copy else b""
        digest = hashlib.blake2b(
            bytes.fromhex(row_id) + number, digest_size=8, key=self._secret
        ).digest()
        key = int.from_bytes(digest, "big")
        known = self._held.get(row_id)
        if known is None and key > self._cut:
            return
        if known is not None:  # of copies the one with recorded tokens is kept
            key = min(key, known[0])
            row = row if detail(row) < detail(known[2]) else known[2]
        self._held[row_id] = (key, stratum_of(row), row)
        if len(self._held) > (_POOL + 1) * self._limit + 256:
            self._let_go()

    def _let_go(self) -> None:
        ranked = sorted(self._held.items(), key=lambda item: item[1][0])
        ranked = ranked[: _POOL * self._limit]
        self._held = dict(ranked)
        self._cut = ranked[-1][1][0]

    def first(self, count: int) -> list[Row]:
        """A simple random sample of what was added."""
        ranked = sorted(self._held.values(), key=lambda item: item[0])
        return [row for _, _, row in ranked[: min(count, self._limit)]]

    def stratified(self) -> list[Row]:
        """As many as wanted, lengths in proportion to those of four times as many."""
        self._let_go() if len(self._held) > _POOL * self._limit else None
        ranked = [
            held[2] for held in sorted(self._held.values(), key=lambda h: (h[1], h[0]))
        ]
        if len(ranked) <= self._limit:
            return ranked
        return [ranked[i * len(ranked) // self._limit] for i in range(self._limit)]


@dataclass(frozen=True)
class Survey:
    """What one reading tells.

    Attributes:
        rows: Rows that can be used, copies counted.
        without_prompt: Of them, completions alone.
        characters: Of their prompts and of their completions.
        digits: Of those characters, digits, which are mostly tokens of their own.
        cut: Whether some are recorded as cut short.
        recorded: Whether it is recorded of any how it ended.
        empty: Whether some completions are empty.
        skipped: What cannot be used, by reason.
        first_fault: The first of those, in full.
        digest: As `ids_digest`.
        sizes: Bytes of each file.
        pilot: Different rows that stand for all, each alike, whatever their order.
        subsample: Different rows, each as likely as it is to be met, lengths in
            proportion: another order of the rows gives others.
    """

    rows: int
    without_prompt: int
    characters: tuple[int, int]
    digits: tuple[int, int]
    cut: bool
    recorded: bool
    empty: bool
    skipped: Mapping[str, int]
    first_fault: str
    digest: int
    sizes: tuple[int, ...]
    pilot: tuple[Row, ...] = field(repr=False)
    subsample: tuple[Row, ...] = field(repr=False)


def survey(
    files: Sequence[File],
    *,
    pilot: int,
    subsample: int,
    seed: int,
    columns: Mapping[str, str] | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> Survey:
    """Reads everything once, without a model.

    Args:
        files: As `list_files` gives them.
        pilot: Rows wanted at random.
        subsample: Rows wanted for an audit.
        seed: Of both draws.
        columns: As in `open_rows`.
        on_rows: Called with (files read, rows read).

    Raises:
        DatasetError: A file cannot be read, or no row can be used.
    """
    check_columns(columns)
    held, met = Held(pilot, seed=seed), Held(subsample, seed=seed)
    told: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    first, digest = "", 0
    for place, path in enumerate(files):
        for found in rows_of(path, columns=columns):
            if found.row is None:
                skipped[found.reason] += 1
                first = first or found.message
                continue
            row = found.row
            name = row.row_id
            held.add(row, name)  # by content alone: grid and sampler rest on these
            met.add(row, name, copy=told["rows"])
            digest += ids_digest([name], [1])
            told["without prompt"] += not found.has_prompt
            told["cut"] += row.finish == "length"
            told["recorded"] += row.finish is not None
            told["empty"] += not row.completion.strip()
            asked = "".join(message.content for message in row.messages)
            for side, text in enumerate((asked, row.completion)):
                told[f"characters {side}"] += len(text)
                told[f"digits {side}"] += sum(map(text.count, "0123456789"))
            told["rows"] += 1
            if on_rows is not None and told["rows"] % _TOLD == 0:
                on_rows(place, told["rows"])
    if not told["rows"]:
        raise DatasetError(
            f"no row can be used in {len(files)} files: {first or 'they hold none'}; "
            "check that they are the right ones, or name their columns"
        )
    return Survey(
        rows=told["rows"], without_prompt=told["without prompt"],
        characters=(told["characters 0"], told["characters 1"]),
        digits=(told["digits 0"], told["digits 1"]), cut=told["cut"] > 0,
        recorded=told["recorded"] > 0, empty=told["empty"] > 0, skipped=dict(skipped.most_common()),
        first_fault=first, digest=digest % (1 << 64),
        sizes=tuple(map(file_size, files)),
        pilot=tuple(held.first(pilot)), subsample=tuple(met.stratified()),
    )  # fmt: skip


def rows_at(
    files: Sequence[File],
    places: Sequence[tuple[int, int]],
    *,
    columns: Mapping[str, str] | None = None,
) -> dict[tuple[int, int], Row]:
    """The rows at some places (file, number), read once more.

    Raises:
        DatasetError: A file cannot be read.
    """
    wanted: dict[int, set[int]] = {}
    for file, number in places:
        wanted.setdefault(file, set()).add(number)
    found: dict[tuple[int, int], Row] = {}
    for file, numbers in sorted(wanted.items()):
        last = max(numbers)
        for place, item in enumerate(rows_of(files[file], columns=columns)):
            if place in numbers and item.row is not None:
                found[file, place] = item.row
            if place >= last:
                break
    return found
