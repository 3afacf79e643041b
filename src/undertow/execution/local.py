"""Calls made here, one after the other, in this process.

The executor of everything that is not told otherwise.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from undertow.execution.executor import Answer, Given, Later, Needs


@dataclass(frozen=True)
class Here:
    """Makes one call at a time, when its answer is asked for."""

    is_here: bool = True

    def slots(self, needs: Needs) -> int:  # noqa: ARG002 (part of the protocol)
        """One, whatever it needs: there is nobody else."""
        return 1

    def map(
        self,
        function: Callable[[Given], Answer],
        values: Iterable[Given | Later],
        *,
        needs: Needs,  # noqa: ARG002 (part of the protocol)
    ) -> Iterator[tuple[int, Answer]]:
        """Calls a function on every value, in order; gives (place, answer)."""
        for place, value in enumerate(values):
            if isinstance(value, Later):
                return  # no answer is under way
            yield place, function(value)
