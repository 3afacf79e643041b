"""Alignment against gradients by autograd, one row at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from undertow.analysis.alignment import mean_alignment
from undertow.errors import DatasetError, VectorMismatchError
from undertow.models.chat import Rendered
from undertow.models.hooks import editing_residuals
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model

HEAD = [7, 50, 9, 120]
ROWS = [
    Rendered([*HEAD, 33, 81, 2], 4),
    Rendered([*HEAD, 60, 61, 62, 63, 64], 4),
    Rendered([9, 9, 200, 201, 2], 2),
]


def _vectors(model: Model) -> dict[int, Tensor]:
    stream = torch.Generator().manual_seed(0)
    width = model.architecture.hidden_size
    return {layer: torch.randn(2, width, generator=stream) for layer in (0, 2)}


def _gradient(model: Model, row: Rendered, layer: int) -> Tensor:
    """∂ log p/∂h summed over the positions that predict the completion."""
    leaf = torch.zeros(len(row.ids), model.architecture.hidden_size, requires_grad=True)
    ids = torch.tensor([row.ids])
    with torch.enable_grad(), editing_residuals(model, {layer: lambda h: h + leaf}):
        logits = model.module(ids, use_cache=False).logits[0, :-1]
        nats = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])
        nats[row.completion_start - 1 :].sum().backward()
    assert leaf.grad is not None
    return leaf.grad[row.completion_start - 1 : -1].sum(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_cosines_and_means_are_those_of_autograd(family: Family) -> None:
    model = tiny_model(family, layers=3)
    vectors = _vectors(model)
    found = mean_alignment(model, ROWS, vectors)
    assert found.layers == (0, 2)
    assert found.rows == 3
    for place, layer in enumerate(found.layers):
        each = torch.stack([_gradient(model, row, layer) for row in ROWS])
        units = vectors[layer] / vectors[layer].norm(dim=1, keepdim=True)
        along = (each @ units.T).numpy()
        mean = each.mean(0)
        np.testing.assert_allclose(found.mean[place], along.mean(0), rtol=2e-3)
        np.testing.assert_allclose(found.sd[place], along.std(0, ddof=1), rtol=2e-3)
        cosines = torch.cosine_similarity(mean[None], vectors[layer]).numpy()
        np.testing.assert_allclose(found.cosines[place], cosines, rtol=2e-3)


def test_a_vector_s_length_changes_nothing_and_a_zero_points_nowhere() -> None:
    model = tiny_model("llama", layers=3)
    vectors = _vectors(model)
    longer = {layer: 7 * rows for layer, rows in vectors.items()}
    longer[2] = longer[2] * torch.tensor([[1.0], [0.0]])
    plain, scaled = (mean_alignment(model, ROWS, v) for v in (vectors, longer))
    np.testing.assert_allclose(scaled.cosines[0], plain.cosines[0], rtol=1e-4)
    assert np.isnan(scaled.cosines[1, 1])
    assert np.isnan(scaled.mean[1, 1])
    assert scaled.cosines[1, 0] == pytest.approx(plain.cosines[1, 0], rel=1e-4)


def test_one_row_has_no_spread_and_none_no_gradient() -> None:
    model = tiny_model("llama", layers=3)
    assert np.isnan(mean_alignment(model, ROWS[:1], _vectors(model)).sd).all()
    with pytest.raises(DatasetError, match="no rows to take gradients of"):
        mean_alignment(model, [], _vectors(model))
    with pytest.raises(VectorMismatchError):
        mean_alignment(model, ROWS, {9: _vectors(model)[0]})
