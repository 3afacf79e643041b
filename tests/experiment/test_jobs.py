"""What there is to do, in which order, and what each job reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undertow.experiment import Recipe
from undertow.experiment.jobs import Job, Plan, audit_phases
from undertow.traits import load_family

Make = Callable[..., Recipe]
Way = Callable[..., dict[str, Any]]
STEER = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}


def _plan(recipe: Recipe, *done: str, **rest: Any) -> Plan:
    given = {"noise": 0.0, "seeds": list(recipe.seeds), **rest}
    return Plan(
        recipe, load_family(recipe.family), is_done=lambda name: name in done, **given
    )


def _names(phases: Any) -> list[list[tuple[str, str]]]:
    return [[(job.verb, job.name) for job in phase] for phase in phases]


def test_phases_of_a_small_grid(recipe: Make) -> None:
    small = recipe(seeds=[0], teachers=[STEER])
    assert _names(_plan(small).phases()) == [
        [("origin", "provenance")],
        [("base", "noise-0/base/readout"), ("teacher", "noise-0/vectors/steer-owl")],
        [],
        [("rows", "noise-0/seed-0/control/rows"), ("rows", "noise-0/seed-0/steer-owl/rows")],
        [("channel", "noise-0/seed-0/steer-owl/channel"),
         ("teacher-readout", "noise-0/steer-owl/teacher/readout")],
        [("students", "noise-0/seed-0/control/student/training"),
         ("students", "noise-0/seed-0/steer-owl/student/training")],
        [("readout", "noise-0/seed-0/control/student/readout"),
         ("readout", "noise-0/seed-0/steer-owl/student/readout")],
        [("cell", "noise-0/seed-0/steer-owl/cell")],
    ]  # fmt: skip


def test_what_is_done_is_no_job(recipe: Make) -> None:
    small = recipe(seeds=[0], teachers=[STEER])
    every = [name for phase in _names(_plan(small).phases()) for _, name in phase]
    assert not any(_plan(small, *every).phases())
    every.remove("provenance")
    left = [each for phase in _plan(small, *every).phases() for each in phase]
    assert [job.verb for job in left] == ["origin"]


def test_a_clean_base_serves_all_seeds_and_a_noised_one_its_own(recipe: Make) -> None:
    both = recipe(seeds=[0, 1], teachers=[STEER])
    start, first, *_ = _names(_plan(both).phases())
    assert start == [("origin", "provenance")]
    assert ("base", "noise-0/base/readout") in first
    noised, read, *_ = _plan(both, noise=0.1, seeds=[1]).phases()
    assert [job.stages for job in noised] == [("noise-0.1/seed-1/noise", "provenance")]
    assert read[0].stages == ("noise-0.1/seed-1/base/readout",)


def test_students_alike_are_trained_side_by_side(recipe: Make, way: Way) -> None:
    ways = [way("a"), way("b", rank=1), way("c"), way("full", kind="full")]
    asked = recipe(seeds=[0, 1], teachers=ways)
    phases = list(_plan(asked, together=3).phases())
    groups = [[name for _, name in job.who] for job in phases[5]]
    assert sorted(map(len, groups)) == [1, 1, 1, 1, 1, 3, 3, 3]
    full = [group for group in groups if any("full" in name for name in group)]
    assert [len(group) for group in full] == [1, 1, 1, 1], "these change the base"


def test_prompts_are_answered_in_parts_where_calls_outnumber_teachers(
    recipe: Make,
) -> None:
    small = recipe(seeds=[0], teachers=[STEER])
    none, parts = (
        list(_plan(small).phases())[2],
        list(_plan(small, slots=5).phases())[2],
    )
    assert not none
    assert [job.shard for job in parts] == [(0, 2), (2, 4), (4, 6)] * 2
    few = list(_plan(small, slots=100).phases())[2]
    assert [job.shard for job in few[:6]] == [(i, i + 1) for i in range(6)]


def test_a_job_reads_its_teacher_and_rows_and_no_other_student(recipe: Make) -> None:
    both = recipe(seeds=[0], traits=["owl", "cat"], teachers=[STEER])
    jobs = [job for phase in _plan(both).phases() for job in phase]
    job = next(j for j in jobs if j.who == ((0, "steer-owl"),) and j.verb == "students")
    assert "noise-0/seed-0/steer-owl/rows" in job.places
    assert "noise-0/vectors/steer-owl" in job.places
    assert not [place for place in job.places if "cat" in place]


def test_another_model_writes_before_students_learn(
    recipe: Make, tiny_llama: Path
) -> None:
    writer = {"name": str(tiny_llama), "dtype": "float32"}
    asked = recipe(seeds=[0], teachers=[STEER], writer=writer)
    jobs = [job for phase in _plan(asked).writing() for job in phase]
    assert {j.verb for j in jobs} == {"origin", "teacher", "rows", "teacher-readout"}
    assert all(job.is_writers and "writer/model" in job.places for job in jobs)


def test_audits_are_one_job_here_and_three_elsewhere(recipe: Make) -> None:
    audited = recipe(seeds=[0], teachers=[STEER], audit={"rows": 16})

    def jobs(slots: int, *done: str) -> list[Job]:
        phases = audit_phases(audited, lambda name: name in done, slots=slots)
        return [job for phase in phases for job in phase]

    assert [job.stages for job in jobs(1)] == [
        ("audits/sets",), ("audits/biased", "audits/clean", "audits/mixture")
    ]  # fmt: skip
    assert [job.name for job in jobs(2, "audits/sets", "audits/clean")] == [
        "audits/biased", "audits/mixture"
    ]  # fmt: skip
    assert not jobs(1, "audits/sets", "audits/biased", "audits/clean", "audits/mixture")


@pytest.mark.parametrize("verb", ["divergence", "emergence", "causes", "gradients"])
def test_what_is_not_asked_for_is_no_job(recipe: Make, verb: str, way: Way) -> None:
    plain = recipe(seeds=[0], teachers=[STEER])
    asked = recipe(
        seeds=[0],
        teachers=[way("soft", kind="soft", tokens="divergent")],
        evaluation={"questions": 2, "shift_rows": 3, "every": 1, "cause_layer": 1,
                    "gradient_rows": 2},
    )  # fmt: skip
    found = [
        [job.verb for phase in _plan(r).phases() for job in phase]
        for r in (plain, asked)
    ]
    assert verb not in found[0]
    assert verb in found[1]
