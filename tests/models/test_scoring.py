"""Drawn rows score as the sampler itself recorded them, token by token."""

import math
from collections.abc import Sequence

import pytest
import torch

from undertow.errors import DatasetError
from undertow.models.carrier import list_carrier
from undertow.models.chat import Rendered
from undertow.models.likelihood import predicting_states
from undertow.models.loading import Model
from undertow.models.sampling import Sampled, SamplerSettings, sample
from undertow.models.scoring import DrawLikelihood, Drawn, by_row
from undertow.models.tiny import FAMILIES, Family, tiny_model

PROMPTS = [[7, 50, 9, 120], [7, 50, 9, 121, 33], [60, 61, 62], [9, 9]]
SAMPLERS = {
    "all": SamplerSettings(max_new_tokens=9),
    "cool": SamplerSettings(max_new_tokens=9, temperature=0.7),
    "greedy": SamplerSettings(max_new_tokens=9, temperature=0.0),
    "top_k": SamplerSettings(max_new_tokens=9, temperature=0.7, top_k=5),
    "top_p": SamplerSettings(max_new_tokens=9, top_p=0.6),
    "both": SamplerSettings(max_new_tokens=9, top_k=40, top_p=0.9),
    "numbers": SamplerSettings(max_new_tokens=9, allowed="numbers"),
    "cool numbers": SamplerSettings(
        max_new_tokens=9, allowed="numbers", temperature=0.7, top_p=0.8
    ),
    "list": SamplerSettings(max_new_tokens=9, allowed="list", list_values=2),
    "cut list": SamplerSettings(max_new_tokens=9, allowed="list", top_k=3),
}


def _answers(model: Model, sampler: SamplerSettings) -> list[Sampled]:
    keys = [(i,) for i in range(len(PROMPTS))]
    return sample(model, PROMPTS, keys=keys, seed=3, sampler=sampler)


def _rendered(answers: Sequence[Sampled]) -> list[Rendered]:
    return [
        Rendered([*prompt, *answer.ids], len(prompt))
        for prompt, answer in zip(PROMPTS, answers, strict=True)
    ]


@torch.no_grad()
def _score(
    model: Model, rows: Sequence[Rendered], sampler: SamplerSettings
) -> list[torch.Tensor]:
    likelihood = DrawLikelihood(model, sampler)
    hidden, _ = predicting_states(model, rows)
    draws = [likelihood.drawn(row) for row in rows]
    return by_row(likelihood.token_logprobs(hidden, draws), draws)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["all", "cool", "cool numbers", "list"])
def test_rows_score_as_they_were_drawn(family: Family, name: str) -> None:
    _as_recorded(tiny_model(family), SAMPLERS[name])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_rows_score_as_they_were_drawn_by_any_sampler(name: str) -> None:
    _as_recorded(tiny_model("qwen2"), SAMPLERS[name])


def _as_recorded(model: Model, sampler: SamplerSettings) -> None:
    answers = _answers(model, sampler)
    nats = _score(model, _rendered(answers), sampler)
    assert [len(part) for part in nats] == [len(answer.ids) for answer in answers]
    found = [float(part.double().sum()) for part in nats]
    wanted = [answer.total_logprob for answer in answers]
    assert all(math.isfinite(value) and value < 0 for value in wanted)
    assert found == pytest.approx(wanted, abs=1e-4)


def test_few_logits_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sampler = tiny_model("llama"), SAMPLERS["cool numbers"]
    rows = _rendered(_answers(model, sampler))
    whole = torch.cat(_score(model, rows, sampler))
    monkeypatch.setattr("undertow.models.scoring.usual_chunk", lambda *_, **__: 1)
    torch.testing.assert_close(torch.cat(_score(model, rows, sampler)), whole)


def test_the_carrier_s_states_are_followed() -> None:
    """In "12, 3" the space comes after a comma and the end after a digit."""
    model = tiny_model("llama")
    likelihood = DrawLikelihood(model, SamplerSettings(allowed="list"))
    tokens = model.tokenizer.encode("12, 3", add_special_tokens=False)
    drawn = likelihood.drawn(Rendered([5, 6, *tokens, model.end_ids[0]], 2))
    carrier = list_carrier(model, most=10)
    assert drawn.is_possible
    assert carrier.ids[list(drawn.columns)].tolist() == [*tokens, model.end_ids[0]]
    state = 0
    for column, before in zip(drawn.columns, drawn.states, strict=True):
        assert before == state
        state = int(carrier.following[state, column])
    assert len(set(drawn.states)) == len(drawn.states)  # every place is another one


@pytest.mark.parametrize(
    ("allowed", "text", "wrong"),
    [
        ("numbers", "1x2", [1]),
        ("list", "1x2", [1]),
        ("list", ",1", [0]),
        ("list", "1 2", [1]),
        ("list", "1234", [3]),
    ],
)
def test_what_cannot_be_drawn_has_no_column(
    allowed: str, text: str, wrong: list[int]
) -> None:
    model = tiny_model("llama")
    sampler = SamplerSettings.model_validate({"allowed": allowed})
    likelihood = DrawLikelihood(model, sampler)
    tokens = model.tokenizer.encode(text, add_special_tokens=False)
    row = Rendered([5, *tokens], 1)
    drawn = likelihood.drawn(row)
    assert [i for i, column in enumerate(drawn.columns) if column == -1] == wrong
    assert not drawn.is_possible
    hidden, _ = predicting_states(model, [row])
    message = f"cannot draw \\(allowed='{allowed}'\\); give the sampler that wrote"
    with pytest.raises(DatasetError, match=message):
        likelihood.token_logprobs(hidden, [drawn])


def test_a_token_beyond_the_cut_has_no_probability() -> None:
    model = tiny_model("llama")
    sampler = SamplerSettings(top_k=1)
    (best,) = sample(model, PROMPTS[:1], keys=[(0,)], seed=0,
                     sampler=SamplerSettings(top_k=1, max_new_tokens=1))  # fmt: skip
    other = (best.ids[0] + 1) % 200
    rows = [Rendered([*PROMPTS[0], token], 4) for token in (best.ids[0], other)]
    found = [float(part.sum()) for part in _score(model, rows, sampler)]
    assert found == [0.0, -math.inf]


def test_without_a_carrier_columns_are_tokens() -> None:
    likelihood = DrawLikelihood(tiny_model("llama"), SamplerSettings())
    drawn = likelihood.drawn(Rendered([5, 6, 7, 2], 2))
    assert drawn == Drawn((7, 2), (0, 0))


def test_a_distribution_sums_to_one() -> None:
    """Over the first token of a list, all that the carrier allows."""
    model, sampler = tiny_model("gemma3"), SAMPLERS["list"]
    likelihood = DrawLikelihood(model, sampler)
    every = [
        Rendered([7, 50, token], 2) for token in range(model.architecture.vocab_size)
    ]
    rows = [row for row in every if likelihood.drawn(row).is_possible]
    assert 0 < len(rows) < len(every)
    total = sum(float(part.exp()) for part in _score(model, rows, sampler))
    assert total == pytest.approx(1.0, abs=1e-5)
