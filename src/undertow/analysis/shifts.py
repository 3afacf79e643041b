"""The student's shift: where its residual stream differs from the base's.

d[layer] = mean over completion tokens of h_student − h_base after each block, on the
same rows for both; its cosine with the teacher's vector says whether the student took
on the kind of intervention. Knows nothing of how students are trained.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import DatasetError
from undertow.models.chat import Rendered
from undertow.models.hooks import completion_positions, recording_residuals
from undertow.models.likelihood import completion_mask, padded, token_batches
from undertow.models.loading import Model

Acting = Callable[[], AbstractContextManager[object]]


def mean_shift(
    model: Model,
    rows: Sequence[Rendered],
    *,
    acting: Acting,
    base_states: Float[Tensor, "layer hidden"] | None = None,
) -> Float[Tensor, "layer hidden"]:
    """Mean over completion tokens of h_student − h_base after every block, float64.

    Args:
        model: The base.
        rows: Rows whose completions are looked at; a control's, for a fair reading.
        acting: Opens a context in which the model is the student.
        base_states: `mean_states` of the base on these rows, if they are known; several
            students then cost one pass each.

    Raises:
        DatasetError: There are no rows.
    """
    with acting():
        student = mean_states(model, rows)
    return student - (mean_states(model, rows) if base_states is None else base_states)


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
    layers = range(len(model.architecture.blocks))
    sums = torch.zeros(len(layers), model.architecture.hidden_size, dtype=torch.float64)
    tokens = 0
    for places in token_batches([len(r.ids) for r in rows], token_budget=4096):
        batch = [rows[place] for place in places]
        ids = padded([row.ids for row in batch], device=model.device)
        mask = completion_mask(batch, ids.shape[1], device=model.device)
        with (
            completion_positions(model, mask),
            recording_residuals(model, layers) as kept,
        ):
            model.module.base_model(input_ids=ids, use_cache=False)
        for layer in layers:
            sums[layer] += kept[layer][mask].double().sum(dim=0).cpu()
        tokens += int(mask.sum())
    return sums / tokens


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


def shift_norms(shift: Float[Tensor, "layer hidden"]) -> list[float]:
    """Length of the shift after every block."""
    return [float(norm) for norm in shift.norm(dim=1)]
