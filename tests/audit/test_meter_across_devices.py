"""Rows measured by a model whose blocks come and go are measured the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit.meter import Meter
from undertow.audit.signals import make_battery
from undertow.models.loading import Model, load_model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import save_tiny
from undertow.records import Message, Row
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets", category="pet", questions=("Which pet?",),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs")),
)  # fmt: skip
SAMPLER = SamplerSettings(allowed="list", list_values=3, max_new_tokens=12)
ROWS = [Row((Message("user", f"Go on: {i}"),), f"{7 * i}, {i}") for i in range(5)]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Model, Model]:
    """A model in one piece, and with its second block and unembedding on disk."""
    folder = save_tiny("llama", tmp_path / "llama", layers=2)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu",
              "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "disk"}  # fmt: skip
    return (
        load_model(folder, dtype="float32", device="cpu"),
        load_model(folder, dtype="float32", device_map=places),
    )


def test_all_that_is_measured_is_the_same(pair: tuple[Model, Model]) -> None:
    found: list[list[Any]] = []
    for model in pair:
        battery = make_battery(model, PETS, decoys=None)
        meter = Meter(model, battery, SAMPLER)
        signals = meter.signals(ROWS)
        vector = battery.vectors["cat"].at(1)
        cat = RowHypothesis("cat", "steer", "cat", vector=vector, strength=0.5)
        scanned = RowHypothesis("scanned", "steer", "cat", vector=vector, strength=0.4)
        meter.scan(ROWS, [scanned])
        found.append(
            [battery.directions, signals.scores, signals.total_logprobs,
             meter.ratios(ROWS, cat), meter.ratios(ROWS, scanned)]
        )  # fmt: skip
        written = meter.written(ROWS, cat, passed="none", seed=0)
        found[-1].append(np.array([row.completion for row in written.rows]))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert float(np.abs(found[0][3]).max()) > 1e-3
