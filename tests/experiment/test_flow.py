"""Jobs are given out as soon as what they read is there, and not before."""

from collections.abc import Iterator

import pytest

from undertow.errors import RunError
from undertow.execution.executor import Later
from undertow.experiment.flow import Flow
from undertow.experiment.jobs import Job, Verb


def job(verb: Verb, *stages: str, reads: tuple[str, ...] = (), cut: int = 0) -> Job:
    return Job(verb, 0.0, ((0, ""),), stages, (*reads, *stages), (cut, cut + 1))


def given(jobs: Iterator[Job | Later]) -> list[str]:
    """The names of all that can be done now."""
    found = []
    for each in jobs:
        if isinstance(each, Later):
            break
        found.append(each.name)
    return found


def test_a_job_waits_for_what_it_reads_and_for_nothing_else() -> None:
    flow = Flow(
        [
            [job("rows", "a/rows"), job("rows", "b/rows")],
            [job("students", "a/student/training", reads=("a/rows",)),
             job("students", "b/student/training", reads=("b/rows",))],
            [job("cell", "a/cell", reads=("a/student",))],
        ],
        lambda _: False,
    )  # fmt: skip
    ready = flow.ready()
    assert given(ready) == ["a/rows", "b/rows"]
    assert flow.finish(1).name == "b/rows"
    assert given(ready) == ["b/student/training"]
    assert flow.finish(0).name == "a/rows"
    assert given(ready) == ["a/student/training"]
    assert flow.finish(2).name == "b/student/training"
    assert given(ready) == []
    assert flow.finish(3).name == "a/student/training", "a folder is all below it"
    assert given(ready) == ["a/cell"]
    flow.finish(4)
    assert given(ready) == []
    flow.check()


def test_long_jobs_are_given_out_first_once_they_can_be_done() -> None:
    flow = Flow(
        [
            [job("rows", "a/rows"), job("rows", "b/rows")],
            [job("students", "a/student", reads=("a/rows",))],
            [job("sets", "audits/sets", reads=("b/rows",))],
            [job("audit", "audits/clean", reads=("audits",)),
             job("audit", "audits/biased", reads=("audits",))],
        ],
        lambda _: False, long=("sets", "audit"),
    )  # fmt: skip
    ready = flow.ready()
    assert given(ready) == ["a/rows", "b/rows"]
    flow.finish(0)
    flow.finish(1)
    assert given(ready) == ["audits/sets", "a/student"]
    assert flow.finish(2).name == "audits/sets"
    assert given(ready) == ["audits/clean", "audits/biased"]
    flow.finish(3)
    flow.finish(4)
    assert flow.finish(5).name == "audits/biased"
    assert given(ready) == []
    flow.check()


def test_a_stage_that_several_leave_in_parts_waits_for_all_of_them() -> None:
    parts = [job("answers", "a/rows", cut=cut) for cut in range(2)]
    flow = Flow([parts, [job("rows", "a/rows")]], lambda _: False)
    ready = flow.ready()
    assert given(ready) == ["a/rows", "a/rows"]
    flow.finish(0)
    assert given(ready) == []
    flow.finish(1)
    assert [each.verb for each in [next(ready)] if isinstance(each, Job)] == ["rows"]


def test_one_is_enough_where_each_leaves_the_stage_whole() -> None:
    done: set[str] = set()
    starts = [
        job("origin", "seed-0/noise", "origin"),
        job("origin", "seed-1/noise", "origin"),
    ]
    after = job("rows", "seed-1/rows", reads=("origin", "seed-1/noise.json"))
    flow = Flow([starts, [after]], done.__contains__)
    ready = flow.ready()
    assert given(ready) == ["seed-0/noise", "seed-1/noise"]
    flow.finish(1)
    assert given(ready) == []
    done.add("origin")
    assert given(ready) == ["seed-1/rows"]


def test_jobs_of_one_phase_do_not_wait_for_each_other() -> None:
    audits = [job("audit", f"audits/{name}", reads=("audits",)) for name in "abc"]
    flow = Flow([[job("sets", "audits/sets")], audits], lambda _: False)
    ready = flow.ready()
    assert given(ready) == ["audits/sets"]
    flow.finish(0)
    assert given(ready) == ["audits/a", "audits/b", "audits/c"]


def test_what_never_came_back_is_named() -> None:
    flow = Flow([[job("rows", "a/rows"), job("rows", "b/rows")]], lambda _: False)
    assert given(flow.ready()) == ["a/rows", "b/rows"]
    flow.finish(0)
    with pytest.raises(RunError, match="never done: 'b/rows'"):
        flow.check()
