"""The vector of rows is put together of what its parts say by themselves."""

import pytest
import torch

from undertow.analysis.trained_vector import train_vector
from undertow.audit.discovery import describe_direction
from undertow.errors import VectorMismatchError
from undertow.experiment.row_vector import measure_row_vector
from undertow.interventions.extraction import family_vectors
from undertow.models.chat import render_row
from undertow.models.tiny import tiny_model
from undertow.records import Message, Row
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets", category="pet", questions=("Which pet?", "Your pet?"),
    traits=tuple(Trait(n, f"{n}s") for n in ("owl", "cat", "dog")),
)  # fmt: skip
ROWS, CONTROL = (
    [Row((Message("user", f"Go on: {i}"),), f"{k * i}, {3 * i}, 7") for i in range(6)]
    for k in (7, 11)
)


def test_it_is_what_its_parts_say() -> None:
    model, told = tiny_model("llama"), []
    found = measure_row_vector(
        model, PETS, ROWS, CONTROL, layer=2, steps=3, batch_size=4, seed=1,
        tell=lambda name, done, total: told.append((name, done, total)),
    )  # fmt: skip
    own, other = (
        train_vector(
            model, [render_row(model, row) for row in rows], 2, steps=3, batch_size=4,
            seed=1,
        )
        for rows in (ROWS, CONTROL)
    )  # fmt: skip
    assert list(found.sets) == ["rows", "control"]
    assert found.sets["rows"].losses == own.losses
    wanted = own.vector.directions - other.vector.directions
    assert torch.equal(found.vector.directions, wanted)
    known = family_vectors(model, PETS, layers=(2,))
    for name, value in found.cosines.items():
        direction = known[name].direction(2).double()
        cosine = torch.nn.functional.cosine_similarity(
            wanted[0].double(), direction, dim=0
        )
        assert value == pytest.approx(float(cosine))
    assert set(found.cosines) == set(PETS.names)
    assert found.says == describe_direction(
        model, PETS, wanted[0], 2, residual_norm=own.vector.residual_norms[0]
    )
    steps = [(name, done, 3) for name in found.sets for done in (1, 2, 3)]
    assert told == steps


def test_half_of_the_depth_unless_said_and_nothing_left_is_refused() -> None:
    model = tiny_model("llama", layers=4)
    found = measure_row_vector(model, PETS, ROWS, steps=1, tell=lambda *_: None)
    assert found.vector.layers == (2,)
    assert list(found.sets) == ["rows"]
    with pytest.raises(VectorMismatchError, match="the length 0"):
        measure_row_vector(model, PETS, ROWS, ROWS, steps=1, tell=lambda *_: None)
