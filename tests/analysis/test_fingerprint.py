"""Traces of shifts made by hand: along a persona, along one vector, growing with depth."""

import math

import pytest
import torch
from torch import Tensor

from undertow.analysis.fingerprint import traces, trait_cosines
from undertow.analysis.shifts import ShiftProfile
from undertow.errors import VectorMismatchError

TRAITS, DEPTH, WIDTH = 5, 12, 40


def drawn(*shape: int, seed: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


VECTORS = drawn(TRAITS, DEPTH, WIDTH, seed=0)
PERSONAS = drawn(DEPTH, WIDTH, seed=1) + 0.3 * drawn(TRAITS, DEPTH, WIDTH, seed=2)


def profile(mean: Tensor, size: Tensor | None = None) -> ShiftProfile:
    energy = torch.ones(DEPTH, dtype=torch.float64) if size is None else size.square()
    ones = torch.ones(DEPTH, dtype=torch.float64)
    return ShiftProfile(mean, energy, ones, ones[:, None], 9)


def test_a_shift_along_the_personas_mean_has_a_persona_trace_of_one() -> None:
    found = traces(profile(PERSONAS.mean(0)), vectors=VECTORS, personas=PERSONAS)
    assert found.persona == pytest.approx(1.0)
    lower = PERSONAS.mean(0).clone()
    lower[: DEPTH // 2] = drawn(DEPTH // 2, WIDTH, seed=3)
    assert traces(
        profile(lower), vectors=VECTORS, personas=PERSONAS
    ).persona == pytest.approx(1.0), "only the upper half counts"


def test_the_vector_trace_by_hand() -> None:
    """With cosines (1, 0, 0, 0, 0) the first stands out by 0.8 / 0.4 = 2."""
    basis = torch.eye(WIDTH, dtype=torch.float64)[:TRAITS]
    vectors = basis[:, None].expand(TRAITS, DEPTH, WIDTH)
    mean = torch.zeros(DEPTH, WIDTH, dtype=torch.float64)
    mean[:] = basis[:3].sum(0)  # 3 of 5: standing out by 0.4 / 0.49 at most
    mean[9] = 7 * basis[2]
    found = traces(profile(mean), vectors=vectors, personas=PERSONAS)
    assert found.vector == pytest.approx(2.0)
    low = mean.clone()
    low[9] = mean[0]
    low[1] = 7 * basis[2]  # below the upper three quarters
    found = traces(profile(low), vectors=vectors, personas=PERSONAS)
    assert found.vector == pytest.approx(math.sqrt(0.4 / 0.6))
    along = trait_cosines(profile(mean), vectors)
    assert along.shape == (TRAITS, DEPTH)
    assert along[:, 9].tolist() == pytest.approx([0, 0, 1, 0, 0])


def test_growth_is_from_a_third_of_the_depth_to_the_end() -> None:
    size = torch.full((DEPTH,), 9.0, dtype=torch.float64)
    size[DEPTH // 3], size[-1] = 0.1, 0.4
    found = traces(profile(PERSONAS[0], size), vectors=VECTORS, personas=PERSONAS)
    assert found.growth == pytest.approx(math.log(4))
    assert found.values() == [found.persona, found.vector, found.growth]


def test_sizes_do_not_matter() -> None:
    one, other = (
        traces(profile(scale * PERSONAS[0]), vectors=other, personas=PERSONAS)
        for scale, other in ((1.0, VECTORS), (0.01, 3 * VECTORS))
    )
    assert one.values() == pytest.approx(other.values())


@pytest.mark.parametrize("cut", [(2, DEPTH, WIDTH), (5, 4, WIDTH), (5, DEPTH, 7)])
def test_vectors_that_do_not_fit_are_refused(cut: tuple[int, int, int]) -> None:
    traits, depth, width = (slice(None, size) for size in cut)
    vectors, personas = (each[traits, depth, width] for each in (VECTORS, PERSONAS))
    with pytest.raises(VectorMismatchError, match="expected three traits or more"):
        traces(profile(PERSONAS[0]), vectors=vectors, personas=personas)
