"""The grid: rows are written once, and each student has the control of its kind."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from undertow.analysis.channel import Speaker
from undertow.analysis.divergence import divergent_tokens
from undertow.experiment import Recipe, lessons, run_experiment
from undertow.models.loading import Model
from undertow.results import Results

Make = Callable[..., Recipe]
Way = Callable[..., dict[str, Any]]
Stages = Callable[[Path], set[str]]
STEER = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}
USUAL = {"batch_size": 2, "rank": 2, "learning_rate": 0.01}


def transfers(results: Results) -> dict[str, float | None]:
    """Mean transfer by teacher."""
    return {item.teacher: item.transfer.mean for item in results.transfers}


def test_a_control_whose_tokens_depend_on_the_teacher_is_its_own(
    recipe: Make, tmp_path: Path, way: Way
) -> None:
    prompt = {"kind": "prompt", "student": {**USUAL, "tokens": "divergent"}}
    ways = [way("steered", tokens="divergent"), prompt]
    results = run_experiment(recipe(seeds=[0], teachers=ways), tmp_path / "run")
    assert [c.notes[0] for c in results.conditions] == [
        "control: control-steered", "control: control-prompt"
    ]  # fmt: skip


def test_the_decoy_s_teacher_is_always_in_the_panel(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else rows of student and control would be read under other sets of teachers."""
    seen: list[int] = []
    real = divergent_tokens

    def watched(model: Model, speakers: Sequence[Speaker], **rest: Any) -> Any:
        seen.append(len(speakers))
        return real(model, speakers, **rest)

    monkeypatch.setattr(lessons, "divergent_tokens", watched)
    soft = {**USUAL, "kind": "soft", "tokens": "divergent"}
    asked = recipe(
        seeds=[0], traits=["owl", "cat", "dog", "eagle"], decoy="dolphin",
        teachers=[{"kind": "prompt"}], student=soft,
    )  # fmt: skip
    run_experiment(asked, tmp_path / "run")
    assert seen == [5] * 5, "four traits and the decoy, for each writer"


def test_teachers_that_differ_by_their_students_write_once(
    recipe: Make, tmp_path: Path, way: Way, stages: Stages
) -> None:
    ways = [{**STEER, "name": "usual"}, way("sgd", optimizer="sgd"), way("low", rank=1)]
    together = recipe(seeds=[0], teachers=ways)
    results = run_experiment(together, tmp_path / "run")
    done = stages(tmp_path / "run")
    assert sorted(s for s in done if s.endswith("/rows")) == [
        "noise-0/seed-0/control/rows", "noise-0/seed-0/usual-owl/rows"
    ]  # fmt: skip
    trained = sorted(s.split("/")[2] for s in done if s.endswith("student/training"))
    assert trained == [
        "control", "control-low", "control-sgd", "low-owl", "sgd-owl", "usual-owl"
    ]  # fmt: skip
    assert [(t.student, t.way) for t in results.transfers] == [
        ("lora", ""), ("lora", "optimizer sgd"), ("lora", "rank 1")
    ]  # fmt: skip
    assert results.conditions[1].notes[1] == "trained with optimizer sgd"
    # Each is what it would be in a run of its own.
    for changes in ({}, {"optimizer": "sgd"}, {"rank": 1}):
        alone = recipe(seeds=[0], teachers=[STEER], student={**USUAL, **changes})
        label = changes.get("optimizer", "low" if changes else "usual")
        found = run_experiment(alone, tmp_path / str(label)).transfers[0]
        assert found.transfer.mean == transfers(results)[str(label)]
