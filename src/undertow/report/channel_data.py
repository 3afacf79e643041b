"""What of a channel measurement is shown over what: its axis, its lines, its widths.

Dose, noise or block is the axis, whichever has most values; the others tell lines
apart. Knows nothing of drawing.
"""

from collections.abc import Callable

from undertow.measurements import ChannelMeasurement, ChannelSpot, ChannelWidth

BASE = "base"
AXES = {
    "dose": "relative dose ‖αv‖ / ‖h‖",
    "noise": "weight noise of the base, p",
    "layer": "block of the vector, from 0",
}


def axis_of(found: ChannelMeasurement) -> str:
    """What the spots differ by most, of what they all have; noise if there is nothing."""
    there = [n for n in AXES if all(getattr(s, n) is not None for s in found.points)]
    sizes = {name: len({getattr(s, name) for s in found.points}) for name in there}
    most = max(there, key=lambda name: sizes[name])
    return most if sizes[most] > 1 or "dose" in there else "noise"


def line_names(found: ChannelMeasurement) -> Callable[[ChannelSpot], str]:
    """Names a spot's line by what differs beside the axis; seeds of noise share one."""
    axis = axis_of(found)
    words: dict[str, Callable[[object], str]] = {
        "carrier": str,
        "layer": "block {}".format,
        "dose": "dose {:g}".format,
        "noise": "noise {:g}".format,
    }
    varying = [
        name
        for name in words
        if name != axis and len({getattr(s, name) for s in found.points}) > 1
    ]

    def name(spot: ChannelSpot) -> str:
        parts = (words[key](getattr(spot, key)) for key in varying)
        return ", ".join(parts) or spot.carrier

    return name


def from_base(spot: ChannelSpot) -> ChannelWidth | None:
    """Its width against the base; None where nothing was measured."""
    return next((w for w in spot.widths if w.other == BASE), None)


def nearest_other(spot: ChannelSpot) -> ChannelWidth | None:
    """Against the nearest of the other traits' teachers, over all tokens."""
    known = [
        w for w in spot.widths if w.other != BASE and w.vocabulary.mean is not None
    ]
    return min(known, key=lambda w: w.vocabulary.mean or 0.0, default=None)
