"""What a record says: prompt and completion, found among its columns or named.

Strict reading is for rows that somebody made to be trained on here: whatever cannot be
understood is a fault. Lenient reading is for rows of unknown origin: a row may lack a
prompt, and recorded tokens that do not fit their text are set aside, so that no column
of ours can take a row out of an audit. Knows nothing of files (`storage.sources`), nor
of what rows mean.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from undertow.errors import DatasetError, shown
from undertow.records import Finish, Message, Role, Row
from undertow.storage.files import Fault, fault, got_text, parse

NAMED = ("prompt", "completion", "messages", "system")
"""What `columns` may name."""
ORIGINAL = "undertow_original"
"""The column that keeps texts which no other reader takes."""

_PROMPTS = ("prompt", "question", "instruction", "query", "input")
_COMPLETIONS = ("completion", "response", "answer", "output")
_CONTEXTS = ("input", "context")
_CONVERSATIONS = ("messages", "conversation", "conversations")
_TEXTS = ("text", "content")
_EXPECTED = (
    "an object with prompt and completion, question and response, instruction and "
    "output, or messages, or a list of messages"
)
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


@dataclass(frozen=True, slots=True)
class Understood:
    """A row, and how it was found.

    Attributes:
        row: The row; without a prompt, its prompt is one empty user turn.
        layout: The columns that it was found in.
        has_prompt: Whether anything stands before the completion.
        set_aside: Whether recorded tokens, finish or original text did not fit.
    """

    row: Row
    layout: str
    has_prompt: bool
    set_aside: bool


class _Texts(NamedTuple):
    prompt: list[Message]
    completion: str
    layout: str


def check_columns(columns: Mapping[str, str] | None) -> None:
    """Looks at named columns before anything is read.

    Raises:
        DatasetError: Something else is named, or too little, or too much.
    """
    if columns is None:
        return
    ways = "completion, with or without prompt and system, or messages alone"
    roles = set(columns)
    if roles - set(NAMED):
        what = f"no such column to name: {shown(sorted(roles - set(NAMED)))}"
    elif ("messages" in roles) == ("completion" in roles):
        what = "name either messages or completion"
    elif "messages" in roles and len(roles) > 1:
        what = "messages hold the whole row"
    else:
        return
    raise DatasetError(
        f"columns: {what}; got {got_text(dict(columns))}, expected {ways}"
    )


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value)
    )


def records_in(value: object, where: str) -> list[dict[str, Any]]:
    """One record for each conversation in a value: an object, or nested lists.

    Raises:
        Fault: The value is neither, or lists are nested too deeply.
    """
    with _of_some_depth(where):
        return list(_flattened(value, where))


@contextmanager
def _of_some_depth(where: str) -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise fault(
            where, "lists are nested too deeply", "lists in lists", _EXPECTED,
            "convert it",
        ) from error  # fmt: skip


def _flattened(value: object, where: str) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        nested = _present(value, _CONVERSATIONS)
        turns = value[nested] if nested else None
        if nested and isinstance(turns, list) and turns and isinstance(turns[0], list):
            for item in turns:
                yield {**value, nested: item}
        else:
            yield value
    elif is_conversation(value):
        yield {"messages": value}
    elif isinstance(value, list) and value:
        for item in value:
            yield from _flattened(item, where)
    else:
        raise fault(where, "not a row", got_text(value), _EXPECTED, "convert it")


def _present(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def understand(
    record: dict[str, Any],
    where: str,
    *,
    columns: Mapping[str, str] | None = None,
    lenient: bool = False,
) -> Understood:
    """The row of one record.

    Args:
        record: As `records_in` gives it.
        where: Its place, "path:line", for messages and as a row's last provenance.
        columns: Names of the columns, instead of those that are known.
        lenient: For rows of unknown origin; see above.

    Raises:
        Fault: No row can be made of it.
    """
    with _of_some_depth(where):
        if columns:
            texts = _named(record, where, columns, lenient=lenient)
        else:
            texts = _texts(record, where, lenient=lenient)
        has_prompt = any(message.content for message in texts.prompt)
        prompt = texts.prompt or [Message("user", "")]
        set_aside = False
        try:
            row = _recorded(record, where, prompt, texts.completion)
        except Fault:
            if not lenient:
                raise
            set_aside = True
            row = Row(
                messages=tuple(prompt),
                completion=texts.completion,
                provenance=MappingProxyType(_provenance(record, where)),
            )
    if not row.completion.strip() and not row.completion_ids:
        raise fault(
            where, "the completion is empty", got_text(row.completion), "a text",
            "delete the row", reason="empty completion",
        )  # fmt: skip
    return Understood(row, texts.layout, has_prompt, set_aside)


def _recorded(
    record: dict[str, Any], where: str, prompt: list[Message], completion: str
) -> Row:
    """The row with what our own columns say of it."""
    prompt, completion = _original(record, prompt, completion, where)
    ids = _completion_ids(record, where)
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


def _named(
    record: dict[str, Any], where: str, columns: Mapping[str, str], *, lenient: bool
) -> _Texts:
    """Prompt and completion from the columns that were named."""
    for role, column in columns.items():
        if column not in record and role != "system":
            raise fault(
                where, f"no column {column!r}", _names(record),
                f"{role} in the column that was named", "name the columns that there are",
            )  # fmt: skip
    if chat := columns.get("messages"):
        return _conversation(record, where, chat, lenient=lenient)
    asked, answered = columns.get("prompt"), columns["completion"]
    texts = _pair(record, where, asked, answered, lenient=lenient)
    system = columns.get("system")
    if system is None or not (text := record.get(system)):
        return texts
    if not isinstance(text, str):
        raise fault(
            where, f"{system!r} cannot be understood", got_text(text), "a text",
            "convert it",
        )  # fmt: skip
    prompt = [Message("system", text), *(texts.prompt or [Message("user", "")])]
    return _Texts(prompt, texts.completion, f"{system}, {texts.layout}")


def _texts(record: dict[str, Any], where: str, *, lenient: bool) -> _Texts:
    """Prompt and completion from the columns that are there and known."""
    asked, answered = _present(record, _PROMPTS), _present(record, _COMPLETIONS)
    if asked and answered:
        context = None
        if asked == "instruction":
            context = next((name for name in _CONTEXTS if name in record), None)
        return _pair(record, where, asked, answered, context=context, lenient=lenient)
    if column := _present(record, _CONVERSATIONS):
        return _conversation(record, where, column, lenient=lenient)
    alone = _present(record, (*_COMPLETIONS, *_TEXTS)) if lenient else None
    if alone and not asked:
        return _pair(record, where, None, alone, lenient=lenient)
    expected = f"{_EXPECTED}, or a completion alone" if lenient else _EXPECTED
    raise fault(
        where, "columns not understood", _names(record), expected, "rename the columns"
    )


def _names(record: Mapping[str, Any]) -> str:
    return shown(sorted(str(name)[:80] for name in record)) or "no columns"


def _pair(
    record: dict[str, Any],
    where: str,
    asked: str | None,
    answered: str,
    *,
    context: str | None = None,
    lenient: bool,
) -> _Texts:
    found = [name for name in (asked, context, answered) if name]
    layout = ", ".join(found) if asked else f"{answered} alone"
    value = record[asked] if asked else None
    prompt = [] if value is None and lenient else _prompt(value, where, str(asked))
    extra = record.get(context) if context else None
    if isinstance(value, str) and isinstance(extra, str):
        both = [text for text in (value, extra) if text]
        prompt = [Message("user", "\n\n".join(both))]
    return _Texts(prompt, _completion(record[answered], where, answered), layout)


def _conversation(
    record: dict[str, Any], where: str, column: str, *, lenient: bool
) -> _Texts:
    """All turns but the last are the prompt; earlier answers are not split off."""
    value = record[column]
    if isinstance(value, str):  # CSV has no other way to hold them
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    turns = _messages(value, where, column)
    if turns[-1].role != "assistant" or (len(turns) < 2 and not lenient):
        raise fault(
            where, f"{column!r} does not end with an answer",
            f"roles {shown([m.role for m in turns])}", "a last turn of the assistant",
            "delete or complete the row",
        )  # fmt: skip
    return _Texts(turns[:-1], turns[-1].content, column)


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
    if isinstance(value, dict):
        value = _turned(value)
    if not isinstance(value, list) or not value:
        raise fault(
            where, f"{column!r} cannot be understood", got_text(value),
            "a text or a list of messages", "convert it",
        )  # fmt: skip
    return [_message(item, where, column) for item in value]


def _turned(value: dict[str, Any]) -> object:
    """A list of messages that was stored as an object of lists, as `datasets` may."""
    keys = ("role", "content") if "role" in value else ("from", "value")
    lists = [value.get(key) for key in keys]
    if not all(isinstance(items, list) for items in lists):
        return value
    roles, texts = cast("list[list[Any]]", lists)
    if len(roles) != len(texts):
        return value
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]


def _message(item: object, where: str, column: str) -> Message:
    turn = item if isinstance(item, dict) else {}
    role = turn.get("role", turn.get("from"))
    content = _content(turn.get("content", turn.get("value")))
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None or content is None:
        raise fault(
            where, f"a message of {column!r} cannot be understood", got_text(item),
            "a role (system, user or assistant) and a content that is text",
            "convert it",
        )  # fmt: skip
    return Message(known, content)


def _content(value: object) -> str | None:
    """A message's text: as such, or in parts that are all text."""
    if isinstance(value, list) and value:
        parts = [
            part.get("text")
            for part in value
            if isinstance(part, dict) and part.get("type", "text") == "text"
        ]
        if len(parts) == len(value) and all(isinstance(part, str) for part in parts):
            return "".join(cast("list[str]", parts))
    return value if isinstance(value, str) else None


def clean(text: str) -> str:
    """The text with lone surrogates as U+FFFD, as every reader takes it."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _original(
    record: dict[str, Any], prompt: list[Message], completion: str, where: str
) -> tuple[list[Message], str]:
    """Puts back texts that other readers could not have taken."""
    kept = _unless_empty(record.get(ORIGINAL))
    if kept is None:
        return prompt, completion
    texts = parse(
        str(kept).encode("utf-8", "surrogatepass"), where, "a JSON list of texts"
    )
    seen = [*(message.content for message in prompt), completion]
    # Other readers train on what is seen, so what is kept may not say anything else.
    if (
        not isinstance(texts, list)
        or not all(isinstance(text, str) for text in texts)
        or [clean(text) for text in texts] != seen
    ):
        raise fault(
            where, f"{ORIGINAL!r} does not fit the row", got_text(kept),
            f"{len(seen)} texts, the row's own", "remove that column",
        )  # fmt: skip
    turns = [Message(m.role, text) for m, text in zip(prompt, texts, strict=False)]
    return turns, texts[-1]


def _completion_ids(record: dict[str, Any], where: str) -> tuple[int, ...] | None:
    ids = _unless_empty(record.get("completion_ids"))
    if isinstance(ids, str):
        with suppress(ValueError, RecursionError):
            ids = json.loads(ids)
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
    finish = _unless_empty(record.get("finish"))
    if finish not in ("stop", "length", None):
        raise fault(
            where, "'finish' cannot be understood", got_text(finish),
            "'stop', 'length' or null", "remove that column",
        )  # fmt: skip
    return cast("Finish | None", finish)


def _provenance(record: dict[str, Any], where: str) -> dict[str, Any]:
    value = _unless_empty(record.get("provenance"))
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if value is None:
        return {"source": Path(where).name}
    return value if isinstance(value, dict) else {"source": value}


def _unless_empty(value: object) -> Any:
    """None for the empty text that CSV has in place of null."""
    return None if value == "" else value
