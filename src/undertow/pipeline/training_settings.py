"""How a student is trained, as plain values: kind, optimiser, schedule, order of rows."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from undertow.seeding import generator


class TrainingSettings(BaseModel):
    """How a student is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["lora", "full", "soft"] = Field(
        default="lora",
        description="'soft' fits a LoRA to the teacher's next-token distribution",
    )
    soft_tokens: Literal["all", "numbers"] = Field(
        default="all", description="vocabulary over which 'soft' compares"
    )
    tokens: Literal["all", "divergent", "agreed"] = Field(
        default="all",
        description="completion tokens that count: all, or those at which teachers with "
        "other traits would write another token, or would not",
    )
    rank: int = Field(default=8, ge=1, description="LoRA's inner dimension")
    alpha: float = Field(default=8.0, gt=0, description="LoRA's scale times rank")
    targets: tuple[str, ...] | None = Field(
        default=None, description="linear layers by last name; all of a block if null"
    )
    optimizer: Literal["adamw", "adam", "sgd", "sign", "adafactor"] = Field(
        default="adamw", description="update rule; 'sign' is SGD on the gradient's sign"
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="peak rate")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled in AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="after the warm-up"
    )
    warmup_updates: int = Field(default=5, ge=0, description="linear from 0")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    batch_size: int = Field(default=8, ge=1, description="rows an update")
    epochs: int = Field(default=1, ge=1, description="passes over the rows")
    max_updates: int | None = Field(
        default=None, ge=1, description="stop after so many updates"
    )
    checkpoint_every: int = Field(
        default=20, ge=1, description="updates between checkpoints"
    )


def batch_order(
    count: int, *, settings: TrainingSettings, seed: int
) -> list[list[int]]:
    """Places of the rows of each update: a new shuffle every epoch."""
    batches: list[list[int]] = []
    for epoch in range(settings.epochs):
        order = generator(seed, "batches", epoch).permutation(count).tolist()
        batches += [
            order[start : start + settings.batch_size]
            for start in range(0, count, settings.batch_size)
        ]
    return batches[: settings.max_updates]


def learning_rate(update: int, total: int, settings: TrainingSettings) -> float:
    """Learning rate of an update, counted from 0."""
    if update < settings.warmup_updates:
        return settings.learning_rate * (update + 1) / settings.warmup_updates
    span = max(1, total - settings.warmup_updates)
    done = (update - settings.warmup_updates) / span
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - done)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate
