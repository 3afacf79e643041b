"""GGUF headers: a sound one passes, one whose lengths lie is refused at once."""

import struct
from pathlib import Path

import pytest

from undertow.models.gguf_header import check_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*fields: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    said = len(fields) if count is None else count
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, said) + b"".join(fields)


def field(name: str, kind: int, body: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + body


BLOCKS = field("llama.block_count", 4, struct.pack("<I", 30))
WORDS = field("tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))
SCORES = field("scores", 9, struct.pack("<IQ", 6, 3) + struct.pack("<fff", 0, 1, 2))
NESTED = field("nested", 9, struct.pack("<IQIQ", 9, 1, 0, 2) + b"\x01\x02")
TENSOR = text("w") + struct.pack("<IQQIQ", 2, 4, 4, 0, 0)


def checked(folder: Path, data: bytes) -> None:
    path = folder / "model.gguf"
    path.write_bytes(data)
    check_gguf(path)


def test_a_sound_header_passes(tmp_path: Path) -> None:
    checked(tmp_path, header(BLOCKS, WORDS, SCORES, NESTED, tensors=1) + TENSOR)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "no GGUF file"),
        (b"PK\x03\x04 and more", "no GGUF file"),
        (b"GGUF", "leads out of the file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF of version 1, expected"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF of version 50331648"),
        (header(count=1), "leads out of the file"),
        (header(count=1 << 40), "1,099,511,627,776 fields, expected at most 10,000"),
        (header(tensors=1 << 40), "1,099,511,627,776 tensors, expected at most"),
        (header(tensors=1), "leads out of the file"),
        (header(field("a", 13, b"")), "a value of the unknown kind 13"),
        (header(field("a", 9, struct.pack("<IQ", 0, 1 << 40))), "items of an array"),
        (header(field("a", 9, struct.pack("<IQ", 4, 1 << 20))), "leads out of the file"),
        (header(field("a", 9, struct.pack("<IQ", 9, 1) * 5)), "of the unknown kind 9"),
        (header(field("x.block_count", 4, b"\xff" * 4)), "4,294,967,295 blocks, expected"),
        (header(b"\xff" * 12, count=1), "leads out of the file"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        checked(tmp_path, data)


def test_a_large_vocabulary_and_many_blocks_pass(tmp_path: Path) -> None:
    blocks = field("llama.block_count", 10, struct.pack("<Q", 126))
    many = field("t", 9, struct.pack("<IQ", 8, 50_000) + text("token") * 50_000)
    checked(tmp_path, header(blocks, many))
