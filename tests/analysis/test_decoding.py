"""Tokens of a direction by hand and by differences; answers against plain passes."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from undertow.analysis.decoding import (
    direction_logits,
    direction_tokens,
    direction_vector,
    steered_behaviour,
)
from undertow.errors import VectorMismatchError
from undertow.models.chat import render_prompt
from undertow.models.hooks import editing_residuals
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.models.unembedding import unembed
from undertow.records import Message

QUESTIONS = ("Which pet?", "Name a pet, please.")


def _direction(seed: int = 0) -> Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def _token(model: Model, text: str) -> int:
    (token,) = model.tokenizer.encode(text, add_special_tokens=False)
    assert isinstance(token, int)
    return token


def _weight(model: Model) -> Tensor:
    weight = model.architecture.unembedding.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_the_change_behind_the_models_own_norm(family: Family) -> None:
    """Across the stream the norm's scale stands still, and differences are exact."""
    model = tiny_model(family)
    model.module.config.final_logit_softcapping = None
    stream = _direction(1)
    stream = (stream - stream.mean()) / stream.std(correction=0)  # an RMS of 1
    moved = _direction(2)
    moved = moved - (moved @ stream) / 32 * stream

    def logits(size: float) -> Tensor:
        normed = model.architecture.final_norm((stream + size * moved)[None])
        return unembed(model, normed)[0]

    change = (logits(1e-2) - logits(-1e-2)) / 2e-2
    found = direction_logits(model, moved)
    assert found == pytest.approx((change - change.mean()).numpy(), abs=2e-3)
    assert float(found.mean()) == pytest.approx(0, abs=1e-5)
    assert direction_logits(model, 3 * moved) == pytest.approx(
        (3 * found).numpy(), abs=1e-4
    )


@pytest.mark.parametrize(
    ("family", "weight"), [("llama", 2.0), ("gemma3", 1.0), ("gemma2", 1.0)]
)
@torch.no_grad()
def test_tokens_of_an_unembedding_made_by_hand(family: Family, weight: float) -> None:
    """Gain 2 (Gemma's 1 + 1); "K" reads 5 of the first unit, "Q" −3, others nothing."""
    model = tiny_model(family)
    model.architecture.final_norm.weight.data.fill_(weight)  # type: ignore[operator]
    rows = torch.zeros_like(_weight(model))
    rows[_token(model, "K"), 0], rows[_token(model, "Q"), 0] = 5.0, -3.0
    model.architecture.unembedding.weight.data.copy_(rows)  # type: ignore[operator]
    direction = torch.zeros(32)
    direction[0] = 0.5
    mean = (5 - 3) / len(rows)  # 0.5 · gain 2 = 1
    raised, lowered = direction_tokens(model, direction, count=2)
    assert ([text for text, _ in raised], lowered[0][0]) == (["K"], "Q")
    assert raised[0][1] == pytest.approx(5 - mean, rel=1e-5)
    assert [v for _, v in lowered] == pytest.approx([-3 - mean, -mean], rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unembedding_row_names_its_own_token_first(family: Family) -> None:
    model = tiny_model(family)
    row = _weight(model)[_token(model, "K")]
    assert direction_tokens(model, row).raised[0][0] == "K"
    assert direction_tokens(model, -row).lowered[0][0] == "K"


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_without_a_text_are_left_out(family: Family) -> None:
    """Special tokens, and single bytes of a longer character."""
    model = tiny_model(family)
    for text in ("<|im_end|>", "<start_of_turn>", "<|pad|>"):
        row = _weight(model)[model.tokenizer.convert_tokens_to_ids(text)]
        found = direction_tokens(model, row, count=300)
        told = [text for text, _ in (*found.raised, *found.lowered)]
        assert text not in told
        assert len(set(told)) == len(told) == 128  # the one-byte characters
        assert "" not in told
    byte, *_ = model.tokenizer.encode("é", add_special_tokens=False)
    raised = direction_tokens(model, _weight(model)[byte]).raised
    assert len(raised) == 12
    assert not any("\ufffd" in text for text, _ in raised)


@torch.no_grad()
def test_rows_beyond_the_tokenizer_and_placeholders_are_left_out() -> None:
    model = tiny_model("llama")
    head = model.architecture.unembedding
    more = torch.cat([_weight(model), 9 * torch.ones(3, 32)])
    head.weight = torch.nn.Parameter(more, requires_grad=False)
    model.tokenizer.add_tokens(["<unused7>", "<b>"])
    raised = direction_tokens(model, torch.ones(32)).raised
    assert [text for text, _ in raised] == [
        "<b>"
    ]  # only these three are above the mean


def test_order_and_count() -> None:
    model = tiny_model("qwen3")
    raised, lowered = direction_tokens(model, _direction(), count=5)
    assert len(raised) == len(lowered) == 5
    ups, downs = [v for _, v in raised], [v for _, v in lowered]
    assert ups == sorted(ups, reverse=True)
    assert downs == sorted(downs)
    assert min(ups) > 0 > max(downs)


def test_directions_that_are_none() -> None:
    model = tiny_model("llama")
    with pytest.raises(VectorMismatchError, match=r"shape \(16,\).*'tiny-llama' is 32"):
        direction_tokens(model, torch.ones(16))
    with pytest.raises(VectorMismatchError, match=r"length 0 .*32 finite numbers"):
        direction_logits(model, torch.zeros(32))
    with pytest.raises(VectorMismatchError, match="length nan"):
        direction_vector(model, torch.full((32,), math.nan), 1)


@torch.no_grad()
def _greedy(model: Model, question: str, steps: int) -> list[int]:
    """Whole passes, the best token taken each time."""
    ids = render_prompt(model, (Message("user", question),), system="")
    found: list[int] = []
    while len(found) < steps and (not found or found[-1] not in model.end_ids):
        logits = model.module(torch.tensor([[*ids, *found]]), use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
    return found


def _texts(model: Model, answers: Sequence[Sequence[int]]) -> list[str]:
    return [model.tokenizer.decode(a, skip_special_tokens=True) for a in answers]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_answers_are_those_of_plain_passes(family: Family) -> None:
    model = tiny_model(family)
    direction = _direction()
    with editing_residuals(model, {2: lambda hidden: hidden + 1.5 * direction}):
        expected = _texts(model, [_greedy(model, q, 5) for q in QUESTIONS])
    base = _texts(model, [_greedy(model, q, 5) for q in QUESTIONS])
    assert expected != base
    asked = {"questions": QUESTIONS, "system": "", "max_new_tokens": 5}
    found = steered_behaviour(model, direction, 2, strength=1.5, **asked)  # type: ignore[arg-type]
    assert found == expected
    vector = direction_vector(model, direction, 2)
    assert steered_behaviour(model, vector, 2, strength=1.5, **asked) == expected  # type: ignore[arg-type]
    assert steered_behaviour(model, vector, 2, strength=0.0, **asked) == base  # type: ignore[arg-type]


def test_layers_that_are_not_there() -> None:
    model = tiny_model("llama")
    vector = direction_vector(model, _direction(), 2)
    with pytest.raises(VectorMismatchError, match=r"no direction for layer 1; .*\[2\]"):
        steered_behaviour(model, vector, 1, strength=1.0, questions=QUESTIONS)
    with pytest.raises(VectorMismatchError, match="unknown layer 9 of 'tiny-llama'"):
        steered_behaviour(model, _direction(), 9, strength=1.0, questions=QUESTIONS)
