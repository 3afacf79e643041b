"""Rows that other processes measure: the same figures, wherever they come from.

Others are stood in for by calls in this process.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.execution.strangers import Strangers

from undertow.analysis.hypotheses import RowHypothesis, prompt_hypotheses
from undertow.audit.meter import Meter
from undertow.audit.others import Others
from undertow.audit.reference import sampled_reference
from undertow.audit.signals import make_battery
from undertow.execution.executor import Needs
from undertow.models.chat import render_row
from undertow.models.loading import Model, load_model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import save_tiny
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.teachers import Teacher
from undertow.records import Row
from undertow.traits import load_family

SAMPLER = SamplerSettings(allowed="list", max_new_tokens=16)
FAMILY, TREES = load_family("animals"), load_family("trees")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return load_model(checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def rows(model: Model) -> list[Row]:
    return generate_rows(
        model, Teacher(kind="none"), number_prompts(40, seed=0), seed=0, sampler=SAMPLER
    )


@pytest.fixture
def others(checkpoint: Path) -> Others:
    return Others(Strangers(), Needs(), str(checkpoint), {"dtype": "float32"})


@pytest.fixture(scope="module")
def meters(model: Model, rows: list[Row]) -> Callable[..., Meter]:
    battery = make_battery(
        model, FAMILY, decoys=TREES, pilot=[render_row(model, r) for r in rows[:8]],
        prompts=[row.messages[-1].content for row in rows[:4]], sampler=SAMPLER,
    )  # fmt: skip

    def make(others: Others | None = None) -> Meter:
        return (others.meter if others else Meter)(model, battery, SAMPLER)

    return make


@pytest.mark.slow
def test_scores_and_likelihoods_are_those_of_this_process(
    rows: list[Row], others: Others, meters: Callable[..., Meter]
) -> None:
    here, there = meters(), meters(others)
    own, found = here.signals(rows), there.signals(rows)
    assert found.row_ids == own.row_ids
    assert np.allclose(found.scores, own.scores, atol=1e-3, rtol=1e-3)
    assert np.allclose(found.total_logprobs, own.total_logprobs, atol=1e-4)
    persona = prompt_hypotheses(FAMILY, ["owl"])[0]
    own_ratios, ratios = (meter.ratios(rows, persona) for meter in (here, there))
    assert np.allclose(own_ratios, ratios, atol=1e-4)
    assert np.ptp(ratios) > 0.01


@pytest.mark.slow
def test_many_vectors_are_read_alike(
    rows: list[Row], others: Others, meters: Callable[..., Meter]
) -> None:
    here, there = meters(), meters(others)
    vectors = [
        RowHypothesis(f"{name} at 1", "steer", name, vector=vector.at(1), strength=0.5)
        for name, vector in list(here.battery.vectors.items())[:3]
    ]
    for meter in (here, there):
        meter.scan(rows[:10], vectors)
        passes = meter.passes
        meter.ratios(rows[:10], vectors[0])
        assert meter.passes - passes <= 10, "vectors are known: the base is read"
    for each in vectors:
        own, found = (meter.ratios(rows[:10], each) for meter in (here, there))
        assert np.allclose(own, found, atol=1e-4)


@pytest.mark.slow
def test_the_reference_is_the_one_that_is_sampled_here(
    model: Model, rows: list[Row], others: Others
) -> None:
    """Also where several rows share a prompt, whose answers must not repeat."""
    asked = [*rows[:12], *(rows[0],) * 3]
    here = sampled_reference(model, asked, sampler=SAMPLER, filter="none", seed=3)
    there = others.sampled_reference(
        model, asked, sampler=SAMPLER, passed="none", seed=3, system=None
    )
    assert [r.row_id for r in there.rows] == [r.row_id for r in here.rows]
    assert (there.paired, there.notes) == (here.paired, here.notes)
    assert there.accepted == pytest.approx(here.accepted)


def test_parts_are_neither_tiny_nor_huge(others: Others) -> None:
    assert [len(part) for part in others.parts(range(20))] == [10, 10]
    assert [len(part) for part in others.parts(range(9))] == [8, 1]
    assert {len(part) for part in others.parts(range(66))} == {11}
    assert {len(part) for part in others.parts(range(600))} == {100}
    assert max(len(part) for part in others.parts(range(10_000))) == 256
