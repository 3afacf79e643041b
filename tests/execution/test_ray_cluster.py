"""Calls on a Ray cluster: what comes back, what is lost on the way, what is refused."""

import socket
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest
from tests.execution import things

from undertow.errors import MissingDependencyError, RunError
from undertow.execution import ray_cluster as module
from undertow.execution.executor import Needs
from undertow.execution.ray_cluster import RayCluster, ray_cluster

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_calls_are_made_side_by_side(cluster: RayCluster) -> None:
    assert cluster.slots(Needs()) == 2
    assert cluster.slots(Needs(cpus=2.0)) == 1
    assert cluster.slots(Needs(cpus=0.5)) == 4
    workers = {pid for _, pid in cluster.map(things.slow, [1.0, 1.0], needs=Needs())}
    assert len(workers) == 2


@pytest.mark.slow
def test_a_bug_keeps_its_traceback(cluster: RayCluster) -> None:
    with pytest.raises(ZeroDivisionError, match="in stumble"):
        list(cluster.map(things.stumble, [0], needs=Needs()))


@pytest.mark.slow
def test_a_call_that_always_kills_its_worker_is_given_up(cluster: RayCluster) -> None:
    with pytest.raises(RunError, match=r"a call was lost 6 times.*--worker-memory"):
        list(cluster.map(things.die, [0], needs=Needs()))


@pytest.mark.slow
def test_needs_that_no_node_has_are_refused_before_work(cluster: RayCluster) -> None:
    taken = []

    def values() -> Iterator[int]:
        taken.append(1)
        yield 1

    needs = Needs(cpus=64.0, gpus=2.0, memory_bytes=3 * 2**30)
    with pytest.raises(RunError, match=r"64 CPU, 2 GPU, 3\.0 GiB of memory, and no"):
        next(cluster.map(things.double, values(), needs=needs))
    assert not taken


@pytest.mark.slow
def test_the_cluster_of_this_machine_has_no_gpu_unless_it_has(
    cluster: RayCluster,
) -> None:
    import torch

    assert cluster.gpus == torch.cuda.device_count()


def test_an_address_where_nobody_is_fails_in_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    message = rf"nobody answers at '127.0.0.1:{port}' .*unset RAY_ADDRESS"
    with pytest.raises(RunError, match=message), ray_cluster():
        pass


@pytest.mark.parametrize("address", ["nonsense", "host:notaport", "ray://", "a:1:2"])
def test_an_address_that_is_none_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(RunError, match="expected host:port"), ray_cluster(address):
        pass


def test_another_ray_or_python_is_named_on_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's own text, of its own check."""
    pytest.importorskip("ray")
    from ray._private import utils

    monkeypatch.setattr(utils, "compute_version_info", lambda: ("2.60.0", "3.11.7"))
    there = {"ray_version": "2.53.1", "python_version": "3.11.7"}
    with pytest.raises(RuntimeError, match="Version mismatch") as mismatch:
        utils.check_version_info(there, "node 10.0.0.7")
    assert module._refused("10.0.0.7:6379", mismatch.value) == (
        "Ray: the cluster at '10.0.0.7:6379' runs other versions:\n"
        "  Ray: there 2.53.1, here 2.60.0\n"
        "Install the same Ray and Python on all its nodes and start it again, or use "
        "here what it has"
    )


def test_a_version_that_ray_found_first_is_named_too() -> None:
    """Ray may raise it as the cause of not having connected."""
    cause = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n"
        "    Python: 3.10.4\nThis process on node 10.0.0.7 was started with:\n"
        "    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.7:6379")
    error.__cause__ = cause
    said = module._refused("10.0.0.7:6379", error)
    assert "\n  Ray: there 2.9.0, here 2.60.0\n  Python: there 3.10.4, here 3." in said


@pytest.mark.parametrize(
    ("said", "cause", "advice"),
    [
        ("Ray Client requires pip package `ray[client]`.", None, "here and on its head"),
        ("ray client connection timeout", None, "--ray-client-server-port`, 10001"),
        ("ray client connection timeout", None, "RAY_AUTH_MODE=token"),
        (
            "Failed to connect to Ray cluster at 10.0.0.7:6379",
            "RPC error: InvalidAuthToken: Authentication token is missing or incorrect.",
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as `ray get-auth-token` prints",
        ),
        (
            "Token authentication is enabled but no authentication token was found.",
            None, "`ray get-auth-token` prints",
        ),
        (
            "Initialization failure from server:\nStarting Ray client server failed. See",
            None, "could not start the process that serves this one from outside",
        ),
        ("Could not find any running Ray instance.", None, "`ray start --head`, mend"),
    ],
)  # fmt: skip
def test_what_ray_says_is_told_with_what_to_do(
    said: str, cause: str | None, advice: str
) -> None:
    error = ConnectionError(f"{said}\n more of it")
    error.__cause__ = None if cause is None else RuntimeError(cause)
    told = module._refused("auto", error)
    first = said.splitlines()[0].rstrip(".:")
    assert told.startswith(f"Ray: no cluster at 'auto': {first}; ")
    assert advice in told


STILLBORN = "from server:\nStarting Ray client server failed. See the log"


@pytest.mark.parametrize(
    ("said", "tries", "connects"),
    [([STILLBORN], 2, True), ([STILLBORN] * 2, 2, False), (["no", "no"], 1, False)],
)
def test_a_head_whose_process_for_this_one_ended_at_once_is_asked_again(
    said: list[str], tries: int, connects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def init(**options: Any) -> None:
        given.append(options)
        if len(given) <= len(said):
            raise ConnectionAbortedError(said[len(given) - 1])

    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)
    ray = ModuleType("ray")
    vars(ray).update(init=init, shutdown=lambda: None)
    with nullcontext() if connects else pytest.raises(RunError, match="no cluster at"):
        module._connect(ray, "local", None)
    assert len(given) == tries


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(module, "import_module", missing)
    with (
        pytest.raises(MissingDependencyError, match=r"pip install 'undertow\[ray\]'"),
        ray_cluster(),
    ):
        pass


def test_other_versions_on_a_node_are_named() -> None:
    here = {"undertow": "1", "torch": "2.13.0"}
    module._check_alike("here", here, here)
    with pytest.raises(RunError, match="node far runs other versions") as caught:
        module._check_alike("far", here, here | {"torch": "2.9.0"})
    assert "torch: there 2.9.0, here 2.13.0" in str(caught.value)
    assert "undertow: there" not in str(caught.value)


@pytest.mark.slow
def test_a_node_with_other_packages_is_refused_before_work(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process believes that it has another scipy; the node tells its own."""
    true, real = metadata.version("scipy"), metadata.version

    def version(name: str) -> str:
        return "0.1" if name == "scipy" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(RunError, match="runs other versions") as caught, ray_cluster():
        pass
    assert f"\n  scipy: there {true}, here 0.1\nInstall" in str(caught.value)


def test_versions_say_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ALIKE", ("torch", "no-such-package"))
    found = module.versions()
    assert found["no-such-package"] == "not installed"
    assert found["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("has", "needs", "fits"),
    [
        ({"CPU": 8.0}, Needs(cpus=2.0), 4),
        ({"CPU": 8.0, "GPU": 1.0}, Needs(cpus=1.0, gpus=0.25), 4),
        ({"CPU": 8.0}, Needs(gpus=1.0), 0),
        ({"CPU": 8.0, "memory": 4.0}, Needs(memory_bytes=3), 1),
        ({}, Needs(cpus=0.0), 1),
    ],
)
def test_how_many_calls_fit_on_a_node(
    has: dict[str, float], needs: Needs, fits: int
) -> None:
    assert module._fits(has, needs) == fits
