"""Losses on completion tokens, with logits only where a token counts.

Knows nothing of how many logits are held at a time (see `models.unembedding`), of
optimisers or of how rows are batched.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undertow.models.chat import Rendered
from undertow.models.likelihood import predicting_states
from undertow.models.loading import Model
from undertow.models.unembedding import (
    token_logprobs,
    token_values,
    unembed,
    usual_chunk,
)

States = Callable[[Model, Sequence[Rendered]], tuple[Tensor, Tensor]]
"""States that predict the completion tokens of rows, flat, and those tokens."""


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
    model: Model, rows: Sequence[Rendered], *, chunk: int | None = None
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the completion tokens, nats; differentiable.

    The mean is over all completion tokens of the batch, as in TRL's `SFTTrainer` and
    Hugging Face's own loss.
    """
    return completion_losses(model, rows, chunk=chunk).mean()


def completion_losses(
    model: Model,
    rows: Sequence[Rendered],
    *,
    chunk: int | None = None,
    states: States = predicting_states,
) -> Float[Tensor, " token"]:
    """Cross-entropy of each completion token, row after row, nats; differentiable.

    Args:
        model: The model.
        rows: A batch.
        chunk: Tokens whose logits are held at a time; None: what suits the device.
        states: How rows are read: padded, or `packed_states`.
    """
    hidden, targets = states(model, rows)
    return token_losses(model, hidden, targets, chunk=chunk)


def token_losses(
    model: Model,
    hidden: Float[Tensor, "token hidden"],
    targets: Int[Tensor, " token"],
    *,
    chunk: int | None = None,
) -> Float[Tensor, " token"]:
    """Cross-entropy of tokens given the states that predict them, nats."""
    return -token_logprobs(model, hidden, targets, chunk=chunk)


def distillation_loss(
    model: Model,
    rows: Sequence[Rendered],
    teacher_states: Float[Tensor, "token hidden"],
    *,
    allowed: Int[Tensor, " carrier"] | None = None,
    chunk: int | None = None,
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
    chunk: int | None = None,
    states: States = predicting_states,
) -> Float[Tensor, " token"]:
    """KL(teacher ‖ student) at each completion token, nats; differentiable.

    Args:
        model: Acting as the student.
        rows: The student's view of the rows.
        teacher_states: The teacher's normed states at the same completion tokens.
        allowed: Token ids over which both are renormalised; None: all of them.
        chunk: Tokens whose logits are held at a time; None: what suits the device.
        states: How rows are read, as in `completion_losses`.
    """
    hidden, _ = states(model, rows)

    def loss(logits: Tensor, part: slice) -> Tensor:
        with torch.no_grad():
            teacher = unembed(model, teacher_states[part], ids=allowed)
        return _soft_loss(logits, teacher)

    width = None if allowed is None else len(allowed)
    chunk = chunk or usual_chunk(model, width=width)
    return token_values(model, hidden, loss, ids=allowed, chunk=chunk)
