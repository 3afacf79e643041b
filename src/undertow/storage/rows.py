"""Rows on disk, in the layouts that people use.

Read: prompt and completion (texts or messages), question and response, messages, and
bare lists of messages, from JSONL, JSON or Parquet. Written: as TRL and `datasets`
read them. Knows nothing of what rows mean, nor of how a model renders them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from undertow.errors import DatasetError, shown
from undertow.records import Finish, Message, Role, Row, Verdict
from undertow.storage.files import (
    fault,
    got_text,
    line_of,
    parse,
    plain,
    read_bytes,
    replacing,
    unreadable,
    values_of,
)

Layout = Literal["messages", "prompt_completion"]

_ORIGINAL = "undertow_original"
_PROMPTS = ("prompt", "question")
_COMPLETIONS = ("completion", "response", "answer")
_CONVERSATIONS = ("messages", "conversation", "conversations")
_LISTS = ("rows", "data", "train")
_IDS = 1 << 63
"""No token's number is as large; Parquet has no place for it."""
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


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
    prompt = [{"role": m.role, "content": _clean(m.content)} for m in row.messages]
    answer = [{"role": "assistant", "content": _clean(row.completion)}]
    record: dict[str, Any] = (
        {"messages": prompt + answer}
        if layout == "messages"
        else {"prompt": prompt, "completion": answer}
    )
    provenance = plain(row.provenance)
    if _clean(text := json.dumps(provenance, ensure_ascii=False)) != text:
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
    if any(_clean(text) != text for text in texts):
        record[_ORIGINAL] = json.dumps(texts)
    return record


def _clean(text: str) -> str:
    """The text with lone surrogates as U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


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
        _ORIGINAL: pa.string(),
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
            reasons = tuple(str(reason) for reason in record.get("reasons") or ())
            if not record["accepted"] and not reasons:
                reasons = ("refused",)
            verdicts[row.row_id] = Verdict(row.row_id, reasons)
    return verdicts


def _read_records(path: Path) -> list[tuple[dict[str, Any], Row]]:
    suffix = _suffix(path, (".jsonl", ".ndjson", ".json", ".parquet"))
    if suffix == ".parquet":
        values = _parquet_values(path)
    elif suffix == ".json":
        values = _json_values(path)
    else:
        values = values_of(read_bytes(path).split(b"\n"), path)
    try:
        found = [
            (record, _row(record, where))
            for where, value in values
            for record in _flattened(value, where)
        ]
    except RecursionError as error:
        raise DatasetError(
            f"{path}: lists are nested too deeply; expected {_EXPECTED}; convert it"
        ) from error
    if not found:
        raise DatasetError(f"{path}: holds no rows; check that it is the right file")
    return found


def _json_values(path: Path) -> Iterator[tuple[str, Any]]:
    data = read_bytes(path)
    lines = data.split(b"\n")
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        # Many a .json holds JSON lines.
        if error.msg == "Extra data" and error.lineno > 1:
            yield from values_of(lines, path)
            return
        value = parse(data, str(path), "a JSON list of rows")
    except (ValueError, RecursionError):
        value = parse(data, str(path), "a JSON list of rows")
    if isinstance(value, dict):
        value = next(
            (value[n] for n in _LISTS if isinstance(value.get(n), list)), value
        )
    if isinstance(value, dict) or _is_conversation(value):
        value = [value]
    if not isinstance(value, list):
        raise fault(
            str(path), "not rows", got_text(value), "a JSON list of rows", "convert it"
        )
    for number, item in enumerate(value, start=1):
        yield f"{path}: row {number}", item


def _parquet_values(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with path.open("rb") as source, parquet.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches(10_000):
                for value in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", value
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: text that is not UTF-8: {error}") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def _is_conversation(value: object) -> bool:
    """A list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value)
    )


def _flattened(value: object, where: str) -> Iterator[dict[str, Any]]:
    """One record for each conversation in a value: an object, or nested lists."""
    if isinstance(value, dict):
        nested = _present(value, _CONVERSATIONS)
        turns = value[nested] if nested else None
        if nested and isinstance(turns, list) and turns and isinstance(turns[0], list):
            for item in turns:
                yield {**value, nested: item}
        else:
            yield value
    elif _is_conversation(value):
        yield {"messages": value}
    elif isinstance(value, list) and value:
        for item in value:
            yield from _flattened(item, where)
    else:
        raise fault(where, "not a row", got_text(value), _EXPECTED, "convert it")


_EXPECTED = (
    "an object with prompt and completion, question and response, or messages, or a "
    "list of messages"
)


def _present(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def _row(record: dict[str, Any], where: str) -> Row:
    prompt, completion = _texts(record, where)
    prompt, completion = _original(record, prompt, completion, where)
    ids = _completion_ids(record, where)
    if not completion.strip() and not ids:
        raise fault(
            where, "the completion is empty", got_text(completion), "a text",
            "delete the row",
        )  # fmt: skip
    row = Row(
        messages=tuple(prompt),
        completion=completion,
        completion_ids=ids,
        finish=_finish(record, where),
        provenance=MappingProxyType(_provenance(record, where)),
    )
    known = record.get("row_id")
    own = isinstance(known, str) and re.fullmatch("[0-9a-f]{16}", known)
    if ids is not None and own and known != row.row_id:
        raise fault(
            where, "the text was changed after its tokens were recorded",
            f"row_id {known!r}", repr(row.row_id),
            "remove row_id and completion_ids from the row, so that its text is used",
        )  # fmt: skip
    return row


def _texts(record: dict[str, Any], where: str) -> tuple[list[Message], str]:
    """Finds prompt and completion by the columns that are there."""
    asked, answered = _present(record, _PROMPTS), _present(record, _COMPLETIONS)
    if asked and answered:
        return _prompt(record[asked], where, asked), _completion(
            record[answered], where, answered
        )
    column = _present(record, _CONVERSATIONS)
    if column is None:
        raise fault(
            where, "columns not understood", shown(sorted(map(str, record))), _EXPECTED,
            "rename the columns",
        )  # fmt: skip
    turns = _messages(record[column], where, column)
    if turns[-1].role != "assistant" or len(turns) < 2:
        raise fault(
            where, f"{column!r} does not end with an answer",
            f"roles {shown([m.role for m in turns])}", "a last turn of the assistant",
            "delete or complete the row",
        )  # fmt: skip
    return turns[:-1], turns[-1].content


def _prompt(value: object, where: str, column: str) -> list[Message]:
    if isinstance(value, str):
        return [Message("user", value)]
    turns = _messages(value, where, column)
    if turns[-1].role == "assistant":
        raise fault(
            where, f"{column!r} ends with an answer",
            f"roles {shown([m.role for m in turns])}", "a last turn of the user",
            "move the answer to the completion",
        )  # fmt: skip
    return turns


def _completion(value: object, where: str, column: str) -> str:
    if isinstance(value, str):
        return value
    turns = _messages(value, where, column)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise fault(
            where, f"{column!r} is not one answer",
            f"roles {shown([m.role for m in turns])}",
            "a text or one turn of the assistant", "split the row",
        )  # fmt: skip
    return turns[0].content


def _messages(value: object, where: str, column: str) -> list[Message]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list) or not value:
        raise fault(
            where, f"{column!r} cannot be understood", got_text(value),
            "a text or a list of messages", "convert it",
        )  # fmt: skip
    return [_message(item, where, column) for item in value]


def _message(item: object, where: str, column: str) -> Message:
    turn = item if isinstance(item, dict) else {}
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None or not isinstance(content, str):
        raise fault(
            where, f"a message of {column!r} cannot be understood", got_text(item),
            "a role (system, user or assistant) and a content that is text",
            "convert it",
        )  # fmt: skip
    return Message(known, content)


def _original(
    record: dict[str, Any], prompt: list[Message], completion: str, where: str
) -> tuple[list[Message], str]:
    """Puts back texts that other readers could not have taken."""
    kept = record.get(_ORIGINAL)
    if kept is None:
        return prompt, completion
    texts = parse(str(kept).encode(), where, "a JSON list of texts")
    if (
        not isinstance(texts, list)
        or len(texts) != len(prompt) + 1
        or not all(isinstance(text, str) for text in texts)
    ):
        raise fault(
            where, f"{_ORIGINAL!r} does not fit the row", got_text(kept),
            f"{len(prompt) + 1} texts", "remove that column",
        )  # fmt: skip
    turns = [Message(m.role, text) for m, text in zip(prompt, texts, strict=False)]
    return turns, texts[-1]


def _completion_ids(record: dict[str, Any], where: str) -> tuple[int, ...] | None:
    ids = record.get("completion_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < _IDS for i in ids
    ):
        raise fault(
            where, "'completion_ids' cannot be understood", got_text(ids),
            "a list of token numbers or null", "remove that column",
        )  # fmt: skip
    return tuple(ids)


def _finish(record: dict[str, Any], where: str) -> Finish | None:
    finish = record.get("finish")
    if finish not in ("stop", "length", None):
        raise fault(
            where, "'finish' cannot be understood", got_text(finish),
            "'stop', 'length' or null", "remove that column",
        )  # fmt: skip
    return cast("Finish | None", finish)


def _provenance(record: dict[str, Any], where: str) -> dict[str, Any]:
    value = record.get("provenance")
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if value is None:
        return {"source": Path(where).name}
    return value if isinstance(value, dict) else {"source": value}
