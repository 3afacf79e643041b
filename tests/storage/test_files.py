"""Files are whole or not there; faults name the line; hostile text stays inside."""

import errno
import hashlib
import itertools
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import save_file

from undertow.errors import DatasetError, RunError
from undertow.storage import (
    DRAFT_PREFIX,
    append_jsonl,
    file_sha256,
    read_json,
    read_jsonl,
    replacing,
    write_json,
    write_text,
    writing,
)
from undertow.storage.files import watching, whole_lines

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Every code point, lone surrogates too.
    | st.text(st.characters(codec=None), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=8,
)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every sync and every write at a place fails as on a full disk."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "pwrite", fail)
        yield


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


# ---- replacing


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file.txt"
    with replacing(target) as draft:
        draft.write_text("half")
        assert draft.parent == target.parent
        assert draft.name.startswith(DRAFT_PREFIX)
        assert draft.suffix == ".txt"
        assert not target.exists()
    assert target.read_text() == "half"
    assert names(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half() -> None:
        with replacing(target) as draft:
            draft.write_text("new")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write_half()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_explained_and_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    target.write_text("old")
    with pytest.raises(RunError) as caught:
        write_json(target, {"a": 1})
    assert str(caught.value) == (
        f"{target}: the disk is full (No space left on device); what was there before "
        "is untouched. Free some space and run the same command again"
    )
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(RunError, match=r"/dev/null: is not a regular file; choose"):
        write_text("/dev/null", "x")
    assert Path("/dev/null").is_char_device()


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a regular file"):
        write_text(tmp_path, "x")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"file/inner\.txt: cannot be written: .+; choo"):
        write_text(tmp_path / "file" / "inner.txt", "x")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_foreign_fault_keeps_its_own_words(tmp_path: Path) -> None:
    missing = tmp_path / "source"
    with (
        pytest.raises(FileNotFoundError, match="source"),
        replacing(tmp_path / "file"),
    ):
        missing.read_bytes()
    with (
        pytest.raises(UnicodeEncodeError),
        replacing(tmp_path / "file"),
    ):
        "\ud800".encode()


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_disk_takes_is_a_fault_of_the_user(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    for write in (write_text, append_jsonl):
        with pytest.raises(RunError, match=r"is no path: .+; choose another name"):
            write(path, "x")
    for read in (read_json, read_jsonl, file_sha256):
        with pytest.raises(DatasetError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize(
    "name", ["-rf", "a b;$(touch x)", "naïve ☃.txt", "new\nline", "%s{0}", "x" * 250]
)
def test_odd_names_are_only_names(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, [1])
    append_jsonl(tmp_path / f"{name[:200]}l", 2)
    assert read_json(tmp_path / name) == [1]
    assert names(tmp_path) == sorted([name, f"{name[:200]}l"])


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be written: File name too long"):
        write_text(tmp_path / ("x" * 300), "x")
    assert names(tmp_path) == []


def test_what_safetensors_cannot_write_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "weights.safetensors"
    with pytest.raises(RunError) as caught, writing(path):
        save_file({"a": np.zeros(2)}, path)
    assert str(caught.value) == (
        f"{path}: cannot be written: No such file or directory; choose a place that "
        "can, or mend its permissions"
    )
    with (
        pytest.raises(RunError, match=r"the disk is full \(No space left"),
        writing("w"),
    ):
        raise SafetensorError("Error: I/O error: No space (os error 28)")
    with pytest.raises(RunError, match="the disk is full"), writing("w"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_a_fault_that_is_not_the_disks_keeps_its_words() -> None:
    with pytest.raises(SafetensorError, match="shared memory"), writing("w"):
        raise SafetensorError("shared memory")


# ---- JSON


def test_text_keeps_everything_but_surrogates(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "a\r\n\0☃\udcff")
    assert (tmp_path / "t").read_bytes() == "a\r\n\0☃\\udcff".encode()


@settings(derandomize=True, max_examples=50)
@given(JSON)
def test_json_comes_back(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "v.json")
        write_json(path, value)
        assert read_json(path) == value
        assert path.read_bytes().isascii()


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    write_json(
        path,
        {
            "nan": [math.nan, math.inf, -math.inf, np.nan, np.float32("nan")],
            "array": np.array([[1.5, np.nan]]),
            "numpy": (np.int64(3), np.bool_(True), np.float64(0.5)),
            "path": Path("a/b"),
            1: None,
        },
    )
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict == {
        "nan": [None] * 5,
        "array": [[1.5, None]],
        "numpy": [3, True, 0.5],
        "path": "a/b",
        "1": None,
    }
    assert path.read_text().endswith("}\n")


def test_json_refuses_what_it_has_no_word_for(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"JSON has no word for set: \{1\}"):
        write_json(tmp_path / "v.json", {"a": {1}})
    with pytest.raises(TypeError, match=r"a JSON key must be text or an integer; got"):
        write_json(tmp_path / "v.json", {0.5: 1})
    assert names(tmp_path) == []


def test_json_that_is_nested_too_deeply_is_not_written(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(2_000):
        deep = [deep]
    with pytest.raises(DatasetError, match="nested too deeply to be written"):
        write_json(tmp_path / "v.json", deep)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1,\n "b": }', "v.json:2: bad JSON at column 7: Expecting value"),
        (b"", "v.json:1: bad JSON at column 1: Expecting value"),
        (b'"caf\xe9"', "v.json: byte 5 is not UTF-8"),
        (b"[" * 100_000, "v.json: bad JSON: "),
        (b"1" * 5000, "v.json: bad JSON: Exceeds the limit"),
    ],
)
def test_faults_of_json_name_the_place(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        read_json(path)
    text = str(caught.value)
    assert message in text
    assert text.endswith("expected one JSON value; mend or delete it")
    assert len(text) < 600


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_json, read_jsonl, file_sha256):
        with pytest.raises(DatasetError) as caught:
            read(tmp_path / "gone.json")
        assert str(caught.value) == (
            f"{tmp_path}/gone.json: cannot be read: No such file or directory; "
            "check the name"
        )


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"\xef\xbb\xbf[1]\n")
    assert read_json(tmp_path / "v") == [1]
    assert read_jsonl(tmp_path / "v") == [[1]]


# ---- JSON lines


def test_appended_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    values = [{"text": 'a\nb\r\u2028"\ud800'}, [1, None], 10**30, math.nan]
    for value in values:
        append_jsonl(path, value)
    assert read_jsonl(path) == [*values[:3], None]
    assert path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("torn", [b'{"b": ', b"2", b"x" * 200_000, b"\xff\0"])
def test_a_torn_tail_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, 1)
    with path.open("ab") as file:
        file.write(torn)
    assert read_jsonl(path) == [1]
    append_jsonl(path, 3)
    assert read_jsonl(path, tolerate_torn_tail=False) == [1, 3]


def test_a_file_that_is_all_torn_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a"')
    append_jsonl(path, 1)
    assert path.read_bytes() == b"1\n"


def test_a_whole_file_without_its_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"1\n\n  \r\n2")
    assert read_jsonl(tmp_path / "v", tolerate_torn_tail=False) == [1, 2]
    assert read_jsonl(tmp_path / "v") == [1]


def test_a_bad_line_is_named_even_with_empty_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"1\n\n{'a': 1}\n4\n")
    with pytest.raises(DatasetError) as caught:
        read_jsonl(path)
    assert str(caught.value) == (
        f"{path}:3: bad JSON at column 2: Expecting property name enclosed in double "
        "quotes; got \"{'a': 1}\", expected one JSON value a line; mend or delete it"
    )


def test_a_full_disk_keeps_every_line(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, 1)
    request.getfixturevalue("full_disk")
    with pytest.raises(RunError, match=r"log\.jsonl: the disk is full \(No space"):
        append_jsonl(path, 2)
    assert path.read_bytes() == b"1\n"


def test_a_line_that_fits_by_half_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, 1)
    real = os.pwrite
    calls: list[int] = []

    def half(handle: int, data: bytes, at: int) -> int:
        if calls:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        calls.append(at)
        return real(handle, data[: len(data) // 2], at)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(RunError, match=r"the disk is full \(Disk quota exceeded\)"):
        append_jsonl(path, "a long line")
    assert calls
    assert path.read_bytes() == b"1\n"


def test_sha256_is_hashlibs(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "v") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    (tmp_path / "v").write_bytes(b"abc")
    assert file_sha256(tmp_path / "v").startswith("ba7816bf8f01cfea414140de5dae2223")


# ---- damaged lines


def test_a_line_answers_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_jsonl(path, {"a": 1.5, "b": "x"})
    line = path.read_bytes()
    told = json.loads(line).pop("undertow_crc32")
    assert int(told, 16) == zlib.crc32(b'{"a": 1.5, "b": "x"}\n')
    assert read_jsonl(path) == [{"a": 1.5, "b": "x"}]


def test_any_bit_of_a_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_jsonl(path, {"a": 1.5, "b": "x"})
    line = path.read_bytes()
    for place, bit in itertools.product(range(len(line) - 1), range(8)):
        data = bytearray(line)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        try:
            assert read_jsonl(path) in ([{"a": 1.5, "b": "x"}], []), (place, bit)
        except DatasetError as error:
            assert str(path) in str(error)  # noqa: PT017 (most bits are refused)


def test_a_changed_line_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for n in range(3):
        append_jsonl(path, {"n": n})
    path.write_bytes(path.read_bytes().replace(b'"n": 1', b'"n": 7'))
    with pytest.raises(DatasetError) as caught:
        read_jsonl(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:2: the line is not what was written: its checksum")
    assert "delete the line: what it held is made again" in text
    lines = [json.dumps({"n": n}) + "\n" for n in (0, 7)]
    path.write_text("".join(lines))  # as written by hand, or by earlier versions
    assert read_jsonl(path) == [{"n": 0}, {"n": 7}]


def test_whole_lines_stay_and_a_damaged_one_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert whole_lines(path) == []
    for n in range(4):
        append_jsonl(path, {"n": n})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"n": 1', b'"n": 5') + b'{"n": 4')
    damaged = path.read_bytes()
    with pytest.warns(RuntimeWarning) as told:
        assert whole_lines(path) == [{"n": 0}, {"n": 2}, {"n": 3}]
    assert str(told[0].message) == (
        f"{path}: damaged: line 2 is not what was written; it is set aside as "
        "'lines.jsonl.set-aside', and what it held is made again"
    )
    assert path.with_name("lines.jsonl.set-aside").read_bytes() == damaged
    lines = whole.splitlines(keepends=True)
    assert path.read_bytes() == b"".join([lines[0], *lines[2:]])
    assert whole_lines(path) == read_jsonl(path)


def test_watchers_are_told_of_what_lasts(tmp_path: Path) -> None:
    seen: list[Path] = []
    with watching(seen.append):
        write_text(tmp_path / "kept", "x")
        with replacing(tmp_path / "scratch", lasting=False) as draft:
            draft.write_text("x")
        append_jsonl(tmp_path / "lines", 1)
    write_text(tmp_path / "later", "x")
    assert seen == [tmp_path / "kept"]
