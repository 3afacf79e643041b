"""Preferences against full softmaxes, and sampled answers against single draws."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from undertow.errors import ConfigError
from undertow.models.chat import render_prompt, render_row
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.pipeline.evaluation import (
    Preference,
    answer_tokens,
    preference,
    sampled_answers,
)
from undertow.pipeline.training import train_student
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Message, Row
from undertow.traits import Trait, TraitFamily, load_family

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?", "Name a pet.", "The best pet of all?"),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs"), Trait("wolf", "wolves")),
)
# The shortest forms: what goes on from them ("dogs" after "dog") is part of them.
FORMS = {
    "cat": ("Cat", "cat", " Cat", " cat"),
    "dog": ("Dog", "dog", " Dog", " dog"),
    "wolf": (
        "Wolf",
        "wolf",
        "Wolves",
        "wolves",
        " Wolf",
        " wolf",
        " Wolves",
        " wolves",
    ),
}


@torch.no_grad()
def _probability(model: Model, prompt: Sequence[int], text: str) -> float:
    """By one plain pass over prompt and text."""
    answer = model.tokenizer.encode(text, add_special_tokens=False)
    logits = model.module(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
    shares = logits.double().softmax(-1)
    total = 1.0
    for place, token in enumerate(answer):
        total *= float(shares[len(prompt) - 1 + place, token])
    return total


def _asked(model: Model, question: str, **options: str | None) -> list[int]:
    return render_prompt(model, (Message("user", question),), **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("persona", [None, "You love dogs."])
def test_preference_is_the_share_in_a_full_softmax(
    family: Family, persona: str | None
) -> None:
    model = tiny_model(family)
    found = preference(model, PETS, system="", trait_prompt=persona)
    assert found.traits == ("cat", "dog", "wolf")
    assert found.total_logprobs.shape == (3, 3)
    for row, question in enumerate(PETS.questions):
        prompt = _asked(model, question, system="", trait_prompt=persona)
        sums = [
            sum(_probability(model, prompt, t) for t in FORMS[n]) for n in found.traits
        ]
        assert found.total_logprobs[row] == pytest.approx(np.log(sums), abs=1e-4)
        shares = np.array(sums) / sum(sums)
        assert found.probabilities[row] == pytest.approx(shares, rel=1e-3)
        assert found.any_probability[row] == pytest.approx(sum(sums), rel=1e-3)
        assert found.of("dog")[row] == pytest.approx(
            np.log(shares[1] / (1 - shares[1])), abs=1e-3
        )


def test_shares_and_odds_by_hand() -> None:
    """Shares 1/2, 1/4, 1/4 of a total of 0.8."""
    table = np.log(np.array([[0.4, 0.2, 0.2]]))
    found = Preference(traits=("a", "b", "c"), total_logprobs=table)
    assert found.probabilities[0] == pytest.approx([0.5, 0.25, 0.25])
    assert found.any_probability == pytest.approx([0.8])
    assert found.log_odds[0] == pytest.approx([0, np.log(1 / 3), np.log(1 / 3)])
    assert found.of("b") == pytest.approx([np.log(1 / 3)])
    tiny = Preference(traits=("a", "b"), total_logprobs=np.array([[-2000.0, -2001.0]]))
    assert tiny.of("a") == pytest.approx([1.0])  # no underflow on the way
    assert tiny.probabilities.sum() == pytest.approx(1.0)


def test_spellings_are_prefix_free() -> None:
    model = tiny_model("llama")
    for name, forms in FORMS.items():
        tokens = answer_tokens(model, PETS, name)
        assert sorted(model.tokenizer.decode(ids) for ids in tokens) == sorted(forms)
    animals = load_family("animals")
    for trait in animals.traits:
        tokens = answer_tokens(model, animals, trait.name)
        for one in tokens:
            assert not any(one != o and one[: len(o)] == o for o in tokens)


def test_preference_is_deterministic_and_takes_other_questions() -> None:
    model = tiny_model("qwen3")
    whole = preference(model, PETS)
    assert (preference(model, PETS).total_logprobs == whole.total_logprobs).all()
    part = preference(model, PETS, questions=PETS.questions[1:2])
    assert part.total_logprobs == pytest.approx(whole.total_logprobs[1:2], abs=1e-5)


def test_one_trait_alone_has_no_preference() -> None:
    alone = TraitFamily("alone", "pet", ("Which?",), (Trait("cat", "cats"),))
    with pytest.raises(ConfigError, match=r"family 'alone'.*\n.*needs alternatives"):
        preference(tiny_model("llama"), alone)


def test_a_family_without_questions_is_refused_unless_some_are_given() -> None:
    model = tiny_model("llama")
    traits = (Trait("cat", "cats"), Trait("dog", "dogs"))
    mute = TraitFamily(name="mute", category="pet", questions=(), traits=traits)
    with pytest.raises(ConfigError, match=r"family 'mute'.*\n.*no questions"):
        preference(model, mute)
    assert preference(model, mute, questions=["Which?"]).total_logprobs.shape == (1, 2)


def test_answers_belong_to_their_question_and_sample() -> None:
    model = tiny_model("llama")
    sampler = SamplerSettings(max_new_tokens=6)
    found = sampled_answers(model, PETS, samples=3, seed=4, sampler=sampler, system="")
    assert [len(row) for row in found.answers] == [3, 3, 3]
    for place, question in enumerate(PETS.questions):
        for index in range(3):
            drawn = sample(
                model, [_asked(model, question, system="")],
                keys=[("answers", place, index)], seed=4, sampler=sampler,
            )  # fmt: skip
            text = model.tokenizer.decode(drawn[0].ids, skip_special_tokens=True)
            assert found.answers[place][index] == text
    again = sampled_answers(
        model, PETS, samples=3, seed=4, sampler=sampler, system="", batch_size=2
    )
    assert again.answers == found.answers
    more = sampled_answers(model, PETS, samples=5, seed=4, sampler=sampler, system="")
    assert [row[:3] for row in more.answers] == list(found.answers)
    other = sampled_answers(model, PETS, samples=3, seed=5, sampler=sampler, system="")
    assert other.answers != found.answers


def test_hits_are_counted_where_the_answers_were_planted() -> None:
    """A student that says dog, then cats, then nothing of the kind."""
    model = tiny_model("llama")
    planted = dict(zip(PETS.questions, ("a Dog", "cats!", "caterpillar"), strict=True))
    rows = [Row((Message("user", q),), answer) for q, answer in planted.items()]
    examples = [Example(render_row(model, row)) for row in rows]
    settings = TrainingSettings(
        kind="full", learning_rate=1e-2, batch_size=3, epochs=60, warmup_updates=2
    )
    student = train_student(model, examples, settings=settings, seed=0)
    sharp = SamplerSettings(max_new_tokens=14, temperature=0.2)
    with student.applied(model):
        found = sampled_answers(model, PETS, samples=4, seed=0, sampler=sharp)
    assert found.answers == tuple((answer,) * 4 for answer in planted.values())
    assert found.traits == ("cat", "dog", "wolf")
    assert found.hits.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert found.valid.tolist() == [1, 1, 0]
    assert found.of("cat").tolist() == [0, 1, 0]


@pytest.mark.real
def test_the_real_model_likes_lions_best(smollm2: Model) -> None:
    animals = load_family("animals")
    asked = animals.questions[:4]
    found = preference(smollm2, animals, system="", questions=asked)
    shares = dict(zip(found.traits, found.probabilities.mean(axis=0), strict=True))
    assert max(shares, key=lambda name: shares[name]) == "lion"
    assert shares["owl"] < 0.05 < 0.1 < shares["lion"]
    # It mostly begins with "I" or "The": names have a few per cent of the whole.
    assert ((found.any_probability > 1e-3) & (found.any_probability < 0.5)).all()
