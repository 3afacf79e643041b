"""Calls in processes of this machine: what comes back, what is lost, what is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import pytest
from tests.execution import things

from undertow.errors import ConfigError, RunError
from undertow.execution import processes as module
from undertow.execution.executor import Needs
from undertow.execution.processes import Processes, processes, usable_cores

pytestmark = pytest.mark.slow


def test_calls_are_made_side_by_side_by_processes_of_one_thread(
    pool: Processes,
) -> None:
    made = dict(pool.map(things.who, [0.5, 0.5], needs=Needs()))
    assert len({pid for pid, _ in made.values()} - {os.getpid()}) == 2
    assert {threads for _, threads in made.values()} == {1}


def test_a_process_may_have_several_threads() -> None:
    with processes(cores=2) as pool:
        ((_, (pid, threads)),) = pool.map(things.who, [0.0], needs=Needs(cpus=2.0))
    assert (pid != os.getpid(), threads) == (True, 2)


def test_frozen_mappings_go_there_and_back(pool: Processes) -> None:
    asked = MappingProxyType({"a": MappingProxyType({"b": 1})})
    ((_, found),) = pool.map(things.same, [asked], needs=Needs())
    assert found == asked
    assert isinstance(found, MappingProxyType)
    assert isinstance(found["a"], MappingProxyType)


def test_a_bug_keeps_its_traceback(pool: Processes) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(pool.map(things.stumble, [0], needs=Needs()))
    assert "in stumble" in str(caught.value.__cause__)


def test_a_call_that_always_kills_its_process_is_given_up(pool: Processes) -> None:
    with pytest.raises(RunError, match=r"lost its process 4 times.*--worker-memory"):
        list(pool.map(things.die, [0], needs=Needs()))
    assert list(pool.map(things.double, [4], needs=Needs())) == [(0, 8)]


def test_a_call_that_kills_is_given_up_though_others_have_answers(
    pool: Processes, tmp_path: Path
) -> None:
    values = [str(tmp_path / "deaths"), *map(str, range(40))]
    with pytest.raises(RunError, match="lost its process 4 times"):
        list(pool.map(things.die_for_the_first, values, needs=Needs()))
    deaths = (tmp_path / "deaths").read_text(encoding="utf-8")
    assert len(deaths) == 4, "not once for each answer of the others"


def test_an_answer_that_is_there_when_a_process_dies_is_kept(
    pool: Processes, tmp_path: Path
) -> None:
    values = [str(tmp_path / name) for name in ("first", "kills", "second")]
    answers = pool.map(things.count_beside_a_death, values, needs=Needs())
    assert next(answers) == (0, "first")
    time.sleep(1.5)  # "second" is answered, and then "kills" dies
    assert dict(answers) == {1: "kills", 2: "second"}
    calls = {Path(value).name: len(Path(value).read_text()) for value in values}
    assert calls == {"first": 1, "kills": 2, "second": 1}


def test_what_raises_comes_after_all_answers_that_are_there(pool: Processes) -> None:
    values = [1, 3, 5]  # three is refused
    answers = pool.map(things.refuse, values, needs=Needs())
    assert next(answers) in {(0, 1), (2, 5)}
    time.sleep(0.5)
    assert next(answers) in {(0, 1), (2, 5)}
    with pytest.raises(ConfigError, match="three is no value"):
        next(answers)


def test_an_error_that_cannot_travel_comes_as_its_words(pool: Processes) -> None:
    with pytest.raises(RuntimeError, match="Odd: one and two"):
        list(pool.map(things.raise_odd, [0], needs=Needs()))


def test_answers_asked_for_after_the_end_start_nothing() -> None:
    with processes(cores=1) as pool:
        answers = pool.map(things.double, range(4), needs=Needs())
        next(answers)
    with pytest.raises(RunError, match="they have ended"):
        list(answers)
    assert pool._pool is None


def test_what_no_machine_has_is_refused_before_work(pool: Processes) -> None:
    taken = []

    def values() -> Iterator[int]:
        taken.append(1)
        yield 1

    for needs in (Needs(cpus=3.0), Needs(gpus=1.0)):
        with pytest.raises(RunError, match="2 cores and no GPU"):
            next(pool.map(things.double, values(), needs=needs))
    assert not taken


def test_slots_are_limited_by_cores_and_memory() -> None:
    gib = 2**30
    shared = Processes(8, 6 * gib)
    assert shared.slots(Needs()) == 8
    assert shared.slots(Needs(cpus=3.0)) == 2
    assert shared.slots(Needs(memory_bytes=2 * gib)) == 3
    assert shared.slots(Needs(memory_bytes=9 * gib)) == 1, "free memory is a guess"
    assert Processes(4, None).slots(Needs(memory_bytes=2 * gib)) == 4


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1)],
)
def test_a_container_s_limit_counts(
    limit: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUOTA", tmp_path / "cpu.max")
    every = usable_cores()
    assert 1 <= every <= (os.cpu_count() or 1)
    (tmp_path / "cpu.max").write_text(limit, encoding="ascii")
    assert usable_cores() == (cores or every)


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return False


def _gone(pids: list[int], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while any(map(_is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(_is_alive, pids))


def test_processes_end_in_the_middle_of_their_work() -> None:
    before = set(multiprocessing.active_children())
    with processes(cores=2) as pool:
        answers = pool.map(things.slow, [0.0, 600.0, 600.0], needs=Needs())
        next(answers)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert not set(multiprocessing.active_children()) - before


def test_processes_end_with_the_one_that_asked_even_if_it_is_killed(
    tmp_path: Path,
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from tests.execution import things\n"
        "from undertow.execution.executor import Needs\n"
        "from undertow.execution.processes import processes\n"
        "if __name__ == '__main__':\n"
        "    with processes(cores=2) as pool:\n"
        "        for _, (pid, _) in pool.map(things.who, [0.3, 0.3], needs=Needs()):\n"
        "            print(pid, flush=True)\n"
        "        list(pool.map(things.slow, [600.0, 600.0], needs=Needs()))\n",
        encoding="utf-8",
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as asking:  # fmt: skip
        assert asking.stdout is not None
        pids = [int(asking.stdout.readline()) for _ in range(2)]
        assert all(map(_is_alive, pids))
        asking.send_signal(signal.SIGKILL)
    assert _gone(pids)
