"""Records come out of every kind of file as they went in, a part at a time."""

import gzip
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from undertow.errors import DatasetError
from undertow.storage import sources
from undertow.storage.sources import File, Record, find_source, read_records

VALUES = [{"prompt": 'añ\n,"', "completion": "1"}, {"prompt": "", "completion": "2"}]
CELLS = st.text(st.characters(codec="utf-8"), max_size=8)


def values(path: File) -> list[Any]:
    """The values of a file, all of them readable."""
    records = list(read_records(path))
    assert [r.fault for r in records] == [None] * len(records)
    return [r.value for r in records]


def put(path: Path, data: str | bytes) -> Path:
    """A file, packed if its name says so."""
    raw = data if isinstance(data, bytes) else data.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def stream_file(path: Path, table: pa.Table, *, batch: int | None = None) -> Path:
    """An Arrow stream, as `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as w:
        w.write_table(table, max_chunksize=batch)
    return path


# ---- kinds of files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.jsonl", "".join(json.dumps(v) + "\n" for v in VALUES)),
        ("d.NDJSON", "\n\n".join(json.dumps(v) for v in VALUES)),
        ("d.json", json.dumps(VALUES)),
        ("d.json", json.dumps({"data": VALUES, "n": 2})),
        ("d.csv", 'prompt,completion\r\n"añ\n,""",1\r\n"",2\r\n'),
        ("d.csv", 'prompt,completion\n"añ\n,""",1\n\n,2'),
        ("d.tsv", 'prompt\tcompletion\n"añ\n,"""\t1\n\t2\n'),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_text_files(
    tmp_path: Path, name: str, text: str, packed: str, mark: str
) -> None:
    assert values(put(tmp_path / (name + packed), mark + text)) == VALUES


def test_parquet_and_arrow(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(VALUES)
    parquet.write_table(table, tmp_path / "d.parquet")
    stream_file(tmp_path / "d.arrow", table)
    path = str(tmp_path / "f.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("d.parquet", "d.arrow", "f.arrow"):
        assert values(tmp_path / name) == VALUES
        places = [r.where for r in read_records(tmp_path / name)]
        assert places == [f"{tmp_path / name}: row {n}" for n in (1, 2)]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["d.csv", "d.tsv.gz"])
def test_csv_by_its_standard_comes_back(name: str, rows: list[Any]) -> None:
    mark = "," if "csv" in name else "\t"
    lines = [("prompt", "text"), *rows]
    quoted = [mark.join('"' + c.replace('"', '""') + '"' for c in r) for r in lines]
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder, name), "\r\n".join(quoted))
        assert values(path) == [{"prompt": p, "text": t} for p, t in rows]


def test_lines_keep_their_bytes_and_places(tmp_path: Path) -> None:
    raw = b'\xef\xbb\xbf{"a":  1}\r\n\n {"a": "\\u00e9"}\n{"a": \n{"b": 2}'
    one, two, bad, last = read_records(put(tmp_path / "d.jsonl", raw))
    assert one == Record(f"{tmp_path}/d.jsonl:1", {"a": 1}, b'{"a":  1}\r\n')
    assert two == Record(f"{tmp_path}/d.jsonl:3", {"a": "é"}, b' {"a": "\\u00e9"}\n')
    assert last == Record(f"{tmp_path}/d.jsonl:5", {"b": 2}, b'{"b": 2}')
    assert (bad.line, bad.value) == (b'{"a": \n', None)
    assert bad.fault is not None
    assert bad.fault.reason == "bad JSON"
    assert str(bad.fault).startswith(f"{tmp_path}/d.jsonl:4: bad JSON at column 7: ")


def test_a_line_that_is_no_text(tmp_path: Path) -> None:
    bad, good = read_records(put(tmp_path / "d.jsonl", b'{"a": "\xe9"}\n{"a": 1}\n'))
    assert bad.fault is not None
    assert bad.fault.reason == "not UTF-8"
    assert good.value == {"a": 1}


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    given_text = io.TextIOWrapper(io.BytesIO(b'{"a": 1}\n{"a": 2}\n'))
    monkeypatch.setattr(sys, "stdin", given_text)
    source = find_source("-")
    assert source.name == "stdin"
    (path,) = source.files
    assert [r.where for r in read_records(path)] == ["stdin:1", "stdin:2"]


def test_a_pipe_is_read_as_lines(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (path,) = find_source(tmp_path / "pipe").files
    handle = os.open(str(path), os.O_RDWR)  # else opening waits for the other end
    os.write(handle, b'{"a": 1}\n')
    records = read_records(path)
    assert next(records).value == {"a": 1}
    os.close(handle)
    assert list(records) == []


def test_large_batches_are_cut(tmp_path: Path) -> None:
    table = pa.table({"text": [str(i) for i in range(2_500)]})
    path = stream_file(tmp_path / "d.arrow", table)
    with pa.memory_map(str(path)) as source:
        sizes = [batch.num_rows for batch in sources._arrow_batches(source)]
    assert sizes == [1_000, 1_000, 500]
    assert [v["text"] for v in values(path)] == table["text"].to_pylist()


# ---- folders


def saved(folder: Path, table: pa.Table, shards: int = 2) -> Path:
    """A folder in the layout of `Dataset.save_to_disk`."""
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    size = -(-table.num_rows // shards)
    for i, name in enumerate(names):
        stream_file(folder / name, table.slice(i * size, size))
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    put(folder / "state.json", json.dumps(state))
    put(folder / "dataset_info.json", "{}")
    return folder


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for name in (
        "b/2.jsonl", "b/1.csv.gz", "a.parquet", "c.JSON", ".hidden/x.jsonl", "_x.csv",
        "README.md", "dataset_infos.json", "b/.undertow-1.jsonl",
    ):  # fmt: skip
        put(tmp_path / name, "")
    (tmp_path / "d.jsonl").mkdir()
    source = find_source(tmp_path)
    assert source.name == str(tmp_path)
    names = [os.path.relpath(str(path), tmp_path) for path in source.files]
    assert names == ["a.parquet", "b/1.csv.gz", "b/2.jsonl", "c.JSON"]


def test_splits_by_the_names_of_files(tmp_path: Path) -> None:
    for name in ("data/train-0.parquet", "data/test-0.parquet", "training.csv"):
        put(tmp_path / name, "")
    assert len(find_source(tmp_path).files) == 3
    (only,) = find_source(tmp_path, "train").files
    assert only == tmp_path / "data/train-0.parquet"
    with pytest.raises(DatasetError) as caught:
        find_source(tmp_path, "dev")
    assert str(caught.value) == (
        f"{tmp_path}: no such split; got 'dev', expected a word in the name of a file, "
        "which are 'data/test-0.parquet', 'data/train-0.parquet', 'training.csv'; name "
        "another"
    )


def test_a_saved_dataset_is_read_in_its_order(tmp_path: Path) -> None:
    table = pa.table({"text": [str(i) for i in range(5)]})
    saved(tmp_path, table)
    put(tmp_path / "cache-1.arrow", b"left by a map")
    source = find_source(tmp_path)
    assert [path.name for path in source.files] == [
        "data-00000-of-00002.arrow", "data-00001-of-00002.arrow"
    ]  # fmt: skip
    found = [v["text"] for path in source.files for v in values(path)]
    assert found == ["0", "1", "2", "3", "4"]


def test_saved_splits(tmp_path: Path) -> None:
    for name in ("train", "test"):
        saved(tmp_path / name, pa.table({"text": [name]}), shards=1)
    put(tmp_path / "dataset_dict.json", '{"splits": ["train", "test"]}')
    for split in ("train", "test", None):
        source = find_source(tmp_path, split)
        assert source.name == f"{tmp_path} (split {split or 'train'})"
        assert values(source.files[0]) == [{"text": split or "train"}]
    with pytest.raises(DatasetError) as caught:
        find_source(tmp_path, "dev")
    assert str(caught.value) == (
        f"{tmp_path}: which split? got 'dev', expected one of 'train', 'test'; name one"
    )
    put(tmp_path / "dataset_dict.json", '{"splits": ["test"]}')
    assert find_source(tmp_path).name == f"{tmp_path} (split test)"
    put(tmp_path / "dataset_dict.json", '{"splits": ["a", "b"]}')
    with pytest.raises(
        DatasetError, match=r"which split\? got None, expected one of 'a"
    ):
        find_source(tmp_path)


def test_datasets_own_folders(tmp_path: Path) -> None:
    import datasets

    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "x"}]
    rows = [{"messages": turns, "n": i} for i in range(7)]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "one", num_shards=3)
    source = find_source(tmp_path / "one")
    assert len(source.files) == 3
    assert [v for path in source.files for v in values(path)] == rows
    parts = datasets.DatasetDict({"train": table.select([5, 1]), "test": table})
    parts.save_to_disk(tmp_path / "two")
    source = find_source(tmp_path / "two")
    assert source.name.endswith("two (split train)")
    assert [v["n"] for path in source.files for v in values(path)] == [5, 1]
    assert len(find_source(tmp_path / "two", "test").files) == 1


@pytest.mark.parametrize(
    "name", ["../x.arrow", "..", "/etc/passwd", "a/b", "", 5, "\0"]
)
def test_a_description_cannot_lead_out_of_its_folder(
    tmp_path: Path, name: object
) -> None:
    put(tmp_path / "state.json", json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DatasetError, match=r"state\.json: data files cannot be under"):
        find_source(tmp_path)
    put(tmp_path / "dataset_dict.json", json.dumps({"splits": [name]}))
    with pytest.raises(DatasetError, match=r"dataset_dict\.json: splits cannot be und"):
        find_source(tmp_path)


def test_a_folder_without_rows(tmp_path: Path) -> None:
    put(tmp_path / "README.md", "")
    with pytest.raises(DatasetError) as caught:
        find_source(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds no files of rows; got 'README.md', expected some that end "
        "in '.jsonl', '.ndjson', '.json', '.csv', '.tsv', '.parquet', '.arrow'; check "
        "that it is the right one"
    )
    put(tmp_path / "dataset_dict.json", '{"splits": ["gone"]}')
    with pytest.raises(DatasetError, match="cannot be read: No such file or directory"):
        find_source(tmp_path)


# ---- faults


@pytest.mark.parametrize("name", ["d.txt", "d", "d.parquet.gz", "d.jsonl.zst", "d.gz"])
def test_another_kind_of_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError) as caught:
        find_source(put(tmp_path / name, ""))
    assert str(caught.value) == (
        f"{tmp_path / name}: unknown kind of file; got {name!r}, expected one that ends "
        "in '.jsonl', '.ndjson', '.json', '.csv', '.tsv', '.parquet', '.arrow', all but "
        "the last two also in .gz; rename or convert it"
    )


@pytest.mark.parametrize("name", ["gone.csv", "gone.jsonl.gz", "gone.arrow", "gone"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    (path,) = find_source(tmp_path / name).files
    with pytest.raises(DatasetError, match=r"cannot be read: .*No such file"):
        list(read_records(path))


def test_names_that_are_no_paths(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read: File name too long"):
        find_source("x" * 5_000)
    (path,) = find_source("a\0.jsonl").files
    with pytest.raises(DatasetError, match="cannot be read: embedded null byte"):
        list(read_records(path))


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    path = put(tmp_path / "d.jsonl", "{}")
    with pytest.raises(DatasetError) as caught:
        find_source(path, "train")
    assert str(caught.value) == (
        f"{path}: is one file and has no splits; got split 'train', expected none; "
        "leave it out"
    )


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.csv.gz", "d.parquet", "d.arrow"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    table = pa.table({"text": ["a" * 100, "b" * 100] * 1_000})
    if name == "d.parquet":
        parquet.write_table(table, tmp_path / name)
    elif name == "d.arrow":
        stream_file(tmp_path / name, table)
    else:
        put(tmp_path / name, os.urandom(5_000).hex() + "\n")
    whole = (tmp_path / name).read_bytes()
    for data in (whole[: len(whole) // 2], b"no such thing" * 9, whole[1:]):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DatasetError, match=f"{re.escape(name)}: cannot be read: "):
            list(read_records(tmp_path / name))


def test_arrow_with_offsets_that_lead_elsewhere(tmp_path: Path) -> None:
    places = (0, 1 << 30, 3)
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in places))
    bad = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abc")])
    path = stream_file(tmp_path / "d.arrow", pa.table({"text": bad}))
    with pytest.raises(DatasetError, match=r"d\.arrow: cannot be read: .*offset"):
        list(read_records(path))


CSV_FAULTS = [
    ('a,b\n1,2\n"3,4\n5,6\n', ":3: bad CSV: unexpected end of data; got line 4, exp"),
    (
        'a,b\n1,2\n"3"x,4\n5,6\n',
        ":3: bad CSV: ',' expected after '\"'; got line 3, exp",
    ),
    ("a,b,a\n1,2,3\n", ":1: columns stand twice; got 'a', expected a header with a n"),
]


@pytest.mark.parametrize(("text", "message"), CSV_FAULTS)
def test_csv_that_cannot_be_read_on(tmp_path: Path, text: str, message: str) -> None:
    path = put(tmp_path / "d.csv", text)
    with pytest.raises(DatasetError) as caught:
        list(read_records(path))
    assert str(caught.value).startswith(f"{path}{message}")


def test_rows_of_csv_that_cannot_be_used(tmp_path: Path) -> None:
    raw = b'a,b\n"1\n1",2\n3\n4,5,6\n7,\xe9\n8,"\x00"\n'
    one, short, long, odd, last = read_records(put(tmp_path / "d.csv", raw))
    assert one.value == {"a": "1\n1", "b": "2"}
    assert last.value == {"a": "8", "b": "\0"}
    assert str(short.fault) == (
        f"{tmp_path}/d.csv:4: another number of fields than columns; got 1, expected 2; "
        "mend or delete the row"
    )
    assert (long.where, long.value) == (f"{tmp_path}/d.csv:5", ["4", "5", "6"])
    assert str(odd.fault) == (
        f"{tmp_path}/d.csv:6: text that is not UTF-8; got ['7', '\\udce9'], expected "
        "UTF-8; convert the file"
    )
    header = put(tmp_path / "h.csv", b"a,\xe9\n1,2\n")
    with pytest.raises(
        DatasetError, match=r"h\.csv:1: the header is not UTF-8; got 'a"
    ):
        list(read_records(header))


def test_long_fields_are_read_and_endless_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "d.csv", "text\n" + "x" * 500_000 + "\n")
    assert len(values(path)[0]["text"]) == 500_000
    monkeypatch.setattr(sources, "_LINE", 1_000)
    for name in ("d.csv", "d.jsonl.gz"):
        path = put(tmp_path / name, "text\n"[: 5 * (name == "d.csv")] + "7" * 5_000)
        with pytest.raises(
            DatasetError, match="the line is too long; got over 1,000 by"
        ):
            list(read_records(path))


def test_a_wide_header_takes_no_time(tmp_path: Path) -> None:
    # Every name was once looked for among all others: an hour for so many.
    names = ",".join(f"c{i}" for i in range(200_000))
    assert len(values(put(tmp_path / "w.csv", f"{names}\n{names}\n"))[0]) == 200_000
    with pytest.raises(DatasetError, match="columns stand twice; got 'c7'"):
        list(read_records(put(tmp_path / "t.csv", f"{names},c7\n")))


@pytest.mark.parametrize("name", ["d.json", "d.json.gz"])
def test_a_json_file_is_not_read_beyond_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = put(tmp_path / name, '[{"text": "' + "x" * 5_000 + '"}]')
    assert len(values(path)) == 1
    monkeypatch.setattr(sources, "_WHOLE", 1_000)
    with pytest.raises(
        DatasetError, match="too large to be read whole; got over 1,000"
    ):
        list(read_records(path))


@pytest.mark.parametrize("text", ['"text"', "17", "null", "[1"])
def test_json_that_holds_no_rows(tmp_path: Path, text: str) -> None:
    path = put(tmp_path / "d.json", text)
    with pytest.raises(DatasetError, match=r"not rows; got|bad JSON"):
        list(read_records(path))
