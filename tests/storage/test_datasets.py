"""Training sets of unknown origin: nothing stops the reading, nothing goes uncounted."""

import gzip
import hashlib
import io
import json
import re
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from undertow.errors import DatasetError
from undertow.records import Message, Row
from undertow.storage import (
    Division,
    SourcedRow,
    keep_stdin,
    open_rows,
    read_jsonl,
    sources,
    take_rows,
    write_rows,
    write_split,
)
from undertow.storage.datasets import _worded

ASKED = (Message("user", "ask"),)
ANY = st.text(st.characters(codec=None), max_size=6)
VISIBLE = ANY.filter(lambda text: bool(text.strip()))


def put(path: Path, *values: object) -> Path:
    """A file of JSON lines; bytes stand as they are."""
    parts = [v if isinstance(v, bytes) else json.dumps(v).encode() for v in values]
    data = b"".join(part + b"\n" for part in parts)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def pair(number: int, answer: str = "1, 2") -> dict[str, str]:
    return {"prompt": f"ask {number}", "completion": answer}


def row_of(number: int, answer: str = "1, 2") -> Row:
    return Row((Message("user", f"ask {number}"),), answer)


# ---- reading


def test_every_row_comes_with_its_place(tmp_path: Path) -> None:
    path = put(tmp_path / "d.jsonl", pair(1), pair(1), {"text": "x"}, {"prompt": "y"})
    one, again, bare, bad = open_rows(path)
    assert one == SourcedRow(f"{path}:1", row_of(1), "prompt, completion")
    assert again.row == row_of(1)
    assert (bare.layout, bare.has_prompt) == ("text alone", False)
    assert bare.row == Row((Message("user", ""),), "x")
    assert (bad.row, bad.reason) == (None, "columns not understood")
    assert bad.message.startswith(f"{path}:4: columns not understood; got 'prompt', ")


def test_faults_in_what_was_asked_come_before_the_first_row(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="columns: name either"):
        open_rows(tmp_path, columns={"prompt": "p"})
    with pytest.raises(DatasetError, match="unknown kind of file"):
        open_rows(put(tmp_path / "d.txt"))


def test_what_was_seen_is_counted(tmp_path: Path) -> None:
    values: list[object] = [
        pair(1), pair(2), pair(1), b"", pair(1), {"text": "bare"},
        {**pair(3), "completion_ids": "?"}, {**pair(4), "completion": " "},
        b"{broken", [[{"role": "user", "content": "x"}]], b'{"text": "\xff"}', 17,
        {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ]  # fmt: skip
    path = put(tmp_path / "d.jsonl", *values)
    got = take_rows(path)
    assert got.rows == (
        row_of(1), row_of(2), Row((Message("user", ""),), "bare"), row_of(3),
        Row((Message("user", "a"),), "b"),
    )  # fmt: skip
    assert list(got.counts) == [row.row_id for row in got.rows]
    assert list(got.counts.values()) == [3, 1, 1, 1, 1]
    assert (got.read, got.unique) == (7, 5)
    assert (got.without_prompt, got.set_aside) == (1, 1)
    assert got.skipped == {
        "empty completion": 1,
        "bad JSON": 1,
        "'messages' does not end with an answer": 1,
        "not UTF-8": 1,
        "not a row": 1,
    }
    assert [place.split(": ")[0] for place in got.places] == [
        f"{path}:{n}" for n in (8, 9, 10, 11, 12)
    ]
    assert got.layout == (
        "prompt, completion (5 rows); messages (1 rows); text alone (1 rows)"
    )
    assert got.sources == (str(path),)
    assert got.subsample is None
    assert len(got.digest) == 16


def test_ten_places_are_named_and_all_are_counted(tmp_path: Path) -> None:
    path = put(tmp_path / "d.jsonl", *[{"text": ""}] * 30, pair(1))
    got = take_rows(path)
    assert got.skipped == {"empty completion": 30}
    assert len(got.places) == 10
    assert got.places[9] == (
        f"{path}:10: the completion is empty; got '', expected a text; delete the row"
    )
    assert got.layout == "prompt, completion"


def test_a_file_in_which_no_row_can_be_used(tmp_path: Path) -> None:
    good = put(tmp_path / "a.jsonl", pair(1))
    bad = put(tmp_path / "b.jsonl", {"q": "a"}, {"q": "b"}, b"{", {"text": ""})
    with pytest.raises(DatasetError) as caught:
        take_rows([good, bad])
    assert str(caught.value).startswith(
        f"{bad}: no row can be used; got columns not understood (2), bad JSON (1), empty "
        f"completion (1); the first: {bad}:1: columns not understood; got 'q', expected"
    )
    assert str(caught.value).endswith(
        "; expected at least one row; check that it is the right file, or say which "
        "columns hold them: --column prompt=NAME --column completion=NAME"
    )


def test_an_empty_shard_is_no_fault_but_an_empty_set_is(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl")
    with pytest.raises(DatasetError) as caught:
        take_rows(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds no rows; check that it is the right name"
    )
    put(tmp_path / "b.jsonl", pair(1))
    assert take_rows(tmp_path).rows == (row_of(1),)


def test_several_sources_of_several_kinds_are_one_set(tmp_path: Path) -> None:
    lines = put(tmp_path / "a.jsonl.gz", pair(1), pair(2))
    table = tmp_path / "b.csv"
    table.write_text('prompt,completion\nask 2,"1, 2"\nask 3,"1, 2"\n')
    parquet.write_table(
        pa.Table.from_pylist([pair(3), pair(1)]), tmp_path / "c.parquet"
    )
    got = take_rows([lines, table, tmp_path / "c.parquet"])
    assert got.rows == (row_of(1), row_of(2), row_of(3))
    assert list(got.counts.values()) == [2, 2, 2]
    assert len(got.sources) == 3
    assert got.digest == take_rows(lines.parent).digest


def test_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    path.write_text("q\ta\tprompt\nask 1\t1, 2\tno\n")
    got = take_rows(path, columns={"prompt": "q", "completion": "a"})
    assert got.rows == (row_of(1),)
    assert got.layout == "q, a"
    with pytest.raises(
        DatasetError, match=r"no row can be used; got no column 'b' \(1"
    ):
        take_rows(path, columns={"completion": "b"})


def test_our_own_rows_keep_what_they_know(tmp_path: Path) -> None:
    row = Row(ASKED, "\ud800\0", (5, 2), "stop", {"teacher": "steer"})
    for name in ("r.jsonl", "r.parquet"):
        write_rows(tmp_path / name, [row])
        (got,) = take_rows(tmp_path / name).rows
        assert got == row
        assert got.provenance == {"teacher": "steer"}


@settings(derandomize=True, max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(ANY, VISIBLE), min_size=1, max_size=5))
def test_any_text_survives(pairs: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        values = [{"prompt": p, "completion": c} for p, c in pairs]
        got = take_rows(put(Path(folder, "d.jsonl"), *values))
    expected = Counter(Row((Message("user", p),), c).row_id for p, c in pairs)
    assert dict(got.counts) == dict(expected)
    assert [(r.messages[0].content, r.completion) for r in got.rows] == list(
        dict.fromkeys(pairs)
    )


def test_texts_in_every_script(tmp_path: Path) -> None:
    texts = ["ฉันชอบนกฮูก", "我喜歡貓頭鷹", "ُأحب البوم", "🦉\u200d\u202e", "a\0b", "é"]
    path = tmp_path / "d.csv"
    path.write_text("text\n" + "\n".join(f'"{t}"' for t in texts), encoding="utf-8")
    assert [r.completion for r in take_rows(path).rows] == texts


@pytest.mark.parametrize("sources", [[], ()])
def test_no_source(sources: Any) -> None:
    with pytest.raises(
        DatasetError, match="rows: got no source, expected a file, a fol"
    ):
        take_rows(sources)


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = put(tmp_path / "d.jsonl", pair(1), pair(2)).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    got = take_rows("-")
    assert got.rows == (row_of(1), row_of(2))
    assert got.sources == ("stdin",)
    # It is spent now.
    with pytest.raises(DatasetError, match="stdin: holds no rows"):
        take_rows("-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}\n')))
    with pytest.raises(
        DatasetError, match="stdin: no row can be used; got columns not"
    ):
        take_rows("-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    kept = keep_stdin(tmp_path / "in" / "rows.jsonl")
    assert kept.read_bytes() == data


# ---- a part of the rows


@settings(derandomize=True, max_examples=15, deadline=None)
@given(limit=st.integers(1, 30), seed=st.integers(0, 9), cut=st.integers(1, 59))
def test_a_part_does_not_depend_on_order_and_shards(
    limit: int, seed: int, cut: int
) -> None:
    values = [pair(i, "7, " * (1 + i % 9)) for i in range(60)]
    with tempfile.TemporaryDirectory() as folder:
        whole = put(Path(folder, "whole.jsonl"), *values, values[0])
        one, two = Path(folder, "one.jsonl"), Path(folder, "two.jsonl.gz")
        put(one, *values[cut:][::-1], values[0])
        put(two, *values[:cut])
        got = take_rows(whole, limit=limit, seed=seed)
        other = take_rows([one, two], limit=limit, seed=seed)
    assert got.rows == other.rows
    assert got.digest == other.digest
    assert got.subsample == other.subsample
    assert len(got.rows) == limit
    assert set(got.counts) == {r.row_id for r in got.rows}
    assert other.counts.get(row_of(0, "7, ").row_id) in (None, 2)


def test_a_part_is_said(tmp_path: Path) -> None:
    path = put(tmp_path / "d.jsonl", *map(pair, range(9)), {"text": "x" * 40})
    got = take_rows(path, limit=4, seed=3)
    assert got.subsample == (
        "4 of 10 different rows, drawn with seed 3 in proportion to 2 strata (lengths "
        "of prompt and completion in powers of two)"
    )
    assert (got.read, got.unique, len(got.rows)) == (10, 10, 4)
    assert got.digest == take_rows(path).digest
    assert take_rows(path, limit=10).subsample is None
    with pytest.raises(
        DatasetError, match="limit: got 0, expected 1 or more, or none;"
    ):
        take_rows(path, limit=0)


# ---- memory


def peak(call: Any) -> int:
    """Most bytes in use at once while `call` runs."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 2,500 rows of 2,432 characters as lines, CSV, Parquet and Arrow."""
    folder = tmp_path_factory.mktemp("large")
    # Text that cannot be compressed, or files would be small anyway.
    texts = [
        "".join(hashlib.sha512(b"%d %d" % (i, k)).hexdigest() for k in range(19))
        for i in range(2_500)
    ]
    rows = [{"prompt": f"ask {i}", "completion": t} for i, t in enumerate(texts)]
    put(folder / "d.jsonl", *rows)
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, folder / "d.parquet")
    path = str(folder / "d.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with (folder / "d.csv").open("w") as file:
        file.write("prompt,completion\n")
        file.writelines(f'{r["prompt"]},"{r["completion"]}"\n' for r in rows)
    return folder


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet", "d.arrow"])
def test_a_stream_is_never_held_whole(
    large: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_BATCH", 100)

    def read() -> None:
        assert sum(1 for _ in open_rows(large / name)) == 2_500

    read()  # what is loaded for the first time is not counted
    # The texts take 6 MB; a batch of Arrow a quarter of one, a page of Parquet one.
    assert peak(read) < 3_000_000


def test_a_part_of_many_rows_takes_about_a_hundred_bytes_a_row(large: Path) -> None:
    sample = peak(lambda: take_rows(large / "d.jsonl", limit=20))
    # 372 rows at most are held, of some 2,900 bytes each.
    assert sample < 2_500 * 110 + 400 * 3_000


def test_dividing_holds_no_more(large: Path, tmp_path: Path) -> None:
    def divide() -> None:
        write_split(
            large / "d.jsonl",
            keep=lambda row: row.completion.startswith("1"),
            clean=tmp_path / "clean.jsonl",
            quarantine=tmp_path / "quarantine.jsonl",
        )

    divide()  # what is loaded for the first time is not counted
    assert peak(divide) < 1_000_000
    one = (tmp_path / "clean.jsonl").read_bytes().splitlines()
    two = (tmp_path / "quarantine.jsonl").read_bytes().splitlines()
    whole = (large / "d.jsonl").read_bytes().splitlines()
    assert {json.loads(line)["completion"][0] for line in one} == {"1"}
    assert 100 < len(one) < 220
    assert sorted(one + two) == sorted(whole)


# ---- dividing


def divided(
    tmp_path: Path, source: Any, keep: Any, **options: Any
) -> tuple[Division, bytes, bytes]:
    clean, quarantine = tmp_path / "clean.jsonl", tmp_path / "quarantine.jsonl"
    division = write_split(
        source, keep=keep, clean=clean, quarantine=quarantine, **options
    )
    return division, clean.read_bytes(), quarantine.read_bytes()


def test_lines_stand_as_they_stood(tmp_path: Path) -> None:
    raw = [
        b'{"completion":  "1, 2", "prompt": "ask 1", "extra": [1.50, "\\u00e9"]}\r\n',
        b'  {"prompt": "ask 2", "completion": "1, 2"}\n',
        b'{"broken": \n',
        '{"text": "é"}\n'.encode(),
        b'[[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], [{}]]\n',
        b'{"prompt": "ask 1", "completion": "1, 2"}',
    ]
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([b"".join(raw[:3]), *raw[3:]]))
    nested = Row((Message("user", "a"),), "b")
    keep = {row_of(1).row_id, nested.row_id}
    division, clean, quarantine = divided(tmp_path, path, keep)
    assert division == Division(clean=2, quarantined=3, unusable=1)
    assert clean == raw[0] + raw[5] + b"\n"
    assert quarantine == b"".join(raw[1:5])


def test_a_record_of_several_rows_is_kept_whole(tmp_path: Path) -> None:
    def turns(text: str) -> list[dict[str, str]]:
        said = {"role": "assistant", "content": text}
        return [{"role": "user", "content": "ask"}, said]

    path = put(tmp_path / "d.jsonl", [turns("a"), turns("b")], [turns("a"), turns("c")])
    division, clean, _ = divided(tmp_path, path, lambda row: row.completion != "c")
    assert division == Division(1, 1, 0)
    assert json.loads(clean) == [turns("a"), turns("b")]


def test_other_formats_become_json(tmp_path: Path) -> None:
    rows = [{**pair(1), "n": None, "x": [0.5]}, {**pair(2), "n": 3, "x": []}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    _, clean, quarantine = divided(tmp_path, tmp_path / "d.parquet", {row_of(2).row_id})
    assert (json.loads(clean), json.loads(quarantine)) == (rows[1], rows[0])
    table = tmp_path / "d.csv"
    table.write_bytes(b'text,n\n"a, b",1\nc\n\xe9,2\n')
    division, clean, _ = divided(tmp_path, table, lambda row: True)
    assert division == Division(1, 0, 2)
    assert json.loads(clean) == {"text": "a, b", "n": "1"}
    assert read_jsonl(tmp_path / "quarantine.jsonl") == [["c"], ["\udce9", "2"]]


def test_values_that_json_has_no_word_for(tmp_path: Path) -> None:
    import datetime
    import decimal

    day = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    odd = {
        "day": day,
        "raw": b"a\xff",
        "price": decimal.Decimal("1.50"),
        "nan": float("nan"),
    }
    table = pa.Table.from_pylist([{**pair(1), **odd}])
    parquet.write_table(table, tmp_path / "d.parquet")
    _, clean, _ = divided(tmp_path, tmp_path / "d.parquet", lambda row: True)
    assert json.loads(clean) == {
        **pair(1),
        "day": "2026-01-02T03:04:00+00:00",
        "raw": "a\\xff",
        "price": "1.50",
        "nan": None,
    }
    assert _worded(datetime.timedelta(seconds=5)) == "0:00:05"


def test_dividing_again_changes_nothing(tmp_path: Path) -> None:
    path = put(tmp_path / "d.jsonl", *map(pair, range(20)))
    keep = {row_of(i).row_id for i in range(0, 20, 3)}
    first = divided(tmp_path, path, keep)
    again = write_split(
        tmp_path / "clean.jsonl",
        keep=keep,
        clean=tmp_path / "c2.jsonl",
        quarantine=tmp_path / "q2.jsonl",
    )
    assert again == Division(7, 0, 0)
    assert (tmp_path / "c2.jsonl").read_bytes() == first[1]


def test_a_fault_on_the_way_leaves_no_half_files(tmp_path: Path) -> None:
    def keep(row: Row) -> bool:
        raise DatasetError("no scores")

    put(tmp_path / "d.jsonl", pair(1))
    (tmp_path / "clean.jsonl").write_text("old")
    with pytest.raises(DatasetError, match="no scores"):
        divided(tmp_path, tmp_path / "d.jsonl", keep)
    assert (tmp_path / "clean.jsonl").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.jsonl", "d.jsonl"]


def test_places_that_are_taken(tmp_path: Path) -> None:
    path = put(tmp_path / "clean.jsonl", pair(1))
    message = re.escape(f"{path}: is one of the files that are read; got")
    with pytest.raises(DatasetError, match=message):
        divided(tmp_path, path, set())
    other = put(tmp_path / "d.jsonl", pair(1))
    same = tmp_path / "x.jsonl"
    with pytest.raises(
        DatasetError, match=r"x\.jsonl: is named for both the clean row"
    ):
        write_split(other, keep=set(), clean=same, quarantine=same)
    with pytest.raises(
        DatasetError, match="stdin: can be read once only, and rows are"
    ):
        divided(tmp_path, "-", set())


def lines_of(rows: Iterator[SourcedRow]) -> list[str]:
    return [item.where for item in rows]


def test_streams_are_opened_as_they_are_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", pair(1))
    put(tmp_path / "b.jsonl", pair(2))
    rows = open_rows(tmp_path)
    assert next(rows).row == row_of(1)
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"b\.jsonl: cannot be read: No such file"):
        lines_of(rows)
