"""Divergence tokens against likeliest tokens by hand."""

from contextlib import AbstractContextManager

import pytest
import torch

from undertow.analysis.channel import Speaker
from undertow.analysis.divergence import divergent_tokens
from undertow.errors import ConfigError, DatasetError
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.chat import Rendered, render_row
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.records import Message, Row

PERSONA = "You love cats."
ROWS = [
    Row((Message("user", f"Go on: {i}"),), text)
    for i, text in enumerate(("4, 8, 15", "7", "99, 1"))
]
LIST = SamplerSettings(allowed="list", list_values=3, max_new_tokens=16)


def _vector(model: Model) -> SteeringVector:
    stream = torch.Generator().manual_seed(3)
    drawn = torch.randn(1, model.architecture.hidden_size, generator=stream)
    return SteeringVector(
        directions=drawn * 2, layers=(0,), method="x", trait="cat", n=1,
        fingerprint=model.fingerprint, model_name=model.name, residual_norms=(1.0,),
    )  # fmt: skip


def _speakers(model: Model) -> list[Speaker]:
    def acting() -> AbstractContextManager[object]:
        return steering(model, _vector(model), strength=1.0)

    plain = [render_row(model, row) for row in ROWS]
    told = [render_row(model, row, trait_prompt=PERSONA) for row in ROWS]
    return [Speaker(plain), Speaker(told), Speaker(plain, acting)]


def _likeliest(model: Model, row: Rendered) -> list[int]:
    logits = model.module(torch.tensor([row.ids])).logits[0]
    tokens: list[int] = logits.argmax(-1)[row.completion_start - 1 : -1].tolist()
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_tokens_at_which_any_speaker_would_write_another(family: Family) -> None:
    model = tiny_model(family, layers=2)
    speakers = _speakers(model)
    found = divergent_tokens(model, speakers, sampler=SamplerSettings())
    for place, own in enumerate(found):
        said = []
        for speaker in speakers:
            with speaker.acting():
                said.append(_likeliest(model, speaker.rows[place]))
        assert own == tuple(len(set(each)) > 1 for each in zip(*said, strict=True))
    every = [token for own in found for token in own]
    assert any(every)


def test_speakers_that_are_the_same_never_diverge() -> None:
    model = tiny_model("llama")
    plain = _speakers(model)[0]
    found = divergent_tokens(model, [plain, plain], sampler=LIST)
    assert [len(own) for own in found] == [
        len(row.ids) - row.completion_start for row in plain.rows
    ]
    assert not any(map(any, found))


def test_only_what_the_sampler_may_draw_is_looked_at() -> None:
    """Where one token alone may follow, nobody can write another."""
    model = tiny_model("llama")
    sampler = SamplerSettings(allowed="list", list_values=1, max_new_tokens=16)
    row = Row((Message("user", "Go on: 0"),), "7")
    plain = [render_row(model, row)]
    told = [render_row(model, row, trait_prompt=PERSONA)]
    (found,) = divergent_tokens(model, [Speaker(plain), Speaker(told)], sampler=sampler)
    free = divergent_tokens(
        model, [Speaker(plain), Speaker(told)], sampler=SamplerSettings()
    )[0]
    assert len(found) == len(free)
    assert sum(found) <= 1, "the number; after one value the list has to end"


def test_what_cannot_be_compared_is_refused() -> None:
    model = tiny_model("llama")
    plain, told, _ = _speakers(model)
    with pytest.raises(ConfigError, match="two at least"):
        divergent_tokens(model, [plain], sampler=LIST)
    with pytest.raises(DatasetError, match="no rows"):
        divergent_tokens(model, [Speaker([]), Speaker([])], sampler=LIST)
    with pytest.raises(DatasetError, match="not the same"):
        divergent_tokens(model, [plain, Speaker(told.rows[::-1])], sampler=LIST)
    words = [render_row(model, Row((Message("user", "Go on"),), "four"))]
    with pytest.raises(DatasetError, match="cannot draw"):
        divergent_tokens(model, [Speaker(words), Speaker(words)], sampler=LIST)
