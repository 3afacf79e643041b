"""Adapters side by side: each row gets its own, and gives its own a gradient."""

import pytest
import torch

from undertow.errors import ModelError
from undertow.models.adapter_stack import AdapterStack, attached_together
from undertow.models.adapters import LoraAdapter, attached, new_adapter
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model


def _adapter(model: Model, seed: int, *, rank: int = 2) -> LoraAdapter:
    """An adapter that changes something, of a scale of its own."""
    adapter = new_adapter(model, rank=rank, alpha=1.0 + seed, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for _, b in adapter.pairs.values():
        b.data.copy_(torch.randn(b.shape, generator=draw) * 0.3)
    return adapter


def _ids() -> torch.Tensor:
    return torch.arange(40, 64).view(6, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_read_by_its_own_adapter(family: Family) -> None:
    model, ids = tiny_model(family), _ids()
    adapters = [_adapter(model, seed) for seed in (1, 2, 3)]
    with torch.no_grad():
        alone = []
        for place, adapter in enumerate(adapters):
            with attached(model, adapter):
                alone.append(model.module(ids[2 * place : 2 * place + 2]).logits)
        with attached_together(model, AdapterStack(adapters)):
            together = model.module(ids).logits
        plain = model.module(ids).logits
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, plain, atol=1e-3)


def test_gradients_go_to_the_adapter_of_the_row() -> None:
    model, ids = tiny_model("llama"), _ids()
    adapters = [_adapter(model, seed) for seed in (1, 2, 3)]
    stack = AdapterStack(adapters)
    with torch.enable_grad(), attached_together(model, stack):
        # Only the second adapter's rows count.
        model.module(ids).logits[2:4].square().sum().backward()
    stack.give_gradients()
    found = [
        [m.grad.clone() for m in a.parameters() if m.grad is not None] for a in adapters
    ]
    assert all(not g.any() for own in (found[0], found[2]) for g in own)
    assert all(a.grad is None for pair in stack.pairs.values() for a in pair)
    for matrix in adapters[1].parameters():
        matrix.grad = None
    with torch.enable_grad(), attached(model, adapters[1]):
        model.module(ids[2:4]).logits.square().sum().backward()
    for matrix, gradient in zip(adapters[1].parameters(), found[1], strict=True):
        assert matrix.grad is not None
        torch.testing.assert_close(gradient, matrix.grad, rtol=1e-3, atol=1e-4)


def test_what_moves_an_adapter_moves_the_stack_until_it_is_released() -> None:
    model = tiny_model("llama")
    adapters = [_adapter(model, seed) for seed in (1, 2)]
    stack = AdapterStack(adapters)
    name = next(iter(stack.pairs))
    with torch.no_grad():
        adapters[1].pairs[name][0].fill_(7)
    assert (stack.pairs[name][0][1] == 7).all()
    assert not (stack.pairs[name][0][0] == 7).any()
    stack.release()
    with torch.no_grad():
        adapters[1].pairs[name][0].fill_(8)
    assert (stack.pairs[name][0][1] == 7).all()


def test_adapters_that_do_not_stack_are_said() -> None:
    model = tiny_model("llama")
    first = _adapter(model, 1)
    with pytest.raises(ModelError, match=r"rank 2 on .* and rank 3 on"):
        AdapterStack([first, _adapter(model, 2, rank=3)])
    few = new_adapter(model, rank=2, alpha=1.0, targets=("down_proj",), seed=0)
    with pytest.raises(ModelError, match="one rank and the same layers"):
        AdapterStack([first, few])


def test_the_model_is_itself_again_after_an_exception() -> None:
    model, ids = tiny_model("llama"), _ids()
    before = model.module(ids).logits
    stack = AdapterStack([_adapter(model, 1), _adapter(model, 2)])
    with pytest.raises(KeyError), attached_together(model, stack):
        raise KeyError
    assert torch.equal(model.module(ids).logits, before)
