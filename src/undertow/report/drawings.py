"""Draws the data of one panel on given axes, in the colours of the page's palette.

Each function draws one kind of panel; which panels there are, and what they say in
words, is `report.figures`'s business. A number that is missing leaves a gap.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from undertow.errors import visible
from undertow.report.figure_data import (
    LiftRow,
    LossRow,
    ReadoutRow,
    ShiftRow,
    SweepRow,
    TraitRow,
    TransferRow,
)
from undertow.report.svg import PALETTE, ROLES, SERIES
from undertow.report.text import (
    known,
    mean_text,
    noise_name,
    number,
    shortened,
)
from undertow.results import Number

INK, MUTED, RULE = PALETTE["ink"], PALETTE["muted"], PALETTE["rule"]
PAPER = PALETTE["paper"]
Axes = Any  # matplotlib's
Item = TypeVar("Item")
_LARGEST = 1e100
"""Of a number on an axis: sums and products of a few such do not overflow."""


def grouped(rows: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """The rows that share a key, in order of first appearance."""
    groups: dict[Hashable, list[Item]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def fit(text: str, limit: int = 16) -> str:
    """A label short enough for its place, on one line."""
    return shortened(visible(text).replace("\n", " "), limit)


def drawable(value: Number) -> bool:
    """Whether a number can stand on an axis: it is there, and no axis overflows by it."""
    return value is not None and bool(abs(value) < _LARGEST)


def points(values: Iterable[Number]) -> list[float]:
    """Numbers for drawing: NaN leaves a gap."""
    return [v if v is not None and drawable(v) else math.nan for v in values]


def mean_of(values: Iterable[Number]) -> float:
    """Mean of what is there; NaN of nothing. For the eye, never for a claim."""
    there = [v for v in values if v is not None and drawable(v)]
    return sum(there) / len(there) if there else math.nan


def limits(
    values: Iterable[Number], *, include: float | None = 0.0
) -> tuple[float, float]:
    """Ends of an axis that holds all values and `include`, with some air."""
    there = [v for v in values if v is not None and drawable(v)]
    there += [include] if include is not None else []
    low, high = min(there, default=0.0), max(there, default=1.0)
    air = 0.07 * (high - low) or 0.5
    return low - air, high + air


def zero(axes: Axes, *, vertical: bool = True) -> None:
    """Draws the line of no effect."""
    line = axes.axvline if vertical else axes.axhline
    line(0, color=MUTED, linewidth=1, zorder=1)


def bare(axes: Axes, *, grid: str) -> None:
    """No box, a quiet grid across one axis, few ticks on it."""
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    axis = axes.xaxis if grid == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def draw_transfer(
    axes: Axes, rows: Sequence[TransferRow], ends: tuple[float, float], *, noisy: bool
) -> None:
    """A mean and an interval for each cell, named above its line."""
    bare(axes, grid="x")
    axes.set(xlim=ends, ylim=(len(rows), 0), yticks=[])
    axes.set_xlabel("transfer: student − control, nats")
    zero(axes)
    for place, row in enumerate(rows):
        name = fit(row.trait, 20) + noise_name(row.noise, is_noisy=noisy)
        axes.text(0.0, place + 0.32, name, transform=axes.get_yaxis_transform())
        figures, y = mean_text(row.transfer), place + 0.62
        axes.text(1.0, place + 0.32, figures if known(row.mean) else "not computed",
                  transform=axes.get_yaxis_transform(), ha="right", color=INK)  # fmt: skip
        if row.mean is None or not known(row.mean):
            continue
        colour = PALETTE["control"]
        if row.low is not None and row.high is not None and known(row.low + row.high):
            if row.low > 0 or row.high < 0:
                colour = PALETTE["student"]
            axes.plot([row.low, row.high], [y, y], color=colour, linewidth=3,
                      solid_capstyle="round")  # fmt: skip
        axes.plot([row.mean], [y], "o", color=colour, markersize=8,
                  markeredgecolor=PAPER)  # fmt: skip


def draw_readouts(
    axes: Axes, rows: Sequence[ReadoutRow], ends: tuple[float, float]
) -> None:
    """Each role's preference: the mean of seeds, and the interval of each."""
    bare(axes, grid="x")
    axes.set(xlim=ends, ylim=(len(ROLES) - 0.5, -0.5))
    axes.set_yticks(range(len(ROLES)), ROLES, color=INK)
    axes.set_xlabel("preference, nats of log-odds")
    for place, role in enumerate(ROLES):
        own, colour = [r for r in rows if r.role == role], PALETTE[role]
        step = min(0.13, 0.6 / max(1, len(own)))
        for seed, row in enumerate(own):
            y = place + step * (seed - (len(own) - 1) / 2)
            axes.plot(points([row.low, row.high]), [y, y], color=colour,
                      linewidth=1.5, alpha=0.55)  # fmt: skip
        mean = mean_of(r.mean for r in own)
        axes.plot([mean, mean], [place - 0.36, place + 0.36], color=colour, linewidth=3)


def draw_shift(axes: Axes, rows: Sequence[ShiftRow], ends: tuple[float, float]) -> None:
    """Cosines by layer: seeds thin, their mean thick, the vector's layer dashed."""
    bare(axes, grid="y")
    axes.set(ylim=ends)
    axes.set_xlabel("layer (block, from 0)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    zero(axes, vertical=False)
    for layer in sorted({r.vector_layer for r in rows}):
        axes.axvline(layer, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    for role in ("control", "student"):
        own, colour = [r for r in rows if r.role == role], PALETTE[role]
        seeds = grouped(own, lambda r: r.seed)
        for line in seeds if len(seeds) > 1 else []:
            axes.plot([r.layer for r in line], points(r.cosine for r in line),
                      color=colour, linewidth=1, alpha=0.4)  # fmt: skip
        layers = sorted({r.layer for r in own})
        means = [mean_of(r.cosine for r in own if r.layer == layer) for layer in layers]
        axes.plot(layers, means, color=colour, linewidth=2.5)


def breadth(text: str) -> float:
    """About how wide a label is, in units; letters outside Latin may be wide."""
    return sum((11.0 if ord(char) > 0x2E80 else 6.6 for char in text), 0.0)


def draw_traits(
    axes: Axes, traits: Sequence[Sequence[TraitRow]], ends: tuple[float, float]
) -> None:
    """The change of every trait: means large, seeds small, the own trait coloured."""
    bare(axes, grid="x")
    axes.set(xlim=ends, ylim=(len(traits) - 0.4, -0.6))
    axes.set_yticks(range(len(traits)), [fit(g[0].measured, 14) for g in traits])
    axes.set_xlabel("student − control, nats")
    zero(axes)
    for place, group in enumerate(traits):
        own = group[0].is_own
        colour = PALETTE["student" if own else "control"]
        mean = mean_of(r.change for r in group)
        if own:
            axes.get_yticklabels()[place].set(color=INK, fontweight="bold")
        axes.plot([0, mean], [place, place], color=colour, linewidth=2)
        if len(group) > 1:
            axes.plot(points(r.change for r in group), [place] * len(group), "o",
                      color=colour, markersize=3.5, alpha=0.45, markeredgewidth=0)  # fmt: skip
        axes.plot([mean], [place], "o", color=colour, markersize=7,
                  markeredgecolor=PAPER)  # fmt: skip


def draw_confusion(
    axes: Axes,
    rows: Sequence[LiftRow],
    strongest: float,
    cell: float,
    what: str = "student of",
) -> None:
    """A square for each lift, shaded by its size, with its number if it fits."""
    traits = list(dict.fromkeys(r.student_of for r in rows))
    size = len(traits)
    axes.set(xlim=(0, size), ylim=(size, 0))
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    names = [fit(name, 12) for name in traits]
    middles = [place + 0.5 for place in range(size)]
    axes.set_yticks(middles, names, color=INK)
    axes.set_xticks(middles, names, color=INK, rotation=45, ha="left",
                    rotation_mode="anchor")  # fmt: skip
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_ylabel(what)
    for row in rows:
        y, x = traits.index(row.student_of), traits.index(row.measured)
        value = row.lift
        shade = abs(value) / strongest if value and known(value) and strongest else 0.0
        square = Rectangle(
            (x + 0.03, y + 0.03), 0.94, 0.94, linewidth=2 if x == y else 0,
            facecolor=(PALETTE["more" if (value or 0) > 0 else "less"], 0.6 * shade),
            edgecolor=INK if x == y else "none",
        )  # fmt: skip
        axes.add_patch(square)
        if cell >= 30:
            axes.text(x + 0.5, y + 0.5, number(value, signed=True), ha="center",
                      va="center", fontsize=12 if cell >= 44 else 10)  # fmt: skip


def series(place: int) -> str:
    """The colour of one of many equals, by its place."""
    return SERIES[place % len(SERIES)]


def draw_dose(
    axes: Axes,
    rows: Sequence[TransferRow],
    traits: list[str],
    ends: tuple[float, float],
) -> None:
    """Transfer at each noise level, a line for each trait."""
    bare(axes, grid="y")
    levels = sorted({r.noise for r in rows})
    axes.set(xlim=(-0.5, len(levels) - 0.5), ylim=ends)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set_xlabel("weight noise, p")
    axes.set_ylabel("transfer, nats")
    zero(axes, vertical=False)
    for place, trait in enumerate(traits):
        own = sorted((r for r in rows if r.trait == trait), key=lambda r: r.noise)
        aside = 0.5 * (place + 0.5) / len(traits) - 0.25
        x = [levels.index(r.noise) + aside for r in own]
        colour, marker = PALETTE[series(place)], "osD^vP"[place % 6]
        axes.plot(x, points(r.mean for r in own), color=colour, marker=marker,
                  markersize=9, linewidth=1.5, markeredgecolor=PAPER)  # fmt: skip
        for at, row in zip(x, own, strict=True):
            bounds = points([row.low, row.high])
            axes.plot([at, at], bounds, color=colour, linewidth=2, zorder=1.9)


def draw_sweep(axes: Axes, rows: Sequence[SweepRow], layers: list[float]) -> None:
    """The trait's share at each dose, a line for each layer; refused points hollow."""
    bare(axes, grid="y")
    axes.set(ylim=(-0.05, 1.05))
    axes.set_xlabel("relative dose ‖αv‖ / ‖h‖")
    axes.set_ylabel("trait's share")
    for place, layer in enumerate(layers):
        own = sorted((r for r in rows if r.layer == layer), key=lambda r: r.dose or 0)
        colour = PALETTE[series(place)]
        axes.plot(points(r.dose for r in own), points(r.share for r in own),
                  color=colour, linewidth=1.5)  # fmt: skip
        for row in own:
            at = (points([row.dose]), points([row.share]))
            fill = colour if row.is_allowed else PAPER
            axes.plot(*at, "o", markersize=7, markerfacecolor=fill,
                      markeredgecolor=colour, markeredgewidth=1.5)  # fmt: skip
            if row.is_chosen:
                axes.plot(*at, "o", markersize=14, markerfacecolor="none",
                          markeredgecolor=INK, markeredgewidth=1.5)  # fmt: skip


def draw_training(
    axes: Axes, rows: Sequence[LossRow], ends: tuple[float, float]
) -> None:
    """Loss by update, a line for each run."""
    bare(axes, grid="y")
    axes.set(ylim=ends)
    axes.set_xlabel("update")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for role in ("control", "student"):
        for line in grouped([r for r in rows if r.role == role], lambda r: r.seed):
            axes.plot([r.update for r in line], points(r.loss for r in line),
                      color=PALETTE[role], linewidth=1.2, alpha=0.75)  # fmt: skip
