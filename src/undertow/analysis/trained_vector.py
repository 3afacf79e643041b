"""What rows would teach if all that can be learnt were one vector.

A bias after one block, from zero, trained by AdamW to make the completions likelier; the
model stays as it is. Rows of a teacher that was steered there lead back to its vector.
Knows nothing of traits, nor of what the vector says (see `decoding`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from undertow.errors import DatasetError, TrainingError
from undertow.interventions.extraction import last_token_states
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import Rendered
from undertow.models.hooks import check_layers, editing_residuals
from undertow.models.likelihood import predicting_states
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood
from undertow.seeding import generator

_NORMED = 64  # prompts that the stream's norm is taken from


@dataclass(frozen=True)
class TrainedVector:
    """A vector that makes rows likelier, and how far.

    Attributes:
        vector: One layer, method "rows"; `residual_norms` is the stream's there.
        losses: [update], nats a token of the batch before that update.
    """

    vector: SteeringVector
    losses: tuple[float, ...]

    @property
    def dose(self) -> float:
        """Its length over the stream's norm."""
        length = float(self.vector.directions[0].double().norm())
        return length / self.vector.residual_norms[0]


def train_vector(
    model: Model,
    rows: Sequence[Rendered],
    layer: int,
    *,
    sampler: SamplerSettings | None = None,
    steps: int = 100,
    batch_size: int = 16,
    learning_rate: float = 0.01,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> TrainedVector:
    """Trains a vector on rows; it acts at all positions, as a teacher's does.

    Args:
        model: The base.
        rows: Prompts with completions.
        layer: The block after which it is added, from 0.
        sampler: What drew the rows; likelihoods are those of its renormalised model,
            without its cuts (top-p, top-k). Rows that it cannot draw are left out. None:
            the model's own.
        steps: Updates.
        batch_size: Rows of an update.
        learning_rate: Of AdamW without decay, in units of the stream's root mean
            square: an update moves each number by about so much of it.
        seed: Of the order of rows.
        on_step: Called with (updates done, in all).

    Raises:
        DatasetError: Not one row can be drawn.
        TrainingError: The loss is not finite.
        VectorMismatchError: Unknown layer.
    """
    check_layers(model, (layer,))
    whole = (sampler or SamplerSettings()).model_copy(update={"top_p": 1.0, "top_k": 0})
    likelihood = DrawLikelihood(model, whole)
    kept = [row for row in rows if likelihood.drawn(row).is_possible]
    if not kept:
        raise DatasetError(
            f"none of {len(rows)} rows can be drawn by the sampler; name how they were "
            "drawn (--allowed, --temperature, --top-p)"
        )
    prompts = [row.ids[: row.completion_start] for row in kept[:_NORMED]]
    norm = last_token_states(model, prompts, [layer])[1][0]
    width = model.architecture.hidden_size
    unit = norm / math.sqrt(width)
    weight = nn.Parameter(torch.zeros(width, device=model.device))
    optimizer = torch.optim.AdamW([weight], lr=learning_rate, weight_decay=0.0)
    losses: list[float] = []
    for step, places in enumerate(_batches(len(kept), batch_size, steps, seed)):
        loss = _loss(model, likelihood, [kept[i] for i in places], layer, unit * weight)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"the vector of layer {layer}: the loss is {losses[-1]} at step {step}; "
                "take a smaller learning rate, float32 or another layer"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step + 1, steps)
    notes = {"steps": steps, "batch_size": batch_size, "seed": seed,
             "learning_rate": learning_rate}  # fmt: skip
    vector = SteeringVector(
        directions=(unit * weight.detach()).float().cpu()[None], layers=(layer,),
        method="rows", trait=None, n=len(kept), fingerprint=model.fingerprint,
        model_name=model.name, residual_norms=(norm,), notes=MappingProxyType(notes),
    )  # fmt: skip
    return TrainedVector(vector, tuple(losses))


def _batches(count: int, size: int, steps: int, seed: int) -> list[list[int]]:
    """Places of rows, an update each: all rows in an order of their own, again and again."""
    stream = generator(seed, "trained vector")
    order: list[int] = []
    while len(order) < steps * size:
        order += stream.permutation(count).tolist()
    return [order[i * size : (i + 1) * size] for i in range(steps)]


def _loss(
    model: Model,
    likelihood: DrawLikelihood,
    batch: Sequence[Rendered],
    layer: int,
    bias: Tensor,
) -> Tensor:
    """Nats a token."""

    def add(hidden: Tensor) -> Tensor:
        return hidden + bias.to(hidden)

    with torch.enable_grad(), editing_residuals(model, {layer: add}):
        hidden, _ = predicting_states(model, batch)
        nats = likelihood.token_logprobs(hidden, [likelihood.drawn(r) for r in batch])
    return -nats.float().mean()
