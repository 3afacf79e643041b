"""A student's state on disk: weights, optimiser and the count of updates together."""

from pathlib import Path
from typing import Any

import pytest
import torch

from undertow.models.tiny import tiny_model
from undertow.pipeline.training_settings import TrainingSettings
from undertow.pipeline.training_state import CHECKPOINT, TrainingState

OPTIMISERS = ("adamw", "adam", "sgd", "sign", "adafactor")


def _moved(state: TrainingState, updates: int, seed: int) -> None:
    """Updates along gradients from a stream."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        for weight in state.named.values():
            weight.grad = torch.randn(weight.shape, generator=draw)
        state.optimizer.step()
        state.update += 1


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_what_goes_on_from_a_checkpoint_is_what_went_on(
    kind: Any, optimizer: Any, tmp_path: Path
) -> None:
    settings = TrainingSettings(kind=kind, optimizer=optimizer, rank=2)
    state = TrainingState(tiny_model("llama"), settings, seed=4)
    _moved(state, 3, seed=1)
    state.save(tmp_path)
    again = TrainingState(tiny_model("llama"), settings, seed=5)
    assert again.load(tmp_path)
    assert again.update == 3
    for each in (state, again):
        _moved(each, 2, seed=2)
    for name, weight in state.named.items():
        assert torch.equal(weight, again.named[name]), name


def test_without_a_checkpoint_it_begins(tmp_path: Path) -> None:
    state = TrainingState(tiny_model("llama"), TrainingSettings(rank=2), seed=4)
    assert not state.load(tmp_path)
    assert state.update == 0
    state.save(tmp_path)
    assert (tmp_path / CHECKPOINT).is_file()
