"""Hands out the jobs of a run as soon as all that they read is there.

Phases say what may need what; a job waits for those of earlier phases that leave what it
reads, and for no others, so that nobody idles until the slowest of a phase is done. Knows
nothing of what jobs do, and of who does them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from undertow.errors import RunError, shown
from undertow.execution.executor import Later
from undertow.experiment.jobs import Job, Verb


class Flow:
    """Jobs that are waiting, given out, and done.

    Args:
        phases: Jobs in their order.
        is_done: Whether a stage is finished.
        long: What is given out before all else, once it can be done: who begins a long
            job last waits for it alone.
    """

    def __init__(
        self,
        phases: Iterable[Sequence[Job]],
        is_done: Callable[[str], bool],
        *,
        long: Collection[Verb] = (),
    ) -> None:
        self.jobs: list[Job] = []
        self._long = long
        self._is_done = is_done
        self._waits: list[dict[str, set[int]]] = []
        self._given: list[int] = []
        self._done: set[int] = set()
        leaves: dict[str, dict[str, set[int]]] = {}
        for phase in phases:
            self._waits += [_waits(job, leaves) for job in phase]
            for job in phase:
                _note(job, len(self.jobs), leaves)
                self.jobs.append(job)

    def ready(self) -> Iterator[Job | Later]:
        """Jobs in their order, long ones first, each when it can be done.

        `Later` while none can.
        """
        places = range(len(self.jobs))
        left = sorted(places, key=lambda place: self.jobs[place].verb not in self._long)
        while left:
            place = next(filter(self._can_be_done, left), None)
            if place is None:
                yield Later.NOT_YET
                continue
            left.remove(place)
            self._given.append(place)
            yield self.jobs[place]

    def finish(self, number: int) -> Job:
        """Takes note that the job which was given out as the number-th is done."""
        place = self._given[number]
        self._done.add(place)
        return self.jobs[place]

    def check(self) -> None:
        """Whether all were done.

        Raises:
            RunError: Some were never given out or never came back.
        """
        left = [job.name for n, job in enumerate(self.jobs) if n not in self._done]
        if left:
            raise RunError(f"never done: {shown(left)}: a fault of undertow; report it")

    def _can_be_done(self, place: int) -> bool:
        return all(
            jobs <= self._done or self._is_done(stage)
            for stage, jobs in self._waits[place].items()
        )


def _note(job: Job, place: int, leaves: dict[str, dict[str, set[int]]]) -> None:
    """Enters what a job leaves under its own name and every folder above it."""
    for stage in job.stages:
        parts = stage.split("/")
        for end in range(1, len(parts) + 1):
            below = leaves.setdefault("/".join(parts[:end]), {})
            below.setdefault(stage, set()).add(place)


def _waits(job: Job, leaves: dict[str, dict[str, set[int]]]) -> dict[str, set[int]]:
    """The stages of earlier jobs that a job reads, each with those that leave it."""
    found: dict[str, set[int]] = {}
    for place in job.places:
        found |= {
            stage: set(jobs)
            for stage, jobs in leaves.get(place.removesuffix(".json"), {}).items()
        }
    return found
