"""An executor that stands in for processes that share nothing."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from undertow.errors import RunError
from undertow.execution.executor import Answer, Given, Needs


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
        values: Iterable[Given],
        *,
        needs: Needs,
    ) -> Iterator[tuple[int, Answer]]:
        """Calls a function on every value, the last one first."""
        for place, value in reversed(list(enumerate(values))):
            if len(self.called) == self.fails_at:
                raise RunError("the cluster was lost")
            self.called.append(value)
            yield place, function(value)
