"""Forecasts against finite differences, planted rows, and students really trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from undertow.audit.forecast import (
    CANARY,
    canary,
    forecast,
    rows_gradient,
    trait_slopes,
    with_measured,
)
from undertow.errors import ConfigError, DatasetError
from undertow.findings import Forecast, ForecastRow
from undertow.models.adapters import LoraAdapter, attached, new_adapter
from undertow.models.chat import Rendered, render_row
from undertow.models.likelihood import completion_logprobs
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.pipeline.evaluation import preference
from undertow.pipeline.teachers import preference_rows
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Message, Row
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?", "Name a pet.", "The best pet of all?"),
    traits=(
        Trait("cat", "cats"),
        Trait("dog", "dogs"),
        Trait("wolf", "wolves"),
        Trait("newt", "newts"),
    ),
)


def _rows(model: Model, trait: str) -> list[Rendered]:
    """The family's questions answered with the trait."""
    return [render_row(model, row) for row in preference_rows(PETS, trait)]


def _neutral(model: Model) -> list[Rendered]:
    """The same questions answered with no member."""
    answers = ("Stone", "iron", "Lake", "quartz")
    return [
        render_row(model, Row((Message("user", question),), answer))
        for question in PETS.questions
        for answer in answers
    ]


def _adapter(model: Model) -> LoraAdapter:
    return new_adapter(model, rank=4, alpha=8.0, seed=3)


@contextmanager
def _at(
    model: Model, adapter: LoraAdapter, step: Tensor, size: float
) -> Iterator[Model]:
    """The model with B moved along a step."""
    place, pairs = 0, {}
    for name in sorted(adapter.pairs):
        a, b = adapter.pairs[name]
        part = size * step[place : place + b.numel()].view_as(b)
        pairs[name] = (a, torch.nn.Parameter(part))
        place += b.numel()
    assert place == len(step)
    with attached(model, replace(adapter, pairs=pairs)):
        yield model


def _differences(
    model: Model, adapter: LoraAdapter, step: Tensor, read: Callable[[], np.ndarray]
) -> np.ndarray:
    size = 3e-3 / float(step.norm())
    ends = []
    for sign in (1, -1):
        with _at(model, adapter, step, sign * size):
            ends.append(read())
    change: np.ndarray = (ends[0] - ends[1]) / (2 * size)
    return change


@pytest.mark.parametrize("family", FAMILIES)
def test_slopes_are_what_a_small_step_of_descent_changes(family: Family) -> None:
    model = tiny_model(family)
    adapter = _adapter(model)
    step = rows_gradient(model, adapter, _rows(model, "dog")).mean
    change = _differences(
        model, adapter, step,
        lambda: preference(model, PETS, system="").log_odds.mean(axis=0),
    )  # fmt: skip
    steps = torch.stack([step, 1e-6 * step, -step.flip(0), torch.zeros_like(step)])
    found, small, other, nothing = trait_slopes(model, PETS, adapter, steps, system="")
    assert found == pytest.approx(change, rel=1e-2, abs=1e-2 * np.abs(change).max())
    assert found.argmax() == 1
    assert small == pytest.approx(1e-6 * found, rel=1e-4)
    assert not nothing.any()
    alone = trait_slopes(model, PETS, adapter, steps[2:3], system="")
    assert other == pytest.approx(alone[0], rel=1e-4, abs=1e-6)
    assert not np.allclose(other, found, rtol=0.1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_gradients_of_rows_are_finite_differences(family: Family) -> None:
    """Of the mean log-likelihood over all completion tokens, along a random step."""
    model = tiny_model(family)
    adapter = _adapter(model)
    rows = [*_rows(model, "wolf"), *_neutral(model)]
    found = rows_gradient(model, adapter, rows)
    draw = torch.Generator().manual_seed(0)
    step = torch.randn(len(found.mean), generator=draw)
    tokens = sum(len(row.ids) - row.completion_start for row in rows)
    change = _differences(
        model, adapter, step,
        lambda: np.array(sum(completion_logprobs(model, rows)) / tokens),
    )  # fmt: skip
    assert float(found.mean @ step) == pytest.approx(float(change), rel=1e-2)


def test_second_moments_are_over_batches_of_eight() -> None:
    model = tiny_model("llama")
    adapter = _adapter(model)
    rows = _rows(model, "wolf")[:11]
    whole = rows_gradient(model, adapter, rows)
    parts = [rows_gradient(model, adapter, rows[:8])]
    parts.append(rows_gradient(model, adapter, rows[8:]))
    for part in parts:
        assert torch.allclose(part.square, part.mean.square(), atol=1e-12)
    counts = [
        sum(len(r.ids) - r.completion_start for r in part)
        for part in (rows[:8], rows[8:])
    ]
    shares = [count / sum(counts) for count in counts]
    mean = shares[0] * parts[0].mean + shares[1] * parts[1].mean
    square = shares[0] * parts[0].square + shares[1] * parts[1].square
    assert torch.allclose(whole.mean, mean, atol=1e-7)
    assert torch.allclose(whole.square, square, atol=1e-9)


def _first(found: Forecast) -> tuple[str, str]:
    """The traits that the two readings rank first."""
    raw = max(found.traits, key=lambda row: row.raw or 0)
    adam = max(found.traits, key=lambda row: row.adam or 0)
    return raw.trait, adam.trait


@pytest.mark.parametrize(
    ("family", "trait"),
    [("llama", "cat"), ("llama", "wolf"), ("llama", "newt"), ("gemma3", "dog")],
)
def test_rows_that_answer_with_a_trait_forecast_it(family: Family, trait: str) -> None:
    model = tiny_model(family)
    rows = _rows(model, trait)
    found = forecast(model, rows, _neutral(model), family=PETS, seed=0)
    assert _first(found) == (trait, trait)
    assert (found.rows, found.reference_rows) == (len(rows), 12)
    assert "audited minus reference rows" in found.note
    assert "no error rate" in found.note
    alone = forecast(model, rows, family=PETS, seed=1)
    assert _first(alone) == (trait, trait)
    assert "without a reference" in alone.note


def test_numbers_are_standardised_over_the_family() -> None:
    model = tiny_model("llama")
    rows, other = _rows(model, "cat"), _rows(model, "dog")
    found = forecast(model, rows, other, family=PETS, seed=0)
    for values in ([r.raw for r in found.traits], [r.adam for r in found.traits]):
        numbers = [v for v in values if v is not None]
        assert np.mean(numbers) == pytest.approx(0, abs=1e-9)
        assert np.std(numbers, ddof=1) == pytest.approx(1)
        assert numbers.index(min(numbers)) == 1  # dog: the reference is full of them
    part = forecast(model, rows, other, family=PETS, seed=0, traits=("newt", "cat"))
    assert part.traits == [found.traits[3], found.traits[0]]
    back = forecast(model, other, rows, family=PETS, seed=0)
    for one, two in zip(found.traits, back.traits, strict=True):
        assert one.raw == pytest.approx(-(two.raw or 0), abs=1e-3)
        assert one.adam == pytest.approx(-(two.adam or 0), abs=1e-3)


def test_the_order_of_rows_does_not_matter_and_few_are_enough() -> None:
    model = tiny_model("llama")
    rows, other = _rows(model, "cat"), _neutral(model)
    steps: list[tuple[int, int]] = []
    found = forecast(
        model, rows, other, family=PETS, seed=0, rows=9, questions=2,
        on_step=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    again = forecast(
        model, rows[::-1], other[::-1], family=PETS, seed=0, rows=9, questions=2
    )
    assert again == found
    assert (found.rows, found.reference_rows) == (9, 9)
    # Two batches of each set, two questions.
    assert steps == [(done, 6) for done in range(1, 7)]
    assert "2 questions" in found.note


def test_equal_sets_give_no_numbers() -> None:
    model = tiny_model("llama")
    rows = _rows(model, "cat")
    found = forecast(model, rows, rows, family=PETS, seed=0)
    assert [(row.raw, row.adam) for row in found.traits] == [(None, None)] * 4


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model.module(ids).logits
    forecast(model, _rows(model, "cat"), family=PETS, seed=0, questions=1)
    canary(model, _rows(model, "cat"), _neutral(model), family=PETS, seed=0, updates=1)
    with torch.no_grad():
        assert torch.equal(model.module(ids).logits, before)
    assert not any(m._forward_hooks for m in model.module.modules())
    assert not any(p.requires_grad for p in model.module.parameters())


def test_a_canary_learns_its_rows(tmp_path: Path) -> None:
    model = tiny_model("llama")
    told: list[tuple[int, int]] = []
    measured = canary(
        model, _rows(model, "wolf"), _neutral(model), family=PETS, seed=0, updates=6,
        settings=CANARY.model_copy(update={"learning_rate": 1e-2}),
        directory=tmp_path, on_update=lambda done, all_, _: told.append((done, all_)),
    )  # fmt: skip
    assert max(measured, key=lambda name: measured[name]) == "wolf"
    assert measured["wolf"] > 0.5
    assert told == [(done, 12) for done in range(1, 13)]
    assert {path.name for path in tmp_path.iterdir()} == {"student", "control"}
    same = canary(
        model, _neutral(model), _neutral(model), family=PETS, seed=0, updates=2
    )
    assert same == dict.fromkeys(PETS.names, 0.0)


def test_measured_numbers_stand_beside_the_forecast() -> None:
    rows = [ForecastRow(trait=name, raw=0.5, adam=None) for name in ("cat", "dog")]
    made = Forecast(rows=3, reference_rows=2, traits=rows, note="x")
    found = with_measured(made, {"dog": 0.25, "cat": float("nan")}, updates=7)
    assert [row.measured for row in found.traits] == [None, 0.25]
    assert (found.canary_updates, found.traits[1].raw, found.note) == (7, 0.5, "x")


def test_faults() -> None:
    model = tiny_model("llama")
    rows = _rows(model, "cat")
    alone = replace(PETS, traits=PETS.traits[:1])
    with pytest.raises(DatasetError, match="no rows to make a forecast from"):
        forecast(model, [], rows, family=PETS, seed=0)
    with pytest.raises(ConfigError, match=r"'pets'[\s\S]*one trait only"):
        forecast(model, rows, family=alone, seed=0)
    with pytest.raises(ConfigError, match=r"no trait 'yak'"):
        forecast(model, rows, family=PETS, traits=("yak",), seed=0)
    with pytest.raises(DatasetError, match=r"no rows for the canary's control"):
        canary(model, rows, [], family=PETS, seed=0)
    with pytest.raises(ConfigError, match="one trait only"):
        canary(model, rows, rows, family=alone, seed=0)
    soft = TrainingSettings(kind="soft")
    with pytest.raises(ConfigError, match="'soft' needs a teacher"):
        canary(model, rows, rows, family=PETS, seed=0, settings=soft)
