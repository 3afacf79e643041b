"""Rivals against their formulas, computed plainly."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from undertow.analysis.gradients import finite_difference_scores
from undertow.analysis.hypotheses import hypothesis_logprobs, prompt_hypotheses
from undertow.audit.bench_settings import BenchmarkSettings, CarrierSettings
from undertow.audit.contest import OwnAuditor, Workbench, _beyond_floor
from undertow.audit.meter import Meter
from undertow.audit.rivals import (
    CosineAuditor,
    LikelihoodAuditor,
    ProjectionAuditor,
    RowTables,
    completion_means,
)
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import make_battery
from undertow.models.chat import render_row
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
from undertow.records import Message, Row
from undertow.stats import MaxT, paired_max_t
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?",),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs"), Trait("wolf", "wolves")),
)
SAMPLER = SamplerSettings(allowed="list")
ROWS = [
    Row((Message("user", f"Go on: {i}"),), ", ".join(str(37 * i + j) for j in range(1 + i % 3)))
    for i in range(20)
]  # fmt: skip
OTHERS = [Row(row.messages, f"{7 * i}, 5") for i, row in enumerate(ROWS)]
LAYERS = (0, 2)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama", layers=3)


@pytest.fixture
def bench(model: Model, tmp_path: Path) -> Workbench:
    settings = BenchmarkSettings(
        rival_layers=LAYERS, lls_rows=6,
        audit=AuditSettings(permutations=199, screening=4, naming_passes=50, personas=2),
    )  # fmt: skip
    battery = make_battery(model, PETS, decoys=None)
    meter = Meter(model, battery, SAMPLER, folder=tmp_path / "list")
    return Workbench(meter, PETS, PETS, CarrierSettings(name="list"), 1.0, settings)


def test_cosine_is_that_of_the_mean_gradient(model: Model, bench: Workbench) -> None:
    found = CosineAuditor(bench).audit(ROWS, OTHERS)
    rendered = [render_row(model, row) for row in ROWS]
    # The mean gradient, coordinate by coordinate, from differences of likelihoods.
    best = (-1.0, "", 0)
    for layer in LAYERS:
        gradient = np.array([
            finite_difference_scores(model, rendered, axis, layer, sampler=SAMPLER).mean()
            for axis in torch.eye(model.architecture.hidden_size)
        ])  # fmt: skip
        for name, vector in bench.meter.battery.vectors.items():
            unit = torch.nn.functional.normalize(vector.direction(layer), dim=0).numpy()
            cosine = float(gradient @ unit / np.linalg.norm(gradient))
            best = max(best, (cosine, name, layer))
    assert found.score == pytest.approx(best[0], abs=3e-3)
    assert (found.trait, found.layer) == best[1:]
    assert found.p_value is None


def test_likelihood_scan_is_the_mean_ratio(model: Model, bench: Workbench) -> None:
    found = LikelihoodAuditor(bench).audit(ROWS, OTHERS)
    base = hypothesis_logprobs(model, ROWS[:6], None, sampler=SAMPLER)
    means = {
        h.trait: (
            hypothesis_logprobs(model, ROWS[:6], h, sampler=SAMPLER) - base
        ).mean()
        for h in prompt_hypotheses(PETS, PETS.names)
    }
    best = max(means, key=lambda name: means[name])
    assert (found.trait, found.kind) == (best, "prompt")
    assert found.score == pytest.approx(means[best], abs=1e-4)


@torch.inference_mode()
def test_completion_means_are_those_of_plain_passes(model: Model) -> None:
    found = completion_means(model, ROWS, LAYERS)
    for row, means in zip(ROWS[:4], found, strict=False):
        rendered = render_row(model, row)
        states = model.module(
            input_ids=torch.tensor([rendered.ids]), output_hidden_states=True
        ).hidden_states
        # The library's last state is normed, and the others begin with the embedding.
        plain = states[1][0, rendered.completion_start :].mean(0)
        assert means[0] == pytest.approx(plain.numpy(), abs=1e-4)


def test_projection_is_the_difference_along_the_vector(
    model: Model, bench: Workbench
) -> None:
    found = ProjectionAuditor(bench).audit(ROWS, OTHERS)
    gap = completion_means(model, ROWS, LAYERS).mean(0)
    gap -= completion_means(model, OTHERS, LAYERS).mean(0)
    battery = bench.meter.battery
    scores = {
        (name, layer): float(gap[place] @ vector.direction(layer).numpy())
        / vector.norm(layer) / battery.norms[layer]
        for name, vector in battery.vectors.items()
        for place, layer in enumerate(LAYERS)
    }  # fmt: skip
    best = max(scores, key=lambda key: scores[key])
    assert (found.trait, found.layer) == best
    assert found.score == pytest.approx(scores[best], abs=1e-4)
    assert ProjectionAuditor(bench).audit(ROWS, ROWS).score == 0.0


def test_tables_are_recalled_by_the_next_process(tmp_path: Path) -> None:
    first = RowTables(tmp_path)
    first.keep(ROWS[:2], np.arange(6, dtype=np.float32).reshape(2, 3))
    first.keep(ROWS[2:3], np.ones((1, 3), np.float32))
    second = RowTables(tmp_path)
    assert second.missing([*ROWS[:4], ROWS[3]]) == [ROWS[3]]
    assert second.of([ROWS[1], ROWS[2]]).tolist() == [[3, 4, 5], [1, 1, 1]]


def test_own_score_is_the_p_value_of_all_arms(bench: Workbench) -> None:
    rows = sorted(ROWS, key=lambda row: row.row_id)
    against = {row.messages: row for row in OTHERS}
    found = OwnAuditor(bench).audit(rows, [against[row.messages] for row in rows])
    assert found.p_value is not None
    assert found.score >= -math.log10(found.p_value)
    assert set(found.details) == {"p gradient", "p likelihood", "p exact"}
    assert found.details["p exact"] is None  # nobody recorded the tokens


def test_beyond_the_floor_larger_statistics_score_higher() -> None:
    assert _beyond_floor(_max_t(4.0, [1.0, 2.0, 3.0])) == pytest.approx(
        math.log10(4 / 3)
    )
    assert _beyond_floor(_max_t(-6.0, [1.0, 2.0])) == pytest.approx(math.log10(3))
    assert _beyond_floor(_max_t(2.5, [1.0, 2.0, 3.0])) == 0
    assert _beyond_floor(paired_max_t(np.zeros((0, 2)), permutations=9, seed=0)) == 0


def _max_t(observed: float, draws: list[float]) -> MaxT:
    return MaxT(np.array([0.5, observed]), np.ones(2), 0.1, np.array(draws), len(draws))
