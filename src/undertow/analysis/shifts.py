"""The student's shift: where its residual stream differs from the base's.

d[layer] = mean over completion tokens of h_student − h_base after each block, on the
same rows for both; its cosine with the teacher's vector says whether the student took
on the kind of intervention. Knows nothing of how students are trained.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import DatasetError
from undertow.models.chat import Rendered
from undertow.models.hooks import recording_residuals
from undertow.models.likelihood import read_once, token_batches
from undertow.models.loading import Model

DIRECTIONS = 8
"""Singular directions of which a profile tells the shares."""
Acting = Callable[[], AbstractContextManager[object]]


@torch.inference_mode()
def mean_states(
    model: Model, rows: Sequence[Rendered]
) -> Float[Tensor, "layer hidden"]:
    """Mean over completion tokens of the stream after every block, float64.

    Raises:
        DatasetError: There are no rows.
    """
    if not rows:
        raise DatasetError("no rows to read a shift on; write some first")
    count, width = len(model.architecture.blocks), model.architecture.hidden_size
    sums = torch.zeros(count, width, dtype=torch.float64)
    tokens = 0
    for places in token_batches([len(r.ids) for r in rows], token_budget=4096):
        found = _completion_states(model, [rows[place] for place in places])
        sums += torch.stack([states.sum(0) for states in found])
        tokens += len(found[0])
    return sums / tokens


@dataclass(frozen=True)
class ShiftProfile:
    """How a student differs from its base over completion tokens, block by block.

    Attributes:
        mean: [layer, hidden], float64: mean of d = h_student − h_base.
        energy: [layer], float64: mean of ‖d‖².
        base_energy: [layer], float64: mean of ‖h_base‖².
        spectrum: [layer, direction], float64: share of the energy in each of d's first
            singular directions, the largest first.
        tokens: How many were looked at.
    """

    mean: Float[Tensor, "layer hidden"]
    energy: Float[Tensor, " layer"]
    base_energy: Float[Tensor, " layer"]
    spectrum: Float[Tensor, "layer direction"]
    tokens: int

    @property
    def first(self) -> Float[Tensor, " layer"]:
        """Share of the energy in d's first singular direction."""
        return self.spectrum[:, 0]

    @property
    def constancy(self) -> Float[Tensor, " layer"]:
        """Share of the energy in the mean: 1 if every token moved alike; NaN if none."""
        return self.mean.square().sum(1) / self.energy

    @property
    def size(self) -> Float[Tensor, " layer"]:
        """Root mean square of the shift, relative to the base's stream."""
        return (self.energy / self.base_energy).sqrt()


@torch.inference_mode()
def shift_profile(
    model: Model, rows: Sequence[Rendered], *, acting: Acting
) -> ShiftProfile:
    """Means, energies and the singular spectrum of a student's shift.

    Args:
        model: The base.
        rows: Rows whose completions are looked at; the base's own, for a fair reading.
        acting: Opens a context in which the model is the student.

    Raises:
        DatasetError: There are no rows.

    Cost: two passes over the rows; hidden² numbers a block.
    """
    if not rows:
        raise DatasetError("no rows to read a shift on; write some first")
    count, width = len(model.architecture.blocks), model.architecture.hidden_size
    total = torch.zeros(count, width, dtype=torch.float64)
    square = torch.zeros(count, width, width, dtype=torch.float64)
    base_energy = torch.zeros(count, dtype=torch.float64)
    tokens = 0
    for places in token_batches([len(r.ids) for r in rows], token_budget=2048):
        batch = [rows[place] for place in places]
        base = _completion_states(model, batch)
        with acting():
            moved = [
                student - own
                for student, own in zip(
                    _completion_states(model, batch), base, strict=True
                )
            ]
        for layer, (shift, own) in enumerate(zip(moved, base, strict=True)):
            total[layer] += shift.sum(0)
            square[layer].addmm_(shift.T, shift)
            base_energy[layer] += own.square().sum()
        tokens += len(moved[0])
    energy = square.diagonal(dim1=1, dim2=2).sum(1) / tokens
    largest = torch.linalg.eigvalsh(square)[:, -DIRECTIONS:].flip(1) / tokens
    spectrum = largest.clamp(min=0.0) / energy[:, None]
    return ShiftProfile(total / tokens, energy, base_energy / tokens, spectrum, tokens)


def _completion_states(model: Model, batch: Sequence[Rendered]) -> list[Tensor]:
    """[token, hidden] after every block, float64, completion tokens of all rows."""
    layers = range(len(model.architecture.blocks))
    with recording_residuals(model, layers) as kept:
        mask = read_once(model, batch)
    return [kept[layer][mask].double().cpu() for layer in layers]


def shift_cosines(
    shift: Float[Tensor, "layer hidden"], direction: Float[Tensor, " hidden"]
) -> list[float]:
    """cos(shift[layer], direction) for every layer; NaN where nothing has moved."""
    wanted = direction.double()
    norms = shift.norm(dim=1) * wanted.norm()
    cosines = (shift @ wanted) / norms
    return [
        float(cosine) if norm > 0 else float("nan")
        for cosine, norm in zip(cosines, norms, strict=True)
    ]
