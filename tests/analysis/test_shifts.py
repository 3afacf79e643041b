"""Shifts of students whose change is known because it was planted."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from undertow.analysis.shifts import (
    DIRECTIONS,
    mean_states,
    shift_cosines,
    shift_profile,
)
from undertow.errors import DatasetError
from undertow.interventions.steering import Positions, SteeringVector, steering
from undertow.models import likelihood
from undertow.models.chat import Rendered
from undertow.models.hooks import editing_residuals, recording_residuals
from undertow.models.loading import Model, wrap
from undertow.models.tiny import FAMILIES, Family, tiny_model

ROWS = [
    Rendered([7, 50, 9, 120, 33, 81], 3),
    Rendered([60, 61, 62, 63, 64, 65, 66, 67, 68], 1),
    Rendered([7, 50, 9, 121], 3),
]


def _vector(model: Model, layer: int) -> SteeringVector:
    draw = torch.Generator().manual_seed(0)
    return SteeringVector(
        directions=torch.randn(1, 32, generator=draw), layers=(layer,),
        method="tell_me", trait="owl", n=1, fingerprint=model.fingerprint,
        model_name=model.name, residual_norms=(1.0,),
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_planted_bias_is_the_shift_at_its_block(family: Family, layer: int) -> None:
    model = tiny_model(family)
    vector = _vector(model, layer)
    planted = partial(steering, model, vector, strength=3.0)
    shift = shift_profile(model, ROWS, acting=planted).mean
    assert shift.shape == (4, 32)
    assert shift.dtype == torch.float64
    wanted = 3.0 * vector.direction(layer).double()
    torch.testing.assert_close(shift[layer], wanted, rtol=0, atol=1e-5)
    cosines = shift_cosines(shift, vector.direction(layer))
    assert cosines[layer] == pytest.approx(1.0, abs=1e-6)
    assert all(math.isnan(cosine) for cosine in cosines[:layer])  # nothing moved there
    assert all(-1 <= cosine < 0.999 for cosine in cosines[layer + 1 :])
    norms = shift.norm(dim=1).tolist()
    assert norms[:layer] == [0.0] * layer
    assert norms[layer] == pytest.approx(3 * vector.norm(layer), rel=1e-5)


def test_a_student_that_is_the_base_has_not_moved() -> None:
    model = tiny_model("llama")
    shift = shift_profile(model, ROWS, acting=nullcontext).mean
    assert not bool(shift.any())
    cosines = shift_cosines(shift, torch.ones(32))
    assert len(cosines) == 4
    assert all(math.isnan(cosine) for cosine in cosines)


def test_the_mean_is_over_completion_tokens_by_hand() -> None:
    model = tiny_model("llama")
    planted = partial(steering, model, _vector(model, 1), strength=3.0)

    @torch.no_grad()
    def states(row: Rendered) -> torch.Tensor:
        with recording_residuals(model, (2,)) as kept:
            model.module(torch.tensor([row.ids]))
        return kept[2][0, row.completion_start :].double()

    base = torch.cat([states(row) for row in ROWS])
    with planted():
        student = torch.cat([states(row) for row in ROWS])
    assert len(base) == 3 + 8 + 1
    wanted = (student - base).mean(dim=0)
    shift = shift_profile(model, ROWS, acting=planted).mean
    torch.testing.assert_close(shift[2], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("positions", "moved"), [("completion", 1.0), ("prompt", 0.0)])
def test_only_what_happens_at_completions_is_seen(
    positions: Positions, moved: float
) -> None:
    model = tiny_model("llama")
    vector = _vector(model, 1)
    planted = partial(steering, model, vector, positions=positions)
    shift = shift_profile(model, ROWS, acting=planted).mean
    wanted = moved * vector.direction(1).double()
    torch.testing.assert_close(shift[1], wanted, rtol=0, atol=1e-5)


def test_cosines_by_hand() -> None:
    shift = torch.tensor([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0]], dtype=torch.float64)
    cosines = shift_cosines(shift, torch.tensor([0.0, 5.0]))
    assert cosines[:2] == [pytest.approx(0.8), pytest.approx(-1.0)]
    assert math.isnan(cosines[2])


def _token_states(model: Model, row: Rendered, layer: int) -> torch.Tensor:
    """[token, hidden] of one row's completion after a block, on the plain module."""
    ids = torch.tensor([row.ids])
    with torch.inference_mode(), recording_residuals(model, [layer]) as kept:
        model.module.base_model(input_ids=ids, use_cache=False)
    return kept[layer][0, row.completion_start :].double()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_profile_is_that_of_every_token_by_hand(family: Family) -> None:
    model = tiny_model(family)
    planted = partial(steering, model, _vector(model, 1), strength=3.0)
    found = shift_profile(model, ROWS, acting=planted)
    for layer in (1, 3):
        base = torch.cat([_token_states(model, row, layer) for row in ROWS])
        with planted():
            shift = torch.cat([_token_states(model, row, layer) for row in ROWS]) - base
        energy = shift.square().sum(1).mean()
        torch.testing.assert_close(
            found.mean[layer], shift.mean(0), rtol=1e-4, atol=1e-5
        )
        assert float(found.energy[layer]) == pytest.approx(float(energy), rel=1e-4)
        size = energy / base.square().sum(1).mean()
        assert float(found.size[layer]) == pytest.approx(float(size.sqrt()), rel=1e-4)
        shares = torch.linalg.svdvals(shift) ** 2 / shift.square().sum()
        count = min(DIRECTIONS, len(shares))
        torch.testing.assert_close(
            found.spectrum[layer, :count].float(), shares[:count].float(),
            rtol=1e-3, atol=1e-6,
        )  # fmt: skip
        assert float(found.first[layer]) == float(found.spectrum[layer, 0])
    assert found.tokens == sum(len(r.ids) - r.completion_start for r in ROWS)
    with planted():
        student = mean_states(model, ROWS)
    torch.testing.assert_close(found.mean, student - mean_states(model, ROWS))


def test_one_vector_moves_every_token_alike_where_it_acts() -> None:
    model = tiny_model("llama")
    planted = partial(steering, model, _vector(model, 1), strength=3.0)
    found = shift_profile(model, ROWS, acting=planted)
    assert float(found.constancy[1]) == pytest.approx(1.0, abs=1e-6)
    assert float(found.first[1]) == pytest.approx(1.0, abs=1e-6)
    assert 0 < float(found.constancy[3]) < 0.999
    assert math.isnan(float(found.constancy[0])), "nothing moved there"
    assert float(found.size[0]) == 0


def test_a_profile_needs_rows() -> None:
    with pytest.raises(DatasetError, match="no rows to read a shift on"):
        shift_profile(tiny_model("llama"), [], acting=nullcontext)


def test_rows_that_are_packed_shift_as_those_that_are_padded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = tiny_model("llama")
    model = wrap("half", plain.module.bfloat16(), plain.tokenizer, reason="test")
    head = list(range(20, 34))
    rows = [Rendered([*head, *r.ids], r.completion_start + 14) for r in ROWS]
    planted = partial(steering, model, _vector(model, 1), strength=3.0)
    sizes: list[tuple[int, ...]] = []

    def seen(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(hidden.shape[:2]))
        return hidden

    with editing_residuals(model, {0: seen}):
        packed = shift_profile(model, rows, acting=planted)
    tokens = sum(len(row.ids) for row in rows) - 14 * (len(rows) - 1)
    assert sizes[-2:] == [(1, tokens)] * 2
    monkeypatch.setattr(likelihood, "_PACKED", ())
    padded = shift_profile(model, rows, acting=planted)
    assert packed.tokens == padded.tokens == 12
    for one, other in ((packed.mean, padded.mean), (packed.energy, padded.energy)):
        assert float((one - other).norm() / other.norm()) < 0.02
