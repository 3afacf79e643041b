"""Figures of a channel grid: width and trait over doses, noise and blocks.

One of the three is the axis, whichever has most values; the others tell lines apart.
Needs matplotlib; knows `undertow.measurements` and nothing of pages.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from undertow.measurements import ChannelGrid, ChannelSpot, ChannelWidth, Spread
from undertow.report.drawings import (
    MUTED,
    PAPER,
    Axes,
    bare,
    grouped,
    limits,
    mean_of,
    points,
    series,
)
from undertow.report.panels import Figure, Panel, make_panel
from undertow.report.svg import PALETTE
from undertow.report.text import number
from undertow.results import Number

BASE = "base"
AXES = {
    "dose": "relative dose ‖αv‖ / ‖h‖",
    "noise": "weight noise of the base, p",
    "layer": "block of the vector, from 0",
}
MARKS = "osD^vP"


class Dot(NamedTuple):
    """One number of a spot, with bounds if it has any."""

    line: str
    x: float
    value: Number
    low: Number = None
    high: Number = None


def axis_of(grid: ChannelGrid) -> str:
    """What the spots differ by most."""
    return max(AXES, key=lambda name: len({getattr(s, name) for s in grid.points}))


def line_names(grid: ChannelGrid) -> Callable[[ChannelSpot], str]:
    """Names a spot's line by what differs beside the axis; seeds of noise share one."""
    axis = axis_of(grid)
    words = {
        "carrier": "{}",
        "layer": "block {}",
        "dose": "dose {:g}",
        "noise": "noise {:g}",
    }
    varying = [
        name
        for name in words
        if name != axis and len({getattr(s, name) for s in grid.points}) > 1
    ]

    def name(spot: ChannelSpot) -> str:
        parts = (words[key].format(getattr(spot, key)) for key in varying)
        return ", ".join(parts) or spot.carrier

    return name


def draw_channel_figures(grid: ChannelGrid) -> dict[str, Figure]:
    """Widths against the base, against other traits, and what shows of the trait."""
    name, axis = line_names(grid), axis_of(grid)
    spots = [
        s for s in grid.points if getattr(s, axis) is not None or len(grid.points) == 1
    ]
    lines = list(dict.fromkeys(map(name, spots)))

    def dots(of: Callable[[ChannelSpot], Spread | None]) -> list[Dot]:
        found = []
        for spot in spots:
            spread = of(spot)
            if spread is not None:
                x = float(getattr(spot, axis) or 0.0)
                found.append(Dot(name(spot), x, spread.mean, spread.low, spread.high))
        return found

    def panel(key: str, title: str, shown: Sequence[Dot], unit: str) -> Panel:
        draw = partial(draw_dots, dots=shown, lines=lines, axis=axis, unit=unit)
        most = max(shown, key=lambda d: d.value if d.value is not None else -1.0)
        words = (
            f"Largest at {axis} {most.x:g}, {most.line}: {number(most.value, digits=3)}"
        )
        return make_panel(key, title, words, draw, height=220.0, left=56.0)

    widths = {
        "widths-vocabulary": (
            "From the base, all tokens", dots(lambda s: _against(s, _vocabulary))),
        "widths-carrier": (
            "From the base, as sampled", dots(lambda s: _against(s, _carrier))),
        "widths-others": (
            "From other traits' teachers, all tokens", dots(_from_others)),
    }  # fmt: skip
    panels = [
        panel(key, title, shown, "nats a token")
        for key, (title, shown) in widths.items()
        if shown
    ]
    legend = tuple((series(place), line) for place, line in enumerate(lines))
    shares = [Dot(name(s), float(getattr(s, axis) or 0.0), s.share) for s in spots]
    base = mean_of(s.base_share for s in spots)
    asked = make_panel(
        "shares", f"{grid.trait}, asked of the teacher",
        f"Without the intervention {number(base, digits=3)}",
        partial(draw_dots, dots=shares, lines=lines, axis=axis, unit="trait's share",
                level=base),
        height=220.0, left=56.0,
    )  # fmt: skip
    figures = {
        "widths": Figure(tuple(panels), legend),
        "shares": Figure((asked,), legend),
    }
    return {key: figure for key, figure in figures.items() if figure.panels}


def _vocabulary(width: ChannelWidth) -> Spread:
    return width.vocabulary


def _carrier(width: ChannelWidth) -> Spread:
    return width.carrier


def _against(
    spot: ChannelSpot, which: Callable[[ChannelWidth], Spread]
) -> Spread | None:
    """From the base; None where nothing was measured."""
    return next((which(w) for w in spot.widths if w.other == BASE), None)


def _from_others(spot: ChannelSpot) -> Spread | None:
    """The nearest of the other traits' teachers: what tells this trait from any."""
    others = [w.vocabulary for w in spot.widths if w.other != BASE]
    known = [w for w in others if w.mean is not None]
    return min(known, key=lambda w: w.mean or 0.0) if known else None


def draw_dots(
    axes: Axes,
    dots: Sequence[Dot],
    lines: Sequence[str],
    axis: str,
    unit: str,
    level: float | None = None,
) -> None:
    """A mark for each spot with its interval; a line through the means at each place."""
    bare(axes, grid="y")
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel(unit)
    bounds = [v for d in dots for v in (d.value, d.low, d.high)]
    axes.set_ylim(0, limits([*bounds, level])[1])
    places = sorted({d.x for d in dots})
    if len(places) <= 8:
        axes.set_xticks(places, [f"{x:g}" for x in places])
    step = min((b - a for a, b in pairwise(places)), default=1.0)
    axes.set_xlim(places[0] - step / 2, places[-1] + step / 2)
    if level is not None:
        axes.axhline(level, color=MUTED, linewidth=1.5, linestyle=(0, (4, 2)))
    for place, line in enumerate(lines):
        own = [d for d in dots if d.line == line]
        aside = 0.12 * step * (place - (len(lines) - 1) / 2) * (len(lines) > 1)
        colour = PALETTE[series(place)]
        means = [
            (group[0].x + aside, mean_of(d.value for d in group))
            for group in grouped(sorted(own, key=lambda d: d.x), lambda d: d.x)
        ]
        axes.plot([x for x, _ in means], [y for _, y in means], color=colour, linewidth=1.5,
                  linestyle="-" if place < len(MARKS) else (0, (4, 2)))  # fmt: skip
        for dot in own:
            x = dot.x + aside
            axes.plot([x, x], points([dot.low, dot.high]), color=colour, linewidth=1.5)
            axes.plot([x], points([dot.value]), MARKS[place % 6], color=colour,
                      markersize=7, markeredgecolor=PAPER)  # fmt: skip
