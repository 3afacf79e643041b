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
) -> Float[Tensor, ""]:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def _soft_loss(
    logits: Float[Tensor, "token vocab"], teacher: Float[Tensor, "token vocab"]
) -> Float[Tensor, ""]:
    """Sum over tokens of KL(teacher ‖ student), nats."""
    return nn.functional.kl_div(
        logits.float().log_softmax(-1),
        teacher.float().log_softmax(-1),
        reduction="sum",
        log_target=True,
    )


def completion_loss(
    model: Model, rows: Sequence[Rendered], *, chunk: int = 256
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the completion tokens, nats; differentiable.

    The mean is over all completion tokens of the batch, as in TRL's `SFTTrainer` and
    Hugging Face's own loss.
    """
    hidden, targets = predicting_states(model, rows)
    return _chunked(
        model, hidden, chunk,
        lambda logits, part: _hard_loss(logits, targets[part]),
    ) / len(targets)  # fmt: skip


def distillation_loss(
    model: Model,
    rows: Sequence[Rendered],
    teacher_states: Float[Tensor, "token hidden"],
    *,
    allowed: Int[Tensor, " carrier"] | None = None,
    chunk: int = 256,
) -> Float[Tensor, ""]:
    """Mean KL(teacher ‖ student) over the completion tokens, nats; differentiable.

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

    return _chunked(model, hidden, chunk, loss) / len(hidden)


def _chunked(
    model: Model,
    hidden: Float[Tensor, "token hidden"],
    chunk: int,
    loss: Callable[[Tensor, slice], Tensor],
) -> Float[Tensor, ""]:
    """Sum of a loss on logits, at most `chunk` tokens' logits alive at a time."""
    parts = [slice(i, i + chunk) for i in range(0, len(hidden), chunk)]
    frozen = not any(
        p.requires_grad for p in model.architecture.unembedding.parameters()
    )
    if not (frozen and torch.is_grad_enabled()):
        return torch.stack([loss(unembed(model, hidden[p]), p) for p in parts]).sum()
    total: Tensor = _FrozenHead.apply(model, hidden, parts, loss)  # type: ignore[no-untyped-call]
    return total


class _FrozenHead(torch.autograd.Function):
    """The gradient with respect to the states is taken chunk by chunk going forward."""

    @staticmethod
    def forward(
        ctx: Any,
        model: Model,
        hidden: Tensor,
        parts: list[slice],
        loss: Callable[[Tensor, slice], Tensor],
    ) -> Tensor:
        gradient = torch.empty_like(hidden)
        total = hidden.new_zeros((), dtype=torch.float32)
        for part in parts:
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_()
                value = loss(unembed(model, states), part)
            (gradient[part],) = torch.autograd.grad(value, states)
            total += value.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[None, Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * outputs[0], None, None
