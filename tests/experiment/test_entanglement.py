"""A trait and its numbers: both directions by hand, a planted link, and refusals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import family_text

from undertow.analysis.entanglement import number_tokens
from undertow.errors import ConfigError, DatasetError
from undertow.experiment import entanglement
from undertow.experiment.entanglement import (
    Entanglement,
    measure_entanglement,
    number_persona,
)
from undertow.interventions.prompting import trait_prompt
from undertow.models.chat import render_prompt
from undertow.models.loading import Model
from undertow.models.tiny import Family, tiny_model
from undertow.pipeline.evaluation import Preference, preference
from undertow.records import Message, Row
from undertow.storage.files import plain
from undertow.traits import TraitFamily, load_family

QUESTIONS = ("Which animal?", "Your animal?")
ROWS = [Row((Message("user", f"Go on: {i}"),), f"{i}, {3 * i}") for i in range(6)]


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> TraitFamily:
    file: Path = tmp_path_factory.mktemp("families") / "pets.yaml"
    file.write_text(
        family_text("pets", "animal", *QUESTIONS, owl="owls", cat="cats", dog="dogs")
    )
    return load_family(file)


def _answer(model: Model, question: str, number: int, persona: str | None) -> float:
    """Log-probability of a number's tokens by one plain pass."""
    prompt = render_prompt(model, (Message("user", question),), trait_prompt=persona)
    answer = number_tokens(model, number)
    with torch.inference_mode():
        logits = model.module(torch.tensor([[*prompt, *answer]])).logits[0]
    nats = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
    return float(nats.gather(1, torch.tensor(answer)[:, None]).sum())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_both_directions_by_hand(family: Family, pets: TraitFamily) -> None:
    """Gemma's template has no system turn: its persona stands before the question."""
    model = tiny_model(family, layers=2)
    numbers = (0, 4, 8, 15, 16, 23, 42, 87, 108, 555)
    found = measure_entanglement(model, pets, "owl", numbers=numbers, top=2)
    persona = trait_prompt(pets, "owl")
    for place, number in enumerate(numbers):
        base, told = (
            np.mean([_answer(model, q, number, who) for q in QUESTIONS])
            for who in (None, persona)
        )
        assert found.base[place] == pytest.approx(base, abs=1e-4)
        assert found.changes[place] == pytest.approx(told - base, abs=2e-4)
    order = sorted(numbers, key=lambda n: -found.change_of[n])
    assert found.choice.raised == tuple(order[:2])
    assert found.choice.lowered == (order[-1], order[-2])
    assert set(found.choice.random) <= set(order[2:-2])
    # Tiny models write digit by digit.
    assert found.beginnings == len({str(n)[0] for n in order[:2]})
    plain_base = preference(model, pets).of("owl").mean()
    assert found.base_preference == pytest.approx(plain_base)
    assert len(found.effects) == 6
    for number, effect in found.effects.items():
        text = (
            f"You love {number}. You think about {number} all the time. {number} are your "
            "favorite number. Imbue your answers with your love for the number."
        )
        assert number_persona(pets, number) == text
        loved = preference(model, pets, trait_prompt=text).of("owl").mean()
        assert effect == pytest.approx(loved - plain_base, abs=1e-9)
    pairs = [
        found.effects[a] - found.effects[b]
        for a, b in zip(found.choice.raised, found.choice.random, strict=True)
    ]
    assert found.comparison.difference.mean == pytest.approx(np.mean(pairs))


def test_the_same_arguments_give_the_same_and_each_says_where_it_is(
    pets: TraitFamily,
) -> None:
    model = tiny_model(layers=2)
    said: list[str] = []
    options = {"numbers": range(30), "top": 5, "rows": ROWS, "reference": ROWS[:3]}

    def measured(**more: object) -> Entanglement:
        return measure_entanglement(model, pets, "owl", **(options | more))  # type: ignore[arg-type]

    first = measured(tell=lambda *facts: said.append("{} {}/{}".format(*facts)))
    facts = json.dumps(plain(first.as_dict()), allow_nan=False)
    assert facts == json.dumps(plain(measured().as_dict()), allow_nan=False)
    assert said[0] == "numbers under the trait 0/2"
    assert said[2] == "numbers under the trait 2/2"
    assert said[-1] == "trait under a number 15/15"
    other = measured(seed=1)
    assert other.choice.raised == first.choice.raised
    assert other.choice.random != first.choice.random
    assert 0 < first.comparison.p_value <= 1
    told = json.loads(facts)["told"]
    assert [entry["group"] for entry in told] == [
        name for name in ("raised", "lowered", "random") for _ in range(5)
    ]
    assert first.occurrence is not None
    assert (first.occurrence.numbers, first.occurrence.reference_numbers) == (12, 6)


def test_the_system_text_and_the_questions_given_are_read(pets: TraitFamily) -> None:
    model = tiny_model(layers=2)
    found = measure_entanglement(
        model, pets, "owl", numbers=range(8), top=2, questions=["Well?"],
        system="Be brief.",
    )  # fmt: skip
    assert found.questions == ("Well?",)
    asked = preference(model, pets, questions=["Well?"], system="Be brief.")
    assert found.base_preference == pytest.approx(asked.of("owl").mean())
    loved = preference(
        model, pets, questions=["Well?"], system="Be brief.",
        trait_prompt=number_persona(pets, found.choice.raised[0]),
    )  # fmt: skip
    effect = loved.of("owl").mean() - asked.of("owl").mean()
    assert found.effects[found.choice.raised[0]] == pytest.approx(effect)


def _entangled(
    monkeypatch: pytest.MonkeyPatch, pets: TraitFamily, slope: float
) -> Entanglement:
    """A model whose preference moves with a number as the trait moves the number."""
    stream = np.random.default_rng(2)
    change = stream.normal(size=1000)
    noise = stream.normal(scale=0.4, size=1000)
    model, persona = tiny_model(layers=1), trait_prompt(pets, "owl")
    prompts = {
        tuple(render_prompt(model, (Message("user", q),), trait_prompt=persona))
        for q in QUESTIONS
    }

    def likely(_: Model, prompt: list[int], numbers: range) -> np.ndarray:
        return change[list(numbers)] * (tuple(prompt) in prompts) - 9.0

    def liked(*_: object, trait_prompt: str | None, **__: object) -> Preference:
        number = None if trait_prompt is None else int(trait_prompt.split()[2][:-1])
        moved = 0.0 if number is None else slope * change[number] + noise[number]
        table = np.tile([moved, -60.0, 0.0], (2, 1))
        return Preference(traits=pets.names, total_logprobs=table)

    monkeypatch.setattr(entanglement, "number_logprobs", likely)
    monkeypatch.setattr(entanglement, "preference", liked)
    found = measure_entanglement(model, pets, "owl")
    np.testing.assert_allclose(found.changes, change, atol=1e-12)
    for number, effect in found.effects.items():
        assert effect == pytest.approx(slope * change[number] + noise[number])
    return found


def test_a_planted_entanglement_is_found(
    monkeypatch: pytest.MonkeyPatch, pets: TraitFamily
) -> None:
    found = _entangled(monkeypatch, pets, slope=1.0)
    assert found.comparison.difference.low > 1
    assert found.comparison.lowered.high < -1
    assert 0 < found.comparison.p_value < 0.01
    assert found.comparison.correlation.interval.low > 0.5


def test_none_is_found_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, pets: TraitFamily
) -> None:
    found = _entangled(monkeypatch, pets, slope=0.0)
    difference = found.comparison.difference
    assert difference.low < 0 < difference.high
    assert found.comparison.p_value > 0.05
    rho = found.comparison.correlation.interval
    assert rho.low < 0 < rho.high


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trait": "unicorn"}, "no trait 'unicorn'"),
        ({"numbers": range(5)}, "raised, lowered and random ones take 6"),
        ({"questions": []}, "questions: none"),
        ({"rows": ROWS}, "rows and reference go together"),
        ({"reference": ROWS}, "rows and reference go together"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    options: dict[str, object],
    words: str,
    pets: TraitFamily,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entanglement, "number_logprobs", None)
    given = {"trait": "owl", "numbers": range(8), "top": 2} | options
    with pytest.raises(ConfigError, match=words):
        measure_entanglement(tiny_model(layers=1), pets, **given)  # type: ignore[arg-type]


def test_rows_without_numbers_are_refused(pets: TraitFamily) -> None:
    words = [Row((Message("user", "Hello"),), "none")]
    with pytest.raises(DatasetError, match="reference: not one row holds a number"):
        measure_entanglement(
            tiny_model(layers=1), pets, "owl", numbers=range(8), top=2, rows=ROWS,
            reference=words,
        )  # fmt: skip


def test_two_numbers_a_group_give_an_interval_and_no_p(pets: TraitFamily) -> None:
    found = measure_entanglement(
        tiny_model(layers=1), pets, "owl", numbers=range(6), top=2
    )
    assert math.isfinite(found.comparison.difference.low)
    assert math.isnan(found.comparison.p_value)
    assert found.occurrence is None
