"""Where a curve begins to rise. Knows nothing of what it is a curve of."""

import math
from collections.abc import Sequence


def onset(values: Sequence[float | None], *, share: float = 0.5) -> int | None:
    """The place from which a curve stays at a share of its largest value or above.

    Up to where that largest value stands; what comes after does not count.

    Args:
        values: In order; those that are missing or NaN never reach anything.
        share: Of the largest.

    Returns:
        None if no value lies above 0.
    """
    known = [-math.inf if v is None or math.isnan(v) else v for v in values]
    top = max(range(len(known)), key=lambda place: known[place], default=None)
    if top is None or not known[top] > 0:
        return None
    place = top
    while place and known[place - 1] >= share * known[top]:
        place -= 1
    return place
