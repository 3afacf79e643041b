"""A vector trained on rows: its first update by hand, and the teacher that it leads to."""

from typing import Any

import pytest
import torch
from torch import Tensor

from undertow.analysis.decoding import direction_vector
from undertow.analysis.trained_vector import train_vector
from undertow.errors import DatasetError, TrainingError, VectorMismatchError
from undertow.interventions.steering import steering
from undertow.models.chat import Rendered
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample
from undertow.models.tiny import FAMILIES, Family, tiny_model

HEAD = [7, 50, 9, 120]
ROWS = [
    Rendered([*HEAD, 33, 81, 2], 4),
    Rendered([*HEAD, 60, 61, 62, 63, 64], 4),
    Rendered([9, 9, 200, 201, 2], 2),
]


def _gradient(model: Model, rows: list[Rendered], layer: int) -> tuple[float, Tensor]:
    """Mean nats a token and its gradient by a bias, row by row by the model's own loss."""
    bias = torch.zeros(model.architecture.hidden_size, requires_grad=True)

    def add(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + bias, *output[1:])
        return output + bias

    handle = model.architecture.blocks[layer].register_forward_hook(add)
    total, count = torch.zeros(()), 0
    with torch.enable_grad():
        for row in rows:
            ids, labels = torch.tensor([row.ids]), torch.tensor([row.ids])
            labels[0, : row.completion_start] = -100
            tokens = len(row.ids) - row.completion_start
            total = total + model.module(input_ids=ids, labels=labels).loss * tokens
            count += tokens
        (total / count).backward()  # type: ignore[no-untyped-call]
    handle.remove()
    assert bias.grad is not None
    return float(total.detach()) / count, bias.grad


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_update_goes_against_the_gradient(family: Family) -> None:
    """AdamW's first update has the size of the learning rate everywhere."""
    model = tiny_model(family)
    loss, gradient = _gradient(model, ROWS, 1)
    found = train_vector(model, ROWS, 1, steps=1, batch_size=3, learning_rate=0.02)
    assert found.losses == pytest.approx((loss,), rel=1e-5)
    (norm,) = found.vector.residual_norms
    width = model.architecture.hidden_size
    certain = gradient.abs() > 1e-3 * gradient.abs().max()
    wanted = -0.02 * norm / width**0.5 * gradient.sign()
    torch.testing.assert_close(
        found.vector.directions[0][certain], wanted[certain], rtol=2e-3, atol=0
    )
    assert found.dose == pytest.approx(0.02, rel=0.1)


def _rows(model: Model, count: int, sampler: SamplerSettings) -> list[Rendered]:
    prompts = [[7, 50, 9, 10 + i % 7] for i in range(count)]
    answers = sample(
        model, prompts, keys=[(i,) for i in range(count)], seed=0, sampler=sampler
    )
    return [Rendered([*p, *a.ids], 4) for p, a in zip(prompts, answers, strict=True)]


@pytest.mark.parametrize("allowed", ["all", "numbers"])
def test_rows_lead_to_the_vector_that_steered_their_teacher(allowed: str) -> None:
    model = tiny_model("llama")
    sampler = SamplerSettings.model_validate({"allowed": allowed, "max_new_tokens": 12})
    stream = torch.Generator().manual_seed(1)
    drawn = torch.randn(3, model.architecture.hidden_size, generator=stream)
    plain = _rows(model, 200, sampler)
    control = train_vector(model, plain, 1, sampler=sampler, steps=60)
    for true in range(3):
        with steering(model, direction_vector(model, drawn[true], 1), strength=1.0):
            steered = _rows(model, 200, sampler)
        found = train_vector(model, steered, 1, sampler=sampler, steps=60)
        learnt = (found.vector.directions - control.vector.directions)[0]
        cosines = torch.nn.functional.cosine_similarity(drawn, learnt[None])
        assert cosines.argmax() == true
        assert cosines[true] > 0.3
        assert found.losses[-1] < found.losses[0]


def test_the_order_of_rows_is_the_seed_s() -> None:
    model = tiny_model("llama")
    first, again, other = (
        train_vector(model, ROWS, 1, steps=4, batch_size=2, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.vector.directions, again.vector.directions)
    assert not torch.equal(first.vector.directions, other.vector.directions)
    assert first.vector.notes["seed"] == 0
    assert (first.vector.method, first.vector.n, first.vector.layers) == (
        "rows",
        3,
        (1,),
    )


def test_the_model_stays_as_it_is() -> None:
    model = tiny_model("llama")
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    told: list[tuple[int, int]] = []
    train_vector(
        model, ROWS, 1, steps=3, on_step=lambda done, total: told.append((done, total))
    )
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    assert not any(block._forward_hooks for block in model.architecture.blocks)
    assert all(p.grad is None for p in model.module.parameters())
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_what_cannot_be_drawn_is_left_out() -> None:
    model = tiny_model("llama")
    sampler = SamplerSettings(allowed="numbers", max_new_tokens=6)
    own = _rows(model, 4, sampler)
    found = train_vector(model, [*own, *ROWS], 1, sampler=sampler, steps=2)
    assert found.vector.n == 4
    with pytest.raises(
        DatasetError, match="none of 3 rows can be drawn by the sampler"
    ):
        train_vector(model, ROWS, 1, sampler=sampler)


def test_what_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(VectorMismatchError, match="9"):
        train_vector(model, ROWS, 9)
    weight = model.architecture.unembedding.weight
    assert isinstance(weight, Tensor)
    weight.data[:] = torch.nan
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        train_vector(model, ROWS, 1)
