"""A run on a cluster of several nodes, of which one is lost on the way."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.execution import things
from tests.experiment.test_elsewhere import same_runs

from undertow.execution.executor import Needs
from undertow.execution.ray_cluster import ray_cluster
from undertow.experiment import Recipe, run_experiment
from undertow.models.tiny import save_tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A small grid: two traits, so that there are jobs for two nodes in every phase."""
    tiny = save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny")
    return Recipe.model_validate(
        {
            "title": "tiny", "question": "does it run?",
            "model": {"name": str(tiny), "dtype": "float32"},
            "traits": ["owl", "cat"], "seeds": [0],
            "teachers": [{"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}],
            "rows": {"count": 6, "sampler": {"allowed": "list", "max_new_tokens": 24}},
            "student": {"batch_size": 2, "rank": 2, "learning_rate": 0.01},
            "evaluation": {"questions": 2, "shift_rows": 3},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(asked: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same grid, run in this process."""
    place = tmp_path_factory.mktemp("here") / "run"
    run_experiment(asked, place)
    return place


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that does no work, and two nodes that do."""
    pytest.importorskip("ray", reason="Ray is not installed: undertow[ray]")
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster: Any = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


def _run(asked: Recipe, place: Path, address: str, harm: Callable[[], None]) -> int:
    """Runs on the cluster at an address; does harm from the first rows on."""
    done = []

    def watch(stage: str, *_: object) -> None:
        done.append(stage)
        if "rows: jobs" in done:
            harm()

    with ray_cluster(address) as executor:
        assert executor.slots(Needs()) == 2
        run_experiment(asked, place, executor=executor, progress=watch)
    return done.count("rows: jobs")


def test_a_node_that_is_lost_changes_nothing(
    asked: Recipe, undisturbed: Path, nodes: Any, tmp_path: Path
) -> None:
    stays, goes = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()

    def lose() -> None:
        if goes.any_processes_alive():
            nodes.remove_node(goes, allow_graceful=False)

    written = _run(asked, tmp_path / "run", nodes.address, lose)
    assert written == 3, "a control and two teachers, each once"
    assert not goes.any_processes_alive()
    assert stays.any_processes_alive()
    assert not same_runs(undisturbed, tmp_path / "run")


def test_workers_that_are_killed_change_nothing(
    asked: Recipe, undisturbed: Path, nodes: Any, tmp_path: Path
) -> None:
    import psutil

    for _ in range(2):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    killed: list[int] = []

    def kill() -> None:
        """Once; between two jobs nobody is at work."""
        for process in psutil.Process().children(recursive=True) if not killed else ():
            with suppress(psutil.NoSuchProcess):  # some end by themselves
                if "ray::work" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)

    _run(asked, tmp_path / "run", nodes.address, kill)
    assert killed, "somebody was at work"
    assert not same_runs(undisturbed, tmp_path / "run")


def test_answers_that_nobody_takes_leave_no_cluster_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: undertow[ray]")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_cluster(cpus=1) as cluster:
        answers = cluster.map(things.double, range(9), needs=Needs())
        assert next(answers)[0] in range(9)
    answers.close()  # type: ignore[attr-defined]
    assert not ray.is_initialized(), "cancelling what was left started one"
