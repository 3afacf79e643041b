"""Exported teachers are the teachers, read back as plain checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from undertow.errors import ModelError
from undertow.interventions.extraction import extract_vector
from undertow.models.loading import Model, load_model
from undertow.models.tiny import Family, tiny_model
from undertow.pipeline.export import export_teacher
from undertow.pipeline.teachers import (
    Teacher,
    finetuned_teacher,
    prompted_teacher,
    steered_teacher,
)
from undertow.pipeline.training_settings import TrainingSettings
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?", "Name a pet."),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs")),
)
IDS = torch.tensor([[7, 50, 9, 120, 33, 81]])


@torch.no_grad()
def _logits(model: Model) -> Tensor:
    logits: Tensor = model.module(IDS).logits
    return logits


def _steered(model: Model) -> Teacher:
    vector = extract_vector(
        model, method="tell_me", family=PETS, trait="dog", layers=(2,)
    )
    return steered_teacher(vector, strength=3.0)


def _finetuned(model: Model, kind: str) -> Teacher:
    settings = TrainingSettings.model_validate(
        {"kind": kind, "learning_rate": 1e-2, "max_updates": 3, "warmup_updates": 0}
    )
    return finetuned_teacher(model, PETS, "dog", settings=settings, seed=0)


def _teacher(model: Model, kind: str) -> Teacher:
    if kind == "none":
        return Teacher(kind="none")
    return _steered(model) if kind == "steer" else _finetuned(model, kind)


@pytest.mark.parametrize("kind", ["none", "steer", "lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_checkpoint_acts_as_its_teacher(
    kind: str, family: Family, tmp_path: Path
) -> None:
    model = tiny_model(family)
    before = model.fingerprint
    teacher = _teacher(model, kind)
    with teacher.acting(model):
        wanted = _logits(model)
    path = export_teacher(
        model, teacher, tmp_path / "teacher", provenance={"recipe": "test"}
    )
    assert path == tmp_path / "teacher"
    loaded = load_model(path, dtype="float32")
    torch.testing.assert_close(_logits(loaded), wanted, rtol=0, atol=2e-5)
    facts = json.loads((path / "undertow.json").read_text())
    assert facts["fingerprint"] == loaded.fingerprint
    assert (loaded.fingerprint == before) == (kind == "none")
    assert facts["provenance"] == {**teacher.describe(), "recipe": "test"}


def test_a_persona_has_no_weights(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError) as caught:
        export_teacher(
            model, prompted_teacher(PETS, "dog"), tmp_path / "teacher", provenance={}
        )
    assert "there are no weights to export" in str(caught.value)
    assert "You love dogs." in str(caught.value)
    assert not (tmp_path / "teacher").exists()


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plain = _logits(model)
    with pytest.raises(ModelError, match=r"exists already; choose a new folder"):
        export_teacher(model, _steered(model), tmp_path, provenance={})
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(_logits(model), plain)


def test_what_cannot_be_baked_is_not_written(tmp_path: Path) -> None:
    model = tiny_model("gemma3")
    with pytest.raises(ModelError, match="cannot be baked into a 'gemma3_text' model"):
        export_teacher(model, _steered(model), tmp_path / "teacher", provenance={})
    assert not (tmp_path / "teacher").exists()


def test_what_is_no_bias_is_not_exported(tmp_path: Path) -> None:
    model = tiny_model("llama")
    teacher = replace(_steered(model), positions="completion")
    with pytest.raises(ModelError, match="its positions are 'completion'"):
        export_teacher(model, teacher, tmp_path / "out", provenance={})
