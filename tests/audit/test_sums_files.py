"""Sums on disk: whole, without pickles, counted once, and redone if damaged."""

import copy
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from tests.audit.test_sums import nothing, plain, sums_of

from undertow.audit.sums import Sums
from undertow.audit.sums_files import SumsFolder, read_sums, sound_arrays, write_sums
from undertow.errors import DatasetError, RunError
from undertow.seeding import generator


@lru_cache
def shard(number: int) -> Sums:
    return sums_of([f"{number * 10**6 + i:016x}" for i in range(3)])


def folder_of(path: Path, count: int) -> SumsFolder:
    folder = SumsFolder(path, nothing())
    for number in range(count):
        folder.add(f"key{number}", shard(number))
    return folder


def total(count: int) -> Sums:
    found = nothing()
    for number in range(count):
        found = found + shard(number)
    return found


KEYS = [f"key{number}" for number in range(70)]


def test_sums_come_back_bit_for_bit_and_without_pickles(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_sums(path, ["a", "b"], shard(1))
    keys, found = read_sums(path, nothing())
    assert keys == ("a", "b")
    assert plain(found) == plain(shard(1))
    with np.load(path, allow_pickle=False) as kept:
        assert all(kept[name].dtype != object for name in kept.files)


def test_many_shards_become_few_files_with_the_same_sums(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 70)
    assert len(list(tmp_path.glob("*.npz"))) == 2 + 70 - 64
    assert plain(folder.total(KEYS)) == plain(total(70))
    assert plain(SumsFolder(tmp_path, nothing()).total(KEYS)) == plain(total(70))


def test_a_shard_that_is_measured_twice_counts_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 5)
    folder.add("key3", shard(3))
    again = SumsFolder(tmp_path, nothing())
    again.add("key3", shard(3))
    assert plain(again.total(KEYS[:5])) == plain(total(5))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_damaged_sums_are_redone(damage: str, tmp_path: Path) -> None:
    folder_of(tmp_path, 3)
    path = next(p for p in tmp_path.glob("*.npz") if "key1" in _keys(p))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[data.index(b"compared_total") + 200] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        np.savez(path, a=np.ones(3))
    with pytest.warns(RuntimeWarning, match=f"{path.name}: damaged: [A-Za-z]+: "):
        folder = SumsFolder(tmp_path, nothing())
    assert folder.keys == {"key0", "key2"}
    assert folder.damaged == [path.name]
    assert path.with_name(path.name + ".set-aside").exists()
    folder.add("key1", shard(1))
    assert plain(folder.total(KEYS[:3])) == plain(total(3))


def test_no_flipped_bit_is_taken_for_sums_or_ends_in_another_error(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.npz"
    write_sums(path, ["a"], shard(1))
    data, stream, found = path.read_bytes(), generator(0, "bits"), 0
    # All over the file, and every byte of the list of parts at its end.
    places = {*range(len(data) - 300, len(data)), *range(0, len(data), 41)}
    for place in sorted(places):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(stream.integers(8))
        path.write_bytes(damaged)
        try:
            keys, sums = read_sums(path, nothing())
        except RunError:
            found += 1
        else:  # dates and the like, which say nothing
            assert (keys, plain(sums)) == (("a",), plain(shard(1)))
    assert found > len(places) / 2


def test_sums_that_cannot_be_read_now_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path, 2)

    def fail(path: Path) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(DatasetError, match="cannot be read: Too many open files"):
            SumsFolder(tmp_path, nothing())
    assert SumsFolder(tmp_path, nothing()).keys == {"key0", "key1"}


def _keys(path: Path) -> tuple[str, ...]:
    return read_sums(path, nothing())[0]


def test_parts_that_an_interruption_left_do_not_count_twice(tmp_path: Path) -> None:
    folder_of(tmp_path / "sums", 31)
    kept = {p.name: p.read_bytes() for p in (tmp_path / "sums").glob("*.npz")}
    folder = SumsFolder(tmp_path / "sums", nothing())
    folder.add("key31", shard(31))
    for name, data in kept.items():  # as if it was killed before the parts were gone
        (tmp_path / "sums" / name).write_bytes(data)
    again = SumsFolder(tmp_path / "sums", nothing())
    assert plain(again.total(KEYS[:32])) == plain(total(32))
    assert len(list((tmp_path / "sums").glob("*.npz"))) == 1


def test_other_shards_than_those_of_the_data_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 3)
    with pytest.raises(RunError, match=r"of 1 shards .* and lacks 1 that they have"):
        folder.total(["key0", "key1", "key9"])


def test_sums_of_another_shape_are_not_taken(tmp_path: Path) -> None:
    write_sums(tmp_path / "a.npz", ["a"], shard(1))
    other = Sums.nothing(2, 3, flips=5, most=2)
    with pytest.raises(RunError, match="another shape; move the file away"):
        read_sums(tmp_path / "a.npz", other)


def _array(said: str, body: bytes = b"\0" * 64) -> bytes:
    """An array, sixteen zeros if need be, whose header says what it likes."""
    text = said.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def _archive(parts: Mapping[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return file.getvalue()


SAYS = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (_archive({"a.npy": bytes(1 << 24)}, zipfile.ZIP_DEFLATED), r"'a\.npy' packed"),
        (_archive({"a.npy": bytes(1 << 24)}, zipfile.ZIP_BZIP2), r"'a\.npy' packed"),
        (_archive({"a.npy": _array(SAYS.format("'<f4'", "(1099511627776,)"))}),
         r"float32 of shape \(1099511627776,\) in 64 bytes"),
        (_archive({"a.npy": _array(SAYS.format("'<f4'", "(3,)"))}), "in 64 bytes"),
        (_archive({"a.npy": _array(SAYS.format("'<U0'", "(1099511627776,)"))}), "<U0"),
        (_archive({"a": b"text"}), "ValueError"),
        (_archive({"a.npy": _array("(" * 99)}), "cannot be understood"),
        (_archive({"a.npy": _array("[1," * 160)}), "cannot be understood"),
        (_archive({"a.npy": _array("-" * 490)}), "cannot be understood"),
        (_archive({"a.npy": _array("-" * 9_000)}), "Header info length"),
        (_archive({"a.npy": _array(SAYS.format("'<f4'", f"(0, {1 << 70})"), b"")}), "Overflow"),
        (_archive({"a.npy": b"\x93NUMPY\x09\x00"}), "another kind of header"),
    ],
)  # fmt: skip
def test_arrays_that_would_unfold_are_damaged(
    data: bytes, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(RunError, match=why):
        sound_arrays(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 22


def test_parts_that_share_their_bytes_are_damaged(tmp_path: Path) -> None:
    """Many names of the same bytes: nothing is packed, and yet it unfolds."""
    path, file = tmp_path / "a.npz", io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", bytes(1 << 16))
        for number in range(99):
            other = copy.copy(archive.infolist()[0])
            other.filename = f"{number}.npy"
            archive.filelist.append(other)
    path.write_bytes(file.getvalue())
    with pytest.raises(RunError, match=r"parts of 6,553,600 bytes in a file of 7\d,"):
        sound_arrays(path)
