"""Calls made by the workers of a Ray cluster; the only module that knows Ray.

A call is a Ray task that declares what it takes. A task whose worker or node is lost is
done again elsewhere, so calls have to be whole by themselves (see `execution.executor`).
Before any work the cluster is looked at: whether it can be reached, whether its nodes run
what this process runs, whether one of them has what a call takes. Knows nothing of what
is called.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module, metadata
from itertools import count, takewhile
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from undertow.errors import MissingDependencyError, RunError, UndertowError, visible
from undertow.execution.executor import Answer, Given, Later, Needs

ADDRESS = "RAY_ADDRESS"
_ALIKE = (
    "undertow", "torch", "transformers", "tokenizers", "safetensors", "accelerate",
    "numpy", "scipy",
)  # fmt: skip
"""Packages whose versions decide what a call answers; others make no answers here."""
_SIDES = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
"""The cluster's versions and this process', as Ray says that they differ."""
_TOKEN = (
    "a cluster that asks for a token takes RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as "
    "`ray get-auth-token` prints it on its head"
)
_REMEDIES = {
    "ray[client]": "ray:// takes `pip install 'ray[client]'`, here and on its head",
    "uthentication token": _TOKEN,
    "client server failed": "its head could not start the process that serves this one "
    "from outside, twice; the ray_client_server files in its logs say why",
    "client connection timeout": "the port is that of `ray start --head "
    f"--ray-client-server-port`, 10001 if not given; {_TOKEN}",
}
"""What to do about what Ray says."""
_STILLBORN = "Starting Ray client server failed"
"""What a head answers whose process for this one did not start, as where it is busy."""
_PAUSE_SECONDS = 1.0
_REACH_SECONDS = 5.0
_PROBE_SECONDS = 120.0
_TRIES = 5
"""How often a call is made again whose worker or node was lost."""
_AHEAD = 2
"""Calls handed over for each that can be made at once, so that nobody waits."""


class RayCluster:
    """Makes calls on a cluster that this process is connected to; see `ray_cluster`."""

    is_here = False

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        self._under_way: set[Any] = set()

    @property
    def gpus(self) -> float:
        """Accelerators of all nodes."""
        nodes = (node for node in self._ray.nodes() if node["Alive"])
        return float(sum(node["Resources"].get("GPU", 0.0) for node in nodes))

    def slots(self, needs: Needs) -> int:
        """How many calls with such needs the nodes can make at once.

        Raises:
            RunError: No node can make a single one.
        """
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        found = sum(_fits(node["Resources"], needs) for node in nodes)
        if found:
            return found
        raise RunError(
            f"Ray: a call takes {_words(_resources(needs))}, and no node has that. "
            f"There {'is' if len(nodes) == 1 else 'are'} "
            + "; ".join(f"{_name(n)} with {_words(n['Resources'])}" for n in nodes)
            + ". Ask for less (--worker-cpus, --worker-gpus, --worker-memory), or add a "
            "node that has it"
        )

    def map(
        self,
        function: Callable[[Given], Answer],
        values: Iterable[Given | Later],
        *,
        needs: Needs,
    ) -> Iterator[tuple[int, Answer]]:
        """Calls a function on every value; gives (place, answer) as they come."""
        ray, ahead = self._ray, _AHEAD * self.slots(needs)
        options: dict[str, Any] = {
            "num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": _TRIES,
            "retry_exceptions": False,
        }  # fmt: skip
        if needs.memory_bytes is not None:
            options["memory"] = needs.memory_bytes
        task = ray.remote(**options)(function)
        waiting: dict[Any, int] = {}
        rest, places = iter(values), count()
        try:
            while True:
                for value in takewhile(
                    lambda value: not isinstance(value, Later), rest
                ):
                    call = task.remote(value)
                    self._under_way.add(call)
                    waiting[call] = next(places)
                    if len(waiting) >= ahead:
                        break
                if not waiting:
                    return
                ready, _ = ray.wait(list(waiting), num_returns=1)
                self._under_way.discard(ready[0])
                yield waiting.pop(ready[0]), self._answer(ready[0])
        finally:
            self.cancel(waiting)

    def cancel(self, calls: Iterable[Any] | None = None) -> None:
        """Cancels those of the calls that are under way; None for all.

        An iterator that nobody ends is ended when its memory is reclaimed, which may be
        after Ray was let go: then nothing is under way, and Ray is not asked, since it
        would start a cluster to be asked.
        """
        left = self._under_way & set(self._under_way if calls is None else calls)
        self._under_way -= left
        for call in left:
            self._ray.cancel(call, force=False)

    def _answer(self, ready: Any) -> Any:
        """What a call answered; what it raised, as it raised it."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ready)
        except errors.RayTaskError as error:
            if isinstance(error.cause, UndertowError):
                raise error.cause from None
            raise  # a bug; Ray's message holds the worker's own traceback
        except errors.RayError as error:
            raise RunError(
                f"Ray: a call was lost {_TRIES + 1} times: {_first_line(error)}. If its "
                "workers run out of memory, let fewer of them share a node "
                "(--worker-cpus, --worker-memory); the same command continues"
            ) from error


@contextmanager
def ray_cluster(
    address: str | None = None, *, cpus: int | None = None
) -> Iterator[RayCluster]:
    """Connects to a cluster, checks its nodes, and lets go at the end.

    Args:
        address: Of a cluster: "host:port" on one of its nodes, "ray://host:port"
            elsewhere (with ray[client]), or "auto" for the one that runs on this
            machine. None takes the environment's RAY_ADDRESS; without one a cluster of
            this machine alone is started, and ended.
        cpus: Cores of the cluster that is started; None takes all.

    Raises:
        MissingDependencyError: Ray is not installed.
        RunError: The cluster cannot be reached, or its nodes run other versions.
    """
    ray = _imported()
    address = address or os.environ.get(ADDRESS) or None
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, address, cpus)
    cluster = RayCluster(ray)
    try:
        _check_versions(ray)
        yield cluster
    finally:
        cluster.cancel()
        if is_ours:
            ray.shutdown()


def _imported() -> ModuleType:
    # Ray reports on its use, and draws a bar, unless it is told before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingDependencyError("Ray", "ray") from error


def _connect(ray: ModuleType, address: str | None, cpus: int | None) -> None:
    if address not in (None, "auto", "local"):
        _reach(str(address))
    options: dict[str, Any] = {
        "address": address or "local", "log_to_driver": False,
        "logging_level": "error", "configure_logging": True,
    }  # fmt: skip
    if options["address"] == "local":
        options |= {"num_cpus": cpus, "include_dashboard": False}
    for is_last in (False, True):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray has no class of its own for these
            ray.shutdown()  # of what is half done
            if is_last or _STILLBORN not in f"{error}\n{error.__cause__ or ''}":
                raise RunError(_refused(options["address"], error)) from error
        time.sleep(_PAUSE_SECONDS)


def _refused(address: str, error: BaseException) -> str:
    """Why there is no connection, and what to do about it."""
    said = f"{error}\n{error.__cause__ or ''}"
    sides = [dict(zip(("Ray", "Python"), s, strict=True)) for s in _SIDES.findall(said)]
    if len(sides) == 2:
        there, here = sides
        return (
            f"Ray: the cluster at {visible(address)!r} runs other versions:\n"
            f"{_others(here, there)}\nInstall the same Ray and Python on all its nodes "
            "and start it again, or use here what it has"
        )
    usual = (
        f"start one with `ray start --head`, mend {ADDRESS}, or leave it unset: then one "
        "of this machine alone is started"
    )
    advice = next((do for sign, do in _REMEDIES.items() if sign in said), usual)
    return f"Ray: no cluster at {visible(address)!r}: {_first_line(error)}; {advice}"


def _reach(address: str) -> None:
    """Fails within seconds where Ray would wait for minutes."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:
        raise RunError(
            f"Ray: {ADDRESS} is {visible(address)!r}; expected host:port, "
            "ray://host:port, or auto"
        )
    try:
        socket.create_connection((host, port), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise RunError(
            f"Ray: nobody answers at {visible(address)!r} ({error}); check the address "
            "and that `ray start --head` runs there, or unset "
            f"{ADDRESS}: then a cluster of this machine alone is started"
        ) from error


def versions(_: object = None) -> dict[str, str]:
    """Versions that decide what a call answers, by package; asked of every node."""
    found = {}
    for name in _ALIKE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _check_versions(ray: ModuleType) -> None:
    """Every node has to run what this process runs."""
    here = versions()
    strategy = import_module("ray.util.scheduling_strategies")
    nodes = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
    asked = {
        name: ray.remote(num_cpus=0, max_retries=1)(versions)
        .options(
            scheduling_strategy=strategy.NodeAffinitySchedulingStrategy(
                name, soft=False
            )
        )
        .remote()
        for name in nodes
    }
    for name, reference in asked.items():
        try:
            there = ray.get(reference, timeout=_PROBE_SECONDS)
        except Exception as error:  # whatever hinders a node from answering
            raise RunError(
                f"Ray: node {_name(nodes[name])} cannot run undertow: "
                f"{_first_line(error)}; install the same undertow there"
            ) from error
        _check_alike(_name(nodes[name]), here, there)


def _check_alike(node: str, here: Mapping[str, str], there: Mapping[str, str]) -> None:
    lines = _others(here, there)
    if lines:
        raise RunError(
            f"Ray: node {node} runs other versions, and results would not "
            f"compare:\n{lines}\nInstall the same ones there (pip install -c "
            "constraints.txt undertow[ray])"
        )


def _others(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """A line for each version that is another there."""
    return "\n".join(
        f"  {name}: there {there.get(name)}, here {version}"
        for name, version in here.items()
        if there.get(name) != version
    )


def _resources(needs: Needs) -> dict[str, float]:
    found = {"CPU": float(needs.cpus), "GPU": float(needs.gpus)}
    if needs.memory_bytes is not None:
        found["memory"] = float(needs.memory_bytes)
    return {name: amount for name, amount in found.items() if amount}


def _fits(has: Mapping[str, float], needs: Needs) -> int:
    """How many calls fit on a node at once."""
    wanted = _resources(needs)
    if not wanted:
        return 1
    return int(min(has.get(name, 0.0) / amount for name, amount in wanted.items()))


def _words(resources: Mapping[str, float]) -> str:
    """CPU, GPU and memory, as one says it."""
    found = [
        f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if name in resources
    ]
    if "memory" in resources:
        found.append(f"{resources['memory'] / 2**30:.1f} GiB of memory")
    return ", ".join(found) or "nothing"


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("NodeManagerHostname") or node.get("NodeID", "?")[:8])


def _first_line(error: BaseException) -> str:
    text = visible(str(error).strip()) or type(error).__name__
    return text.splitlines()[0].rstrip(".;: ")
