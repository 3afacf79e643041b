"""Figures of a channel measurement: width and trait over doses, noise and blocks.

Needs matplotlib; what is drawn over what is `report.channel_data`'s business.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from undertow.measurements import ChannelMeasurement, ChannelSpot, ChannelWidth, Spread
from undertow.report.channel_data import (
    AXES,
    axis_of,
    from_base,
    line_names,
    nearest_other,
)
from undertow.report.drawings import (
    MUTED,
    PAPER,
    Axes,
    bare,
    drawable,
    grouped,
    limits,
    mean_of,
    points,
    series,
)
from undertow.report.panels import Figure, Panel, make_panel
from undertow.report.svg import PALETTE, SERIES
from undertow.report.text import number
from undertow.results import Number

MARKS = "osD^vP"
_DASHED = (0, (4, 2))
_APART = 0.8
"""Of the distance of two places, what all lines together may take up."""


class Dot(NamedTuple):
    """One number of a spot, with bounds if it has any."""

    line: str
    x: float
    value: Number
    low: Number = None
    high: Number = None


def draw_channel_figures(found: ChannelMeasurement) -> dict[str, Figure]:
    """Widths against the base and other traits, and what shows of the trait, by name."""
    if not found.points:
        return {}
    lines = list(dict.fromkeys(map(line_names(found), found.points)))
    legend = tuple((series(place), line) for place, line in enumerate(lines))
    widths = tuple(_width_panels(found, lines))
    figures = {
        "widths": Figure(widths, legend),
        "shares": Figure((_shares(found, lines),), legend),
    }
    return {name: figure for name, figure in figures.items() if figure.panels}


def _width_panels(found: ChannelMeasurement, lines: Sequence[str]) -> list[Panel]:
    """A panel for each way to see a width that was measured."""
    ways: dict[str, tuple[str, Callable[[ChannelSpot], Spread | None]]] = {
        "vocabulary": ("From the base, all tokens", partial(_of, from_base, "vocabulary")),
        "carrier": ("From the base, as sampled", partial(_of, from_base, "carrier")),
        "others": (
            "From the nearest other trait, all tokens",
            partial(_of, nearest_other, "vocabulary"),
        ),
    }  # fmt: skip
    axis, name = axis_of(found), line_names(found)
    panels = []
    for key, (title, way) in ways.items():
        dots = [
            Dot(name(spot), getattr(spot, axis), spread.mean, spread.low, spread.high)
            for spot in found.points
            if (spread := way(spot)) is not None
        ]
        if any(drawable(dot.value) for dot in dots):
            panels.append(_panel(f"widths-{key}", title, dots, lines, axis))
    return panels


def _of(
    which: Callable[[ChannelSpot], ChannelWidth | None], scope: str, spot: ChannelSpot
) -> Spread | None:
    """One spread of a width; None where it was not measured."""
    width = which(spot)
    return None if width is None else getattr(width, scope)


def _panel(
    key: str, title: str, dots: Sequence[Dot], lines: Sequence[str], axis: str
) -> Panel:
    most = max((d for d in dots if drawable(d.value)), key=lambda d: d.value or 0.0)
    words = f"Largest at {axis} {most.x:g}, {most.line}: {number(most.value, digits=3)}"
    draw = partial(draw_dots, dots=dots, lines=lines, axis=axis, unit="nats a token")
    return make_panel(key, title, words, draw, height=220.0, left=56.0)


def _shares(found: ChannelMeasurement, lines: Sequence[str]) -> Panel:
    axis, name = axis_of(found), line_names(found)
    dots = [Dot(name(s), getattr(s, axis), s.share) for s in found.points]
    without = [
        (float(getattr(own[0], axis)), mean_of(s.base_share for s in own))
        for own in grouped(
            sorted(found.points, key=lambda s: getattr(s, axis)),
            lambda s: getattr(s, axis),
        )
    ]
    said = sorted({number(value, digits=3) for _, value in without})
    draw = partial(
        draw_dots, dots=dots, lines=lines, axis=axis, unit="trait's share", without=without
    )  # fmt: skip
    return make_panel(
        "shares", f"{found.trait}, asked of the teacher",
        f"Without the intervention {' to '.join(dict.fromkeys((said[0], said[-1])))}",
        draw, height=220.0, left=56.0,
    )  # fmt: skip


def draw_dots(
    axes: Axes,
    dots: Sequence[Dot],
    lines: Sequence[str],
    axis: str,
    unit: str,
    without: Sequence[tuple[float, float]] = (),
) -> None:
    """A mark for each spot with its interval; a line through the means at each place."""
    bare(axes, grid="y")
    axes.set(xlabel=AXES[axis], ylabel=unit)
    every = [v for d in dots for v in (d.value, d.low, d.high)]
    axes.set_ylim(0, limits([*every, *(value for _, value in without)])[1])
    places = sorted({d.x for d in dots})
    if len(places) <= 8:
        axes.set_xticks(places, [f"{x:g}" for x in places])
    step = min((b - a for a, b in pairwise(places)), default=1.0)
    axes.set_xlim(places[0] - step / 2, places[-1] + step / 2)
    if without:
        ends = [(places[0] - step / 2, without[0][1]), *without]
        ends.append((places[-1] + step / 2, without[-1][1]))
        axes.plot(
            *zip(*ends, strict=True), color=MUTED, linewidth=1.5, linestyle=_DASHED
        )
    apart = min(0.12, _APART / len(lines)) * step
    for place, line in enumerate(lines):
        own = [d for d in dots if d.line == line]
        _draw_line(axes, own, place, apart * (place - (len(lines) - 1) / 2))


def _draw_line(axes: Axes, dots: Sequence[Dot], place: int, aside: float) -> None:
    """The dots of one line, a little aside; beyond six colours dashed."""
    colour, mark = PALETTE[series(place)], MARKS[place % len(MARKS)]
    means = [
        (own[0].x + aside, mean_of(d.value for d in own))
        for own in grouped(sorted(dots, key=lambda d: d.x), lambda d: d.x)
    ]
    axes.plot([x for x, _ in means], [y for _, y in means], color=colour, linewidth=1.5,
              linestyle="-" if place < len(SERIES) else _DASHED)  # fmt: skip
    for dot in dots:
        x = dot.x + aside
        axes.plot([x, x], points([dot.low, dot.high]), color=colour, linewidth=1.5)
        axes.plot([x], points([dot.value]), mark, color=colour, markersize=7,
                  markeredgecolor=PAPER)  # fmt: skip
