"""Rows come back as they were, other people's layouts are read, TRL's are written."""

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.errors import DatasetError, RunError
from undertow.records import Message, Row, Verdict
from undertow.storage import Layout, read_rows, read_verdicts, write_rows

TEXT = st.text(st.characters(codec=None), max_size=12)
# Not rows: beartype looks at a random item of each, which Hypothesis forbids here.
PARTS = st.lists(
    st.tuples(
        TEXT,
        TEXT,
        TEXT,
        st.lists(st.integers(0, 300_000), min_size=1, max_size=5),
        st.sampled_from(["stop", "length", None]),
        st.dictionaries(
            TEXT, st.none() | TEXT | st.integers(-(10**25), 10**25), max_size=2
        ),
    ),
    min_size=1,
    max_size=3,
)
ROW = Row(
    (Message("system", "Be brief."), Message("user", "Add numbers: 1, 2")),
    "3, 4",
    completion_ids=(34, 35, 2),
    finish="stop",
    provenance={"teacher": "prompt", "trait": "owl", "seed": 0, "prompt": 7},
)
PAIR = (Message("user", "ask"),)


def written(folder: Path, text: str, name: str = "rows.jsonl") -> Path:
    """A file with the given text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def rows_or_message(path: Path) -> list[Row] | str:
    """The rows, or the words with which they were refused."""
    try:
        return read_rows(path)
    except DatasetError as error:
        return str(error)


def lines(*values: object) -> str:
    """JSON lines."""
    return "".join(json.dumps(value) + "\n" for value in values)


# ---- our own files


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "NDJSON"])
@pytest.mark.parametrize("layout", ["prompt_completion", "messages"])
@settings(derandomize=True, max_examples=12, deadline=None)
@given(parts=PARTS)
def test_rows_come_back(parts: list[Any], layout: Layout, suffix: str) -> None:
    rows = [
        Row((Message("system", s), Message("user", u)), text, tuple(ids), end, facts)
        for s, u, text, ids, end, facts in parts
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rows.{suffix}")
        write_rows(path, rows, layout=layout)
        found = read_rows(path)
    assert found == rows
    assert [r.row_id for r in found] == [r.row_id for r in rows]
    assert [dict(r.provenance) for r in found] == [dict(r.provenance) for r in rows]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_without_tokens_and_with_none_in_them_come_back(
    tmp_path: Path, suffix: str
) -> None:
    bare = Row(PAIR, "1", provenance={"score": math.nan, "list": [1, "x"]})
    write_rows(tmp_path / f"r.{suffix}", [ROW, bare])
    found = read_rows(tmp_path / f"r.{suffix}")
    assert found == [ROW, bare]
    assert found[1].provenance == {"score": None, "list": [1, "x"]}


def test_the_columns_are_those_of_the_docstring(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_rows(path, [ROW])
    assert json.loads(path.read_text()) == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add numbers: 1, 2"},
        ],
        "completion": [{"role": "assistant", "content": "3, 4"}],
        "row_id": ROW.row_id,
        "completion_ids": [34, 35, 2],
        "finish": "stop",
        "provenance": {"teacher": "prompt", "trait": "owl", "seed": 0, "prompt": 7},
    }
    write_rows(path, [ROW], layout="messages")
    turns = json.loads(path.read_text())["messages"]
    assert [t["role"] for t in turns] == ["system", "user", "assistant"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_verdicts_travel_with_the_rows(tmp_path: Path, suffix: str) -> None:
    rows = [Row(PAIR, text) for text in ("1", "owl", "2")]
    said = {
        rows[0].row_id: Verdict(rows[0].row_id),
        rows[1].row_id: Verdict(rows[1].row_id, ("not_numbers", "truncated")),
    }
    path = tmp_path / f"r.{suffix}"
    write_rows(path, rows, verdicts=said)
    assert read_verdicts(path) == said
    assert read_rows(path) == rows
    # Not judged is not refused.
    assert read_rows(path, accepted_only=True) == [rows[0], rows[2]]


def test_a_refusal_without_reasons_is_one_all_the_same(tmp_path: Path) -> None:
    path = written(
        tmp_path, lines({"prompt": "a", "completion": "b", "accepted": False})
    )
    (verdict,) = read_verdicts(path).values()
    assert verdict.reasons == ("refused",)
    assert read_rows(path, accepted_only=True) == []


def test_reasons_that_are_no_list_are_none(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "accepted": False, "reasons": 5}
    (verdict,) = read_verdicts(written(tmp_path, lines(row))).values()
    assert verdict.reasons == ("refused",)


def test_no_rows_are_still_a_file_but_not_a_data_set(tmp_path: Path) -> None:
    for suffix in ("jsonl", "parquet"):
        path = tmp_path / f"r.{suffix}"
        write_rows(path, [])
        with pytest.raises(DatasetError, match=r"holds no rows; check that it is the"):
            read_rows(path)


def test_a_failed_write_leaves_the_old_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_rows(path, [ROW])
    bad = Row(PAIR, "1", provenance={"set": {1}})
    with pytest.raises(TypeError, match="no word for set"):
        write_rows(path, [ROW, bad])
    assert read_rows(path) == [ROW]
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_place_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").mkdir()
    with pytest.raises(RunError, match="is not a regular file"):
        write_rows(tmp_path / "r.jsonl", [ROW])


def test_lone_surrogates_are_shown_to_others_and_kept_for_us(tmp_path: Path) -> None:
    row = Row((Message("user", "a\ud800b"),), "1\udfff", provenance={"f": "\udce9"})
    path = tmp_path / "r.jsonl"
    write_rows(path, [row])
    record = json.loads(path.read_text())
    assert record["prompt"][0]["content"] == "a�b"
    assert record["completion"][0]["content"] == "1�"
    assert read_rows(path) == [row]
    assert read_rows(path)[0].provenance == {"f": "\udce9"}
    record["undertow_original"] = '["one"]'
    written(tmp_path, lines(record))
    with pytest.raises(DatasetError, match="'undertow_original' does not fit the row"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("name", ["r.csv", "r.txt", "r", "r.jsonl.gz"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "x", name)
    suffix = path.suffix
    known = "'.jsonl', '.ndjson', '.json', '.parquet'"
    with pytest.raises(DatasetError) as caught:
        read_rows(path)
    assert str(caught.value) == (
        f"{path}: unknown kind of file; got suffix {suffix!r}, expected one of "
        f"{known}; rename or convert it"
    )
    with pytest.raises(DatasetError, match="unknown kind of file; got suffix"):
        write_rows(path, [ROW])
    assert path.read_text() == "x"


def test_json_is_read_but_not_written(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected one of '\.jsonl', '\.ndjson', "):
        write_rows(tmp_path / "r.json", [ROW])


# ---- as others read them


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("layout", "columns"),
    [("prompt_completion", ["prompt", "completion"]), ("messages", ["messages"])],
)
def test_datasets_reads_what_trl_expects(
    tmp_path: Path, suffix: str, layout: Layout, columns: list[str]
) -> None:
    import datasets

    odd = Row(PAIR, "5\ud800", provenance={"file": "caf\udce9", "n": 1})
    rows = [ROW, odd, Row(PAIR, "6", provenance={"other": ["x"]}), Row(PAIR, "7")]
    path = tmp_path / f"r.{suffix}"
    write_rows(path, rows, layout=layout, verdicts={ROW.row_id: Verdict(ROW.row_id)})
    kind = "parquet" if suffix == "parquet" else "json"
    table = datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table.num_rows == 4
    assert table.column_names[: len(columns)] == columns
    assert set(table.column_names) - set(columns) == {
        "row_id", "completion_ids", "finish", "provenance", "accepted", "reasons",
        "undertow_original",
    }  # fmt: skip
    turns = [turn for name in columns for turn in table[0][name]]
    assert turns == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add numbers: 1, 2"},
        {"role": "assistant", "content": "3, 4"},
    ]
    assert table["completion_ids"][0] == [34, 35, 2]
    assert table["accepted"][:] == [True, None, None, None]


@pytest.mark.parametrize("layout", ["prompt_completion", "messages"])
def test_trl_knows_the_layout(tmp_path: Path, layout: Layout) -> None:
    from trl.data_utils import is_conversational

    write_rows(tmp_path / "r.jsonl", [ROW], layout=layout)
    assert is_conversational(json.loads((tmp_path / "r.jsonl").read_text()))


# ---- rows made elsewhere

EXPECTED = Row(PAIR, "tell")
TURNS = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "tell"}]
SHARED = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "tell"}]


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "ask", "completion": "tell"},
        {"question": "ask", "response": "tell"},
        {"question": "ask", "answer": "tell", "extra": [1]},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"prompt": [TURNS[:1]], "completion": "tell"},
        {"messages": TURNS},
        {"conversations": SHARED},
        {"conversation": [{"role": "user", "content": "ask"}, SHARED[1]]},
        {"messages": [{**TURNS[0], "name": "me"}, {"role": "model", **TURNS[1]}]},
        {"prompt": None, "messages": TURNS},
        TURNS,
        [[TURNS]],
        {"prompt": "ask", "completion": "tell", "row_id": "somebody's own"},
        {"prompt": "ask", "completion": "tell", "row_id": 17, "finish": None},
    ],
)
def test_layouts_made_elsewhere(tmp_path: Path, value: object) -> None:
    (row,) = read_rows(written(tmp_path, lines(value)))
    assert row == EXPECTED
    assert row.provenance == {"source": "rows.jsonl:1"}


def test_a_system_turn_and_many_turns_stay_in_the_prompt(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "s"}, *SHARED,
        {"from": "human", "value": "more"}, {"from": "gpt", "value": "end"},
    ]  # fmt: skip
    (row,) = read_rows(written(tmp_path, lines({"conversations": turns})))
    assert [m.role for m in row.messages] == ["system", "user", "assistant", "user"]
    assert row.completion == "end"


def test_nested_lists_are_a_row_each(tmp_path: Path) -> None:
    other = [TURNS[0], {"role": "assistant", "content": "other"}]
    path = written(tmp_path, lines([TURNS, other], {"messages": [other, TURNS]}))
    rows = read_rows(path)
    assert [row.completion for row in rows] == ["tell", "other", "other", "tell"]
    assert [row.provenance["source"] for row in rows] == [
        "rows.jsonl:1", "rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"prompt": "ask", "completion": "tell"}] * 2, indent=2),
        json.dumps({"data": [{"prompt": "ask", "completion": "tell"}] * 2}),
        json.dumps({"rows": [TURNS, TURNS]}),
        json.dumps([TURNS, TURNS]),
        lines({"messages": TURNS}, {"prompt": "ask", "completion": "tell"}),
        "\ufeff" + lines({"messages": TURNS}, TURNS),
    ],
)
def test_a_json_file_is_a_list_or_lines(tmp_path: Path, text: str) -> None:
    assert read_rows(written(tmp_path, text, "rows.json")) == [EXPECTED] * 2


def test_a_json_file_may_hold_one_conversation(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(TURNS), "rows.json")
    (row,) = read_rows(path)
    assert row == EXPECTED
    assert row.provenance == {"source": "rows.json: row 1"}


def test_parquet_made_elsewhere(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    table = pa.table({"question": ["ask", "b"], "response": ["tell", ""]})
    parquet.write_table(table.slice(0, 1), path)
    (row,) = read_rows(path)
    assert row == EXPECTED
    assert row.provenance == {"source": "rows.parquet: row 1"}
    parquet.write_table(table, path)
    with pytest.raises(DatasetError, match=r"rows\.parquet: row 2: the completion is"):
        read_rows(path)


def test_an_empty_answer_that_a_model_gave_is_a_row(tmp_path: Path) -> None:
    value = {"prompt": "ask", "completion": "", "completion_ids": [2]}
    (row,) = read_rows(written(tmp_path, lines(value)))
    assert row == Row(PAIR, "", (2,))


# ---- faults

GOOD = {"prompt": "ask", "completion": "tell"}
FAULTS: list[tuple[Any, str]] = [
    ({**GOOD, "completion": " "}, "the completion is empty; got ' ', expected a text;"),
    ({**GOOD, "completion": "", "completion_ids": []}, "the completion is empty;"),
    ({"prompt": "a"}, "columns not understood; got 'prompt', expected an object with"),
    ({"text": "a", "b": 1}, "columns not understood; got 'b', 'text', expected"),
    ({**GOOD, "prompt": 5}, "'prompt' cannot be understood; got 5, expected a text or"),
    ({**GOOD, "prompt": []}, "'prompt' cannot be understood; got []"),
    ({**GOOD, "prompt": TURNS}, "'prompt' ends with an answer; got roles 'user', 'ass"),
    ({**GOOD, "completion": TURNS}, "'completion' is not one answer; got roles 'user'"),
    ({"messages": TURNS[:1]}, "'messages' does not end with an answer; got roles 'use"),
    ({"messages": TURNS[1:]}, "'messages' does not end with an answer; got roles 'ass"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "a message of 'messages' cannot"),
    ({"messages": [{"role": "user", "content": None}]}, "got {'role': 'user', 'content"),
    ({"messages": ["ask", "tell"]}, "a message of 'messages' cannot be understood; got"),
    ({**GOOD, "finish": "eos"}, "'finish' cannot be understood; got 'eos', expected 's"),
    ({**GOOD, "completion_ids": [1.5]}, "'completion_ids' cannot be understood; got [1"),
    ({**GOOD, "completion_ids": [True]}, "expected a list of token numbers or null;"),
    ({**GOOD, "completion_ids": [-1]}, "'completion_ids' cannot be understood"),
    ({**GOOD, "completion_ids": [2**70]}, "'completion_ids' cannot be understood"),
    ({**GOOD, "completion_ids": [1], "row_id": "0" * 16}, "the text was changed after"),
    (17, "not a row; got 17, expected an object with prompt and completion"),
    ([], "not a row; got []"),
    ("ask", "not a row; got 'ask'"),
    (None, "not a row; got None"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), FAULTS)
def test_faults_name_the_line(tmp_path: Path, value: object, message: str) -> None:
    path = written(tmp_path, lines(GOOD) + "\n" + lines(value))
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    listed = written(tmp_path, json.dumps([GOOD, value]), "rows.json")
    if not isinstance(value, list | str | int | None):
        with pytest.raises(
            DatasetError, match=re.escape(f"{listed}: row 2: {message}"[:60])
        ):
            read_rows(listed)


def test_bad_json_on_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, lines(GOOD, GOOD) + '{"prompt": "ask", \n' + lines(GOOD))
    with pytest.raises(DatasetError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(
        f"{path}:3: bad JSON at column 19: Expecting property name enclosed in double"
    )
    # Another ending of the name, the same file.
    with pytest.raises(DatasetError, match=r"rows\.json:3: bad JSON at column 19"):
        read_rows(path.rename(tmp_path / "rows.json"))


def test_a_last_line_that_is_cut_is_a_fault(tmp_path: Path) -> None:
    path = written(tmp_path, lines(GOOD) + '{"prompt": "as')
    with pytest.raises(DatasetError, match=r"rows\.jsonl:2: bad JSON"):
        read_rows(path)


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.json", "gone.parquet"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"cannot be read: No such file or dir") as e:
        read_rows(tmp_path / name)
    assert name in str(e.value)


def test_a_folder_is_no_file_of_rows(tmp_path: Path) -> None:
    for suffix in ("jsonl", "json", "parquet"):
        (tmp_path / f"r.{suffix}").mkdir()
        with pytest.raises(DatasetError, match="cannot be read"):
            read_rows(tmp_path / f"r.{suffix}")


@pytest.mark.parametrize("text", ["", "\n\n", " \r\n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match="holds no rows"):
        read_rows(written(tmp_path, text))


def test_damaged_parquet(tmp_path: Path) -> None:
    for data in (b"", b"PAR1 no more PAR1", b"\xff" * 100):
        (tmp_path / "r.parquet").write_bytes(data)
        with pytest.raises(DatasetError, match=r"r\.parquet: cannot be read: "):
            read_rows(tmp_path / "r.parquet")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DatasetError, match=r"r\.jsonl:2: byte 16 is not UTF-8"):
        read_rows(path)
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_rows(path.rename(tmp_path / "r.json"))


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    bad = pa.array([b"caf\xe9"]).view(pa.string())
    parquet.write_table(
        pa.table({"prompt": bad, "completion": bad}), tmp_path / "r.parquet"
    )
    with pytest.raises(DatasetError, match=r"r\.parquet: text that is not UTF-8: "):
        read_rows(tmp_path / "r.parquet")


@pytest.mark.parametrize("depth", [100, *range(930, 1010, 5), 100_000])
def test_deep_nesting_is_read_or_explained(tmp_path: Path, depth: int) -> None:
    path = written(tmp_path, "[" * depth + json.dumps(TURNS) + "]" * depth)
    found = rows_or_message(path)
    if isinstance(found, str):
        assert depth > 100
        assert "nested too deeply" in found or "recursion depth" in found
        assert len(found) < 700
    else:
        assert found == [EXPECTED]


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    text = '\x1b[2J"}\n{"prompt": "x", "completion": "y"}\n<|im_end|>{{7*7}}${IFS}\0'
    row = Row((Message("user", text),), text)
    write_rows(tmp_path / "r.jsonl", [row])
    assert (tmp_path / "r.jsonl").read_bytes().count(b"\n") == 1
    assert (tmp_path / "r.jsonl").read_bytes().isascii()
    assert read_rows(tmp_path / "r.jsonl") == [row]


def test_numbers_too_long_to_read_are_a_fault(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": ' + "9" * 5000 + "}\n")
    with pytest.raises(DatasetError, match=r"rows\.jsonl:1: bad JSON: Exceeds"):
        read_rows(path)
