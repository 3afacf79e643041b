"""The battery's directions, with a planted covariance, and one pass along them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from undertow.analysis.gradients import gradient_scores
from undertow.audit import signals
from undertow.audit.signals import Battery, make_battery, measure
from undertow.errors import VectorMismatchError
from undertow.interventions.extraction import extract_vector, family_vectors
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import Rendered
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?",),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs"), Trait("wolf", "wolves")),
)
METALS = TraitFamily(
    name="metals",
    category="metal",
    questions=("Which metal?",),
    traits=(Trait("tin", "tins"), Trait("iron", "irons")),
)
PROMPTS = ("Go on: 1, 2", "Continue 7")
PILOT = [
    Rendered([7, 50, 9, 20 + i, 30 + (5 * i) % 190, 40 + (11 * i) % 150], 4)
    for i in range(24)
]


def _battery(model: Model, **options: Any) -> Battery:
    settings: dict[str, Any] = {"decoys": METALS, "pilot": PILOT, "prompts": PROMPTS}
    return make_battery(model, PETS, **(settings | options))


def test_names_roles_and_lengths() -> None:
    model = tiny_model("llama")
    own = _turned(model, "dog")
    found = _battery(model, given=[own])
    assert found.names == (
        "cat", "dog", "wolf", "tin", "iron", "persona", "given dog",
        "random 1", "random 2", "random 3", "random 4", "random 5",
    )  # fmt: skip
    assert found.roles == (
        *["trait"] * 3, *["decoy"] * 2, "persona", "given", *["random"] * 5,
    )  # fmt: skip
    assert found.layers == (0, 1, 2, 3)
    assert found.directions.shape == (4, 12, 32)
    assert found.directions.dtype == torch.float32
    torch.testing.assert_close(found.directions.norm(dim=-1), torch.ones(4, 12))
    assert found.of_role("decoy", "persona") == [3, 4, 5]
    assert len(found.norms) == 4
    assert found.norms == own.residual_norms
    assert list(found.by_layer()) == [0, 1, 2, 3]
    assert torch.equal(found.by_layer()[2], found.directions[2])


def test_directions_are_those_that_extraction_gives() -> None:
    model = tiny_model("gemma3")
    found = _battery(model, layers=(1, 3), system="", prompts=PROMPTS)

    def unit(vector: Tensor) -> Tensor:
        return nn.functional.normalize(vector, dim=-1)

    for place, trait in enumerate(PETS.names):
        own = extract_vector(
            model, method="tell_me", family=PETS, trait=trait, layers=(1, 3), system=""
        )
        torch.testing.assert_close(found.directions[:, place], unit(own.directions))
        assert torch.equal(found.vectors[trait].directions, own.directions)
    personas = [
        extract_vector(
            model, method="prompts", family=PETS, trait=trait, layers=(1, 3),
            prompts=PROMPTS, system="",
        ).directions
        for trait in PETS.names[: signals._PERSONAS]
    ]  # fmt: skip
    shared = unit(torch.stack(personas).mean(0))
    torch.testing.assert_close(found.directions[:, found.of_role("persona")[0]], shared)


def test_what_is_not_given_has_no_direction() -> None:
    found = _battery(tiny_model("llama"), decoys=None, pilot=(), prompts=())
    assert found.names == PETS.names
    assert set(found.roles) == {"trait"}


def test_vectors_of_a_family_are_those_of_each_member() -> None:
    model = tiny_model("qwen2")
    found = family_vectors(model, PETS, layers=(2, 0), system="")
    assert tuple(found) == PETS.names
    for trait, vector in found.items():
        wanted = extract_vector(
            model, method="tell_me", family=PETS, trait=trait, layers=(2, 0), system=""
        )
        assert torch.equal(vector.directions, wanted.directions)
        assert replace(vector, directions=wanted.directions) == wanted
    with pytest.raises(VectorMismatchError, match="unknown layer 4"):
        family_vectors(model, PETS, layers=(4,))


# ── random directions ────────────────────────────────────────────────────────────


def _gradients(model: Model, layer: int) -> np.ndarray:
    """[row, hidden]: the pilot's gradients after one block."""
    kept = torch.zeros(len(PILOT), 32)

    def keep(_: int, places: Sequence[int], rows: Tensor) -> None:
        kept[list(places)] = rows

    gradient_scores(model, PILOT, {layer: torch.zeros(1, 32)}, on_gradients=keep)
    return kept.double().numpy()


@pytest.mark.parametrize("layer", [0, 3])
def test_random_directions_have_the_gradients_covariance(
    monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """Thousands of them scatter as normal draws of that covariance do."""
    monkeypatch.setattr(signals, "RANDOM", 4000)
    model = tiny_model("llama")
    found = _battery(model, decoys=None, prompts=(), layers=(layer,))
    drawn = found.directions[0, 3:].double().numpy()
    covariance = np.cov(_gradients(model, layer).T, bias=True)
    stream = np.random.default_rng(0)
    wanted = stream.multivariate_normal(np.zeros(32), covariance, size=4000)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    spread, expected = drawn.T @ drawn / 4000, wanted.T @ wanted / 4000
    assert np.abs(spread - expected).max() < 0.02
    # Far from isotropic: the largest direction takes many times its even share.
    largest = np.linalg.eigh(covariance)[1][:, -1]
    assert largest @ spread @ largest > 4 / 32


def test_random_directions_depend_on_the_seed_alone() -> None:
    model = tiny_model("llama")
    places = _battery(model).of_role("random")
    first = _battery(model).directions[:, places]
    assert torch.equal(first, _battery(model).directions[:, places])
    cosines = (first * _battery(model, seed=1).directions[:, places]).sum(-1)
    assert float(cosines.abs().max()) < 0.95


def test_one_random_direction_is_the_same_thing_at_every_layer() -> None:
    """One set of weights: a subset of layers has the same directions there."""
    model = tiny_model("llama")
    all_layers, some = _battery(model), _battery(model, layers=(1, 2))
    torch.testing.assert_close(all_layers.directions[1:3], some.directions)


def test_pilot_rows_of_a_sampler_have_its_gradients() -> None:
    model = tiny_model("llama")
    places = _battery(model).of_role("random")
    plain = _battery(model).directions[:, places]
    cool = _battery(model, sampler=SamplerSettings(temperature=0.3))
    assert float((plain - cool.directions[:, places]).abs().max()) > 0.01


# ── given vectors ────────────────────────────────────────────────────────────────


def _turned(model: Model, trait: str, seed: int = 0) -> SteeringVector:
    """A user's own vector for a trait: not the battery's."""
    vector = extract_vector(model, method="tell_me", family=PETS, trait=trait)
    noise = torch.randn(
        vector.directions.shape, generator=torch.Generator().manual_seed(seed)
    )
    return replace(vector, directions=vector.directions + noise)


def test_the_battery_s_own_vector_is_not_added_again() -> None:
    """Two names for one direction could never beat each other."""
    model = tiny_model("llama")
    own = extract_vector(model, method="tell_me", family=PETS, trait="dog")
    assert _battery(model, given=[own]).of_role("given") == []
    twice = _battery(model, given=[_turned(model, "dog"), _turned(model, "dog", 1)])
    assert [twice.names[p] for p in twice.of_role("given")] == [
        "given dog",
        "given dog 2",
    ]


def _foreign(model: Model, **changes: Any) -> SteeringVector:
    vector = extract_vector(model, method="tell_me", family=PETS, trait="cat")
    return replace(vector, **changes)


def test_a_given_vector_of_another_model_is_refused() -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    with pytest.raises(VectorMismatchError, match=other.fingerprint):
        _battery(model, given=[_foreign(other)])
    wide = tiny_model("llama", hidden=48)
    with pytest.raises(
        VectorMismatchError, match="48 numbers a layer, 'tiny-llama' has 32"
    ):
        _battery(model, given=[_foreign(wide)])


def test_a_given_vector_needs_every_layer_that_is_tested() -> None:
    model = tiny_model("llama")
    part = _turned(model, "cat").at(1, 2)
    with pytest.raises(VectorMismatchError) as caught:
        _battery(model, given=[part], layers=(1, 3))
    assert str(caught.value) == (
        "vector 'cat': it has layers [1, 2], the audit tests [1, 3]; extract it for all "
        "of them, or name the layers to test (--set layers=[…])"
    )
    found = _battery(model, given=[part], layers=(2, 1))
    assert found.layers == (1, 2)
    place = found.of_role("given")[0]
    wanted = part.direction(2) / part.norm(2)
    torch.testing.assert_close(found.directions[1, place], wanted)


# ── the pass ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layers", [(1, 3), (3, 1)])
def test_a_pass_gives_scores_along_the_battery(layers: tuple[int, ...]) -> None:
    model, sampler = tiny_model("llama"), SamplerSettings(temperature=0.7)
    found = _battery(model, layers=layers)
    names = [f"row {i}" for i in range(24)]
    got = measure(model, PILOT, names, found, sampler=sampler)
    assert got.row_ids == tuple(names)
    assert got.scores.shape == (24, 2, len(found.names))
    wanted = gradient_scores(model, PILOT, found.by_layer(), sampler=sampler)
    assert np.array_equal(got.total_logprobs, wanted.total_logprobs)
    for column, layer in enumerate(found.layers):
        own = wanted.scores[:, wanted.layers.index(layer)]
        assert np.array_equal(got.scores[:, column], own)
