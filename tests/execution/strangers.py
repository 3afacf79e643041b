"""An executor that stands in for processes that share nothing."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from undertow.errors import RunError
from undertow.execution.executor import Answer, Given, Later, Needs


@dataclass
class Strangers:
    """Makes calls here, the last value first: whoever ends first answers first.

    Attributes:
        room: Calls at once, as it says.
        fails_at: After so many calls the cluster is lost; None: never.
        called: What was called for.
    """

    room: int = 2
    fails_at: int | None = None
    called: list[object] = field(default_factory=list)
    is_here: bool = False

    def slots(self, needs: Needs) -> int:
        """As it was told."""
        return self.room

    def map(
        self,
        function: Callable[[Given], Answer],
        values: Iterable[Given | Later],
        *,
        needs: Needs,
    ) -> Iterator[tuple[int, Answer]]:
        """Calls a function on the values that there are, the last one first."""
        rest, places = iter(values), count()
        while batch := self._taken(rest, places):
            for place, value in reversed(batch):
                if len(self.called) == self.fails_at:
                    raise RunError("the cluster was lost")
                self.called.append(value)
                yield place, function(value)

    def _taken(
        self, rest: Iterator[Given | Later], places: Iterator[int]
    ) -> list[tuple[int, Given]]:
        """Values until there are no more for now."""
        taken: list[tuple[int, Given]] = []
        for value in rest:
            if isinstance(value, Later):
                break
            taken.append((next(places), value))
        return taken
