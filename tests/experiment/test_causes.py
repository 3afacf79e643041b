"""What a student's shift does, against a student that is nothing but a constant shift."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from undertow.errors import VectorMismatchError
from undertow.experiment import Recipe, run_experiment
from undertow.experiment.causes import read_causes
from undertow.experiment.estimates import log_odds
from undertow.experiment.lessons import Lesson, learnt
from undertow.experiment.stages import Base
from undertow.models.loading import load_model
from undertow.models.tiny import save_tiny
from undertow.pipeline.evaluation import preference
from undertow.pipeline.students import save_student
from undertow.pipeline.teachers import Teacher
from undertow.pipeline.training import Student
from undertow.records import Message, Row
from undertow.runs import Run, open_run
from undertow.seeding import torch_generator
from undertow.storage import write_rows
from undertow.traits import load_family

Make = Callable[..., Recipe]
EVALUATION = {"questions": 2, "shift_rows": 3, "channel_rows": 0, "cause_layer": 1}


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Nobody listens."""


def planted(run: Run, recipe: Recipe, folder: Path) -> Lesson:
    """A student whose block 1 adds one vector more at every token, and rows."""
    import torch

    model = load_model(str(save_tiny("gpt2", folder / "tiny")), dtype="float32")
    weights = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    (bias,) = [n for n in weights if n.endswith("h.1.mlp.c_proj.bias")]
    draw = torch.randn(weights[bias].shape, generator=torch_generator(0, "planted"))
    weights[bias] = weights[bias] + draw
    base = Base(recipe, load_family("animals"), run, model, 0.0, 0, silent)
    nobody = partial(Teacher, kind="none")
    lesson = Lesson(base, "prompt-owl", "prompt-owl", recipe.student, nobody)
    save_student(
        model, Student(None, weights, (), ()), base.path(lesson.stage), facts={}
    )
    rows = [Row((Message("user", f"Go on: {i}"),), f"{i}, 4, 8") for i in range(3)]
    write_rows(base.path("noise-0/seed-0/control/rows.jsonl"), rows)
    run.finish("noise-0/seed-0/control/rows", {"accepted": [True] * 3})
    return lesson


def test_a_constant_shift_is_the_whole_student(recipe: Make, tmp_path: Path) -> None:
    """Added to the base it makes the student; taken from the student, the base."""
    with open_run(tmp_path / "run", recipe_text="x") as run:
        lesson = planted(run, recipe(evaluation=EVALUATION), tmp_path)
        read_causes(lesson, replace(lesson, name="control", writer="control"))
        facts = run.payload("noise-0/seed-0/prompt-owl/causes")
        base, model = lesson.base, lesson.base.model
        untouched = preference(model, base.family)
        with learnt(lesson).applied(model):
            student = preference(model, base.family)
    assert facts["layer"] == 1
    assert not np.allclose(student.total_logprobs, untouched.total_logprobs, atol=1e-2)
    added, taken = (np.array(facts[k]["total_logprobs"]) for k in ("added", "taken"))
    np.testing.assert_allclose(added, student.total_logprobs, atol=1e-3)
    np.testing.assert_allclose(taken, untouched.total_logprobs, atol=1e-3)


def test_the_results_hold_differences_by_question(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(evaluation=EVALUATION, seeds=[0], teachers=[{"kind": "prompt"}])
    (condition,) = run_experiment(asked, tmp_path / "run").conditions
    causes = condition.causes
    assert causes is not None
    assert causes.layer == 1
    assert causes.whole == condition.transfer_from_base
    with open_run(tmp_path / "run", recipe_text=_text(tmp_path)) as run:
        facts = run.payload("noise-0/seed-0/prompt-owl/causes")
        base, student = (
            log_odds(run.payload(f"noise-0/{stage}/readout"))
            for stage in ("base", "seed-0/prompt-owl/student")
        )
    column = load_family("animals").names.index("owl")
    added, taken = (log_odds(facts[key]) for key in ("added", "taken"))
    for each, wanted in (
        (causes.sufficient, (added - base)[:, column].mean()),
        (causes.necessary, (student - taken)[:, column].mean()),
    ):
        assert (each.n, each.clusters) == (2, "question")
        assert each.mean == pytest.approx(wanted)
    asked = recipe(seeds=[0], teachers=[{"kind": "prompt"}])
    (without,) = run_experiment(asked, tmp_path / "without").conditions
    assert without.causes is None


def _text(folder: Path) -> str:
    return (folder / "run" / "recipe.yaml").read_text(encoding="utf-8")


def test_a_block_that_is_not_there_is_named(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(evaluation=EVALUATION | {"cause_layer": 9}, seeds=[0])
    with pytest.raises(VectorMismatchError, match="9"):
        run_experiment(asked, tmp_path / "run")
    assert not (tmp_path / "run" / "bases").exists(), "refused before anything is made"
