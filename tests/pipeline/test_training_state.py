"""A student's state on disk: weights, optimiser and the count of updates together."""

from pathlib import Path
from typing import Any

import pytest
import torch

from undertow.models.tiny import tiny_model
from undertow.pipeline.training_settings import TrainingSettings
from undertow.pipeline.training_state import CHECKPOINT, TRACE, TrainingState
from undertow.storage import append_jsonl, read_jsonl

OPTIMISERS = ("adamw", "adam", "sgd", "sign", "adafactor")


def _trace(directory: Path, updates: int) -> None:
    """The losses of updates, after those that are there."""
    path = directory / TRACE
    begun = len(read_jsonl(path)) if path.exists() else 0
    for update in range(begun + 1, begun + updates + 1):
        append_jsonl(path, {"update": update, "loss": 1 / update})


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
    _trace(tmp_path, 3)
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


def _saved(tmp_path: Path, *, traced: int = 2) -> TrainingState:
    state = TrainingState(tiny_model("llama"), TrainingSettings(rank=2), seed=4)
    _moved(state, 2, seed=1)
    _trace(tmp_path, traced)
    state.save(tmp_path)
    return state


def _fresh() -> TrainingState:
    return TrainingState(tiny_model("llama"), TrainingSettings(rank=2), seed=4)


@pytest.mark.parametrize("from_end", [1, 40_000, None])
@pytest.mark.parametrize("bit", [0, 6])
def test_a_damaged_checkpoint_is_set_aside(
    tmp_path: Path, from_end: int | None, bit: int
) -> None:
    """Of a number, or of the count of updates in the header."""
    _saved(tmp_path)
    path = tmp_path / CHECKPOINT
    data = bytearray(path.read_bytes())
    place = data.index(b'"update":"2"') + 10 if from_end is None else -from_end
    data[place] ^= 1 << bit
    path.write_bytes(data)
    again = _fresh()
    with pytest.warns(RuntimeWarning, match=r"checkpoint\.safetensors: damaged: "):
        assert not again.load(tmp_path)
    assert again.update == 0
    assert path.with_name(f"{CHECKPOINT}.set-aside").read_bytes() == bytes(data)
    assert read_jsonl(tmp_path / TRACE) == []  # all of it is trained again
    for name, weight in _fresh().named.items():
        assert torch.equal(weight, again.named[name])


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = _saved(tmp_path)
    path = tmp_path / CHECKPOINT
    save_file(load_file(path), path, metadata={"update": "2"})
    again = _fresh()
    assert again.load(tmp_path)
    for name, weight in state.named.items():
        assert torch.equal(weight, again.named[name])


def test_losses_after_the_checkpoint_are_not_doubled(tmp_path: Path) -> None:
    _saved(tmp_path, traced=5)
    assert _fresh().load(tmp_path)
    assert [line["update"] for line in read_jsonl(tmp_path / TRACE)] == [1, 2]


def test_a_checkpoint_without_its_losses_is_not_gone_on_with(tmp_path: Path) -> None:
    _saved(tmp_path, traced=1)
    with pytest.warns(RuntimeWarning, match=r"of 2 updates 1 stand in trace\.jsonl"):
        assert not _fresh().load(tmp_path)
    assert read_jsonl(tmp_path / TRACE) == []
