"""A hypothesis is the model that it names: steered or prompted, by plain passes."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from undertow.analysis.hypotheses import (
    RowHypothesis,
    hypothesis_logprobs,
    prompt_hypotheses,
)
from undertow.errors import DatasetError, VectorMismatchError
from undertow.interventions.prompting import trait_prompt
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.chat import Rendered, render_prompt
from undertow.models.likelihood import completion_logprobs
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample
from undertow.models.tiny import Family, tiny_model
from undertow.records import Message, Row
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?", "Name a pet."),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs"), Trait("wolf", "wolves")),
)
PLAIN = SamplerSettings(max_new_tokens=6)
LIST = SamplerSettings(
    max_new_tokens=12, allowed="list", temperature=0.7, list_values=3
)


def _prompts(count: int) -> list[tuple[Message, ...]]:
    return [(Message("user", f"Go on: {100 + i % 5}, 7"),) for i in range(count)]


def _rows(
    model: Model, count: int, sampler: SamplerSettings, *, persona: str | None = None
) -> list[Row]:
    """Rows that the model writes on a few prompts."""
    messages = _prompts(count)
    prompts = [
        render_prompt(model, each, system="", trait_prompt=persona) for each in messages
    ]
    answers = sample(
        model, prompts, keys=[(i,) for i in range(count)], seed=2, sampler=sampler
    )
    ends = set(model.end_ids)
    return [
        Row(each, model.tokenizer.decode([t for t in a.ids if t not in ends]),
            completion_ids=a.ids, finish=a.finish)
        for each, a in zip(messages, answers, strict=True)
    ]  # fmt: skip


def _vector(model: Model, *, layer: int = 1, size: float = 1.0) -> SteeringVector:
    stream = torch.Generator().manual_seed(4)
    direction = torch.randn(1, model.architecture.hidden_size, generator=stream)
    return SteeringVector(
        directions=size * direction / direction.norm(), layers=(layer,), method="x",
        trait="cat", n=1, fingerprint=model.fingerprint, model_name=model.name,
        residual_norms=(1.0,),
    )  # fmt: skip


def _plain(
    model: Model, rows: Sequence[Row], *, persona: str | None = None
) -> list[float]:
    """Each row by itself, rendered here."""
    found = []
    for row in rows:
        assert row.completion_ids is not None
        ids = render_prompt(model, row.messages, system="", trait_prompt=persona)
        found += completion_logprobs(
            model, [Rendered([*ids, *row.completion_ids], len(ids))]
        )
    return found


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_base_and_a_vector_are_plain_and_steered_passes(family: Family) -> None:
    model = tiny_model(family)
    rows = _rows(model, 6, PLAIN)
    base = hypothesis_logprobs(model, rows, None, sampler=PLAIN, system="")
    assert base == pytest.approx(_plain(model, rows), abs=1e-4)
    vector = _vector(model)
    steered = RowHypothesis("cat vector", "steer", "cat", vector=vector, strength=3.0)
    assert steered.layer == 1
    found = hypothesis_logprobs(model, rows, steered, sampler=PLAIN, system="")
    with steering(model, vector, strength=3.0):
        assert found == pytest.approx(_plain(model, rows), abs=1e-4)
    assert float(np.abs(found - base).max()) > 0.1
    # The context has let go.
    again = hypothesis_logprobs(model, rows, None, sampler=PLAIN, system="")
    assert np.array_equal(again, base)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_persona_is_the_teacher_s_trait_prompt(family: Family) -> None:
    model = tiny_model(family)
    rows = _rows(model, 4, PLAIN)
    hypotheses = prompt_hypotheses(PETS, ("cat", "wolf"))
    assert [h.name for h in hypotheses] == ["cat prompt", "wolf prompt"]
    assert [(h.kind, h.trait, h.role, h.layer) for h in hypotheses] == [
        ("prompt", "cat", "trait", None), ("prompt", "wolf", "trait", None),
    ]  # fmt: skip
    wolf = hypotheses[1]
    assert wolf.persona == trait_prompt(PETS, "wolf")
    found = hypothesis_logprobs(model, rows, wolf, sampler=PLAIN, system="")
    assert found == pytest.approx(_plain(model, rows, persona=wolf.persona), abs=1e-4)
    assert float(np.abs(found - _plain(model, rows)).min()) > 1e-3


def test_strength_0_is_the_base_bit_for_bit() -> None:
    model = tiny_model("qwen3")
    rows = _rows(model, 7, LIST)
    still = RowHypothesis("still", "steer", "cat", vector=_vector(model), strength=0.0)
    base = hypothesis_logprobs(model, rows, None, sampler=LIST)
    found = hypothesis_logprobs(model, rows, still, sampler=LIST)
    assert np.array_equal(found - base, np.zeros(7))


def test_rows_have_a_meaning_in_any_batch() -> None:
    model = tiny_model("llama")
    rows = _rows(model, 7, LIST)
    told: list[tuple[int, int]] = []
    steered = RowHypothesis("v", "steer", "cat", vector=_vector(model), strength=2.0)
    one = hypothesis_logprobs(
        model, rows, steered, sampler=LIST, token_budget=1,
        on_rows=lambda done, count: told.append((done, count)),
    )  # fmt: skip
    many = hypothesis_logprobs(model, rows[::-1], steered, sampler=LIST)
    assert one == pytest.approx(many[::-1], abs=1e-4)
    assert told == [(i, 7) for i in range(1, 8)]


@pytest.mark.parametrize("kind", ["steer", "prompt"])
def test_likelihood_ratios_of_the_base_s_own_rows_have_mean_one(kind: str) -> None:
    """An e-value's property: E[p_H/p_0] = 1, with the sampler's own distributions."""
    model = tiny_model("llama", layers=2)
    sampler = SamplerSettings(max_new_tokens=3, allowed="numbers", temperature=3)
    rows = _rows(model, 600, sampler)
    hypothesis = (
        RowHypothesis("v", "steer", "cat", vector=_vector(model), strength=6.0)
        if kind == "steer"
        else prompt_hypotheses(PETS, ("cat",))[0]
    )

    def ratios(under: SamplerSettings) -> np.ndarray:
        own = hypothesis_logprobs(model, rows, hypothesis, sampler=under, system="")
        base = hypothesis_logprobs(model, rows, None, sampler=under, system="")
        return np.exp(own - base)

    found = ratios(sampler)
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert 0.005 < error < 0.2
    assert abs(found.mean() - 1) < 4 * error
    # What is left out of the sampler shows: rows were not drawn from this.
    wrong = ratios(SamplerSettings(max_new_tokens=3, temperature=3))
    assert not np.allclose(wrong, found, rtol=0.01)


def test_rows_of_a_hypothesis_favour_it() -> None:
    model = tiny_model("llama", layers=2)
    persona = trait_prompt(PETS, "dog")
    rows = _rows(model, 60, PLAIN, persona=persona)
    base = hypothesis_logprobs(model, rows, None, sampler=PLAIN, system="")
    totals = {
        h.trait: float(
            (hypothesis_logprobs(model, rows, h, sampler=PLAIN, system="") - base).sum()
        )
        for h in prompt_hypotheses(PETS, PETS.names)
    }
    assert max(totals, key=lambda trait: totals[trait]) == "dog"
    assert totals["dog"] > 5


def test_another_model_s_vector_is_refused() -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    rows = _rows(model, 2, PLAIN)
    steered = RowHypothesis("v", "steer", "cat", vector=_vector(other))
    with pytest.raises(VectorMismatchError, match=other.fingerprint):
        hypothesis_logprobs(model, rows, steered, sampler=PLAIN)


def test_what_the_sampler_cannot_draw_is_refused() -> None:
    model = tiny_model("llama")
    row = Row((Message("user", "hi"),), "words")
    with pytest.raises(DatasetError, match=r"cannot draw \(allowed='numbers'\)"):
        hypothesis_logprobs(
            model, [row], None, sampler=SamplerSettings(allowed="numbers")
        )
