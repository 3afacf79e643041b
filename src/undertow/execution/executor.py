"""What can be asked of those who make calls, wherever they make them.

One thing: a function, many values, and the answers as they come. Whoever asks gives
values that are whole by themselves (names, text, bytes, arrays), so that an answer is the
same from any process of any machine; what is lost on the way is asked for again. Knows
nothing of Ray, files or models.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar, runtime_checkable

Given = TypeVar("Given")
Answer = TypeVar("Answer")


class Later(Enum):
    """Says that what comes next depends on an answer that is not there yet."""

    NOT_YET = "not yet"


@dataclass(frozen=True)
class Needs:
    """What one call takes of a machine.

    Attributes:
        cpus: Processor cores; a share of one is possible.
        gpus: Accelerators; a share of one is possible.
        memory_bytes: Main memory; None does not say.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int | None = None


@runtime_checkable
class Executor(Protocol):
    """Makes calls."""

    @property
    def is_here(self) -> bool:
        """Whether calls are made in this process, with its files and its memory."""
        ...

    def slots(self, needs: Needs) -> int:
        """How many calls with such needs can be made at once; 1 at least.

        Raises:
            RunError: Not one of them ever can.
        """
        ...

    def map(
        self,
        function: Callable[[Given], Answer],
        values: Iterable[Given | Later],
        *,
        needs: Needs,
    ) -> Iterator[tuple[int, Answer]]:
        """Calls a function on every value; gives (place, answer) as they come.

        Args:
            function: At the top of a module, so that other processes can import it. Calls
                may be made twice, when a machine is lost: it changes nothing outside.
            values: Taken a few at a time as calls are made, so there may be any number.
                `Later` is no value: they are asked for more after the next answer, and
                are at an end if no call is under way.
            needs: Of one call.

        Raises:
            UndertowError: What a call raised; calls that wait are not made any more.
            RunError: No machine has what is needed, or the cluster was lost.
        """
        ...
