"""Logits, and what tokens' logits give: whole or in chunks, with kernels or without."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from undertow.models import fused
from undertow.models.kernels import Built
from undertow.models.loading import Model, wrap
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.models.unembedding import (
    token_logprobs,
    token_values,
    unembed,
    usual_chunk,
)

TARGETS = torch.tensor([3, 200, 17, 3, 0, 5, 90])


def _states(model: Model, *, scale: float = 3.0) -> Tensor:
    drawn = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    return (scale * drawn).to(model.dtype).requires_grad_()


def _half(family: Family) -> Model:
    plain = tiny_model(family)
    return wrap("half", plain.module.bfloat16(), plain.tokenizer, reason="test")


def _by_hand(model: Model, states: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Values and the gradient of their weighted sum, by autograd in float32."""
    own = states.detach().float().requires_grad_()
    weight = model.architecture.unembedding.get_parameter("weight").float()
    logits = own @ weight.t()
    cap = getattr(model.module.config, "final_logit_softcapping", None)
    logits = torch.tanh(logits / cap) * cap if cap else logits
    nats = (logits / temperature).log_softmax(-1)[torch.arange(7), TARGETS]
    (gradient,) = torch.autograd.grad(nats, own, torch.arange(7.0))
    return nats.detach(), gradient


def test_the_soft_cap_is_applied_where_there_is_one() -> None:
    model = tiny_model("gemma2")
    cap = model.module.config.final_logit_softcapping
    assert cap == 30.0
    hidden = torch.full((1, 32), 40.0)
    logits = unembed(model, hidden)
    raw = hidden @ model.architecture.unembedding.get_parameter("weight").t()
    assert float(raw.abs().max()) > 60
    torch.testing.assert_close(logits, torch.tanh(raw / 30) * 30)
    ids = torch.tensor([200, 3, 17])
    torch.testing.assert_close(unembed(model, hidden, ids=ids), logits[:, ids])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 3, 7, None])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_their_gradient(
    family: Family, chunk: int | None, temperature: float
) -> None:
    model = tiny_model(family)
    states = _states(model)
    nats = token_logprobs(
        model, states, TARGETS, temperature=temperature, chunk=chunk
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(nats, states, torch.arange(7.0))
    wanted, slope = _by_hand(model, states, temperature)
    torch.testing.assert_close(nats, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kernels_give_what_autograd_gives(
    family: Family, chunk: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _half(family)
    states = _states(model)

    def both() -> tuple[Tensor, Tensor]:
        nats = token_logprobs(
            model, states, TARGETS, temperature=temperature, chunk=chunk
        )
        (gradient,) = torch.autograd.grad(nats, states, torch.arange(7.0))
        return nats.detach(), gradient

    used: list[str] = []
    kernel = fused._call

    def call(name: str, *arguments: Any) -> None:
        used.append(name)
        kernel(name, *arguments)

    monkeypatch.setattr(fused, "_call", call)
    mine = both()
    # A soft cap needs its results going backward.
    capped = bool(getattr(model.module.config, "final_logit_softcapping", None))
    assert used == [] if capped else used[0] == "logprobs_forward"
    monkeypatch.setattr(fused, "kernels", lambda: Built(None, "none"))
    theirs = both()
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-6, atol=1e-5)
    gap = (mine[1].float() - theirs[1].float()).norm() / theirs[1].float().norm()
    assert float(gap) < 4e-3
    exact = _by_hand(model, states, temperature)[1]
    assert float((mine[1].float() - exact).norm() / exact.norm()) < 1e-2


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_only_a_gradient_overwrites_logits() -> None:
    logits = _states(_half("llama"))
    before = logits.detach().clone()
    with torch.no_grad():
        plain = fused.fused_logprobs(logits, TARGETS % 32, scale=1.0)
    assert torch.equal(logits, before)
    nats = fused.fused_logprobs(logits * 1, TARGETS % 32, scale=1.0)
    assert torch.equal(nats, plain)
    assert torch.equal(logits, before)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_a_missing_number_and_a_target_that_is_none() -> None:
    logits = torch.zeros(3, 40).bfloat16()
    logits[1, 7] = torch.nan
    logits[2] = -torch.inf
    logits[2, 5] = 1.0
    found = fused.fused_logprobs(logits, torch.tensor([0, 0, 5]), scale=1.0)
    assert float(found[0]) == pytest.approx(-torch.tensor(40.0).log().item())
    assert bool(found[1].isnan())
    assert float(found[2]) == 0.0
    for wrong in (-1, 40):
        with pytest.raises(IndexError, match="40 logits"):
            fused.fused_logprobs(logits, torch.tensor([0, wrong, 1]), scale=1.0)
    none = fused.fused_logprobs(
        logits[:0], torch.tensor([], dtype=torch.long), scale=1.0
    )
    assert none.shape == (0,)


@pytest.mark.parametrize("make", [tiny_model, _half])
def test_an_unembedding_that_is_trained_gets_its_gradient(
    make: Callable[[Family], Model],
) -> None:
    model = make("llama")
    weight = model.architecture.unembedding.get_parameter("weight")
    weight.requires_grad_()
    states = _states(model)
    token_logprobs(model, states, TARGETS, chunk=2).sum().backward()  # type: ignore[no-untyped-call]
    found, weight.grad = weight.grad, None
    own = weight.detach().clone().float().requires_grad_()
    logits = states.detach().float() @ own.t()
    logits.log_softmax(-1)[torch.arange(7), TARGETS].sum().backward()  # type: ignore[no-untyped-call]
    assert found is not None
    assert own.grad is not None
    gap = (found.float() - own.grad).norm() / own.grad.norm()
    assert float(gap) < (1e-5 if weight.dtype == torch.float32 else 1e-2)


def test_values_of_some_columns() -> None:
    model = tiny_model("llama")
    states, ids = _states(model), torch.tensor([200, 3, 17])
    found = token_values(
        model, states, lambda logits, _: logits.float().logsumexp(-1), chunk=3, ids=ids
    )
    torch.testing.assert_close(found, unembed(model, states)[:, ids].logsumexp(-1))
    (mine,) = torch.autograd.grad(found.sum(), states, retain_graph=True)
    plain = unembed(model, states)[:, ids].logsumexp(-1)
    (theirs,) = torch.autograd.grad(plain.sum(), states)
    torch.testing.assert_close(mine, theirs)


def test_a_chunk_is_as_wide_as_its_logits_let_it_be() -> None:
    model = tiny_model("llama")
    assert usual_chunk(model) == (1 << 22) // model.architecture.vocab_size
    assert usual_chunk(model, width=1 << 12) == 1 << 10
    assert usual_chunk(model, width=1 << 18) == 64
