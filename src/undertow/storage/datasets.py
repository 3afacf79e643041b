"""Training sets of unknown origin: read as a stream, counted, cut down, divided.

Rows that cannot be used do not stop the reading: they are counted by reason, and the
first ten are named. What a row is, and what is taken for its prompt and completion, is
told in `open_rows`. Knows nothing of models, nor of what rows carry.
"""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, Any

from undertow.errors import DatasetError, shown
from undertow.records import Row
from undertow.storage.columns import check_columns, records_in, understand
from undertow.storage.files import Fault, line_of, replacing
from undertow.storage.samples import Sample
from undertow.storage.sources import STDIN, Record, Source, find_source, read_records

_PLACES = 10


@dataclass(frozen=True, slots=True)
class SourcedRow:
    """One row of a training set, or why something in it is none.

    Attributes:
        where: Its place, "path:line" or "path: row n".
        row: The row; None if there is none that can be used.
        layout: The columns that it was found in.
        has_prompt: Whether anything stands before the completion.
        set_aside: Whether recorded tokens, finish or original text did not fit the
            text and were left out of the row.
        reason: Why there is no row, without the place.
        message: The same in full.
    """

    where: str
    row: Row | None
    layout: str = ""
    has_prompt: bool = True
    set_aside: bool = False
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class RowSet:
    """The different rows of a training set, or a part of them, and what was seen.

    Attributes:
        rows: Different rows, in order of arrival; a subsample in an order of its own,
            which like itself depends on the rows and the seed alone.
        counts: How often each of `rows` stood in the data, by row id.
        read: Rows that can be used, duplicates counted.
        unique: Different rows among them.
        without_prompt: Rows among `read` that are a completion alone.
        set_aside: Rows among `read` whose recorded tokens did not fit their text.
        skipped: Rows that cannot be used, by reason.
        places: The first ten of those, in full.
        layout: The columns in which rows were found.
        sources: What was read.
        subsample: How `rows` were chosen, in a sentence; None if they are all.
        digest: Hash of all different rows, whatever their order and division.
    """

    rows: tuple[Row, ...]
    counts: Mapping[str, int]
    read: int
    unique: int
    without_prompt: int
    set_aside: int
    skipped: Mapping[str, int]
    places: tuple[str, ...]
    layout: str
    sources: tuple[str, ...]
    subsample: str | None
    digest: str


@dataclass(frozen=True, slots=True)
class Division:
    """What `write_split` wrote.

    Attributes:
        clean: Records that were kept.
        quarantined: Records of which a row was not.
        unusable: Records that hold no row that can be used; they are in quarantine too.
    """

    clean: int
    quarantined: int
    unusable: int


def open_rows(
    source: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
) -> Iterator[SourcedRow]:
    """Reads a training set as it comes, one row after the other.

    A source is a file (.jsonl, .ndjson, .json, .csv, .tsv, each also in .gz; .parquet,
    .arrow), a folder with such files anywhere in it (names that begin with "." or "_"
    are passed over), a folder that `datasets` saved, "-" for JSON lines from standard
    input, or "hub:owner/name", also without "hub:" if nothing here has that name. Files of
    the hub are fetched whole; those at a URL (s3://…, https://…, and also
    hf://datasets/owner/name/…) by parts as they are read, a folder there too.

    A row is found by the names of its columns: prompt, question, instruction (with
    input or context), query or input beside completion, response, answer or output;
    else messages or conversations, whose last turn must be an answer and is the
    completion: earlier answers stay in the prompt and are not rows of their own. A
    completion or text alone is a row with an empty user turn for a prompt.

    Args:
        source: A name, as above.
        columns: Names of columns, instead of those: {"prompt": "q", "completion": "a"},
            also without prompt or with "system", or {"messages": "chat"}.
        split: Files with that word in their names, or that part of a folder saved by
            splits, where otherwise the only one or "train" is taken. Of a hub dataset,
            otherwise files with "train" in their names, and all if there are none.

    Yields:
        Every row, duplicates too, and for everything that cannot be used a `SourcedRow`
        without a row.

    Raises:
        DatasetError: Nothing can be read there, a file cannot be read on, or no row of
            a file can be used.

    Cost: Memory for a line, or a thousand rows of Parquet; a .json file is read whole.
    """
    check_columns(columns)
    return _rows(find_source(source, split), columns)


def _rows(source: Source, columns: Mapping[str, str] | None) -> Iterator[SourcedRow]:
    for _, rows in _records(source, columns):
        yield from rows


def _records(
    source: Source, columns: Mapping[str, str] | None
) -> Iterator[tuple[Record, list[SourcedRow]]]:
    """Every record with its rows, or with why it has none."""
    found = 0
    for path in source.files:
        tally = _Tally()
        for record in read_records(path):
            rows = rows_in(record, columns)
            for row in rows:
                tally.add(row)
            yield record, rows
        if tally.places and not tally.read:
            raise DatasetError(
                f"{source.name if path == STDIN else path}: no row can be used; got "
                f"{tally.reasons()}; the first: {tally.places[0]}; expected at least "
                "one row; check that it is the right file, or say which columns hold "
                "them: --column prompt=NAME --column completion=NAME"
            )
        found += tally.read
    if not found:
        raise DatasetError(
            f"{source.name}: holds no rows; check that it is the right name"
        )


def rows_in(record: Record, columns: Mapping[str, str] | None) -> list[SourcedRow]:
    """Everything that stands in one record, leniently; what is no row has a reason.

    Args:
        record: As `read_records` gives it.
        columns: As in `open_rows`, checked.
    """
    where = record.where
    if record.fault is not None:
        return [_unusable(where, record.fault)]
    try:
        values = records_in(record.value, where)
    except Fault as error:
        return [_unusable(where, error)]
    return [_row_of(value, where, columns) for value in values]


def _row_of(
    value: dict[str, Any], where: str, columns: Mapping[str, str] | None
) -> SourcedRow:
    try:
        found = understand(value, where, columns=columns, lenient=True)
    except Fault as error:
        return _unusable(where, error)
    return SourcedRow(where, found.row, found.layout, found.has_prompt, found.set_aside)


def _unusable(where: str, error: Fault) -> SourcedRow:
    return SourcedRow(where, None, reason=error.reason, message=str(error))


@dataclass(slots=True)
class _Tally:
    """What was seen in a stream of rows."""

    read: int = 0
    without_prompt: int = 0
    set_aside: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)

    def add(self, item: SourcedRow) -> None:
        if item.row is None:
            self.skipped[item.reason] += 1
            if len(self.places) < _PLACES:
                self.places.append(item.message)
            return
        self.read += 1
        self.without_prompt += not item.has_prompt
        self.set_aside += item.set_aside
        self.layouts[item.layout] += 1

    def reasons(self) -> str:
        return ", ".join(f"{what} ({n})" for what, n in self.skipped.most_common(10))

    def layout(self) -> str:
        """The layout, or all of them with how many rows each has."""
        if len(self.layouts) == 1:
            return next(iter(self.layouts))
        ordered = sorted(self.layouts.items(), key=lambda item: (-item[1], item[0]))
        return "; ".join(f"{name} ({n} rows)" for name, n in ordered)


def take_rows(
    sources: Path | str | Sequence[Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> RowSet:
    """Reads training sets into different rows and their counts.

    Args:
        sources: One or several names, as `open_rows` takes them.
        columns: As in `open_rows`, for all sources.
        split: As in `open_rows`, for all sources.
        limit: Rows wanted at most. If there are more, a part is drawn, in proportion
            to the lengths of prompts and completions; the same rows in another order,
            or divided into other files, give the same part. See `Sample`.
        seed: Of that draw.

    Raises:
        DatasetError: As `open_rows`, or the limit is below 1.

    Cost: Memory for the rows, or with a limit for about five times as many as that,
    and about 100 bytes for every different row that was read.
    """
    check_columns(columns)
    if limit is not None and limit < 1:
        raise DatasetError(
            f"limit: got {limit}, expected 1 or more, or none; give another"
        )
    found = [find_source(source, split) for source in _listed(sources)]
    sample, tally = Sample(limit, seed), _Tally()
    for source in found:
        for item in _rows(source, columns):
            tally.add(item)
            if item.row is not None:
                sample.add(item.row)
    chosen = sample.chosen()
    return RowSet(
        rows=tuple(chosen.values()),
        counts={row_id: sample.count_of(row_id) for row_id in chosen},
        read=tally.read,
        unique=sample.unique,
        without_prompt=tally.without_prompt,
        set_aside=tally.set_aside,
        skipped=dict(tally.skipped.most_common()),
        places=tuple(tally.places),
        layout=tally.layout(),
        sources=tuple(source.name for source in found),
        subsample=_sentence(sample, len(chosen), seed),
        digest=sample.digest(),
    )


def _listed(sources: Path | str | Sequence[Path | str]) -> list[Path | str]:
    listed = [sources] if isinstance(sources, Path | str) else list(sources)
    if not listed:
        raise DatasetError(
            "rows: got no source, expected a file, a folder, - or a name"
        )
    return listed


def _sentence(sample: Sample, count: int, seed: int) -> str | None:
    if count == sample.unique:
        return None
    return (
        f"{count} of {sample.unique} different rows, drawn with seed {seed} in "
        f"proportion to {sample.strata} strata (lengths of prompt and completion in "
        "powers of two)"
    )


def keep_stdin(path: Path | str) -> Path:
    """Copies standard input into a file, which can be read more than once.

    Args:
        path: A name that ends in .jsonl.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    path = Path(path)
    with replacing(path) as draft, draft.open("xb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def write_split(
    sources: Path | str | Sequence[Path | str],
    *,
    keep: Callable[[Row], bool] | AbstractSet[str],
    clean: Path | str,
    quarantine: Path | str,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
) -> Division:
    """Divides training sets into two files of JSON lines, the records untouched.

    Lines of JSON lines keep their bytes; other records are written as JSON. A record
    goes into quarantine if any of its rows is not kept, and if it has none that can be
    used, since nobody judged it. Both files are written whole or not at all.

    Args:
        sources: As in `take_rows`, but for standard input (see `keep_stdin`).
        keep: The ids of rows to keep, or what answers for each row.
        clean: Where the kept records go.
        quarantine: Where the others go.
        columns: As in `open_rows`.
        split: As in `open_rows`.

    Raises:
        DatasetError: As `open_rows`; standard input is named; or one of the two files
            is the other one or one of those that are read.
        RunError: The disk is full, or a place cannot be written.

    Cost: Memory as `open_rows`.
    """
    check_columns(columns)
    found = [find_source(source, split) for source in _listed(sources)]
    _check_places(found, Path(clean), Path(quarantine))
    counts: Counter[str] = Counter()
    with (
        replacing(clean) as kept,
        replacing(quarantine) as put_away,
        kept.open("xb") as good,
        put_away.open("xb") as bad,
    ):
        for source in found:
            for record, rows in _records(source, columns):
                where_to = _judged(rows, keep)
                counts[where_to] += 1
                _write(good if where_to == "clean" else bad, record)
    return Division(counts["clean"], counts["quarantined"], counts["unusable"])


def _judged(
    rows: list[SourcedRow], keep: Callable[[Row], bool] | AbstractSet[str]
) -> str:
    good = [item.row for item in rows if item.row is not None]
    if len(good) < len(rows) and not good:
        return "unusable"
    if len(good) < len(rows):
        return "quarantined"
    kept = (
        row.row_id in keep if isinstance(keep, AbstractSet) else keep(row)
        for row in good
    )
    return "clean" if all(kept) else "quarantined"


def _write(file: IO[bytes], record: Record) -> None:
    if record.line is not None:
        file.write(record.line)
        if not record.line.endswith(b"\n"):
            file.write(b"\n")
        return
    try:
        line = line_of(record.value)
    except TypeError:  # Parquet and Arrow hold more than JSON
        line = line_of(json.loads(json.dumps(record.value, default=_worded)))
    file.write(line)


def _worded(value: object) -> Any:
    """A value that JSON has no word for, as text."""
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


def _check_places(found: list[Source], clean: Path, quarantine: Path) -> None:
    read = {os.path.realpath(str(path)) for source in found for path in source.files}
    if any(path == STDIN for source in found for path in source.files):
        raise DatasetError(
            "stdin: can be read once only, and rows are judged before they are divided; "
            "got -, expected files; keep it in a file first"
        )
    for path in (clean, quarantine):
        if os.path.realpath(path) in read:
            raise DatasetError(
                f"{path}: is one of the files that are read; got {shown([str(path)])}, "
                "expected another; choose another name"
            )
    if os.path.realpath(clean) == os.path.realpath(quarantine):
        raise DatasetError(
            f"{clean}: is named for both the clean rows and the others; name two files"
        )
