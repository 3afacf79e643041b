"""The direction in which training on the rows would first move the model.

The whitened difference of mean gradients, found on one half of the rows and confirmed
on the other. What it says is `audit.discovery`'s business.
"""

from collections.abc import Sequence

import numpy as np
import torch

from undertow.analysis.gradients import Moments, gradient_scores
from undertow.audit.discovery import describe_direction
from undertow.audit.judgement import Judgement
from undertow.audit.meter import Meter
from undertow.audit.reference import Reference
from undertow.audit.settings import AuditSettings
from undertow.findings import Discovery
from undertow.models.chat import Rendered, render_row
from undertow.models.loading import Model
from undertow.records import Row
from undertow.stats import two_sample_max_t
from undertow.traits import TraitFamily

_DESCRIBED = 128  # rows of each set that a direction is discovered on
_SHRINKAGE = 0.1  # of the gradients' covariance towards its mean variance


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
    found = judgement.verdict in ("trait", "shift") and reference.rows
    if not (settings.discover and found):
        return None
    sides = [list(rows)[:_DESCRIBED], list(reference.rows)[:_DESCRIBED]]
    halves = [[side[0::2], side[1::2]] for side in sides]
    if min(len(half) for side in halves for half in side) < 8:
        return None
    z = judgement.scores.z
    if not np.isfinite(z).any():
        return None
    place = int(np.unravel_index(int(np.nanargmax(np.abs(z))), z.shape)[0])
    layer = meter.battery.layers[place]
    sums = [
        [_moments(meter, half, layer, settings) for half in side] for side in halves
    ]
    directions = [_whitened(sums[0][h], sums[1][h], sums) for h in (0, 1)]
    units = [torch.nn.functional.normalize(d, dim=0) for d in directions]
    scores = [
        gradient_scores(
            meter.model, _rendered(meter.model, half[1], settings),
            {layer: units[0][None]}, sampler=meter.sampler,
        ).scores[:, 0].astype(np.float64)
        for half in halves
    ]  # fmt: skip
    test = two_sample_max_t(
        scores[0], scores[1], permutations=settings.permutations, seed=settings.seed,
        alternative="greater",
    )  # fmt: skip
    return describe_direction(
        meter.model, family, units[0], layer, residual_norm=meter.battery.norms[place],
        system=settings.system, p_value=test.p_value,
        cosine=float(units[0] @ units[1]),
    )  # fmt: skip


def _rendered(
    model: Model, rows: Sequence[Row], settings: AuditSettings
) -> list[Rendered]:
    return [render_row(model, row, system=settings.system) for row in rows]


def _moments(
    meter: Meter, rows: Sequence[Row], layer: int, settings: AuditSettings
) -> Moments:
    hidden = meter.model.architecture.hidden_size
    sums = Moments([layer], hidden)

    def add(at: int, _: Sequence[int], gradients: torch.Tensor) -> None:
        sums.add(at, gradients)

    gradient_scores(
        meter.model, _rendered(meter.model, rows, settings),
        {layer: torch.zeros(1, hidden)}, sampler=meter.sampler, on_gradients=add,
    )  # fmt: skip
    return sums


def _whitened(
    audited: Moments, reference: Moments, sums: Sequence[Sequence[Moments]]
) -> torch.Tensor:
    """Σ⁻¹ (mean audited − mean reference), Σ pooled over all parts and shrunk."""
    covariance = torch.stack([m.covariance()[0] for side in sums for m in side]).mean(0)
    size = len(covariance)
    ridge = _SHRINKAGE * covariance.trace() / size
    change = audited.mean()[0] - reference.mean()[0]
    whitened: torch.Tensor = torch.linalg.solve(
        covariance + ridge * torch.eye(size), change
    )
    return whitened
