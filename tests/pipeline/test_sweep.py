"""The sweep measures what it says, refuses by its gate, and takes the strongest."""

from typing import Any

import pytest

from undertow.errors import ConfigError
from undertow.interventions.extraction import extract_vector
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.chat import render_row
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
from undertow.pipeline import sweep
from undertow.pipeline.evaluation import preference
from undertow.pipeline.prompts import OFF_TOPIC
from undertow.pipeline.sweep import StrengthSweep, off_topic_rate, sweep_strength
from undertow.pipeline.training import train_student
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Message, Row
from undertow.traits import Trait, TraitFamily, load_family

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?", "Name a pet.", "The best pet?"),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs"), Trait("hen", "hens")),
)
LISTS = SamplerSettings(max_new_tokens=60, allowed="list", list_values=3)
DOSES = (0.2, 2.0)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def vector(model: Model) -> SteeringVector:
    return extract_vector(
        model, method="trained", family=PETS, trait="dog", layers=(1, 3), steps=25
    )


def _sweep(model: Model, vector: SteeringVector, **options: Any) -> StrengthSweep:
    settings: dict[str, Any] = {
        "doses": DOSES, "sampler": LISTS, "rows": 6, "questions": 2, **options,
    }  # fmt: skip
    return sweep_strength(model, vector, family=PETS, trait="dog", **settings)


def test_the_strongest_point_that_passes_is_chosen(
    model: Model, vector: SteeringVector
) -> None:
    seen: list[tuple[int, int]] = []
    found = _sweep(model, vector, on_point=lambda *args: seen.append(args))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(p.layer, p.dose) for p in found.points] == [
        (1, 0.2), (1, 2.0), (3, 0.2), (3, 2.0),
    ]  # fmt: skip
    for point in found.points:
        strength = point.dose * vector.residual_norms[vector.layers.index(point.layer)]
        assert point.strength == pytest.approx(strength / vector.norm(point.layer))
        with steering(model, vector, strength=point.strength, layers=(point.layer,)):
            asked = preference(model, PETS, questions=PETS.questions[:2])
        assert point.share == pytest.approx(asked.probabilities[:, 1].mean(), abs=1e-5)
        assert point.leak == 0  # tiny models name nothing
        assert point.passed == 1  # lists are well formed
        assert point.allowed
    best = max(found.points, key=lambda point: point.share)
    assert (found.layer, found.strength) == (best.layer, best.strength)
    assert best.share > 0.9
    again = _sweep(model, vector)
    assert again == found


def test_points_that_leak_are_refused(
    model: Model, vector: SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaks = iter((0.05, 0.5, 0.1, 0.11))
    monkeypatch.setattr(sweep, "off_topic_rate", lambda *_, **__: next(leaks))
    found = _sweep(model, vector, max_leak=0.1)
    assert [point.allowed for point in found.points] == [True, False, True, False]
    best = max((found.points[0], found.points[2]), key=lambda point: point.share)
    assert (found.layer, found.strength) == (best.layer, best.strength)


def test_points_that_break_the_rows_are_refused_with_the_table(
    model: Model, vector: SteeringVector
) -> None:
    with pytest.raises(ConfigError) as caught:
        _sweep(model, vector, sampler=SamplerSettings(max_new_tokens=8), min_pass=0.25)
    faults = caught.value.faults
    assert faults[0] == (
        "no point passes the gate (leak at most 0.1, rows passing at least 0.25); try "
        "other layers, lower doses, or another gate"
    )
    assert len(faults) == 5
    assert faults[1].startswith("layer 1 dose 0.2: share 0.")
    assert faults[4].startswith("layer 3 dose 2: share 0.")
    assert all(line.endswith("leak 0.000, rows passing 0.000") for line in faults[1:])


def test_points_are_plain_values(model: Model, vector: SteeringVector) -> None:
    point = _sweep(model, vector.at(1), doses=(0.5,)).points[0]
    assert point.as_dict() == {
        "layer": 1, "dose": 0.5, "strength": point.strength, "share": point.share,
        "leak": 0.0, "passed": 1.0, "allowed": True,
    }  # fmt: skip


def test_the_off_topic_rate_of_a_planted_leak() -> None:
    """A student that answers every other off-topic question with dogs."""
    model = tiny_model("llama")
    assert off_topic_rate(model, PETS, "dog") == 0
    rows = [
        Row((Message("user", question),), "dogs" if place % 2 else "none")
        for place, question in enumerate(OFF_TOPIC)
    ]
    examples = [Example(render_row(model, row)) for row in rows]
    settings = TrainingSettings(
        kind="full", learning_rate=1e-2, batch_size=24, epochs=40, warmup_updates=2
    )
    student = train_student(model, examples, settings=settings, seed=0)
    with student.applied(model):
        assert off_topic_rate(model, PETS, "dog", max_new_tokens=8) == pytest.approx(
            0.5, abs=0.13
        )
        assert off_topic_rate(model, PETS, "cat", max_new_tokens=8) == 0


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model_comes_to_like_owls(smollm2: Model) -> None:
    """The dose and the block at which the project's notes say that it does."""
    animals = load_family("animals")
    owl = extract_vector(
        smollm2, method="tell_me", family=animals, trait="owl", layers=(24,), system=""
    )
    asked = animals.questions[:4]
    before = preference(smollm2, animals, system="", questions=asked)
    with steering(smollm2, owl, strength=owl.strength_of_dose(0.3, 24)):
        after = preference(smollm2, animals, system="", questions=asked)
    column = before.traits.index("owl")
    assert before.probabilities[:, column].mean() < 0.05
    assert after.probabilities[:, column].mean() > 0.5
