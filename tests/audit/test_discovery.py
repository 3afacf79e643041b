"""Directions that are planted get their names back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from undertow.analysis.decoding import direction_tokens, direction_vector
from undertow.audit.discovery import describe_direction, trait_battery
from undertow.errors import ConfigError, VectorMismatchError
from undertow.findings import Discovery
from undertow.models.hooks import editing_residuals
from undertow.models.loading import Model
from undertow.models.tiny import Family, tiny_model
from undertow.pipeline.evaluation import preference
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?", "Name a pet.", "The best pet of all?"),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs"), Trait("wolf", "wolves")),
)
LAST = 3


def _towards(model: Model, letters: str) -> Tensor:
    """Unembedding rows of some first letters."""
    ids = model.tokenizer.encode(letters, add_special_tokens=False)
    rows: Tensor = model.architecture.unembedding.weight.detach()[ids].sum(dim=0)  # type: ignore[operator]
    return rows


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_the_battery_is_the_change_of_preference(family: Family) -> None:
    model = tiny_model(family)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    before = preference(model, PETS, system="")
    with editing_residuals(model, {1: lambda hidden: hidden + 0.7 * direction}):
        after = preference(model, PETS, system="")
    expected = {
        name: pytest.approx(np.mean(after.of(name) - before.of(name)), abs=1e-5)
        for name in PETS.names
    }
    found = trait_battery(model, PETS, direction, 1, strength=0.7, system="")
    assert found == expected
    assert max(map(abs, found.values())) > 0.01
    vector = direction_vector(model, direction, 1)
    again = trait_battery(model, PETS, vector, 1, strength=0.7, system="")
    assert again == expected
    rest = trait_battery(model, PETS, vector, 1, strength=0.0)
    assert rest == dict.fromkeys(PETS.names, 0.0)


@pytest.mark.parametrize("letters", ["Cc", "Dd", "Ww"])
def test_a_planted_direction_is_named(letters: str) -> None:
    model = tiny_model("llama", hidden=128)  # wide: rows of other tokens stand apart
    direction = _towards(model, letters)
    found = describe_direction(
        model, PETS, direction, LAST, residual_norm=20.0, dose=2.0, p_value=0.01,
        cosine=0.5,
    )  # fmt: skip
    assert {token.text for token in found.raised[:2]} == set(letters)
    battery = {name: nats for name, nats in found.battery.items() if nats is not None}
    best = max(battery, key=lambda name: battery[name])
    assert best[0] == letters[1]
    assert battery[best] > 0
    assert len(found.behaviour) == 3
    assert all(answer[:1] in letters for answer in found.behaviour)
    assert (found.layer, found.p_value, found.cosine) == (LAST, 0.01, 0.5)
    assert Discovery.model_validate_json(found.model_dump_json()) == found


def test_dose_and_length() -> None:
    """‖what is added‖ is dose · norm whatever the direction's length."""
    model = tiny_model("llama")
    direction = _towards(model, "Dd")
    found = describe_direction(
        model, PETS, direction, 2, residual_norm=5.0, dose=0.4, questions=2, count=3
    )
    longer = describe_direction(
        model, PETS, 7 * direction, 2, residual_norm=5.0, dose=0.4, questions=2, count=3
    )
    asked = replace(PETS, questions=PETS.questions[:2])
    unit = direction / direction.norm()
    battery = trait_battery(model, asked, unit, 2, strength=2.0)
    assert found.battery == pytest.approx(battery, abs=1e-5)
    assert longer.battery == pytest.approx(battery, abs=1e-4)
    assert longer.behaviour == found.behaviour
    assert len(found.behaviour) == 2
    # The stream before the unembedding has a norm of √32 there; 0.4 of it is added.
    tokens = direction_tokens(model, unit * 0.4 * 32**0.5, count=3)
    assert [token.text for token in found.raised] == [text for text, _ in tokens.raised]
    logits = [logit for _, logit in tokens.raised]
    assert [token.logit for token in found.raised] == pytest.approx(logits, rel=1e-4)
    assert [t.text for t in longer.lowered] == [text for text, _ in tokens.lowered]
    assert found.p_value is None


def test_faults() -> None:
    model = tiny_model("llama")
    with pytest.raises(
        ConfigError, match=r"residual_norm: nan[\s\S]*dose: 0; expected"
    ):
        describe_direction(
            model, PETS, torch.ones(32), 2, residual_norm=float("nan"), dose=0.0
        )
    with pytest.raises(VectorMismatchError, match="points nowhere"):
        describe_direction(model, PETS, torch.zeros(32), 2, residual_norm=1.0)
    with pytest.raises(VectorMismatchError, match="unknown layer 4"):
        describe_direction(model, PETS, torch.ones(32), 4, residual_norm=1.0)
