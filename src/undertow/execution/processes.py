"""Calls made by processes of this machine, each with cores of its own.

Small models leave cores idle in one process: many short operations wait for each other's
threads. Processes that share nothing do not. They are new ones (never forks), they see no
Ctrl-C, and they end with the process that asked: a pipe that nobody writes to is open as
long as that lives. Knows nothing of what is called.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from traceback import format_exception
from types import MappingProxyType
from typing import Any

from undertow.errors import RunError
from undertow.execution.executor import Answer, Given, Later, Needs

_TRIES = 3
"""How often a call is made again that was under way as a process was lost."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time in so many that a container may have."""
_AHEAD = 2
"""Calls handed over for each that can be made at once, so that nobody waits."""


def _frozen(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


def _as_dict(frozen: MappingProxyType[Any, Any]) -> tuple[Any, tuple[dict[Any, Any]]]:
    """How a mapping that cannot be written to goes to another process."""
    return _frozen, (dict(frozen),)


ForkingPickler.register(MappingProxyType, _as_dict)


def usable_cores() -> int:
    """Cores that this process may use, at least one; a container may have fewer."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file; no limit is the word "max"
        return cores


class Processes:
    """Makes calls in processes of this machine; see `processes`.

    Args:
        cores: To be shared out.
        memory_bytes: Main memory to be shared out; None does not limit it.
    """

    is_here = False

    def __init__(self, cores: int, memory_bytes: int | None) -> None:
        self._cores, self._memory = cores, memory_bytes
        self._pool: _Pool | None = None
        self._is_over = False

    def slots(self, needs: Needs) -> int:
        """How many calls with such needs can be made at once.

        One if memory is short: what is free is only a guess, and one is what a command
        takes anyway.

        Raises:
            RunError: A call takes more cores than there are, or an accelerator.
        """
        if needs.gpus or needs.cpus > self._cores:
            raise RunError(
                f"processes: a call takes {needs.cpus:g} cores and {needs.gpus:g} GPUs; "
                f"this machine shares out {self._cores} cores and no GPU. Ask for less "
                "(--worker-cpus, --worker-gpus), or take --on here or --on ray"
            )
        found = int(self._cores / needs.cpus)
        if needs.memory_bytes and self._memory is not None:
            found = min(found, self._memory // needs.memory_bytes)
        return max(1, found)

    def map(
        self,
        function: Callable[[Given], Answer],
        values: Iterable[Given | Later],
        *,
        needs: Needs,
    ) -> Iterator[tuple[int, Answer]]:
        """Calls a function on every value; gives (place, answer) as they come."""
        ahead, rest, places = _AHEAD * self.slots(needs), iter(values), count()
        asked: dict[int, Given] = {}  # what has no answer yet, by its place
        calls: dict[int, Future[Any]] = {}
        lost: Counter[int] = Counter()
        try:
            while True:
                while len(asked) < ahead and not isinstance(
                    value := next(rest, Later.NOT_YET), Later
                ):
                    asked[next(places)] = value
                if not asked:
                    return
                try:
                    pool = self._pool_for(needs)
                    for place in sorted(asked.keys() - calls.keys()):
                        calls[place] = pool.submit(_called, (function, asked[place]))
                    wait(calls.values(), return_when=FIRST_COMPLETED)
                    place = _answered(calls)
                    answer = calls[place].result()
                except BrokenProcessPool as error:
                    gone = [at for at, call in calls.items() if _is_lost(call)]
                    lost.update(gone)
                    self._give_up(lost, error)
                    for at in gone:
                        del calls[at]
                    continue
                del asked[place], calls[place]
                lost.pop(place, None)
                yield place, answer
        finally:
            for call in calls.values():
                call.cancel()

    def close(self) -> None:
        """Ends the processes, in the middle of what they do, for good."""
        self._is_over = True
        self._end_pool()

    def _pool_for(self, needs: Needs) -> "_Pool":
        if self._is_over:
            raise RunError("processes: they have ended; ask within their block")
        shape = self.slots(needs), max(1, int(needs.cpus))
        if self._pool is None or self._pool.shape != shape:
            self._end_pool()
            self._pool = _Pool(*shape)
        return self._pool

    def _end_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _give_up(self, lost: Counter[int], error: BaseException) -> None:
        """Lets go of a pool that lost a process; raises if a call did so too often."""
        self._end_pool()
        if max(lost.values(), default=0) <= _TRIES:
            return
        raise RunError(
            f"processes: a call lost its process {_TRIES + 1} times. If memory runs out, "
            "let fewer of them share this machine (--worker-memory, --worker-cpus) or "
            "take --on here; the same command continues. A script has to keep its work "
            'under `if __name__ == "__main__":`, since every process imports it'
        ) from error


def _answered(calls: dict[int, Future[Any]]) -> int:
    """A call that is over: what raised comes last, so that no answer is lost with it."""
    over = [at for at, call in calls.items() if call.done()]
    return min(over, key=lambda at: calls[at].exception() is not None)


def _is_lost(call: Future[Any]) -> bool:
    """Whether a call has to be made again after its pool has lost a process."""
    return not call.done() or isinstance(call.exception(), BrokenProcessPool)


class _Pool:
    """So many processes of so many threads each, and the pipe that they live by."""

    def __init__(self, processes: int, threads: int) -> None:
        self.shape = processes, threads
        context = get_context("spawn")
        theirs, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            processes, mp_context=context, initializer=_begin,
            initargs=(theirs, threads),
        )  # fmt: skip
        self._theirs = theirs  # until every process has its own

    def submit(self, function: Callable[[Any], Any], value: Any) -> Future[Any]:
        return self._pool.submit(function, value)

    def close(self) -> None:
        self._alive.close()
        self._theirs.close()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _called(call: tuple[Callable[[Any], Any], Any]) -> Any:
    """Makes a call; what it raises comes back as itself, or else as its words."""
    function, value = call
    try:
        return function(value)
    except Exception as error:
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))
        except Exception:
            raise RuntimeError("".join(format_exception(error))) from None
        raise


def _begin(alive: Connection, threads: int) -> None:
    """What a new process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asked ends this one
    threading.Thread(target=_live, args=(alive,), daemon=True).start()
    for library in ("OMP", "OPENBLAS", "MKL"):  # before they are loaded
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _live(alive: Connection) -> None:
    """Ends this process when the other end of the pipe is gone."""
    try:
        alive.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


@contextmanager
def processes(
    *, cores: int | None = None, memory_bytes: int | None = None
) -> Iterator[Processes]:
    """Processes of this machine, ended when the block is left.

    Each imports the program that asks: a script keeps its work under
    `if __name__ == "__main__":`.

    Args:
        cores: To be shared out; None takes all that this process may use.
        memory_bytes: Main memory to be shared out; None does not limit it.
    """
    found = Processes(cores or usable_cores(), memory_bytes)
    try:
        yield found
    finally:
        found.close()
