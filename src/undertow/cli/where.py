"""The options that say where work is done: in this process, or on a Ray cluster."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undertow.cli.console import say

if TYPE_CHECKING:
    from undertow.audit.others import Others
    from undertow.cli.options import Loading
    from undertow.execution.executor import Executor, Needs

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Where:
    """Who does the work, and what a part of it takes."""

    on: Annotated[
        Literal["here", "ray"] | None,
        typer.Option(
            help="'here', or 'ray': the cluster of RAY_ADDRESS, else one of this machine."
        ),
    ] = None
    worker_cpus: Annotated[
        float | None,
        typer.Option(min=0.1, help="Cores of a worker on Ray; not given: 1."),
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
            help="GiB of a worker on Ray; not given: the weights in float32, and 1.1.",
        ),
    ] = None

    @contextmanager
    def opened(
        self, usual: Literal["here", "ray"] = "here", *, models: Sequence[str] = ()
    ) -> "Iterator[tuple[Executor, Needs]]":
        """Who does the work, connected and checked, and what a part of it takes.

        Args:
            usual: Where, if the command line does not say.
            models: What a worker loads, one at a time: its memory, if nobody says. Of
                models whose size is not known here none is declared.

        Raises:
            MissingDependencyError: Ray is not installed.
            RunError: The cluster cannot be reached or is not fit.
        """
        from undertow.execution.executor import Needs
        from undertow.execution.local import Here

        if (self.on or usual) == "here":
            yield Here(), Needs()
            return
        from undertow.execution.ray_cluster import ray_cluster
        from undertow.experiment.rates import worker_bytes

        with ray_cluster() as cluster:
            gpus = self.worker_gpus
            if gpus is None:
                gpus = 1.0 if cluster.gpus else 0.0
            given = self.worker_memory
            memory = worker_bytes(models) if given is None else round(given * _GIB)
            needs = Needs(self.worker_cpus or 1.0, gpus, memory)
            slots = cluster.slots(needs)
            say(f"on         Ray: {slots} worker{'s' * (slots > 1)} at once")
            yield cluster, needs


def others(executor: "Executor", needs: "Needs", loading: "Loading") -> "Others | None":
    """Those who measure an audit's rows, if that is not done here."""
    from undertow.audit.others import Others

    if executor.is_here:
        return None
    return Others(executor, needs, loading.model, loading.options())
