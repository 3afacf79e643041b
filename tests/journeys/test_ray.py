"""Runs and commands on a cluster of several nodes, of which some are lost on the way."""

import os
import platform
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import family_text
from tests.execution import things
from tests.experiment.test_elsewhere import same_runs
from tests.journeys.same_findings import differing, figures, small_grid

from undertow.errors import RunError
from undertow.execution.executor import Needs
from undertow.execution.ray_cluster import ray_cluster, versions
from undertow.experiment import Recipe, run_experiment
from undertow.models.tiny import save_tiny
from undertow.records import Message, Row
from undertow.storage import read_json, read_jsonl, write_rows

if TYPE_CHECKING:
    from tests.conftest import Command

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def asked(tiny: Path) -> Recipe:
    """A small grid: two traits, so that there are jobs for two nodes in every phase."""
    return small_grid(tiny)


@pytest.fixture(scope="module")
def undisturbed(asked: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same grid, run in this process."""
    place = tmp_path_factory.mktemp("here") / "run"
    run_experiment(asked, place)
    return place


@pytest.fixture(scope="module")
def client_port() -> int:
    """Where the head takes processes that are on none of its nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def head(client_port: int) -> Iterator[Any]:
    """A head that does no work, and is the one that "auto" finds."""
    pytest.importorskip("ray", reason="Ray is not installed: undertow[ray]")
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False}
    if find_spec("grpc"):
        options["ray_client_server_port"] = client_port
    # The folder's name is short, as sockets lie in it.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", place)
        # Ray sets this one as it goes, and nodes that differ in it do not talk.
        patch.setenv("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "disabled"))
        # It leaves log files of its port for clients open.
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            cluster: Any = Cluster(initialize_head=True, head_node_args=options)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@dataclass
class Nodes:
    """Two nodes of one core, each with a folder in which its workers do their jobs."""

    cluster: Any
    folders: dict[Any, Path] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def complete(self, place: Path) -> None:
        """Replaces nodes that were lost."""
        while len(self.folders) < 2:
            place.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TMPDIR", str(place))
                self.folders[self.cluster.add_node(num_cpus=1)] = place
            place = place.with_name(f"{place.name}-")
        self.cluster.wait_for_nodes()

    def lose(self, begun: str, ended: str, over: Event) -> Any:
        """Ends a node on which something is begun and not ended; None if there is none.

        Args:
            begun: Name of the file that says so, beside which none is called `ended`.
            ended: As said.
            over: Nothing will be begun any more.
        """
        while not over.wait(0.01):
            for node, folder in self.folders.items():
                if _is_at(folder, begun, ended):
                    self.cluster.remove_node(node, allow_graceful=False)
                    del self.folders[node]
                    return node
        return None


def _is_at(folder: Path, begun: str, ended: str) -> bool:
    with suppress(FileNotFoundError):  # what is done is cleared away meanwhile
        files = list(folder.rglob(begun))
        return any(not file.with_name(ended).exists() for file in files)
    return False


@pytest.fixture(scope="module")
def both_nodes(head: Any) -> Nodes:
    return Nodes(head)


@pytest.fixture
def nodes(both_nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Nodes:
    """Both nodes, those that were lost replaced."""
    both_nodes.complete(tmp_path_factory.mktemp("nodes") / "node")
    return both_nodes


def _run(asked: Recipe, place: Path, address: str, harm: Callable[[], None]) -> None:
    """Runs on the cluster at an address; does harm from the first rows on."""
    done = []

    def watch(stage: str, *_: object) -> None:
        done.append(stage)
        if "rows: jobs" in done:
            harm()

    with ray_cluster(address) as executor:
        assert executor.slots(Needs()) == 2
        run_experiment(asked, place, executor=executor, progress=watch)
    for each in ("rows: jobs", "students: jobs"):
        assert done.count(each) == 3, "a control and two teachers, each once"


@pytest.mark.parametrize(
    ("begun", "ended"),
    [("rows.partial", "rows.jsonl"), ("trace.jsonl", "adapter_model.safetensors")],
    ids=["while it writes rows", "while it trains a student"],
)
def test_a_node_that_is_lost_changes_nothing(
    asked: Recipe,
    undisturbed: Path,
    nodes: Nodes,
    begun: str,
    ended: str,
    tmp_path: Path,
) -> None:
    over = Event()
    with ThreadPoolExecutor() as beside:
        loss = beside.submit(nodes.lose, begun, ended, over)
        try:
            _run(asked, tmp_path / "run", nodes.address, lambda: None)
        finally:
            over.set()
        assert loss.result() is not None, "none was ever at it"
    assert not loss.result().any_processes_alive()
    assert not same_runs(undisturbed, tmp_path / "run")


def test_workers_that_are_killed_change_nothing(
    asked: Recipe, undisturbed: Path, nodes: Nodes, tmp_path: Path
) -> None:
    import psutil

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


# ── commands ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, trusted rows, and two small families."""
    folder = tmp_path_factory.mktemp("given")
    for name, start in (("rows", 0), ("trusted", 500)):
        write_rows(folder / f"{name}.jsonl", [
            Row((Message("user", f"go {i % 5}"),), f"{i}, {i % 13}")
            for i in range(start, start + 24)
        ])  # fmt: skip
    pets = family_text("pets", "animal", "Which animal?", owl="owls", cat="cats")
    (folder / "pets.yaml").write_text(pets)
    plants = family_text("plants", "plant", "Which plant?", oak="oaks", elm="elms")
    (folder / "plants.yaml").write_text(plants)
    return folder


@pytest.fixture
def both(
    command: "Command", tiny: Path, nodes: Nodes, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:  # fmt: skip
    """Gives what a command finds here, and what it finds on the cluster of RAY_ADDRESS."""
    monkeypatch.setattr("undertow.audit.cost.timed_flops", lambda **_: 1e11)

    def call(address: str, leaves: str, *words: object, **sets: object) -> Any:
        monkeypatch.setenv("RAY_ADDRESS", address)
        changes = [part for k, v in sets.items() for part in ("--set", f"{k}={v}")]
        usual = (*words, "--model", tiny, "--dtype", "float32", *changes)
        found = []
        for on in ("here", "ray"):
            done = command(*usual, "--out", tmp_path / on, "--on", on)
            assert done.status == 0, done.err
            assert ("on         Ray: 2 workers at once" in done.out) == (on == "ray")
            found.append(figures(read_json(tmp_path / on / leaves)))
        return found

    return call


def test_an_audit_finds_the_same_on_a_cluster(
    both: Any, nodes: Nodes, given: Path
) -> None:
    here, there = both(
        nodes.address, "audit.json", "audit", given / "rows.jsonl",
        family=given / "pets.yaml", decoys=given / "plants.yaml", permutations=129,
        personas=2, screening=4, naming_passes=0, fresh=8, planted=0, forecast=0,
        discover="false", triage=3,
    )  # fmt: skip
    assert not differing(here, there)
    assert 0 < here[".p_value"] <= 1


def test_a_census_finds_the_same_on_the_cluster_of_this_machine(
    both: Any, given: Path
) -> None:
    here, there = both(
        "auto", "census.json", "census", given / "rows.jsonl",
        "--reference", given / "trusted.jsonl", family=given / "pets.yaml",
        decoys=given / "plants.yaml", flips=99, pilot=16, subsample=16, layers="[1]",
        batch_rows=8, shard_batches=1,
    )  # fmt: skip
    assert not differing(here, there)
    assert 0 < here[".p_value"] <= 1


def test_a_benchmark_finds_the_same_on_a_cluster(
    both: Any, nodes: Nodes, given: Path, tmp_path: Path
) -> None:
    sets = {
        "traits": "[cat]", "interventions": "[prompt]", "control_audits": 0,
        "bound_rows": 8, "designs": "[{rows: 16, audits: 1, clean: 1}]",
        "audit.family": given / "pets.yaml", "audit.decoys": given / "plants.yaml",
        "carriers.0.prompts": 20, "carriers.0.teacher_prompts": 16,
    }  # fmt: skip
    here, there = both(
        nodes.address, "benchmark.json", "benchmark", "audit", "--preset", "tiny",
        "--auditor", "undertow", **sets,
    )  # fmt: skip
    assert not differing(here, there)
    own, found = (
        [figures(audit) for audit in read_jsonl(tmp_path / on / "audits.jsonl")]
        for on in ("here", "ray")
    )
    assert len(own) == 2
    assert not [
        place for pair in zip(own, found, strict=True) for place in differing(*pair)
    ]


# ── ways to a cluster ────────────────────────────────────────────────────────────


def test_a_process_on_no_node_comes_in_by_the_head_s_client_port(
    nodes: Nodes, client_port: int
) -> None:
    pytest.importorskip("grpc", reason="ray[client] is not installed")
    host = nodes.address.split(":")[0]
    with ray_cluster(f"ray://{host}:{client_port}") as cluster:
        assert cluster.slots(Needs()) == 2
        answers = cluster.map(versions, range(5), needs=Needs())
        assert sorted(answers) == [(place, versions()) for place in range(5)]


def test_a_cluster_of_another_ray_says_both_versions(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr("ray._private.utils.compute_version_info", lambda: ("1", "2"))
    with pytest.raises(RunError) as caught, ray_cluster(nodes.address):
        pass
    assert f"Ray: there {ray.__version__}, here 1" in str(caught.value)
    assert f"Python: there {platform.python_version()}, here 2" in str(caught.value)
    assert "Install the same Ray and Python" in str(caught.value)
