"""The channel against sums by hand, and against likelihoods of sampled rows."""

from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch

from undertow.analysis import channel
from undertow.analysis.channel import Speaker, divergences
from undertow.analysis.hypotheses import RowHypothesis, hypothesis_logprobs
from undertow.errors import DatasetError
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.chat import Rendered, render_row
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.teachers import steered_teacher
from undertow.records import Message, Row

LIST = SamplerSettings(allowed="list", list_values=3, max_new_tokens=16)
PERSONA = "You love cats."
ROWS = [
    Row((Message("user", f"Go on: {i}"),), text)
    for i, text in enumerate(("4, 8, 15", "7", "99, 1"))
]


def _vector(model: Model, size: float = 2.0) -> SteeringVector:
    stream = torch.Generator().manual_seed(3)
    drawn = torch.randn(1, model.architecture.hidden_size, generator=stream)
    return SteeringVector(
        directions=drawn * size, layers=(0,), method="x", trait="cat", n=1,
        fingerprint=model.fingerprint, model_name=model.name, residual_norms=(1.0,),
    )  # fmt: skip


def _steered(model: Model, rows: list[Rendered], size: float = 2.0) -> Speaker:
    def acting() -> AbstractContextManager[object]:
        return steering(model, _vector(model, size), strength=1.0)

    return Speaker(rows, acting)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_every_token_s_divergence_by_hand(family: Family) -> None:
    """Row by row on the plain module, the persona's prompts being longer."""
    model = tiny_model(family, layers=2)
    plain = [render_row(model, row) for row in ROWS]
    told = [render_row(model, row, trait_prompt=PERSONA) for row in ROWS]
    found = divergences(
        model, _steered(model, told), {"base": Speaker(plain)},
        sampler=SamplerSettings(),
    )["base"]  # fmt: skip
    for place, (own, other) in enumerate(zip(told, plain, strict=True)):
        count = len(own.ids) - own.completion_start
        with steering(model, _vector(model), strength=1.0):
            p = model.module(torch.tensor([own.ids])).logits[0].double().log_softmax(-1)
        q = model.module(torch.tensor([other.ids])).logits[0].double().log_softmax(-1)
        p, q = p[own.completion_start - 1 : -1], q[other.completion_start - 1 : -1]
        wanted = float((p.exp() * (p - q)).sum())
        assert found.tokens[place] == count == len(p)
        assert found.vocabulary[place] == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert np.array_equal(found.vocabulary, found.carrier)  # nothing is forbidden


def test_nothing_at_work_is_no_channel() -> None:
    model = tiny_model("llama", layers=2)
    rows = [render_row(model, row) for row in ROWS]
    found = divergences(
        model, _steered(model, rows, 0.0), {"base": Speaker(rows)}, sampler=LIST
    )["base"]
    assert np.array_equal(found.vocabulary, np.zeros(3))
    assert np.array_equal(found.carrier, np.zeros(3))


def test_on_its_own_rows_it_is_the_mean_log_ratio() -> None:
    """Σ KL is E log p/q over rows that the teacher writes: the chain rule."""
    model = tiny_model("llama", layers=2)
    vector = _vector(model, 3.0)
    teacher = steered_teacher(vector, strength=1.0)
    prompts = [f"Go on: {i}" for i in range(400)]
    written = generate_rows(model, teacher, prompts, seed=0, sampler=LIST)
    rendered = [render_row(model, row) for row in written]
    found = divergences(
        model, _steered(model, rendered, 3.0), {"base": Speaker(rendered)},
        sampler=LIST,
    )["base"]  # fmt: skip
    alone = RowHypothesis("cat vector", "steer", "cat", vector=vector)
    ratio = hypothesis_logprobs(model, written, alone, sampler=LIST)
    ratio -= hypothesis_logprobs(model, written, None, sampler=LIST)
    error = (ratio - found.carrier).std() / len(ratio) ** 0.5
    assert found.carrier.mean() > 20 * error  # there is something to be seen
    assert abs(ratio.mean() - found.carrier.mean()) < 3 * error
    assert not np.allclose(found.carrier, found.vocabulary, rtol=0.05)


def test_several_others_and_small_batches_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama", layers=2)
    rows = [render_row(model, row) for row in ROWS]
    told = [render_row(model, row, trait_prompt=PERSONA) for row in ROWS]
    others = {"base": Speaker(rows), "told": Speaker(told)}
    whole = divergences(model, _steered(model, rows), others, sampler=LIST)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(channel, "_HELD", 1)
    parts = divergences(
        model, _steered(model, rows), others, sampler=LIST,
        on_rows=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for name in others:
        assert parts[name].carrier == pytest.approx(whole[name].carrier, abs=1e-5)
        assert parts[name].vocabulary == pytest.approx(whole[name].vocabulary, abs=1e-5)
    assert (whole["told"].vocabulary != whole["base"].vocabulary).all()


def test_what_the_other_cannot_draw_is_infinite() -> None:
    model = tiny_model("llama", layers=2)
    rows = [render_row(model, row) for row in ROWS]
    likeliest = SamplerSettings(top_k=1)
    found = divergences(
        model, _steered(model, rows, 9.0), {"base": Speaker(rows)}, sampler=likeliest
    )["base"]
    assert np.isinf(found.carrier).any()
    assert np.isfinite(found.vocabulary).all()


def test_what_does_not_belong_together_is_refused() -> None:
    model = tiny_model("llama", layers=2)
    rows = [render_row(model, row) for row in ROWS]
    words = [render_row(model, Row(ROWS[0].messages, "no number"))]
    with pytest.raises(DatasetError, match="no rows"):
        divergences(model, Speaker([]), {}, sampler=LIST)
    with pytest.raises(DatasetError, match="base: its completions are not"):
        divergences(model, Speaker(rows), {"base": Speaker(rows[::-1])}, sampler=LIST)
    with pytest.raises(DatasetError, match="cannot draw"):
        divergences(model, Speaker(words), {"base": Speaker(words)}, sampler=LIST)
