"""The options that say where work is done: here, in several processes, or on Ray."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undertow.cli.console import say
from undertow.errors import RunError

if TYPE_CHECKING:
    import torch

    from undertow.audit.others import Others
    from undertow.cli.options import Loading
    from undertow.execution.executor import Executor, Needs
    from undertow.execution.processes import Processes

_GIB = 2**30
Place = Literal["here", "processes", "ray", "auto"]


@dataclass(frozen=True, kw_only=True)
class Where:
    """Who does the work, and what a part of it takes."""

    on: Annotated[
        Place | None,
        typer.Option(
            help="'here'; 'processes': one for each core of this machine, where there is "
            "no GPU; 'ray': the cluster of RAY_ADDRESS, else one of this machine; 'auto': "
            "processes where no model is on a GPU and memory has room for two, else here."
        ),
    ] = None
    worker_cpus: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Cores of a process, or of a worker on Ray; not given: 1."
        ),
    ] = None
    worker_gpus: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="GPUs of a worker on Ray; not given: 1 where there are any."
        ),
    ] = None
    worker_memory: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="GiB of a process, or of a worker on Ray; not given: the weights in "
            "float32, a batch, and 1.1.",
        ),
    ] = None

    def place(self, usual: Place) -> Place:
        """What is said here, else what is usual."""
        return self.on or usual

    @contextmanager
    def opened(
        self,
        usual: Place = "here",
        *,
        models: Sequence[str] = (),
        devices: Sequence[str] = ("auto",),
    ) -> "Iterator[tuple[Executor, Needs]]":
        """Who does the work, connected and checked, and what a part of it takes.

        Args:
            usual: Where, if the command line does not say.
            models: What a worker loads, one at a time: its memory, if nobody says. Of
                models whose size is not known here none is declared.
            devices: Where models are loaded, as it is asked for.

        Raises:
            MissingDependencyError: Ray is not installed.
            RunError: The cluster cannot be reached or is not fit; processes would share
                an accelerator.
        """
        from undertow.execution.executor import Needs
        from undertow.execution.local import Here

        place = self.place(usual)
        if place == "auto":
            place = "processes" if self._several_fit(models, devices) else "here"
        if place == "here":
            yield Here(), Needs()
        elif place == "processes":
            yield from self._processes(models, devices)
        else:
            yield from self._ray(models)

    def _several_fit(self, models: Sequence[str], devices: Sequence[str]) -> bool:
        """Whether no model is on an accelerator, and there is room for two processes.

        Where nobody knows how much a process takes or what is free, there is none.
        """
        from undertow.models.environment import free_memory

        if _accelerators(devices):
            return False
        needs, pool = self._pool(models)
        with pool as several, suppress(RunError):  # no process could have what it needs
            is_known = needs.memory_bytes and free_memory() is not None
            return bool(is_known) and several.slots(needs) > 1
        return False

    def _processes(
        self, models: Sequence[str], devices: Sequence[str]
    ) -> "Iterator[tuple[Executor, Needs]]":
        if found := _accelerators(devices):
            raise RunError(
                f"processes would share the device {found[0]}; --on here takes all of "
                "it, --device cpu leaves it alone, --on ray gives each worker its own"
            )
        needs, pool = self._pool(models)
        with pool as several:
            slots = several.slots(needs)
            say(
                f"on         {slots} process{'es' * (slots > 1)} of this machine at once"
            )
            yield several, needs

    def _pool(
        self, models: Sequence[str]
    ) -> "tuple[Needs, AbstractContextManager[Processes]]":
        """Processes that share what is free, and what a call of theirs takes."""
        from undertow.execution.processes import processes
        from undertow.models.environment import free_memory

        needs, free = self._needs(models, gpus=self.worker_gpus or 0.0), free_memory()
        if free is not None:  # this process may load a model too
            free = max(0, free - (needs.memory_bytes or 0))
        return needs, processes(memory_bytes=free)

    def _ray(self, models: Sequence[str]) -> "Iterator[tuple[Executor, Needs]]":
        from undertow.execution.ray_cluster import ray_cluster

        with ray_cluster() as cluster:
            gpus = self.worker_gpus
            if gpus is None:
                gpus = 1.0 if cluster.gpus else 0.0
            needs = self._needs(models, gpus=gpus)
            slots = cluster.slots(needs)
            say(f"on         Ray: {slots} worker{'s' * (slots > 1)} at once")
            yield cluster, needs

    def _needs(self, models: Sequence[str], *, gpus: float) -> "Needs":
        from undertow.execution.executor import Needs
        from undertow.experiment.rates import worker_bytes

        given = self.worker_memory
        memory = worker_bytes(models) if given is None else round(given * _GIB)
        return Needs(self.worker_cpus or 1.0, gpus, memory)


def _accelerators(devices: Sequence[str]) -> "list[torch.device]":
    """Those that are no processor, of devices that are asked for by name."""
    from undertow.models.loading import choose_device

    chosen = [choose_device(device)[0] for device in devices]
    return [device for device in chosen if device.type != "cpu"]


def others(executor: "Executor", needs: "Needs", loading: "Loading") -> "Others | None":
    """Those who measure an audit's rows, if that is not done here."""
    from undertow.audit.others import Others

    if executor.is_here:
        return None
    return Others(executor, needs, loading.model, loading.options())
