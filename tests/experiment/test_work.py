"""What each verb of a job leaves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from undertow.errors import RunError
from undertow.experiment import Recipe, bases, work
from undertow.experiment.jobs import Plan, Verb
from undertow.experiment.stages import Base
from undertow.runs import open_run
from undertow.traits import load_family

Make = Callable[..., Recipe]
STEER = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}


def _silent(*_: Any) -> None:
    """Shows nothing."""


def test_every_verb_means_something() -> None:
    assert set(work._VERBS) == set(get_args(Verb))


@pytest.mark.slow
def test_a_job_leaves_its_stages_and_no_others(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    family = load_family(asked.family)
    with open_run(tmp_path / "run", recipe_text="a: 1\n") as run:
        model = bases.load(asked.model, _silent)
        base = bases.prepared(Base(asked, family, run, model, 0.0, 0, _silent))
        folder = run.directory / "stages"
        for phase in Plan(asked, family, 0.0, [0], run.is_done).phases():
            for job in phase:
                before = set(folder.rglob("*.json"))
                work.do(job, work.all_bases([base]))
                new = {
                    path.relative_to(folder).as_posix().removesuffix(".json")
                    for path in set(folder.rglob("*.json")) - before
                }
                assert new == set(job.stages) - {"provenance"}, job.verb


def test_a_job_that_leaves_nothing_is_told(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    family = load_family(asked.family)
    with open_run(tmp_path / "run", recipe_text="a: 1\n") as run:
        model = bases.load(asked.model, _silent)
        base = Base(asked, family, run, model, 0.0, 0, _silent)
        job = next(iter(Plan(asked, family, 0.0, [0], run.is_done).phases()))[0]
        with pytest.raises(RunError, match="origin left no 'noise-0/never'"):
            work.do(replace(job, stages=("noise-0/never",)), work.all_bases([base]))


def test_a_job_whose_rows_are_not_there_says_so(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    family = load_family(asked.family)
    with open_run(tmp_path / "run", recipe_text="a: 1\n") as run:
        model = bases.load(asked.model, _silent)
        base = Base(asked, family, run, model, 0.0, 0, _silent)
        job = list(Plan(asked, family, 0.0, [0], run.is_done).phases())[5][0]
        with pytest.raises(RunError, match="is not finished"):
            work.do(job, work.all_bases([base]))
