"""Rows on disk, in the layouts that people use.

Read: prompt and completion (texts or messages), question and response, instruction and
output, messages, and bare lists of messages, from JSONL, JSON or Parquet. Written: as
TRL and `datasets` read them. Knows nothing of what rows mean, nor of how a model renders
them; for rows of unknown origin see `storage.datasets`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from undertow.errors import DatasetError, shown
from undertow.records import Row, Verdict
from undertow.storage.columns import ORIGINAL, clean, records_in, understand
from undertow.storage.files import line_of, plain, replacing
from undertow.storage.sources import read_records

Layout = Literal["messages", "prompt_completion"]


def write_rows(
    path: Path | str,
    rows: Iterable[Row],
    *,
    verdicts: Mapping[str, Verdict] | None = None,
    layout: Layout = "prompt_completion",
) -> None:
    """Writes rows as JSONL or Parquet (by suffix), whole or not at all.

    Columns: `prompt` and `completion` as lists of messages (or one `messages`),
    `row_id`, `completion_ids`, `finish`, `provenance`; with verdicts also `accepted`
    and `reasons`, null for a row that was not judged. Parquet holds the provenance as
    JSON text. Text with lone surrogates, which no other reader takes, is shown with
    U+FFFD and kept exactly in `undertow_original`; a provenance with them is JSON text.

    Args:
        path: A name that ends in .jsonl or .parquet.
        rows: In the order in which they are to be read.
        verdicts: What a filter said, by row id.
        layout: "prompt_completion" or "messages", both as TRL reads them.

    Raises:
        DatasetError: The suffix is another one.
        RunError: The disk is full, or the place cannot be written.
    """
    path = Path(path)
    suffix = check_rows_name(path)
    records = (_record(row, verdicts, layout) for row in rows)
    with replacing(path) as draft:
        if suffix == ".parquet":
            _write_parquet(draft, list(records))
            return
        with draft.open("xb") as file:
            file.writelines(map(line_of, records))


def check_rows_name(path: Path | str) -> str:
    """The suffix of a file that `write_rows` can write, to ask before there are rows.

    Raises:
        DatasetError: The suffix is another one.
    """
    return _suffix(Path(path), (".jsonl", ".ndjson", ".parquet"))


def _suffix(path: Path, known: Sequence[str]) -> str:
    suffix = path.suffix.lower()
    if suffix not in known:
        raise DatasetError(
            f"{path}: unknown kind of file; got suffix {suffix!r}, expected one of "
            f"{shown(known)}; rename or convert it"
        )
    return suffix


def _record(
    row: Row, verdicts: Mapping[str, Verdict] | None, layout: Layout
) -> dict[str, Any]:
    prompt = [{"role": m.role, "content": clean(m.content)} for m in row.messages]
    answer = [{"role": "assistant", "content": clean(row.completion)}]
    record: dict[str, Any] = (
        {"messages": prompt + answer}
        if layout == "messages"
        else {"prompt": prompt, "completion": answer}
    )
    provenance = plain(row.provenance)
    if clean(text := json.dumps(provenance, ensure_ascii=False)) != text:
        provenance = json.dumps(provenance)
    record |= {
        "row_id": row.row_id,
        "completion_ids": None
        if row.completion_ids is None
        else list(row.completion_ids),
        "finish": row.finish,
        "provenance": provenance,
    }
    if verdicts is not None:
        verdict = verdicts.get(row.row_id)
        record["accepted"] = verdict.accepted if verdict else None
        record["reasons"] = list(verdict.reasons) if verdict else None
    texts = [*(m.content for m in row.messages), row.completion]
    if any(clean(text) != text for text in texts):
        record[ORIGINAL] = json.dumps(texts)
    return record


def _write_parquet(draft: Path, records: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    turns = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    types = {
        "prompt": turns,
        "completion": turns,
        "messages": turns,
        "row_id": pa.string(),
        "completion_ids": pa.list_(pa.int64()),
        "finish": pa.string(),
        "provenance": pa.string(),
        "accepted": pa.bool_(),
        "reasons": pa.list_(pa.string()),
        ORIGINAL: pa.string(),
    }
    found = {name for record in records for name in record}
    names = found or {"prompt", "completion", "row_id"}
    schema = pa.schema({name: kind for name, kind in types.items() if name in names})
    for record in records:
        if not isinstance(record["provenance"], str):
            record["provenance"] = json.dumps(record["provenance"])
    table = pa.Table.from_pylist(records, schema=schema)
    parquet.write_table(table, draft, row_group_size=10_000)


def read_rows(path: Path | str, *, accepted_only: bool = False) -> list[Row]:
    """Reads rows of any known layout from JSONL, JSON or Parquet, in file order.

    A row without provenance gets the file's name and its place as such. An empty
    completion is refused unless its tokens are recorded: then a model really ended
    its answer at once, and a filter may say so.

    Args:
        path: A name that ends in .jsonl, .ndjson, .json or .parquet.
        accepted_only: Leave out rows whose `accepted` is false.

    Raises:
        DatasetError: The file is missing, empty, of another kind, or a row cannot be
            understood; the message names the file and the line or row.
    """
    return [
        row
        for record, row in _read_records(Path(path))
        if not (accepted_only and record.get("accepted") is False)
    ]


def read_verdicts(path: Path | str) -> dict[str, Verdict]:
    """The verdicts that stand in a file of rows, by row id; rows not judged have none.

    Raises:
        DatasetError: As `read_rows`.
    """
    verdicts = {}
    for record, row in _read_records(Path(path)):
        if record.get("accepted") is not None:
            listed = record.get("reasons")
            reasons = tuple(map(str, listed)) if isinstance(listed, list) else ()
            if not record["accepted"] and not reasons:
                reasons = ("refused",)
            verdicts[row.row_id] = Verdict(row.row_id, reasons)
    return verdicts


def _read_records(path: Path) -> list[tuple[dict[str, Any], Row]]:
    _suffix(path, (".jsonl", ".ndjson", ".json", ".parquet"))
    found = []
    for item in read_records(path):
        if item.fault is not None:
            raise item.fault
        found += [
            (record, understand(record, item.where).row)
            for record in records_in(item.value, item.where)
        ]
    if not found:
        raise DatasetError(f"{path}: holds no rows; check that it is the right file")
    return found
