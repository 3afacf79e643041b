"""Students side by side: each is what it would have become alone."""

import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from undertow.errors import ConfigError, ModelError, TrainingError
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.chat import Rendered
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.pipeline import training
from undertow.pipeline.losses import completion_losses
from undertow.pipeline.training import (
    Student,
    StudentPlan,
    train_student,
    train_students,
)
from undertow.pipeline.training_rows import Example, parts_of
from undertow.pipeline.training_settings import TrainingSettings

QUICK = TrainingSettings(
    rank=2, alpha=4.0, learning_rate=1e-2, batch_size=4, epochs=2, warmup_updates=2,
    checkpoint_every=2,
)  # fmt: skip


def _rows(count: int, first: int) -> list[Rendered]:
    return [
        Rendered(
            [*range(first + i, first + 6 + i), *range(90 + i, 93 + i + i % 4), 2], 6
        )
        for i in range(count)
    ]


def _plans(folder: Path | None = None, **changes: Any) -> list[StudentPlan]:
    """Other rows, seeds, rates, scales and lengths: 4, 6 and 2 updates."""
    own = [
        (8, 40, 1, {}),
        (9, 60, 2, {"learning_rate": 3e-3, "alpha": 2.0, "optimizer": "sgd"}),
        (3, 80, 3, {"schedule": "linear", "clip": 0.1, "optimizer": "adafactor"}),
    ]
    return [
        StudentPlan(
            [Example(row) for row in _rows(count, first)],
            QUICK.model_copy(update=changes | more),
            seed,
            None if folder is None else folder / str(seed),
        )
        for count, first, seed, more in own
    ]


def _alone(model: Model, plan: StudentPlan) -> Student:
    return train_student(
        model, plan.examples, settings=plan.settings, seed=plan.seed,
        teacher=plan.teacher,
    )  # fmt: skip


def _same(one: Student, other: Student, *, atol: float = 2e-5) -> None:
    assert one.updates == other.updates
    assert one.losses == pytest.approx(other.losses, abs=1e-4)
    assert one.adapter is not None
    assert other.adapter is not None
    a, b = one.adapter.state(), other.adapter.state()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_is_what_it_would_have_become_alone(family: Family) -> None:
    model = tiny_model(family)
    told: list[tuple[int, int, int]] = []
    together = train_students(
        model, _plans(), on_update=lambda *step: told.append(step[:3])
    )
    for student, plan in zip(together, _plans(), strict=True):
        _same(student, _alone(model, plan))
    for place, updates in enumerate((4, 6, 2)):
        mine = [(update, total) for own, update, total in told if own == place]
        assert mine == [(update, updates) for update in range(1, updates + 1)]


def test_they_do_not_become_the_same() -> None:
    model = tiny_model("llama")
    plan = _plans()[0]
    twins = train_students(
        model, [plan, StudentPlan(plan.examples, plan.settings, seed=9)]
    )
    first, second = (s.adapter for s in twins)
    assert first is not None
    assert second is not None
    name = next(iter(first.pairs))
    assert not torch.allclose(first.pairs[name][0], second.pairs[name][0], atol=1e-2)
    # Neither holds on to the memory that they shared.
    assert first.pairs[name][0].untyped_storage().size() == first.pairs[name][0].nbytes


@pytest.mark.parametrize("tokens", ["all", "numbers"])
def test_each_is_distilled_from_its_own_teacher(tokens: Any) -> None:
    model = tiny_model("llama")
    draw = torch.Generator().manual_seed(2)

    def vector() -> SteeringVector:
        return SteeringVector(
            directions=torch.randn(1, 32, generator=draw), layers=(1,),
            method="tell_me", trait=None, n=1, fingerprint=model.fingerprint,
            model_name=model.name, residual_norms=(1.0,),
        )  # fmt: skip

    plans = [
        StudentPlan(
            [Example(e.student, e.student) for e in plan.examples], plan.settings,
            plan.seed, teacher=partial(steering, model, vector(), strength=2.0),
        )
        for plan in _plans(kind="soft", soft_tokens=tokens)
    ]  # fmt: skip
    if tokens == "all":
        together = train_students(model, plans)
        alone = [_alone(model, plan) for plan in plans]
    else:
        carrier = range(90, 100)
        together = train_students(model, plans, carrier=carrier)
        alone = [train_students(model, [plan], carrier=carrier)[0] for plan in plans]
    for student, lone in zip(together, alone, strict=True):
        _same(
            student, lone, atol=2e-4
        )  # one of thousands: Adam divides by next to nothing
        assert student.losses[0] > 0


def test_interrupted_they_end_as_unbroken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last student's third update fails: the first two have gone further."""
    model = tiny_model("llama")
    whole = train_students(model, _plans())
    real = training._Learner.step

    def act(learner: Any, loss: float) -> None:
        if learner.plan.seed == 2 and learner.state.update == 3:
            raise KeyboardInterrupt
        real(learner, loss)

    with monkeypatch.context() as patch:
        patch.setattr(training._Learner, "step", act)
        with pytest.raises(KeyboardInterrupt):
            train_students(model, _plans(tmp_path))
    assert not any(p.requires_grad for p in model.module.parameters())
    for student, other in zip(
        train_students(model, _plans(tmp_path)), whole, strict=True
    ):
        _same(student, other)


def test_one_that_comes_to_nothing_stops_them_and_says_so(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plans = _plans(tmp_path)
    wild = plans[1].settings.model_copy(update={"learning_rate": 1e30, "clip": 1e30})
    plans[1] = StudentPlan(plans[1].examples, wild, 2, tmp_path / "2")
    with pytest.raises(
        TrainingError,
        match=r"^student 2 of 3: update \d of 6: .* lower the learning rate",
    ):
        train_students(model, plans)


@pytest.mark.parametrize("largest", [3, 6])
def test_short_of_memory_they_go_on_in_smaller_parts(
    largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    whole = train_students(model, _plans())
    real = completion_losses

    def short(model: Model, rows: list[Rendered], **how: Any) -> torch.Tensor:
        if len(rows) > largest:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried")
        return real(model, rows, **how)

    monkeypatch.setattr(training, "completion_losses", short)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        parts = train_students(model, _plans())
    assert any("memory ran out" in str(w.message) for w in said)
    for student, other in zip(parts, whole, strict=True):
        _same(student, other)


def test_rows_that_never_fit_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    def short(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried")

    monkeypatch.setattr(training, "completion_losses", short)
    plans = _plans()
    with (
        pytest.warns(RuntimeWarning, match="memory ran out"),
        pytest.raises(ModelError, match="train fewer side by side"),
    ):
        train_students(model, plans)
    assert not any(p.requires_grad for p in model.module.parameters())


def test_parts_hold_equally_many_rows_of_each_and_count_each_once() -> None:
    batches = [
        [
            (Example(row), 0.5 + i)
            for row in sorted(_rows(n, 40), key=lambda r: len(r.ids))
        ]
        for i, n in enumerate((4, 2, 3))
    ]
    for budget in (1, 60, 100, 1000):
        parts = parts_of(batches, token_budget=budget)
        for part in parts:
            assert len({len(own) for own in part}) == 1
            widest = max(len(e.student.ids) for own in part for e, _ in own)
            count = sum(map(len, part))
            assert count * widest <= budget or len(part[0]) == 1
        for place, batch in enumerate(batches):
            seen = [pair for part in parts for pair in part[place] if pair[1]]
            assert sorted(map(repr, seen)) == sorted(map(repr, batch))


def test_who_cannot_be_trained_together_is_said() -> None:
    model, plan = tiny_model("llama"), _plans()[0]

    def other(folder: Path | None = None, **changes: Any) -> StudentPlan:
        settings = plan.settings.model_copy(update=changes)
        return StudentPlan(plan.examples, settings, 5, folder, nullcontext)

    with pytest.raises(ConfigError, match="full fine-tuning"):
        train_students(model, [plan, other(kind="full")])
    with pytest.raises(ConfigError, match="one rank"):
        train_students(model, [plan, other(rank=4)])
    with pytest.raises(ConfigError, match="one kind of loss"):
        train_students(model, [plan, other(kind="soft")])
    with pytest.raises(ConfigError, match="same directory"):
        train_students(model, [other(Path("a")), other(Path("a"))])
    assert train_students(model, []) == []
