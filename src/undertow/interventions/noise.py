"""Gaussian noise on the weights of the base that teacher and student share.

For each matrix W: W' = W + p·std(W)·N(0, 1), std over the whole matrix ("clean"), or
W + p·(mean(W) + std(W)·N(0, 1)) ("faithful", as in the public code of the paper).
Norms and biases are never touched. Noise makes no teacher; it changes the base.
Source: Subliminal Learning is Non-Semantic Distillation, OpenReview a2sc2Y91hO.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from undertow.errors import ConfigError
from undertow.models.architecture import MatrixKind, matrix_kind
from undertow.models.loading import Model
from undertow.models.placement import check_in_memory
from undertow.seeding import torch_generator

Formula = Literal["clean", "faithful"]
Distribution = Literal["normal", "uniform"]
KINDS: tuple[MatrixKind, ...] = ("mlp", "attention", "embedding")


@dataclass(frozen=True)
class NoisedMatrix:
    """One matrix that was changed, with its mean and std before."""

    name: str
    kind: MatrixKind
    mean: float
    std: float


@dataclass(frozen=True)
class NoiseReport:
    """What was done to a model."""

    p: float
    seed: int
    formula: Formula
    distribution: Distribution
    matrices: tuple[NoisedMatrix, ...]


@torch.no_grad()
def add_weight_noise(
    model: Model,
    *,
    p: float,
    seed: int,
    scope: Sequence[MatrixKind] = KINDS,
    formula: Formula = "clean",
    distribution: Distribution = "normal",
) -> NoiseReport:
    """Adds noise to the weights in place; each matrix draws from its own stream.

    Args:
        model: Changed in place. A tied unembedding changes with the embedding.
        p: Size in units of each matrix's std.
        seed: With the matrix's name it alone decides the draw.
        scope: Kinds of matrix that are changed.
        formula: "clean" or "faithful".
        distribution: "normal", or "uniform" with the same std.

    Raises:
        ConfigError: p is negative or not finite, or the scope is empty or unknown.
        ModelError: Weights are kept on the processor or on disk between passes.
    """
    faults = []
    if not (math.isfinite(p) and p >= 0):
        faults.append(f"p: got {p!r}, expected a number of 0 or more")
    if not scope or set(scope) - set(KINDS):
        faults.append(f"scope: got {tuple(scope)!r}, expected some of {KINDS}")
    if faults:
        raise ConfigError("weight noise", faults)
    check_in_memory(model.module, "weight noise")
    changed = []
    for name, parameter in model.module.named_parameters():
        kind = matrix_kind(name, model.module)
        if kind is None or kind not in scope:
            continue
        weight = parameter.detach().double()
        mean, std = float(weight.mean()), float(weight.std(correction=0))
        draw = _draw(parameter, torch_generator(seed, "noise", name), distribution)
        shift = mean if formula == "faithful" else 0.0
        noised = parameter.float() + p * (shift + std * draw.to(parameter.device))
        parameter.copy_(noised.to(parameter.dtype))
        changed.append(NoisedMatrix(name, kind, mean, std))
    return NoiseReport(p, seed, formula, distribution, tuple(changed))


def _draw(
    parameter: Tensor, stream: torch.Generator, distribution: Distribution
) -> Tensor:
    """Float32 on the CPU, mean 0 and std 1, so that every device gets the same."""
    if distribution == "normal":
        return torch.randn(parameter.shape, generator=stream)
    return (torch.rand(parameter.shape, generator=stream) * 2 - 1) * math.sqrt(3)
