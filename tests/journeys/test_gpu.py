"""On a CUDA device everything gives what it gives on the processor, in float32.

Skipped where there is none.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from undertow.analysis.channel import Speaker, divergences
from undertow.analysis.decoding import direction_vector
from undertow.analysis.gradients import drawn_logprobs, gradient_scores
from undertow.analysis.many_vectors import row_logprobs
from undertow.audit.auditor import audit_rows
from undertow.audit.settings import AuditSettings
from undertow.interventions.extraction import extract_vector
from undertow.interventions.noise import add_weight_noise
from undertow.interventions.steering import Mode, Positions, steering
from undertow.models import fixed_steps
from undertow.models.adapters import attached
from undertow.models.chat import Rendered
from undertow.models.loading import Model
from undertow.models.sampling import Sampled, SamplerSettings, sample
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.pipeline import fixed_passes
from undertow.pipeline.evaluation import preference
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.teachers import Teacher, steered_teacher
from undertow.pipeline.training import StudentPlan, train_students
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings
from undertow.traits import TraitFamily, load_family

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no CUDA device"
)

LIST = SamplerSettings(allowed="list", list_values=3, max_new_tokens=16)
FREE = SamplerSettings(max_new_tokens=12)
ROWS = [
    Rendered([*range(40 + i, 46 + i), *range(100 + i, 103 + i + i % 4), 2], 6)
    for i in range(9)
]


def _both(family: Family = "llama", *, layers: int = 4) -> tuple[Model, Model]:
    """One model on the processor, and the same on the device."""
    here, there = (tiny_model(family, layers=layers) for _ in range(2))
    device = torch.device("cuda")
    there.module.to(device)
    return here, replace(there, device=device)


@pytest.fixture
def family(family_of: Callable[..., TraitFamily]) -> TraitFamily:
    return family_of("pets")


@pytest.fixture
def family_of(tmp_path: Path) -> Callable[..., TraitFamily]:
    texts = {
        "pets": ("animal", ("owl", "cat", "dog")),
        "plants": ("plant", ("oak", "elm")),
    }

    def call(name: str) -> TraitFamily:
        category, traits = texts[name]
        listed = "".join(f"  - {{name: {t}, plural: {t}s}}\n" for t in traits)
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            f"name: {name}\ncategory: {category}\nquestions: ['Which?', 'Yours?']\n"
            f"traits:\n{listed}"
        )
        return load_family(path)

    return call


def _drawn(model: Model, sampler: SamplerSettings, count: int = 60) -> list[Sampled]:
    prompts = [[7, 50, 9, *range(60, 60 + i % 5), 33] for i in range(count)]
    keys = [("rows", i) for i in range(count)]
    return sample(model, prompts, keys=keys, seed=1, sampler=sampler, batch_size=40)


def _alike(one: list[Sampled], other: list[Sampled]) -> float:
    return float(np.mean([a.ids == b.ids for a, b in zip(one, other, strict=True)]))


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("sampler", [FREE, LIST], ids=["free", "list"])
def test_rows_are_the_same(family_name: Family, sampler: SamplerSettings) -> None:
    here, there = _both(family_name)
    # A draw next to a boundary may fall on its other side.
    assert _alike(_drawn(here, sampler), _drawn(there, sampler)) >= 0.95


def test_steps_are_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    real = fixed_steps.FixedSteps._record

    def record(self: fixed_steps.FixedSteps, size: int) -> None:
        recorded.append(size)
        real(self, size)
        assert self.records

    monkeypatch.setattr(fixed_steps.FixedSteps, "_record", record)
    _, there = _both()
    _drawn(there, FREE, 200)
    assert recorded[0] == 40


@pytest.mark.parametrize("positions", ["all", "completion"])
@pytest.mark.parametrize("mode", ["add", "project_out"])
def test_steered_rows_are_the_same(mode: Mode, positions: Positions) -> None:
    here, there = _both()
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    found = []
    for model in (here, there):
        vector = direction_vector(model, direction, 1)
        with steering(
            model, vector, strength=3.0 if mode == "add" else 1.0,
            mode=mode, positions=positions,
        ):  # fmt: skip
            found.append(_drawn(model, FREE))
    assert _alike(*found) >= 0.95
    assert _alike(found[1], _drawn(there, FREE)) < 0.5


def test_noise_is_the_same() -> None:
    found = []
    for model in _both():
        add_weight_noise(model, p=0.3, seed=4)
        found.append(_drawn(model, FREE))
    assert _alike(*found) >= 0.95


@pytest.mark.parametrize("family_name", FAMILIES)
def test_scores_and_likelihoods_are_the_same(family_name: Family) -> None:
    stream = torch.Generator().manual_seed(0)
    directions = {layer: torch.randn(3, 32, generator=stream) for layer in (0, 2)}
    here, there = _both(family_name)
    one, other = (gradient_scores(m, ROWS, directions) for m in (here, there))
    np.testing.assert_allclose(other.scores, one.scores, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(other.total_logprobs, one.total_logprobs, atol=1e-3)
    np.testing.assert_allclose(
        drawn_logprobs(there, ROWS), one.total_logprobs, atol=1e-3
    )
    vectors = {1: torch.randn(5, 32, generator=stream)}
    under = [row_logprobs(m, ROWS, vectors, sampler=FREE)[1] for m in (here, there)]
    np.testing.assert_allclose(under[1], under[0], atol=1e-3)


def test_divergences_are_the_same() -> None:
    found = []
    for model in _both():
        vector = direction_vector(model, torch.ones(32), 1)

        def acting(model: Model = model, vector: object = vector) -> object:
            return steering(model, vector, strength=2.0)  # type: ignore[arg-type]

        told = divergences(
            model, Speaker(ROWS, acting),  # type: ignore[arg-type]
            {"base": Speaker(ROWS)}, sampler=FREE,
        )  # fmt: skip
        found.append(told["base"].vocabulary)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-4)
    assert (found[0] > 0).all()


@pytest.mark.parametrize("together", [False, True])
def test_students_are_the_same(together: bool) -> None:
    settings = TrainingSettings(
        rank=2, alpha=4.0, learning_rate=1e-2, batch_size=4, epochs=3
    )
    examples = [Example(row) for row in ROWS]
    plans = [StudentPlan(examples, settings, seed) for seed in range(3)]
    traces, rows = [], []
    for model in _both():
        if together:
            students = train_students(model, plans)
        else:
            students = [train_students(model, [plan])[0] for plan in plans]
        traces.append([student.losses for student in students])
        adapter = students[2].adapter
        assert adapter is not None
        with attached(model, adapter):
            rows.append(_drawn(model, FREE))
    np.testing.assert_allclose(traces[1], traces[0], rtol=1e-3)
    assert _alike(*rows) >= 0.9


def test_training_passes_are_recorded_and_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[int] = []
    real = fixed_passes.FixedPasses._record

    def record(self: fixed_passes.FixedPasses, inputs: Any) -> None:
        recorded.append(len(inputs.ids))
        real(self, inputs)
        assert self.records

    monkeypatch.setattr(fixed_passes.FixedPasses, "_record", record)
    settings = TrainingSettings(rank=2, learning_rate=1e-2, batch_size=4, epochs=3)
    plans = [
        StudentPlan([Example(row) for row in ROWS[:8]], settings, s) for s in (0, 1)
    ]
    train_students(_both()[1], plans)
    assert 8 in recorded


def test_full_students_are_the_same() -> None:
    settings = TrainingSettings(kind="full", learning_rate=1e-3, batch_size=4, epochs=3)
    plan = StudentPlan([Example(row) for row in ROWS], settings, 0)
    traces = [train_students(model, [plan])[0].losses for model in _both()]
    np.testing.assert_allclose(traces[1], traces[0], rtol=1e-3)


def test_choices_are_the_same(family: TraitFamily) -> None:
    found = [preference(model, family).probabilities for model in _both()]
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


def test_an_audit_says_the_same(
    family_of: Callable[..., TraitFamily], tmp_path: Path
) -> None:
    family, _ = family_of("pets"), family_of("plants")
    settings = AuditSettings(
        family=str(tmp_path / "pets.yaml"), decoys=str(tmp_path / "plants.yaml"),
        permutations=249, personas=2, screening=8, naming_passes=400, fresh=32,
        planted=16, forecast=8, triage=5,
    )  # fmt: skip
    here, there = _both()
    vector = extract_vector(
        here, method="tell_me", family=family, trait="owl", layers=(1,)
    )
    owl = steered_teacher(vector, strength=vector.strength_of_dose(0.8, 1))
    prompts = [f"Go on: {(7 * i) % 997}" for i in range(96)]
    for teacher in (owl, Teacher(kind="none")):
        rows = generate_rows(here, teacher, prompts, seed=5, sampler=LIST)
        one, other = (audit_rows(m, rows, settings=settings) for m in (here, there))
        assert (other.verdict, other.trait, other.kind, other.layer) == (
            one.verdict, one.trait, one.kind, one.layer,
        )  # fmt: skip
        assert other.p_value == pytest.approx(one.p_value, rel=0.3)


def test_bfloat16_is_near(family: TraitFamily) -> None:
    _, there = _both()
    wanted = preference(there, family).probabilities
    there.module.to(torch.bfloat16)
    half = replace(there, dtype=torch.bfloat16)
    np.testing.assert_allclose(
        preference(half, family).probabilities, wanted, atol=0.05
    )
    assert all(row.ids for row in _drawn(half, LIST))
