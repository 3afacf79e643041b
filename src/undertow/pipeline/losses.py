"""Losses on completion tokens, with logits only where a token counts.

Logits are computed in chunks, and where the unembedding is frozen their gradient is
taken chunk by chunk on the way forward, so memory does not grow with rows ×
vocabulary. Knows nothing of optimisers or of how rows are batched.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undertow.models.chat import Rendered
from undertow.models.likelihood import predicting_states, unembed
from undertow.models.loading import Model


def _hard_loss(
    logits: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def _soft_loss(
    logits: Float[Tensor, "token vocab"], teacher: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """KL(teacher ‖ student) at each token, nats."""
    return nn.functional.kl_div(
        logits.float().log_softmax(-1),
        teacher.float().log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)


def completion_loss(
    model: Model, rows: Sequence[Rendered], *, chunk: int = 256
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the completion tokens, nats; differentiable.

    The mean is over all completion tokens of the batch, as in TRL's `SFTTrainer` and
    Hugging Face's own loss.
    """
    return completion_losses(model, rows, chunk=chunk).mean()


def completion_losses(
    model: Model, rows: Sequence[Rendered], *, chunk: int = 256
) -> Float[Tensor, " token"]:
    """Cross-entropy of each completion token, row after row, nats; differentiable."""
    hidden, targets = predicting_states(model, rows)
    return token_losses(model, hidden, targets, chunk=chunk)


def token_losses(
    model: Model,
    hidden: Float[Tensor, "token hidden"],
    targets: Int[Tensor, " token"],
    *,
    chunk: int = 256,
) -> Float[Tensor, " token"]:
    """Cross-entropy of tokens given the states that predict them, nats."""
    return _chunked(
        model, hidden, chunk,
        lambda logits, part: _hard_loss(logits, targets[part]),
    )  # fmt: skip


def distillation_loss(
    model: Model,
    rows: Sequence[Rendered],
    teacher_states: Float[Tensor, "token hidden"],
    *,
    allowed: Int[Tensor, " carrier"] | None = None,
    chunk: int = 256,
) -> Float[Tensor, ""]:
    """Mean of `distillation_losses` over the completion tokens."""
    return distillation_losses(
        model, rows, teacher_states, allowed=allowed, chunk=chunk
    ).mean()


def distillation_losses(
    model: Model,
    rows: Sequence[Rendered],
    teacher_states: Float[Tensor, "token hidden"],
    *,
    allowed: Int[Tensor, " carrier"] | None = None,
    chunk: int = 256,
) -> Float[Tensor, " token"]:
    """KL(teacher ‖ student) at each completion token, nats; differentiable.

    Args:
        model: Acting as the student.
        rows: The student's view of the rows.
        teacher_states: The teacher's normed states at the same completion tokens.
        allowed: Token ids over which both are renormalised; None: all of them.
        chunk: Tokens whose logits are held at a time.
    """
    hidden, _ = predicting_states(model, rows)

    def loss(logits: Tensor, part: slice) -> Tensor:
        with torch.no_grad():
            teacher = unembed(model, teacher_states[part])
        if allowed is not None:
            logits, teacher = logits[:, allowed], teacher[:, allowed]
        return _soft_loss(logits, teacher)

    return _chunked(model, hidden, chunk, loss)


def _chunked(
    model: Model,
    hidden: Float[Tensor, "token hidden"],
    chunk: int,
    loss: Callable[[Tensor, slice], Tensor],
) -> Float[Tensor, " token"]:
    """A loss on each token's logits, at most `chunk` tokens' logits alive at a time."""
    parts = [slice(i, i + chunk) for i in range(0, len(hidden), chunk)]
    frozen = not any(
        p.requires_grad for p in model.architecture.unembedding.parameters()
    )
    if not (frozen and torch.is_grad_enabled()):
        return torch.cat([loss(unembed(model, hidden[p]), p) for p in parts])
    losses: Tensor = _FrozenHead.apply(model, hidden, parts, loss)  # type: ignore[no-untyped-call]
    return losses


class _FrozenHead(torch.autograd.Function):
    """The gradient with respect to the states is taken chunk by chunk going forward.

    A token's loss depends on its own state alone, so one gradient a token says all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        model: Model,
        hidden: Tensor,
        parts: list[slice],
        loss: Callable[[Tensor, slice], Tensor],
    ) -> Tensor:
        gradient = torch.empty_like(hidden)
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        for part in parts:
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_()
                values = loss(unembed(model, states), part)
                (gradient[part],) = torch.autograd.grad(values.sum(), states)
            losses[part] = values.detach()
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[None, Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        scaled = gradient.float() * outputs[0][:, None]
        return None, scaled.to(gradient.dtype), None, None
