"""Students on disk come back as they were, and only onto the base they belong to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from undertow.errors import DatasetError, ModelError, VectorMismatchError
from undertow.models.adapters import save_adapter
from undertow.models.chat import render_row
from undertow.models.loading import Model
from undertow.models.tiny import tiny_model
from undertow.pipeline.students import (
    load_student,
    rendered_examples,
    save_student,
    student_facts,
)
from undertow.pipeline.teachers import Teacher
from undertow.pipeline.training import Student, train_student
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Message, Row

ROWS = [Row((Message("user", f"Go on: {i}"),), f"{i}, {i + 1}") for i in range(4)]
IDS = torch.tensor([[7, 50, 9, 120, 33, 81]])


@torch.no_grad()
def _logits(model: Model) -> Tensor:
    logits: Tensor = model.module(IDS).logits
    return logits


def _student(model: Model, kind: str, directory: Path | None = None) -> Student:
    settings = TrainingSettings.model_validate(
        {"kind": kind, "learning_rate": 1e-2, "warmup_updates": 0, "batch_size": 2}
    )
    examples = rendered_examples(model, ROWS)
    return train_student(
        model, examples, settings=settings, seed=0, directory=directory
    )


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_student_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    student = _student(model, kind, tmp_path)
    save_student(model, student, tmp_path, facts={"seed": 0})
    loaded = load_student(model, tmp_path)
    with student.applied(model):
        wanted = _logits(model)
    with loaded.applied(model):
        assert torch.equal(_logits(model), wanted)
    assert not torch.equal(_logits(model), wanted)
    assert loaded.updates == student.updates == (1, 2)
    assert loaded.losses == student.losses
    assert student_facts(tmp_path) == {
        "format": 1, "base": "tiny-llama", "fingerprint": model.fingerprint, "seed": 0,
    }  # fmt: skip


def test_an_adapter_made_elsewhere_has_no_facts_and_no_trace(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapter = _student(model, "lora").adapter
    assert adapter is not None
    save_adapter(adapter, tmp_path)
    loaded = load_student(model, tmp_path)
    assert (loaded.updates, loaded.losses) == ((), ())
    assert student_facts(tmp_path) == {}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_student_of_another_base_is_refused(kind: str, tmp_path: Path) -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    save_student(model, _student(model, kind), tmp_path, facts={})
    with pytest.raises(VectorMismatchError) as caught:
        load_student(other, tmp_path)
    assert f"belongs to 'tiny-llama' (fingerprint {model.fingerprint})" in str(
        caught.value
    )
    assert f"({other.fingerprint})" in str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    save_student(model, _student(model, "full"), tmp_path, facts={})
    weights = load_file(tmp_path / "weights.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(VectorMismatchError, match=r"do not fit.*'model\.norm\.weight'"):
        load_student(model, tmp_path)


def test_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="no student here: neither adapter_config"):
        load_student(model, tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="no student here"):
        load_student(model, tmp_path)


def test_facts_that_are_no_facts_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "undertow.json").write_text(json.dumps(["a list"]))
    assert student_facts(tmp_path) == {}


def test_rows_are_rendered_for_both_views() -> None:
    model = tiny_model("llama")
    persona = Teacher(kind="prompt", prompt="You love owls.")
    alone = rendered_examples(model, ROWS, system="")
    assert [e.student for e in alone] == [render_row(model, r, system="") for r in ROWS]
    assert all(e.teacher is None for e in alone)
    both = rendered_examples(model, ROWS, system="", teacher=persona)
    assert [e.student for e in both] == [e.student for e in alone]
    assert [e.teacher for e in both] == [
        render_row(model, r, system="", trait_prompt="You love owls.") for r in ROWS
    ]
    leak = replace(ROWS[0], provenance={"trait_prompt": "Go on"})
    with pytest.raises(DatasetError, match="contains the teacher's trait prompt"):
        rendered_examples(model, [leak])
