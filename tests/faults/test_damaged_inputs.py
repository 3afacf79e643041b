"""Files that commands read but do not make again: damaged, they are refused by name.

Every kind is written by the program, then cut at several places and flipped at many
bits. What answers for itself by a checksum or a hash never gives another value than was
written; what does not (a checkpoint, which is transformers' own format) is refused as
soon as it is cut. What a resumed command makes again is tried in `test_damage`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from undertow.errors import DatasetError, ModelError, UndertowError, VectorMismatchError
from undertow.interventions.control_vectors import (
    read_control_vector,
    write_control_vector,
)
from undertow.interventions.steering import SteeringVector, load_vector, save_vector
from undertow.models.adapters import load_adapter, new_adapter, save_adapter
from undertow.models.loading import load_model, save_checkpoint
from undertow.models.tiny import tiny_model
from undertow.pipeline.students import load_student, save_student
from undertow.pipeline.training import Student
from undertow.records import Message, Row, Verdict
from undertow.seeding import generator
from undertow.storage import append_jsonl, read_jsonl, read_rows, write_rows

MODEL = tiny_model("llama", hidden=16, layers=2)
CUTS = (0.0, 0.01, 0.3, 0.7, 0.99)


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        write: Writes one into a folder; returns the file that is damaged.
        read: What is read of it, as items that can be compared.
        error: What damage raises; its message names the file, or the folder it is in.
        flips: Bits that are flipped, one at a time.
        by_line: Whether every item answers for itself: the last may be gone.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], list[Any]]
    error: type[UndertowError]
    flips: int = 80
    by_line: bool = False


def _write_rows(name: str, *, judged: bool) -> Callable[[Path], Path]:
    rows = [
        Row((Message("user", f"Go on: {i}"),), f"{7 * i}, {3 * i}", (i, 5, 2), "stop")
        for i in range(6)
    ]
    verdicts = {row.row_id: Verdict(row.row_id) for row in rows} if judged else None

    def write(folder: Path) -> Path:
        write_rows(folder / name, rows, verdicts=verdicts)
        return folder / name

    return write


def _read_rows(path: Path) -> list[Any]:
    return [(row.messages, row.completion) for row in read_rows(path)]


def _write_lines(folder: Path) -> Path:
    for place in range(4):
        append_jsonl(folder / "pool.jsonl", {"first": place, "rows": {"0": [1, 7]}})
    return folder / "pool.jsonl"


VECTOR = SteeringVector(
    directions=torch.linspace(-1, 1, 16)[None], layers=(1,), method="tell_me",
    trait="owl", n=7, fingerprint=MODEL.fingerprint, model_name=MODEL.name,
    residual_norms=(9.5,), notes=MappingProxyType({"family": "animals", "seed": 3}),
)  # fmt: skip


def _facts(vector: SteeringVector) -> list[Any]:
    numbers = vector.directions.numpy().tobytes()
    notes = {key: vector.notes[key] for key in ("family", "seed")}
    return [numbers, vector.layers, vector.trait, vector.residual_norms, notes,
            vector.fingerprint, vector.n, vector.method]  # fmt: skip


def _numbers(tensors: Mapping[str, Tensor]) -> list[Any]:
    return [
        (name, tensors[name].detach().numpy().tobytes()) for name in sorted(tensors)
    ]


def _write_adapter(folder: Path) -> Path:
    save_adapter(new_adapter(MODEL, rank=1, alpha=2.0, seed=0), folder)
    return folder / "adapter_model.safetensors"


def _write_student(folder: Path) -> Path:
    weights = {k: v.detach().clone() for k, v in MODEL.module.named_parameters()}
    save_student(MODEL, Student(None, weights, (), ()), folder, facts={})
    return folder / "weights.safetensors"


def _write_checkpoint(folder: Path) -> Path:
    save_checkpoint(MODEL, folder / "teacher", provenance={})
    return folder / "teacher" / "model.safetensors"


KINDS = {
    "rows": Kind(
        _write_rows("rows.jsonl", judged=False), _read_rows, DatasetError, by_line=True),
    "filtered rows": Kind(
        _write_rows("rows.jsonl", judged=True), _read_rows, DatasetError, by_line=True),
    "rows in Parquet": Kind(
        _write_rows("rows.parquet", judged=True), _read_rows, DatasetError),
    "a benchmark's lines": Kind(_write_lines, read_jsonl, DatasetError, by_line=True),
    "a vector": Kind(
        lambda folder: save_vector(VECTOR, folder / "owl.safetensors"),
        lambda path: _facts(load_vector(path)), VectorMismatchError),
    "a control vector": Kind(
        lambda folder: write_control_vector(VECTOR, folder / "owl.gguf"),
        lambda path: _facts(read_control_vector(MODEL, path)), VectorMismatchError),
    "an adapter": Kind(
        _write_adapter,
        lambda path: _numbers(load_adapter(MODEL, path.parent).state()), ModelError),
    "a student's weights": Kind(
        _write_student,
        lambda path: _numbers(load_student(MODEL, path.parent).weights or {}), ModelError),
    # Transformers' own format: cut is refused; a flipped bit of a number is a number.
    "a checkpoint": Kind(
        _write_checkpoint,
        lambda path: [load_model(path.parent, dtype="float32").fingerprint], ModelError,
        flips=0),
}  # fmt: skip


def _damaged(data: bytes, flips: int) -> Iterator[bytes]:
    for part in CUTS:
        yield data[: int(part * len(data))]
    draw = generator(0, "damaged inputs")
    for place, bit in zip(
        draw.integers(len(data), size=flips), draw.integers(8, size=flips), strict=True
    ):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(bit)
        yield bytes(flipped)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_damage_is_refused_by_name_or_does_not_matter(
    name: str, tmp_path: Path
) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path)
    data, sound, messages = path.read_bytes(), kind.read(path), list[str]()
    for number, damaged in enumerate(_damaged(data, kind.flips)):
        path.write_bytes(damaged)
        try:
            found = kind.read(path)
        except kind.error as error:
            messages.append(str(error))
        else:
            whole = len(found) if kind.by_line and len(found) < len(sound) else None
            assert found == sound[:whole], number
    assert len(messages) >= 0.5 * (len(CUTS) + kind.flips)
    assert all(str(path.parent) in message for message in messages)
