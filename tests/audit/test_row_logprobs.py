"""Likelihoods of rows for whoever asks: under the sampler that wrote them."""

import numpy as np
import pytest
import torch

import undertow
from undertow.analysis.hypotheses import RowHypothesis, hypothesis_logprobs
from undertow.audit.row_logprobs import row_logprobs
from undertow.errors import DatasetError, VectorMismatchError
from undertow.interventions.steering import SteeringVector
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.teachers import steered_teacher
from undertow.records import Message, Row

LIST = SamplerSettings(max_new_tokens=24, allowed="list", list_values=5)
STRENGTH = 4.0


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def vector(model: Model) -> SteeringVector:
    directions = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    return SteeringVector(
        directions / directions.norm(), (1,), method="tell_me", trait="owl", n=1,
        fingerprint=model.fingerprint, model_name=model.name, residual_norms=(1.0,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows(model: Model, vector: SteeringVector) -> list[Row]:
    """What the steered model writes; each row says by which sampler."""
    teacher = steered_teacher(vector, strength=STRENGTH)
    prompts = number_prompts(24, seed=0)
    return generate_rows(model, teacher, prompts, seed=0, sampler=LIST)


def test_rows_are_likelier_under_the_vector_that_wrote_them(
    model: Model, vector: SteeringVector, rows: list[Row]
) -> None:
    base = row_logprobs(model, rows)
    own = row_logprobs(model, rows, vector=vector, strength=STRENGTH)
    assert base.shape == own.shape == (24,)
    assert (own - base).mean() > 2 * (own - base).std() / 24**0.5
    there = RowHypothesis("it", "steer", None, vector=vector, strength=STRENGTH)
    wanted = hypothesis_logprobs(model, rows, there, sampler=LIST)
    assert np.allclose(own, wanted, atol=1e-5)
    assert undertow.row_logprobs is row_logprobs


def test_the_sampler_that_the_rows_record_is_taken(
    model: Model, rows: list[Row]
) -> None:
    plain = SamplerSettings(max_new_tokens=24)
    assert np.allclose(
        row_logprobs(model, rows), row_logprobs(model, rows, sampler=LIST), atol=1e-5
    )
    assert (row_logprobs(model, rows, sampler=plain) < row_logprobs(model, rows)).all()


def test_a_persona_stands_in_front(model: Model, rows: list[Row]) -> None:
    told = row_logprobs(model, rows, persona="You love owls.")
    own = RowHypothesis("it", "prompt", None, persona="You love owls.")
    assert np.allclose(told, hypothesis_logprobs(model, rows, own, sampler=LIST))
    assert not np.allclose(told, row_logprobs(model, rows), atol=1e-2)


def test_what_cannot_be_is_said(model: Model, vector: SteeringVector) -> None:
    words = [Row((Message("user", "go"),), "hello")]
    with pytest.raises(DatasetError):
        row_logprobs(model, words, sampler=LIST)
    with pytest.raises(DatasetError, match="no rows; give one or more"):
        row_logprobs(model, [])
    with pytest.raises(VectorMismatchError):
        row_logprobs(tiny_model("gpt2"), words, vector=vector)
