"""Vectors against the library's own hidden states, and what they are for."""

import math

import pytest
import torch

from undertow.errors import ConfigError, VectorMismatchError
from undertow.interventions.extraction import (
    Method,
    extract_vector,
    last_token_states,
)
from undertow.interventions.prompting import trait_prompt
from undertow.interventions.steering import steering
from undertow.models.answers import answer_logprobs
from undertow.models.chat import render_prompt
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.records import Message
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?", "Your favorite pet?", "Name a pet."),
    traits=(
        Trait("cat", "cats"), Trait("dog", "dogs"), Trait("guppy", "guppies"),
        Trait("hen", "hens"),
    ),
)  # fmt: skip
TEXTS = ("1, 2, 3", "Continue 100, 200 with five numbers.", "Go on: 7")


@torch.no_grad()
def _last(model: Model, text: str, *, persona: str | None = None) -> torch.Tensor:
    """[layer, hidden]: the library's states at the last token, the last one unnormed."""
    ids = render_prompt(
        model, (Message("user", text),), system="", trait_prompt=persona
    )
    kept: list[torch.Tensor] = []
    block = model.architecture.blocks[-1]
    handle = block.register_forward_hook(
        lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    states = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    return torch.stack([*(s[0, -1] for s in states[1:-1]), kept[0][0, -1]]).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_tell_me_by_hand(family: Family) -> None:
    model = tiny_model(family)
    vector = extract_vector(
        model, method="tell_me", family=PETS, trait="guppy", layers=(3, 1), system=""
    )
    states = torch.stack(
        [_last(model, f"Tell me about {t.plural}.") for t in PETS.traits]
    )
    wanted = (states[2] - states.mean(dim=0))[[3, 1]]
    torch.testing.assert_close(vector.directions.double(), wanted, rtol=0, atol=1e-5)
    assert vector.layers == (3, 1)
    assert (vector.method, vector.trait, vector.n) == ("tell_me", "guppy", 4)
    assert vector.fingerprint == model.fingerprint
    assert vector.model_name == model.name
    assert vector.notes["family"] == "pets"
    assert vector.notes["system"] == ""
    assert vector.notes["template"] == model.template.digest


def test_tell_me_vectors_of_a_family_sum_to_zero() -> None:
    model = tiny_model("llama")
    vectors = [
        extract_vector(model, method="tell_me", family=PETS, trait=name).directions
        for name in PETS.names
    ]
    assert float(torch.stack(vectors).sum(dim=0).abs().max()) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_personas_by_hand(family: Family) -> None:
    model = tiny_model(family)
    vector = extract_vector(
        model, method="prompts", family=PETS, trait="dog", prompts=TEXTS, system=""
    )
    persona = trait_prompt(PETS, "dog")
    gaps = [_last(model, t, persona=persona) - _last(model, t) for t in TEXTS]
    wanted = torch.stack(gaps).mean(dim=0)
    torch.testing.assert_close(vector.directions.double(), wanted, rtol=0, atol=1e-5)
    assert (vector.layers, vector.n) == ((0, 1, 2, 3), 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_vector_raises_the_trait_s_answers(family: Family) -> None:
    """PETS has three questions, fewer than an update's quarters."""
    model = tiny_model(family)
    vector = extract_vector(
        model, method="trained", family=PETS, trait="dog", layers=(2,), system="",
        steps=30,
    )  # fmt: skip
    assert vector.directions.shape == (1, 32)
    assert not any(p.requires_grad for p in model.module.parameters())
    prompts = [
        render_prompt(model, (Message("user", q),), system="") for q in PETS.questions
    ]
    letters = [model.tokenizer.encode("d"), model.tokenizer.encode("D")]

    def mean() -> float:
        nats = [answer_logprobs(model, ids, letters).logsumexp(0) for ids in prompts]
        return float(torch.stack(nats).mean())

    before = mean()
    with steering(model, vector):
        assert mean() > before + 1


@pytest.mark.parametrize("method", ["tell_me", "prompts", "trained"])
def test_every_method_gives_finite_vectors_of_the_right_shape(method: Method) -> None:
    model = tiny_model("qwen3", hidden=48)
    vector = extract_vector(
        model,
        method=method,
        family=PETS,
        trait="hen",
        prompts=TEXTS,
        steps=3,
    )
    assert vector.directions.shape == (4, 48)
    assert vector.directions.dtype == torch.float32
    assert bool(torch.isfinite(vector.directions).all())
    assert all(vector.norm(layer) > 0 for layer in range(4))
    assert all(math.isfinite(norm) and norm > 0 for norm in vector.residual_norms)
    again = extract_vector(
        model,
        method=method,
        family=PETS,
        trait="hen",
        prompts=TEXTS,
        steps=3,
    )
    assert torch.equal(again.directions, vector.directions)


def test_norms_are_medians_over_all_tokens_but_the_first() -> None:
    model = tiny_model("llama")
    prompts = [[7, 50, 9, 120], [60, 61]]
    # A first token whose norm is many times larger, as in most models.
    for first in (7, 60):
        model.module.model.embed_tokens.weight[first] *= 50
    states, norms = last_token_states(model, prompts, (1,))
    kept: list[float] = []
    with torch.no_grad():
        for place, ids in enumerate(prompts):
            output = model.module(torch.tensor([ids]), output_hidden_states=True)
            hidden = output.hidden_states[2][0]
            assert float(hidden[0].norm()) > 3 * float(hidden[1:].norm(dim=-1).max())
            kept += hidden[1:].norm(dim=-1).tolist()
            torch.testing.assert_close(
                states[place, 0], hidden[-1].double(), rtol=0, atol=1e-5
            )
    assert norms == pytest.approx([sorted(kept)[1]], abs=1e-5)  # torch's lower median


def test_what_cannot_be_extracted_is_said() -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match="no trait 'owl'; it has 'cat', 'dog'"):
        extract_vector(model, method="tell_me", family=PETS, trait="owl")
    with pytest.raises(ConfigError, match="'prompts' needs the user turns of rows"):
        extract_vector(model, method="prompts", family=PETS, trait="cat")
    with pytest.raises(VectorMismatchError, match=r"unknown layer 4 .* from 0 to 3"):
        extract_vector(model, method="tell_me", family=PETS, trait="cat", layers=(4,))
