"""From normed states to logits and to what tokens' logits give, a few tokens at a time.

Logits are wider than anything else in a model, so those of at most a chunk of tokens
are alive, and where the unembedding is frozen their gradient is taken chunk by chunk on
the way forward: memory does not grow with tokens × vocabulary. Knows nothing of rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undertow.models.fused import can_fuse, fused_logprobs
from undertow.models.loading import Model
from undertow.models.placement import weight_of

# Of logits, and of the tokens that they are for, what is wanted of each token.
ValueOf = Callable[[Tensor, slice], Tensor]
# Numbers among the logits of a chunk: such as a processor's caches hold, or an
# accelerator's memory. Of fewer tokens than the fewest a product reads its weights for
# too little; where a kernel leaves nothing to cache, this many do best.
_CPU, _ACCELERATED, _FEWEST, _FUSED = 1 << 22, 1 << 26, 64, 256


def unembed(
    model: Model,
    hidden: Float[Tensor, "token hidden"],
    *,
    ids: Int[Tensor, " carrier"] | None = None,
) -> Float[Tensor, "token vocab"]:
    """Logits of normed hidden states, with the final soft cap where there is one.

    Args:
        model: The model.
        hidden: States after the final norm.
        ids: Token ids whose logits are wanted, the columns; None: all of them.
    """
    layer = model.architecture.unembedding
    logits: Tensor
    if ids is None:
        logits = layer(hidden)
    else:
        rows = _rows(layer, "weight", ids).to(hidden.device)
        bias = getattr(layer, "bias", None)
        chosen = None if bias is None else _rows(layer, "bias", ids).to(hidden.device)
        logits = nn.functional.linear(hidden, rows, chosen)
    cap = _cap(model)
    if cap:
        logits = torch.tanh(logits / cap) * cap
    return logits


def _cap(model: Model) -> float | None:
    cap: float | None = getattr(model.module.config, "final_logit_softcapping", None)
    return cap


def _rows(layer: nn.Module, name: str, ids: Int[Tensor, " carrier"]) -> Tensor:
    """Rows of a weight, taken where it lies."""
    weight = weight_of(layer, name)
    return weight[ids.to(weight.device)]


def token_logprobs(
    model: Model,
    hidden: Float[Tensor, "token hidden"],
    targets: Int[Tensor, " token"],
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, " token"]:
    """Log-probability of each target given the state that predicts it; differentiable.

    Args:
        model: The model.
        hidden: States after the final norm.
        targets: Token ids.
        temperature: What logits are divided by; above 0.
        chunk: Tokens whose logits are held at a time; None: what suits the device.

    Returns:
        Nats, float32.
    """
    # A soft cap needs its own results going backward.
    fuses = can_fuse(hidden) and not _cap(model)

    def value(logits: Tensor, part: slice) -> Tensor:
        if fuses and can_fuse(logits):
            return fused_logprobs(logits, targets[part], scale=1 / temperature)
        scores = logits.float() / temperature if temperature != 1 else logits.float()
        return -nn.functional.cross_entropy(scores, targets[part], reduction="none")

    usual = _FUSED if fuses else usual_chunk(model)
    return token_values(model, hidden, value, chunk=chunk or usual)


def usual_chunk(model: Model, *, width: int | None = None) -> int:
    """Tokens whose logits are held at a time: of the vocabulary, or so many columns."""
    numbers = _CPU if model.device.type == "cpu" else _ACCELERATED
    return max(_FEWEST, numbers // (width or model.architecture.vocab_size))


def token_values(
    model: Model,
    hidden: Float[Tensor, "token hidden"],
    value: ValueOf,
    *,
    chunk: int,
    ids: Int[Tensor, " carrier"] | None = None,
) -> Float[Tensor, " token"]:
    """What each token's logits give, float32; differentiable once.

    Args:
        model: The model.
        hidden: States after the final norm.
        value: Of logits [token, vocab] and the tokens they are for, a number for each,
            which depends on no other token's logits. It may overwrite the logits.
        chunk: Tokens whose logits are held at a time.
        ids: Token ids whose logits are wanted, the columns; None: all of them.
    """
    parts = [slice(i, i + chunk) for i in range(0, len(hidden), chunk)]
    trained = any(p.requires_grad for p in model.architecture.unembedding.parameters())
    if trained or not (torch.is_grad_enabled() and hidden.requires_grad):
        return torch.cat([value(unembed(model, hidden[p], ids=ids), p) for p in parts])
    values: Tensor = _FrozenHead.apply(model, hidden, parts, value, ids)  # type: ignore[no-untyped-call]
    return values


class _FrozenHead(torch.autograd.Function):
    """The gradient with respect to the states is taken chunk by chunk going forward.

    A token's value depends on its own state alone, so one gradient a token says all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        model: Model,
        hidden: Tensor,
        parts: list[slice],
        value: ValueOf,
        ids: Tensor | None,
    ) -> Tensor:
        gradient = torch.empty_like(hidden)
        values = hidden.new_empty(len(hidden), dtype=torch.float32)
        for part in parts:
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_()
                found = value(unembed(model, states, ids=ids), part)
                (gradient[part],) = torch.autograd.grad(found.sum(), states)
            values[part] = found.detach()
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = gradient.float() * outputs[0][:, None]
        return None, scaled.to(gradient.dtype), None, None, None
