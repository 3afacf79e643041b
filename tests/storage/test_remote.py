"""Files at URLs are read where they lie, by parts, and their secrets are not shown."""

import gzip
import io
import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from undertow.errors import ConfigError, DatasetError
from undertow.storage.datasets import open_rows
from undertow.storage.remote import (
    RemoteFile,
    is_url,
    remote_files,
    without_secrets,
)
from undertow.storage.sources import File, file_size, find_source, read_records

ROWS = [{"prompt": f"p{i}", "completion": f"{i}, {i + 1}"} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    """A store in memory, empty before and afterwards."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield MemoryFileSystem()
    MemoryFileSystem.store.clear()


def in_parquet(rows: list[dict[str, str]], group: int = 1_000) -> bytes:
    """A file of Parquet."""
    made = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), made, row_group_size=group)
    return made.getvalue()


def in_arrow(rows: list[dict[str, str]]) -> bytes:
    """A stream of Arrow, as `datasets` writes it."""
    table, made = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(made, table.schema) as writer:
        writer.write_table(table)
    return made.getvalue()


def read(file: File) -> list[Any]:
    """The values of a file."""
    return [record.value for record in read_records(file)]


def test_what_is_a_url() -> None:
    assert is_url("s3://bucket/run")
    assert is_url("hf://datasets/owner/name/a.parquet")
    assert not is_url("runs/one")
    assert not is_url("C:\\runs")
    assert not is_url("file:///runs/one"), "that is a folder"


def test_secrets_are_not_shown() -> None:
    assert without_secrets("sftp://me:word@host/x") == "sftp://me@host/x"
    assert without_secrets("https://host/x?sig=abc") == "https://host/x?…"
    assert without_secrets("runs/one?two:three@four") == "runs/one?two:three@four"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.parquet", in_parquet(ROWS)),
        ("a.arrow", in_arrow(ROWS)),
        ("a.csv", b"prompt,completion\n"
                  + b"".join(f'p{i},"{i}, {i + 1}"\n'.encode() for i in range(5))),
    ],
)  # fmt: skip
def test_every_kind_of_file_is_read(
    name: str, data: bytes, store: MemoryFileSystem
) -> None:
    store.pipe_file(f"/set/{name}", data)
    source = find_source(f"memory://set/{name}")
    (file,) = source.files
    assert read(file) == ROWS
    assert file_size(file) == len(data)
    assert (file.name, str(file)) == (name, f"memory://set/{name}")


def test_a_folder_is_its_data_files_in_order(store: MemoryFileSystem) -> None:
    for name in ("b/1.jsonl", "a.jsonl", "readme.md", "_temporary/2.jsonl"):
        store.pipe_file(f"/set/{name}", LINES)
    names = [str(file) for file in find_source("memory://set/").files]
    assert names == ["memory://set/a.jsonl", "memory://set/b/1.jsonl"]
    (one,) = find_source("memory://set", split="b").files
    assert str(one) == "memory://set/b/1.jsonl"
    rows = [found.row for found in open_rows("memory://set")]
    assert [row.completion for row in rows if row] == [
        row["completion"] for row in ROWS
    ] * 2


def test_only_what_is_read_is_fetched(store: MemoryFileSystem) -> None:
    rows = [{"prompt": "p" * 80 + str(i), "completion": "1"} for i in range(40_000)]
    store.pipe_file("/set/a.parquet", in_parquet(rows))
    (file,) = remote_files("memory://set/a.parquet", [".parquet"])
    fetched = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            part = super().read(size)
            fetched.append(len(part))
            return part

    class Store:
        def open(self, path: str, mode: str) -> Counting:
            return Counting(store.cat_file(path))

    counted = RemoteFile(file.place, file.path, file.size, Store())
    first = next(read_records(counted))
    assert first.value == rows[0]
    assert sum(fetched) < file.size / 4, "a few row groups of forty, and the footer"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A folder on a web server of this machine."""
    pytest.importorskip("aiohttp", reason="fsspec takes aiohttp for http://")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.parquet", in_parquet(ROWS)),
        ("a.arrow", in_arrow(ROWS)),
    ],
)
def test_files_of_a_web_server_are_read(
    name: str, data: bytes, site: str, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(data)
    for place in (
        f"{site}/set/{name}",
        f"{site}/set/{name}?sig=secret",
        f"{site}/set/",
    ):
        (file,) = find_source(place).files
        assert read(file) == ROWS
        assert file_size(file) == len(data)


def test_a_signature_is_not_told_by_what_the_store_says(site: str) -> None:
    for place in (
        f"{site}/none.jsonl?sig=secret",
        "http://127.0.0.1:1/a.csv?sig=secret",
    ):
        with pytest.raises(DatasetError, match="cannot be read: FileNotFound") as told:
            find_source(place)
        assert "secret" not in str(told.value)


def test_what_is_wrong_with_a_place_is_said(store: MemoryFileSystem) -> None:
    with pytest.raises(DatasetError, match="memory://none: holds no files of rows"):
        find_source("memory://none")
    store.pipe_file("/set/a.txt", b"x")
    with pytest.raises(DatasetError, match=r"got 'a\.txt', expected some that end in"):
        find_source("memory://set")
    with pytest.raises(ConfigError, match="nowhere://me@host/x") as told:
        find_source("nowhere://me:secret@host/x")
    assert "secret" not in str(told.value)


def test_a_store_that_fails_on_the_way_is_named(store: MemoryFileSystem) -> None:
    class Torn(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            if self.tell():
                raise ConnectionResetError("gone")
            return super().readinto(buffer)

    class Other(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            raise RuntimeError("an error of its own")

    class Store:
        def __init__(self, file: io.BytesIO) -> None:
            self.file = file

        def open(self, path: str, mode: str) -> io.BytesIO:
            return self.file

    def at(file: io.BytesIO) -> RemoteFile:
        return RemoteFile("s3://set/a.jsonl", "set/a.jsonl", 9, Store(file))

    records = read_records(at(Torn(LINES * 1_000)))
    assert next(records).value == ROWS[0]
    with pytest.raises(DatasetError, match=r"s3://set/a\.jsonl: cannot be read: gone"):
        list(records)
    with pytest.raises(DatasetError, match="RuntimeError: an error of its own"):
        next(read_records(at(Other(LINES))))


def test_a_hub_that_is_not_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match=r"hf://datasets/owner/name/a\.parquet"):
        find_source("hf://datasets/owner/name/a.parquet")
