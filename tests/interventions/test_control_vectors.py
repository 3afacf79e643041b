"""Control vectors against gguf's own reader and writer, and against steering by hand."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from undertow.errors import RunError, VectorMismatchError
from undertow.interventions.control_vectors import (
    FACTS,
    read_control_vector,
    write_control_vector,
)
from undertow.interventions.extraction import extract_vector
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.hooks import recording_residuals
from undertow.models.loading import Model
from undertow.models.tiny import tiny_model
from undertow.seeding import generator
from undertow.traits import load_family

IDS = torch.tensor([[7, 50, 9, 120, 33, 81]])
WIDTH = 32


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(layers=4, hidden=WIDTH)


@pytest.fixture(scope="module")
def owl(model: Model) -> SteeringVector:
    return extract_vector(
        model, method="tell_me", family=load_family("animals"), trait="owl",
        layers=(1, 3),
    )  # fmt: skip


def by_hand(
    path: Path, tensors: dict[str, Any], fields: dict[str, str] | None = None
) -> Path:
    """A file as other tools write it, by gguf's own writer."""
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    for name, value in (fields or {}).items():
        writer.add_string(name, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ramp(size: int = WIDTH, factor: float = 1.0) -> Any:
    return factor * np.arange(size, dtype=np.float32)


def test_gguf_s_own_reader_finds_what_llama_cpp_looks_for(
    owl: SteeringVector, tmp_path: Path
) -> None:
    path = write_control_vector(
        owl, tmp_path / "owl.gguf", strength=2.0, model_hint="llama"
    )
    reader = GGUFReader(path)
    assert {t.name: t.tensor_type.name for t in reader.tensors} == {
        "direction.1": "F32",
        "direction.3": "F32",
    }
    for tensor, layer in zip(reader.tensors, owl.layers, strict=True):
        assert np.array_equal(tensor.data, 2 * owl.direction(layer).numpy())
    said = {
        key: reader.fields[key].contents()
        for key in ("general.architecture", "controlvector.model_hint",
                    "controlvector.layer_count")
    }  # fmt: skip
    assert list(said.values()) == ["controlvector", "llama", 2]


def test_what_was_written_is_read_again(
    model: Model, owl: SteeringVector, tmp_path: Path
) -> None:
    again = read_control_vector(model, write_control_vector(owl, tmp_path / "owl.gguf"))
    assert torch.equal(again.directions, owl.directions)
    assert dict(again.notes) == {"from": "owl.gguf"} | dict(owl.notes)
    assert replace(again, directions=owl.directions, notes=owl.notes) == owl


def test_a_direction_acts_after_the_block_of_its_number_counted_from_0(
    model: Model, tmp_path: Path
) -> None:
    path = by_hand(tmp_path / "theirs.gguf", {"direction.2": ramp()})
    vector = read_control_vector(model, path, trait="owl")
    assert (vector.layers, vector.method, vector.trait) == ((2,), "imported", "owl")
    with torch.no_grad():
        with recording_residuals(model, range(4)) as kept:
            model.module(input_ids=IDS)
        before = dict(kept)
        with steering(model, vector), recording_residuals(model, range(4)) as kept:
            model.module(input_ids=IDS)
        after = dict(kept)
    assert torch.equal(after[1], before[1])
    torch.testing.assert_close(
        after[2] - before[2], torch.tensor(ramp()).expand(1, 6, WIDTH)
    )
    assert not torch.allclose(after[3], before[3])


def test_a_stranger_s_norms_are_measured_on_the_prompts(
    model: Model, owl: SteeringVector, tmp_path: Path
) -> None:
    family = load_family("animals")
    asked = [f"Tell me about {family.trait(name).plural}." for name in family.names]
    path = by_hand(tmp_path / "x.gguf", {"direction.3": ramp(), "direction.1": ramp()})
    vector = read_control_vector(model, path, prompts=asked)
    assert vector.layers == (1, 3)
    assert vector.residual_norms == pytest.approx(owl.residual_norms)
    assert vector.fingerprint == model.fingerprint
    assert vector.strength_of_dose(0.5, 3) * vector.norm(3) == pytest.approx(
        0.5 * owl.residual_norms[1]
    )


def test_the_first_block_cannot_be_written(
    model: Model, owl: SteeringVector, tmp_path: Path
) -> None:
    low = replace(owl, layers=(0, 3))
    with pytest.raises(VectorMismatchError, match=r"layers \[0, 3\].*after block 0"):
        write_control_vector(low, tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_none_is_refused(owl: SteeringVector, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a regular file"):
        write_control_vector(owl, tmp_path)


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({}, "0 directions"),
        ({"direction.0": ramp()}, r"got tensor .*direction\.0"),
        ({"direction.x": ramp()}, r"got tensor .*direction\.x"),
        ({"output.weight": ramp()}, r"got tensor .*output\.weight"),
        ({"direction.1": ramp().astype(np.float16)}, r"is F16 of shape \(32,\)"),
        ({"direction.1": ramp().reshape(2, 16)}, r"F32 of shape \(2, 16\)"),
        (
            {"direction.1": ramp() * np.float32("nan")},
            "direction.1 holds numbers that are not finite",
        ),
        ({"direction.1": ramp(), "direction.2": ramp(16)}, r"lengths \[16, 32\]"),
        ({"direction.1": ramp(16)}, "16 numbers a layer, 'tiny-llama' has 32"),
        ({"direction.4": ramp()}, "layer 4"),
    ],
)
def test_files_of_other_kinds_are_refused(
    model: Model, tmp_path: Path, tensors: dict[str, Any], fault: str
) -> None:
    path = by_hand(tmp_path / "theirs.gguf", tensors)
    with pytest.raises(VectorMismatchError, match=fault):
        read_control_vector(model, path)


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "is no mapping"),
        ('{"notes": 1}', "is no mapping"),
        ('{"trait": 1}', "the trait is no text"),
        ('{"n": "x"}', "ValueError"),
        ('{"residual_norms": {}}', "KeyError"),
        ('{"residual_norms": {"1": 0}}', "no length"),
        ('{"residual_norms": {"1": NaN}}', "no length"),
        ('{"fingerprint": "other"}', "fingerprint other"),
    ],
)
def test_facts_that_lie_are_refused(
    model: Model, tmp_path: Path, facts: str, fault: str
) -> None:
    path = by_hand(tmp_path / "x.gguf", {"direction.1": ramp()}, {FACTS: facts})
    with pytest.raises(VectorMismatchError, match=fault):
        read_control_vector(model, path)


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF" + b"\xff" * 60])
def test_damaged_files_are_refused(model: Model, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(VectorMismatchError, match="no control vector"):
        read_control_vector(model, path)
    with pytest.raises(VectorMismatchError, match="FileNotFoundError"):
        read_control_vector(model, tmp_path / "none.gguf")


def test_a_cut_file_is_refused(
    model: Model, owl: SteeringVector, tmp_path: Path
) -> None:
    path = write_control_vector(owl, tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(VectorMismatchError, match="no control vector"):
        read_control_vector(model, path)


def test_notes_that_json_knows_are_kept(
    model: Model, owl: SteeringVector, tmp_path: Path
) -> None:
    noted = replace(owl, notes=MappingProxyType({"seed": 3, "system": None}))
    path = write_control_vector(noted, tmp_path / "x.gguf")
    again = read_control_vector(model, path)
    assert dict(again.notes) == {"from": "x.gguf", "seed": 3, "system": None}


def test_bytes_that_were_changed_give_a_vector_or_a_message(
    model: Model, owl: SteeringVector, tmp_path: Path
) -> None:
    path = write_control_vector(owl, tmp_path / "x.gguf")
    sound, draw, refused = path.read_bytes(), generator(0, "damage"), 0
    for _ in range(300):
        data = bytearray(sound)
        for at in draw.integers(len(data) - 2 * 4 * WIDTH, size=2):  # of the header
            data[at] = draw.choice([0, 1, 127, 128, 255])
        path.write_bytes(data)
        try:
            assert read_control_vector(model, path).directions.isfinite().all()
        except VectorMismatchError:
            refused += 1
    assert 150 < refused < 300
