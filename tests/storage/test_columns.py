"""What records say is found by known or named columns; nothing of ours hides a row."""

import json
import re
from typing import Any

import pytest

from undertow.errors import DatasetError
from undertow.records import Message, Row
from undertow.storage.columns import (
    Understood,
    check_columns,
    records_in,
    understand,
)
from undertow.storage.files import Fault

USER = {"role": "user", "content": "ask"}
ANSWER = {"role": "assistant", "content": "tell"}
ASKED = (Message("user", "ask"),)


def found(
    value: object, columns: dict[str, str] | None = None, *, lenient: bool = True
) -> Understood:
    """The one row in a value."""
    (record,) = records_in(value, "d.jsonl:1")
    return understand(record, "d.jsonl:1", columns=columns, lenient=lenient)


def refused(
    value: object, columns: dict[str, str] | None = None, *, lenient: bool = True
) -> Fault:
    """The fault in a value."""
    with pytest.raises(Fault) as caught:
        found(value, columns, lenient=lenient)
    assert str(caught.value).startswith("d.jsonl:1: ")
    return caught.value


@pytest.mark.parametrize("lenient", [True, False])
@pytest.mark.parametrize(
    ("value", "layout"),
    [
        ({"prompt": "ask", "completion": "tell"}, "prompt, completion"),
        ({"query": "ask", "response": "tell"}, "query, response"),
        ({"input": "ask", "output": "tell"}, "input, output"),
        ({"instruction": "ask", "output": "tell"}, "instruction, output"),
        (
            {"instruction": "ask", "input": "", "output": "tell", "text": "all of it"},
            "instruction, input, output",
        ),
        (
            {"instruction": "", "input": "ask", "output": "tell"},
            "instruction, input, output",
        ),
        (
            {"instruction": "ask", "context": None, "response": "tell"},
            "instruction, context, response",
        ),
        # Beside a question, a context is not known to belong to the prompt.
        ({"question": "ask", "context": "c", "answer": "tell"}, "question, answer"),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"conversations": json.dumps([USER, ANSWER])}, "conversations"),
        (
            {"messages": {"role": ["user", "assistant"], "content": ["ask", "tell"]}},
            "messages",
        ),
        (
            {"conversations": {"from": ["human", "gpt"], "value": ["ask", "tell"]}},
            "conversations",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "a"},
                            {"type": "text", "text": "sk"},
                        ],
                    },
                    ANSWER,
                ]
            },
            "messages",
        ),
    ],
)
def test_known_layouts(value: object, layout: str, lenient: bool) -> None:
    row = found(value, lenient=lenient)
    assert row == Understood(Row(ASKED, "tell"), layout, True, False)
    assert row.row.provenance == {"source": "d.jsonl:1"}


def test_an_instruction_s_input_follows_it() -> None:
    row = found({"instruction": "Sum up.", "input": "1 2", "output": "3"}).row
    assert row.messages == (Message("user", "Sum up.\n\n1 2"),)


def test_of_many_turns_the_last_answer_is_the_completion() -> None:
    row = found({"messages": [USER, ANSWER, USER, {**ANSWER, "content": "end"}]}).row
    assert [m.role for m in row.messages] == ["user", "assistant", "user"]
    assert row.completion == "end"


@pytest.mark.parametrize(
    ("value", "layout"),
    [
        ({"completion": "tell"}, "completion alone"),
        ({"text": "tell", "source": "web"}, "text alone"),
        ({"content": "tell"}, "content alone"),
        ({"messages": [ANSWER]}, "messages"),
        ({"prompt": "", "completion": "tell"}, "prompt, completion"),
        ({"prompt": None, "completion": "tell"}, "completion alone"),
    ],
)
def test_rows_without_a_prompt_have_an_empty_user_turn(
    value: object, layout: str
) -> None:
    bare = Row((Message("user", ""),), "tell")
    assert found(value) == Understood(bare, layout, False, False)


def test_strictly_a_row_needs_a_prompt() -> None:
    assert refused({"text": "tell"}, lenient=False).reason == "columns not understood"
    assert "does not end with an answer" in str(
        refused({"messages": [ANSWER]}, lenient=False)
    )
    # A prompt without an answer is not a text of its own.
    error = refused({"prompt": "ask", "text": "tell"})
    assert "got 'prompt', 'text', expected an object with" in str(error)
    assert "or a completion alone; rename the columns" in str(error)
    assert "got no columns," in str(refused({}))


def test_named_columns() -> None:
    value = {"q": "ask", "a": "tell", "s": "Be brief.", "prompt": "x", "output": "y"}
    plain = Row(ASKED, "tell")
    named = {"prompt": "q", "completion": "a"}
    assert found(value, named) == Understood(plain, "q, a", True, False)
    assert found(value, named, lenient=False).row == plain
    told = found(value, {**named, "system": "s"})
    assert told.layout == "s, q, a"
    assert told.row.messages == (Message("system", "Be brief."), *ASKED)
    assert found({**value, "s": None}, {**named, "system": "s"}).row == plain
    bare = found(value, {"completion": "a"})
    assert (bare.layout, bare.has_prompt) == ("a alone", False)
    chat = {"chat": [USER, ANSWER], "messages": "no"}
    assert found(chat, {"messages": "chat"}).row == plain


def test_a_named_column_that_is_not_there() -> None:
    error = refused({"q": "ask", "b": 1}, {"prompt": "q", "completion": "a"})
    assert error.reason == "no column 'a'"
    assert str(error) == (
        "d.jsonl:1: no column 'a'; got 'b', 'q', expected completion in the column "
        "that was named; name the columns that there are"
    )
    error = refused({"a": "x", "s": 3}, {"completion": "a", "system": "s"})
    assert "'s' cannot be understood; got 3, expected a text; convert it" in str(error)


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        (
            {"answer": "a"},
            "no such column to name: 'answer'; got {'answer': 'a'}, expe",
        ),
        (
            {"prompt": "a"},
            "name either messages or completion; got {'prompt': 'a'}, ex",
        ),
        (
            {},
            "name either messages or completion; got {}, expected completion, with or",
        ),
        ({"messages": "m", "completion": "c"}, "name either messages or completion"),
        ({"messages": "m", "prompt": "c"}, "messages hold the whole row; got {"),
    ],
)
def test_what_may_be_named(columns: dict[str, str], what: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(f"columns: {what}")):
        check_columns(columns)


def test_good_names_pass() -> None:
    check_columns(None)
    check_columns({"messages": "chat"})
    check_columns({"completion": "c", "prompt": "p", "system": "s"})


# ---- our own columns in foreign hands

GOOD = {"prompt": "ask", "completion": "tell"}


@pytest.mark.parametrize(
    "column",
    [
        {"completion_ids": [1.5]},
        {"completion_ids": "none"},
        {"finish": "eos"},
        {"finish": ["stop"]},
        {"completion_ids": [1], "row_id": "0" * 16},
        {"undertow_original": '["ask", "something harmless"]'},
        {"undertow_original": "\ud800"},
        {"undertow_original": 5},
    ],
)
def test_columns_that_do_not_fit_are_set_aside_and_hide_no_row(
    column: dict[str, Any],
) -> None:
    assert found({**GOOD, **column}) == Understood(
        Row(ASKED, "tell"), "prompt, completion", True, True
    )
    refused({**GOOD, **column}, lenient=False)


def test_tokens_that_fit_are_kept() -> None:
    row = Row(ASKED, "tell", (5, 2), "stop", {"teacher": "steer"})
    value = {
        **GOOD,
        "row_id": row.row_id,
        "completion_ids": [5, 2],
        "finish": "stop",
        "provenance": '{"teacher": "steer"}',
    }
    got = found(value)
    assert got == Understood(row, "prompt, completion", True, False)
    assert got.row.provenance == {"teacher": "steer"}
    # As CSV has them.
    texts = {**value, "completion_ids": "[5, 2]"}
    assert found(texts).row == row
    empty = dict.fromkeys(("completion_ids", "finish", "provenance", "row_id"), "")
    assert found({**GOOD, **empty}) == Understood(
        Row(ASKED, "tell"), "prompt, completion", True, False
    )


def test_a_kept_original_may_only_differ_where_others_cannot_read() -> None:
    value = {
        "prompt": "a\N{REPLACEMENT CHARACTER}",
        "completion": "tell",
        "undertow_original": '["a\\ud800", "tell"]',
    }
    assert found(value).row == Row((Message("user", "a\ud800"),), "tell")
    value["undertow_original"] = '["b\\ud800", "tell"]'
    error = refused(value, lenient=False)
    assert "'undertow_original' does not fit the row; got" in str(error)
    assert "expected 2 texts, the row's own; remove that column" in str(error)


# ---- faults are counted under few names


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({**GOOD, "completion": " \n"}, "empty completion"),
        ({**GOOD, "completion": "", "finish": "eos"}, "empty completion"),
        ({"messages": [USER]}, "'messages' does not end with an answer"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a message of 'messages' c"),
        ({"messages": {"role": ["user"], "content": []}}, "'messages' cannot be under"),
        (17, "not a row"),
    ],
)
def test_reasons(value: object, reason: str) -> None:
    assert refused(value).reason.startswith(reason)


def test_lists_nested_too_deeply() -> None:
    value: object = [USER, ANSWER]
    for _ in range(5_000):
        value = [value]
    error = refused(value)
    assert error.reason == "lists are nested too deeply"


def test_a_column_s_name_cannot_fill_a_screen() -> None:
    assert len(str(refused({"x" * 100_000: 1}))) < 500
