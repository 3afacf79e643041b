"""How far the gradients of a set of rows point along given vectors.

g = Σ_t ∂ log p(row)/∂h_{L,t} on the plain base, summed over completion positions; a set
is aligned with a vector v by cos(mean g, v), the score of the paper that this project
grew from, and by the mean of ⟨g, v̂⟩, which has an interval over rows and a unit. Knows
nothing of teachers, nor of tests (see `audit`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.analysis.gradients import gradient_scores
from undertow.errors import DatasetError
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import Rendered
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Alignment:
    """What the gradients of a set of rows say of some vectors.

    Attributes:
        layers: The blocks.
        cosines: [layer, vector]: cos(mean g, v); NaN where a gradient or vector is 0.
        mean: [layer, vector]: mean of ⟨g, v̂⟩, nats a row per unit of length along v.
        sd: [layer, vector]: of ⟨g, v̂⟩ over rows; NaN for one row.
        rows: How many.
    """

    layers: tuple[int, ...]
    cosines: Array
    mean: Array
    sd: Array
    rows: int


def stacked(vectors: Sequence[SteeringVector]) -> dict[int, Tensor]:
    """[vector, hidden] by block, of vectors that have the same blocks."""
    return {
        layer: torch.stack([vector.direction(layer) for vector in vectors])
        for layer in vectors[0].layers
    }


def mean_alignment(
    model: Model,
    rows: Sequence[Rendered],
    vectors: Mapping[int, Float[Tensor, "vector hidden"]],
    *,
    sampler: SamplerSettings | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> Alignment:
    """Alignment of the rows' mean gradient with vectors, block by block.

    Args:
        model: The base, without an intervention.
        rows: Prompts with completions, as tokens.
        vectors: By block; equally many at each. Their lengths do not matter.
        sampler: What the rows were drawn by; None: the model's own, temperature 1.
        on_rows: Called with (rows done, rows in all).

    Raises:
        DatasetError: No rows, or one that the sampler cannot draw.
        VectorMismatchError: Unknown layer.

    Cost: as `gradient_scores`.
    """
    if not rows:
        raise DatasetError("no rows to take gradients of; write some first")
    layers = tuple(sorted(vectors))
    total = torch.zeros(
        len(layers), model.architecture.hidden_size, dtype=torch.float64
    )

    def add(layer: int, _: Sequence[int], gradients: Tensor) -> None:
        total[layers.index(layer)] += gradients.double().sum(0).cpu()

    units = {layer: _units(vectors[layer]) for layer in layers}
    found = gradient_scores(
        model, rows, units, sampler=sampler, on_gradients=add, on_rows=on_rows
    )
    scores = found.scores.astype(np.float64)
    mean = scores.mean(0)
    norms = (total / len(rows)).norm(dim=1).numpy()[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(norms > 0, mean / norms, np.nan)
    sd = scores.std(0, ddof=1) if len(rows) > 1 else np.full_like(mean, np.nan)
    return Alignment(layers, cosines, mean, sd, len(rows))


def _units(vectors: Float[Tensor, "vector hidden"]) -> Float[Tensor, "vector hidden"]:
    """Each at length 1; NaN for a vector of zeros, which points nowhere."""
    wide = vectors.double()
    units: Tensor = (wide / wide.norm(dim=1, keepdim=True)).float()
    return units
