"""A student on its way: read as the finished one, and resumed like everything else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from undertow.experiment import Recipe, run_experiment
from undertow.storage import read_json

Make = Callable[..., Recipe]
STEER = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}
EVERY = {"questions": 2, "shift_rows": 3, "every": 1}


def test_the_last_read_out_is_the_finished_student_s(
    recipe: Make, tmp_path: Path
) -> None:
    asked = recipe(seeds=[0], teachers=[STEER, {"kind": "prompt"}], evaluation=EVERY)
    results = run_experiment(asked, tmp_path / "run")
    for condition in results.conditions:
        found = condition.emergence
        assert found is not None
        assert found.updates[:3] == [0, 1, 2]
        assert found.student[0] == found.control[0] == found.transfer[0].mean == 0.0
        assert found.cosine[0] is None, "nothing has moved"
        assert len(found.updates) == 4, "both have three updates"
        assert found.transfer[-1] == condition.transfer
        assert found.student[-1] == pytest.approx(condition.transfer_from_base.mean)
    steered = results.conditions[0]
    assert steered.emergence is not None
    assert steered.shift is not None
    at = steered.shift.student[steered.shift.vector_layer]
    assert steered.emergence.cosine[-1] == pytest.approx(at)
    assert not list((tmp_path / "run").rglob("updates")), "only for this"


def test_read_at_its_end_only_if_nothing_is_asked(recipe: Make, tmp_path: Path) -> None:
    results = run_experiment(recipe(seeds=[0], teachers=[STEER]), tmp_path / "run")
    assert results.conditions[0].emergence is None
    assert not list((tmp_path / "run").rglob("emergence.json"))


def test_a_run_that_is_cut_in_training_has_every_update(
    recipe: Make, tmp_path: Path
) -> None:
    student = {"batch_size": 2, "rank": 2, "learning_rate": 0.01, "checkpoint_every": 2}
    asked = recipe(seeds=[0], teachers=[STEER], evaluation=EVERY, student=student)
    run_experiment(asked, tmp_path / "whole")
    cuts = 0

    def cut(stage: str, done: int, total: int, note: str) -> None:
        nonlocal cuts
        if "student/training" in stage or "emergence" in stage:
            cuts += 1
            if cuts in (2, 5, 9):
                raise KeyboardInterrupt

    for _ in range(4):
        try:
            run_experiment(asked, tmp_path / "run", progress=cut)
        except KeyboardInterrupt:
            continue
        break
    stage = Path("stages/noise-0/seed-0/steer-owl/emergence.json")
    whole, again = (read_json(tmp_path / name / stage) for name in ("whole", "run"))
    assert cuts > 9
    assert again["payload"] == whole["payload"]


def test_full_students_are_not_kept_on_the_way(recipe: Make) -> None:
    with pytest.raises(ValidationError, match="all weights would be kept"):
        recipe(evaluation=EVERY, student={"kind": "full"})
