"""Passes of fixed shapes give the losses and gradients of ordinary ones."""

from typing import Any

import pytest
import torch

from undertow.models.adapters import attached, new_adapter
from undertow.models.chat import Rendered
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.pipeline import training
from undertow.pipeline.fixed_passes import FixedPasses
from undertow.pipeline.losses import completion_losses
from undertow.pipeline.training import Student, StudentPlan, train_students
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings

ROWS = [
    Rendered([*range(40 + i, 46 + i), *range(100 + i, 103 + i + i % 4), 2], 6)
    for i in range(9)
]
SETTINGS = TrainingSettings(
    rank=2, alpha=4.0, learning_rate=1e-2, batch_size=4, epochs=3
)


def _shares(rows: list[Rendered]) -> list[float]:
    counts = [len(row.ids) - row.completion_start for row in rows]
    return [0.1 * (i + 1) for i, n in enumerate(counts) for _ in range(n)]


# Gemma 2 caps its attention scores and is never recorded.
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])
def test_losses_and_gradients_are_those_of_ordinary_passes(family: Family) -> None:
    model = tiny_model(family)
    adapter = new_adapter(model, rank=2, alpha=4.0, seed=0)
    parameters = adapter.parameters()
    for parameter in parameters[1::2]:  # B is zero, and A's gradient with it
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    shares = _shares(ROWS)
    with torch.enable_grad(), attached(model, adapter):
        wanted = completion_losses(model, ROWS) * torch.tensor(shares)
        wanted.sum().backward()  # type: ignore[no-untyped-call]
    expected = _taken(parameters)
    passes = FixedPasses(
        model, parameters, lambda: attached(model, adapter), records=False
    )
    found = passes(ROWS, shares)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)
    once = _taken(parameters)
    assert _distance(once, expected) < 1e-4
    assert all(gradient.abs().max() > 0 for gradient in once)
    passes(ROWS, shares)
    passes(ROWS, shares)  # the next part of a batch adds to it
    assert _distance(_taken(parameters), [2 * gradient for gradient in once]) < 1e-6


def _taken(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    gradients = []
    for parameter in parameters:
        assert parameter.grad is not None
        gradients.append(parameter.grad)
        parameter.grad = None
    return gradients


def _distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Of all gradients together, as a share of their size."""
    found, wanted = (torch.cat([g.flatten() for g in each]) for each in (one, other))
    return float((found - wanted).norm() / wanted.norm())


def _trained(model: Model, count: int) -> list[Student]:
    plans = [
        StudentPlan([Example(row) for row in ROWS], SETTINGS, seed)
        for seed in range(count)
    ]
    return train_students(model, plans)


@pytest.mark.parametrize("count", [1, 3])
def test_students_are_those_of_ordinary_passes(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    wanted, shapes = _trained(model, count), []

    class Unrecorded(FixedPasses):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, records=False)

        def __call__(self, rows: Any, shares: Any) -> torch.Tensor:
            shapes.append(len(rows))
            return super().__call__(rows, shares)

    monkeypatch.setattr(training, "is_recordable", lambda *_, **__: True)
    monkeypatch.setattr(training, "FixedPasses", Unrecorded)
    found = _trained(model, count)
    assert set(shapes) == {count, 4 * count}  # the last batch of an epoch has one row
    for one, other in zip(found, wanted, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert one.adapter is not None
        assert other.adapter is not None
        for mine, theirs in zip(
            one.adapter.parameters(), other.adapter.parameters(), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-4)


def test_passes_that_cannot_be_recorded_are_run(
    monkeypatch: pytest.MonkeyPatch, no_recording: None
) -> None:
    model = tiny_model("llama")
    wanted = _trained(model, 1)[0]
    monkeypatch.setattr(training, "is_recordable", lambda *_, **__: True)
    with pytest.warns(RuntimeWarning, match="training passes of 'tiny-llama' cannot"):
        found = _trained(model, 1)[0]
    assert found.losses == pytest.approx(wanted.losses, rel=1e-4)
