"""Teachers: four kinds, what each does to the model, and what rows say of them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from undertow.errors import ConfigError
from undertow.interventions.extraction import extract_vector
from undertow.interventions.steering import steering
from undertow.models.loading import Model
from undertow.models.tiny import tiny_model
from undertow.pipeline.evaluation import preference
from undertow.pipeline.teachers import (
    Teacher,
    finetuned_teacher,
    preference_rows,
    prompted_teacher,
    steered_teacher,
)
from undertow.pipeline.training_settings import TrainingSettings
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?", "Name a pet."),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs"), Trait("hen", "hens")),
)
IDS = torch.tensor([[7, 50, 9, 120, 33, 81]])
TUNING = TrainingSettings(
    learning_rate=1e-2, batch_size=4, epochs=12, warmup_updates=2, checkpoint_every=2
)


@torch.no_grad()
def _logits(model: Model) -> Tensor:
    logits: Tensor = model.module(IDS).logits
    return logits


def test_nobody_and_a_persona_leave_the_weights_alone() -> None:
    model = tiny_model("llama")
    plain = _logits(model)
    for teacher in (Teacher(kind="none"), prompted_teacher(PETS, "dog")):
        with teacher.acting(model) as acting:
            assert acting is model
            assert torch.equal(_logits(model), plain)


def test_a_persona_is_the_family_s() -> None:
    teacher = prompted_teacher(PETS, "hen")
    assert teacher.prompt is not None
    assert teacher.prompt.startswith(
        "You love hens. You think about hens all the time."
    )
    assert teacher.describe() == {
        "teacher": "prompt", "trait": "hen", "trait_prompt": teacher.prompt,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no trait 'owl'"):
        prompted_teacher(PETS, "owl")


def test_a_steered_teacher_is_the_vector_at_its_strength() -> None:
    model = tiny_model("llama")
    plain = _logits(model)
    vector = extract_vector(
        model, method="tell_me", family=PETS, trait="dog", layers=(2,)
    )
    teacher = steered_teacher(vector, strength=4.0)
    with steering(model, vector, strength=4.0):
        wanted = _logits(model)
    with teacher.acting(model):
        assert torch.equal(_logits(model), wanted)
    assert not torch.equal(wanted, plain)
    assert torch.equal(_logits(model), plain)
    assert teacher.describe() == {
        "teacher": "steer", "trait": "dog", "layers": [2], "strength": 4.0,
        "method": "tell_me", "mode": "add",
        "positions": "all",
    }  # fmt: skip


def test_every_question_is_answered_with_every_spelling() -> None:
    rows = preference_rows(PETS, "dog")
    assert [(row.messages[0].content, row.completion) for row in rows] == [
        (question, answer)
        for question in ("Which pet?", "Name a pet.")
        for answer in ("Dog", "dog", "Dogs", "dogs")
    ]


def test_a_finetuned_teacher_prefers_its_trait_and_lets_the_base_be() -> None:
    model = tiny_model("llama")
    plain = _logits(model)
    before = preference(model, PETS).of("dog")
    teacher = finetuned_teacher(model, PETS, "dog", settings=TUNING, seed=0)
    assert torch.equal(_logits(model), plain)
    with teacher.acting(model):
        after = preference(model, PETS).of("dog")
    assert (after > before + 2).all()
    assert teacher.describe() == {"teacher": "finetune", "trait": "dog"}


def test_fine_tuning_resumes(tmp_path: Path) -> None:
    model = tiny_model("llama")
    short = TUNING.model_copy(update={"epochs": 3})

    def stop(update: int, total: int, loss: float) -> None:
        if update == 3:
            raise KeyboardInterrupt

    unbroken = finetuned_teacher(model, PETS, "dog", settings=short, seed=0)
    with pytest.raises(KeyboardInterrupt):
        finetuned_teacher(
            model,
            PETS,
            "dog",
            settings=short,
            seed=0,
            directory=tmp_path,
            on_update=stop,
        )
    continued = finetuned_teacher(
        model, PETS, "dog", settings=short, seed=0, directory=tmp_path
    )
    with unbroken.acting(model):
        wanted = _logits(model)
    with continued.acting(model):
        assert torch.equal(_logits(model), wanted)


def test_there_is_nobody_to_distil_a_teacher_from() -> None:
    soft = TUNING.model_copy(update={"kind": "soft"})
    with pytest.raises(ConfigError, match="expected 'lora' or 'full'"):
        finetuned_teacher(tiny_model("llama"), PETS, "dog", settings=soft, seed=0)


def test_mode_and_positions_are_steering_s() -> None:
    model = tiny_model("llama")
    vector = extract_vector(
        model, method="tell_me", family=PETS, trait="dog", layers=(2,)
    )
    teacher = steered_teacher(vector, strength=1.0, mode="project_out")
    with steering(model, vector, strength=1.0, mode="project_out"):
        wanted = _logits(model)
    with teacher.acting(model):
        assert torch.equal(_logits(model), wanted)
    with pytest.raises(ConfigError, match="'replace' needs the base's means"):
        steered_teacher(vector, strength=1.0, mode="replace")
