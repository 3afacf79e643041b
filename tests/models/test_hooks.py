"""The residual stream as transformers itself reports it, and hooks that let go."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from undertow.errors import VectorMismatchError
from undertow.models.hooks import (
    completion_positions,
    current_completion_positions,
    editing_residuals,
    going_on_from,
    recording_residuals,
    recording_streams,
)
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model

IDS = torch.tensor([[7, 50, 9, 120, 33, 81]])


def _hooks(model: Model) -> int:
    return sum(len(block._forward_hooks) for block in model.architecture.blocks)


def _logits(model: Model) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.module(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_are_the_library_s_hidden_states(family: Family) -> None:
    model = tiny_model(family)
    with torch.no_grad(), recording_residuals(model, range(4)) as kept:
        output = model.module(input_ids=IDS, output_hidden_states=True)
    states = output.hidden_states  # the embedding, then the stream after each block
    assert len(states) == 5
    for layer in range(3):
        assert torch.equal(kept[layer], states[layer + 1])
    # The library norms the last one; ours is the stream itself.
    normed = model.architecture.final_norm(kept[3])
    assert torch.equal(normed, states[4])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_at_a_layer_changes_what_follows_and_not_what_was(
    family: Family,
) -> None:
    model = tiny_model(family)
    with torch.no_grad(), recording_residuals(model, range(4)) as before:
        model.module(input_ids=IDS)
    with (
        torch.no_grad(),
        editing_residuals(model, {1: lambda hidden: hidden + 1}),
        recording_residuals(model, range(4)) as after,
    ):
        model.module(input_ids=IDS)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1] + 1, after[1])
    assert not torch.equal(before[2], after[2])


def test_an_edit_that_changes_nothing_leaves_every_bit() -> None:
    model = tiny_model("llama")
    plain = _logits(model)
    with editing_residuals(model, {0: lambda hidden: hidden}):
        assert torch.equal(_logits(model), plain)


def test_hooks_are_gone_after_the_context_and_after_a_fault() -> None:
    model = tiny_model("llama")
    plain = _logits(model)

    def broken(hidden: Tensor) -> Tensor:
        raise RuntimeError("in the middle of a pass")

    with recording_residuals(model, (0, 3)):
        assert _hooks(model) == 2
    assert _hooks(model) == 0
    with (
        pytest.raises(RuntimeError, match="middle"),
        editing_residuals(model, {2: broken}),
    ):
        _logits(model)
    assert _hooks(model) == 0
    with pytest.raises(KeyError), recording_residuals(model, (1,)):
        raise KeyError("the caller's own")
    assert _hooks(model) == 0
    assert torch.equal(_logits(model), plain)


@pytest.mark.parametrize("layers", [(4,), (0, -1), (99,)])
def test_a_layer_that_is_not_there_is_named_before_anything_hooks(
    layers: Sequence[int],
) -> None:
    model = tiny_model("llama")
    with (
        pytest.raises(VectorMismatchError) as caught,
        recording_residuals(model, layers),
    ):
        pass
    assert str(caught.value) == (
        f"unknown layer {layers[-1]} of 'tiny-llama': its 4 blocks are counted from 0 "
        "to 3"
    )
    assert _hooks(model) == 0


def test_completion_positions_nest_and_are_forgotten() -> None:
    model = tiny_model("llama")
    outer, inner = torch.zeros(1, 2).bool(), torch.ones(1, 3).bool()

    def fail_inside() -> None:
        with completion_positions(model, inner):
            assert current_completion_positions() is inner
            raise ValueError("x")

    assert current_completion_positions() is None
    with completion_positions(model, outer):
        with pytest.raises(ValueError, match="x"):
            fail_inside()
        assert current_completion_positions() is outer
    assert current_completion_positions() is None


def test_recorded_states_carry_gradients() -> None:
    model = tiny_model("llama")
    bias = torch.zeros(32, requires_grad=True)
    with (
        editing_residuals(model, {1: lambda hidden: hidden + bias}),
        recording_residuals(model, (2,)) as kept,
    ):
        model.module(input_ids=IDS)
    kept[2].sum().backward()  # type: ignore[no-untyped-call]
    assert bias.grad is not None
    assert float(bias.grad.abs().max()) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_that_records_streams_ends_there_and_another_goes_on(
    family: Family,
) -> None:
    model = tiny_model(family)
    wanted = _logits(model)
    ran: list[int] = []
    marks = [
        block.get_submodule("mlp").register_forward_hook(
            lambda *_, place=place: ran.append(place)
        )
        for place, block in enumerate(model.architecture.blocks)
    ]
    with torch.no_grad(), recording_streams(model, [0, 2]) as streams:
        model.module(input_ids=IDS)
    assert ran == [0, 1, 2]
    ran.clear()
    for layer, after in ((0, [1, 2, 3]), (2, [3])):
        with going_on_from(model, streams[layer], streams[layer].hidden):
            assert torch.equal(_logits(model), wanted)
        assert ran == after
        ran.clear()
    for mark in marks:
        mark.remove()
    assert _hooks(model) == 0
    assert not any("forward" in vars(block) for block in model.architecture.blocks)
    assert torch.equal(_logits(model), wanted)
