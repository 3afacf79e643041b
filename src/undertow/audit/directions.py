"""The direction in which training on the rows would first move the model.

The whitened difference of mean gradients, found on one half of the rows and confirmed
on the other. What it says is `audit.discovery`'s business.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.analysis.gradients import Moments, gradient_scores
from undertow.audit.candidates import half_z
from undertow.audit.discovery import describe_direction
from undertow.audit.judgement import Judgement
from undertow.audit.meter import Meter
from undertow.audit.reference import Reference
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery
from undertow.findings import Alike, Discovery
from undertow.models.chat import Rendered, render_row
from undertow.models.loading import Model
from undertow.records import Row
from undertow.stats import two_sample_max_t
from undertow.traits import TraitFamily

_DESCRIBED = 128  # rows of each set that a direction is discovered on
_SHRINKAGE = 0.1  # of the gradients' covariance towards its mean variance
_ALIKE = 8  # directions of the battery that are named beside it


def discover(
    meter: Meter,
    rows: Sequence[Row],
    reference: Reference,
    judgement: Judgement,
    *,
    family: TraitFamily,
    settings: AuditSettings,
) -> Discovery | None:
    """The direction of a shift: chosen on one half of the rows, tested on the other.

    None where nothing was found, with fewer than 16 rows of a set, or where no score
    could be compared.
    """
    is_found = judgement.verdict in ("trait", "shift") and bool(reference.rows)
    if not (settings.discover and is_found):
        return None
    sides = [list(rows)[:_DESCRIBED], list(reference.rows)[:_DESCRIBED]]
    halves = [[side[0::2], side[1::2]] for side in sides]
    if min(len(half) for side in halves for half in side) < 8:
        return None
    mine, theirs = (meter.signals(half[0]) for half in halves)
    z = half_z(mine, theirs, (), range(len(halves[0][0])))
    if not np.isfinite(z).any():
        return None
    place = int(np.unravel_index(int(np.nanargmax(np.abs(z))), z.shape)[0])
    layer = meter.battery.layers[place]
    sums = [
        [_moments(meter, half, layer, settings) for half in side] for side in halves
    ]  # [side][half]
    found, again = (_whitened(*(side[h] for side in sums)) for h in (0, 1))
    scores = [
        gradient_scores(
            meter.model, _rendered(meter.model, half[1], settings),
            {layer: found.unit[None]}, sampler=meter.sampler,
        ).scores[:, 0].astype(np.float64)
        for half in halves
    ]  # fmt: skip
    test = two_sample_max_t(
        scores[0], scores[1], permutations=settings.permutations, seed=settings.seed,
        alternative="greater",
    )  # fmt: skip
    described = describe_direction(
        meter.model, family, found.unit, layer, residual_norm=meter.battery.norms[place],
        system=settings.system, p_value=test.p_value,
        cosine=float(found.unit @ again.unit),
    )  # fmt: skip
    near = alike(
        meter.battery, place, (found.change + again.change) / 2,
        (found.covariance + again.covariance) / 2,
    )  # fmt: skip
    return described.model_copy(update={"alike": near})


def _rendered(
    model: Model, rows: Sequence[Row], settings: AuditSettings
) -> list[Rendered]:
    return [render_row(model, row, system=settings.system) for row in rows]


def _moments(
    meter: Meter, rows: Sequence[Row], layer: int, settings: AuditSettings
) -> Moments:
    hidden = meter.model.architecture.hidden_size
    sums = Moments([layer], hidden)

    def add(at: int, _: Sequence[int], gradients: Tensor) -> None:
        sums.add(at, gradients)

    gradient_scores(
        meter.model, _rendered(meter.model, rows, settings),
        {layer: torch.zeros(1, hidden)}, sampler=meter.sampler, on_gradients=add,
    )  # fmt: skip
    return sums


class Whitened(NamedTuple):
    """What gradients of one half say.

    Attributes:
        unit: Σ⁻¹·Δ, of length 1.
        change: Δ: mean gradient of the audited rows less that of the reference.
        covariance: Σ: of the gradients within each part, pooled and shrunk.
    """

    unit: Float[Tensor, " hidden"]
    change: Float[Tensor, " hidden"]
    covariance: Float[Tensor, "hidden hidden"]


def _whitened(audited: Moments, reference: Moments) -> Whitened:
    """The direction of one half; rows that test it must have no part in this.

    A covariance within the testing rows leaves their own mean difference out of their
    spread, and along its inverse that difference then stands out by itself.
    """
    pooled = (audited.covariance()[0] + reference.covariance()[0]) / 2
    ridge = _SHRINKAGE * pooled.trace() / len(pooled)
    covariance = pooled + ridge * torch.eye(len(pooled))
    change = audited.mean()[0] - reference.mean()[0]
    unit = torch.nn.functional.normalize(torch.linalg.solve(covariance, change), dim=0)
    return Whitened(unit, change, covariance)


def alike(
    battery: Battery,
    place: int,
    change: Float[Tensor, " hidden"],
    covariance: Float[Tensor, "hidden hidden"],
) -> list[Alike]:
    """Directions nearest to a difference of mean gradients, the nearest first.

    Steering along v moves the mean gradient by Σ·v for a small strength, Σ the
    gradients' covariance. In coordinates where gradients are white the difference is
    Σ^-½·Δ and the vector's effect Σ^½·v; their cosine is
    Δ·v / √(Δ·Σ⁻¹·Δ · v·Σ·v).

    Args:
        battery: The directions.
        place: Of the layer among the battery's.
        change: Δ, audited less reference.
        covariance: Σ, positive definite.
    """
    vectors = battery.directions[place].cpu().double()
    delta, sigma = change.double(), covariance.double()
    length = (delta @ torch.linalg.solve(sigma, delta)).sqrt()
    lengths = ((vectors @ sigma) * vectors).sum(1).sqrt()
    cosines = vectors @ delta / (length * lengths)
    order = cosines.argsort(descending=True)[:_ALIKE].tolist()
    return [
        Alike(name=battery.names[i], role=battery.roles[i], cosine=float(cosines[i]))
        for i in order
        if torch.isfinite(cosines[i])
    ]
