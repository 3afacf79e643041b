"""Weights swapped in and out: whole, exact, and back even after an error."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from undertow.interventions.noise import add_weight_noise
from undertow.models.loading import Model, fingerprint
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.models.weights import copied_weights, put_back, swapped

IDS = torch.tensor([[7, 50, 9, 120, 33]])


@torch.inference_mode()
def logits(model: Model) -> Tensor:
    found: Tensor = model.module(IDS).logits.clone()
    return found


def names(model: Model) -> list[str]:
    return [name for name, _ in model.module.named_parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_another_base_acts_and_leaves(family: Family) -> None:
    model = tiny_model(family)
    clean = logits(model)
    before = copied_weights(model, names(model))
    add_weight_noise(model, p=0.3, seed=1)
    noised = replace(model, name="noised", fingerprint=fingerprint(model.module))
    loud = logits(noised)
    assert not torch.equal(clean, loud)
    with before.applied(noised) as base:
        assert torch.equal(logits(base), clean)
        assert (base.name, base.fingerprint) == (model.name, model.fingerprint)
    assert torch.equal(logits(noised), loud)
    put_back(noised, before)
    assert torch.equal(logits(noised), clean)
    assert fingerprint(noised.module) == model.fingerprint


def test_an_error_inside_leaves_nothing_behind() -> None:
    model = tiny_model("llama")
    clean = logits(model)
    zeros = {name: torch.zeros_like(p) for name, p in model.module.named_parameters()}
    with swapped(model, zeros):
        assert not logits(model).any()
    with pytest.raises(RuntimeError, match="inside"):
        _fail_inside(model, zeros)
    assert torch.equal(logits(model), clean)


def _fail_inside(model: Model, weights: dict[str, Tensor]) -> None:
    with swapped(model, weights):
        raise RuntimeError("inside")


def test_only_the_named_parameters_are_copied_and_by_value() -> None:
    model = tiny_model("llama")
    first = names(model)[0]
    kept = copied_weights(model, [first])
    assert list(kept.weights) == [first]
    own = dict(model.module.named_parameters())[first]
    before = own.detach().clone()
    with torch.no_grad():
        own.add_(1.0)
    assert torch.equal(kept.weights[first], before)
