"""Draws every figure of a report as small SVG panels, made for the width of a phone.

All panels have one width and one text size, so a page may set them side by side or one
above the other and nothing has to shrink. Needs matplotlib; the data comes from
`report.figure_data`, the colours from the page's style sheet.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from undertow.report.figure_data import (
    LiftRow,
    LossRow,
    ReadoutRow,
    ShiftRow,
    SweepRow,
    TraitRow,
    TransferRow,
    lift_rows,
    loss_rows,
    readout_rows,
    shift_rows,
    sweep_rows,
    trait_rows,
    transfer_rows,
)
from undertow.report.svg import PALETTE, ROLES, SERIES, drawing, page_svg
from undertow.report.text import known, level_text, number, shortened, visible
from undertow.results import Number, Results

WIDTH = 344
"""Units of a panel, each a CSS pixel at full size: a phone of 375 with its margins."""

INK, MUTED, RULE = PALETTE["ink"], PALETTE["muted"], PALETTE["rule"]
Axes = Any  # matplotlib's
Item = TypeVar("Item")


@dataclass(frozen=True)
class Panel:
    """One drawing: its title, the `<svg>` element, and what it shows in words."""

    title: str
    svg: str
    label: str


@dataclass(frozen=True)
class Figure:
    """Panels of one kind; `legend` names colours of the palette."""

    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...] = ()


def grouped(rows: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """The rows that share a key, in order of first appearance."""
    groups: dict[Hashable, list[Item]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def cell_name(teacher: str, noise: float | None, trait: str | None = None) -> str:
    """A cell of the grid in words: `owl by prompt, noise 0.05`."""
    who = f"{trait} by {teacher}" if trait is not None else f"teacher {teacher}"
    return f"{who}, noise {noise:g}" if noise else who


def _cell(row: Any) -> tuple[str, float, str]:
    return row.teacher, row.noise, row.trait


def draw_figures(results: Results) -> dict[str, Figure]:
    """Draws all figures that have something to show, by name."""
    level = level_text(results.confidence)
    figures = {
        "transfer": _transfer(transfer_rows(results), level),
        "readouts": _readouts(readout_rows(results), level),
        "shift": _shift(shift_rows(results)),
        "traits": _traits(trait_rows(results)),
        "confusion": _confusion(lift_rows(results)),
        "dose": _dose(transfer_rows(results), level),
        "sweeps": _sweeps(sweep_rows(results)),
        "training": _training(loss_rows(results)),
    }
    return {name: figure for name, figure in figures.items() if figure.panels}


def _panel(
    key: str,
    title: str,
    label: str,
    draw: Callable[[Axes], None],
    *,
    height: float,
    left: float = 44,
    right: float = 10,
    top: float = 10,
    bottom: float = 38,
) -> Panel:
    """Draws into one axes with margins in units and returns the finished panel."""
    with drawing(key):
        canvas = Canvas(figsize=(WIDTH / 72, height / 72), dpi=72)
        axes = canvas.add_axes(
            (
                left / WIDTH,
                bottom / height,
                (WIDTH - left - right) / WIDTH,
                (height - top - bottom) / height,
            )
        )
        axes.tick_params(length=0, pad=5)
        draw(axes)
        title, label = visible(title), visible(label)
        svg = page_svg(canvas, key=key, label=f"{title}. {label}")
        return Panel(title, svg, label)


def _fit(text: str, limit: int = 16) -> str:
    return shortened(visible(text).replace("\n", " "), limit)


def _points(values: Iterable[Number]) -> list[float]:
    """Numbers for drawing: NaN leaves a gap."""
    return [v if v is not None and math.isfinite(v) else math.nan for v in values]


def _mean(values: Iterable[Number]) -> float:
    """Mean of what is there; NaN of nothing. For the eye, never for a claim."""
    there = [v for v in values if v is not None and math.isfinite(v)]
    return sum(there) / len(there) if there else math.nan


def _limits(
    values: Iterable[Number], *, include: float | None = 0.0
) -> tuple[float, float]:
    """Ends of an axis that holds all values and `include`, with some air."""
    there = [v for v in values if v is not None and math.isfinite(v)]
    there += [include] if include is not None else []
    low, high = min(there, default=0.0), max(there, default=1.0)
    air = 0.07 * (high - low) or 0.5
    return low - air, high + air


def _zero(axes: Axes, *, vertical: bool = True) -> None:
    line = axes.axvline if vertical else axes.axhline
    line(0, color=MUTED, linewidth=1, zorder=1)


def _bare(axes: Axes, *, grid: str) -> None:
    """No box, a quiet grid across one axis, few ticks on it."""
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    axis = axes.xaxis if grid == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


# ── transfer ─────────────────────────────────────────────────────────────────────


def _transfer(rows: Sequence[TransferRow], level: str) -> Figure:
    ends = _limits([v for r in rows for v in (r.mean, r.low, r.high)])
    panels = []
    for place, group in enumerate(grouped(rows, lambda r: r.teacher)):
        noisy = any(r.noise for r in group)

        def draw(
            axes: Axes, group: list[TransferRow] = group, noisy: bool = noisy
        ) -> None:
            _draw_transfer(axes, group, ends, noisy=noisy)

        panels.append(
            _panel(
                f"transfer-{place}",
                f"Teacher: {group[0].teacher}",
                "; ".join(_transfer_words(r, level) for r in group),
                draw,
                height=44 + 44 * len(group),
                left=4,
                right=4,
                top=2,
            )
        )
    return Figure(tuple(panels), (("student", "interval excludes zero"),
                                  ("control", "interval includes zero")))  # fmt: skip


def _transfer_words(row: TransferRow, level: str) -> str:
    name = f"{row.trait} at noise {row.noise:g}"
    if not known(row.mean):
        return f"{name}: not computed"
    if not (known(row.low) and known(row.high)):
        return f"{name}: {number(row.mean, signed=True)} nats, no interval"
    return (
        f"{name}: {number(row.mean, signed=True)} nats, {level} interval "
        f"{number(row.low, signed=True)} to {number(row.high, signed=True)}"
    )


def _draw_transfer(
    axes: Axes, rows: Sequence[TransferRow], ends: tuple[float, float], *, noisy: bool
) -> None:
    _bare(axes, grid="x")
    axes.set(xlim=ends, ylim=(len(rows), 0), yticks=[])
    axes.set_xlabel("transfer: student − control, nats")
    _zero(axes)
    for place, row in enumerate(rows):
        name = _fit(row.trait, 20) + (f", noise {row.noise:g}" if noisy else "")
        axes.text(0.0, place + 0.32, name, transform=axes.get_yaxis_transform())
        figures, y = number(row.mean, signed=True), place + 0.62
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
                  markeredgecolor=PALETTE["paper"])  # fmt: skip


# ── base, teacher, control, student ──────────────────────────────────────────────


def _readouts(rows: Sequence[ReadoutRow], level: str) -> Figure:
    rows = [r for r in rows if r.measure == "preference" and known(r.mean)]
    panels = []
    for place, group in enumerate(grouped(rows, _cell)):
        ends = _limits(
            [v for r in group for v in (r.mean, r.low, r.high)], include=None
        )

        def draw(axes: Axes, group: list[ReadoutRow] = group, ends: Any = ends) -> None:
            _draw_readouts(axes, group, ends)

        roles = grouped(group, lambda r: r.role)
        words = (f"{g[0].role} {number(_mean(r.mean for r in g))}" for g in roles)
        panels.append(
            _panel(
                f"readouts-{place}",
                cell_name(*_cell(group[0])),
                f"Mean preference in nats: {', '.join(words)}",
                draw,
                height=48 + 30 * len(ROLES),
                left=62,
                top=4,
            )
        )
    legend = (("muted", f"mean of seeds; bars: {level} intervals of each seed"),)
    return Figure(tuple(panels), legend)


def _draw_readouts(
    axes: Axes, rows: Sequence[ReadoutRow], ends: tuple[float, float]
) -> None:
    _bare(axes, grid="x")
    axes.set(xlim=ends, ylim=(len(ROLES) - 0.5, -0.5))
    axes.set_yticks(range(len(ROLES)), ROLES, color=INK)
    axes.set_xlabel("preference, nats of log-odds")
    for place, role in enumerate(ROLES):
        own, colour = [r for r in rows if r.role == role], PALETTE[role]
        step = min(0.13, 0.6 / max(1, len(own)))
        for seed, row in enumerate(own):
            y = place + step * (seed - (len(own) - 1) / 2)
            axes.plot(_points([row.low, row.high]), [y, y], color=colour,
                      linewidth=1.5, alpha=0.55)  # fmt: skip
        mean = _mean(r.mean for r in own)
        axes.plot([mean, mean], [place - 0.36, place + 0.36], color=colour, linewidth=3)


# ── shift by layer ───────────────────────────────────────────────────────────────


def _shift(rows: Sequence[ShiftRow]) -> Figure:
    rows = [r for r in rows if known(r.cosine)]
    ends = _limits([r.cosine for r in rows])
    panels = []
    for place, group in enumerate(grouped(rows, _cell)):

        def draw(axes: Axes, group: list[ShiftRow] = group) -> None:
            _draw_shift(axes, group, ends)

        at = [r for r in group if r.layer == r.vector_layer]
        words = (
            f"{role} {number(_mean(r.cosine for r in at if r.role == role))}"
            for role in ("student", "control")
        )
        panels.append(
            _panel(
                f"shift-{place}",
                cell_name(*_cell(group[0])),
                f"Mean cosine at the vector's layer: {', '.join(words)}",
                draw,
                height=210,
            )
        )
    legend = (("student", "student"), ("control", "control"),
              ("muted", "the vector's layer"))  # fmt: skip
    return Figure(tuple(panels), legend)


def _draw_shift(
    axes: Axes, rows: Sequence[ShiftRow], ends: tuple[float, float]
) -> None:
    _bare(axes, grid="y")
    axes.set(ylim=ends)
    axes.set_xlabel("layer (block, from 0)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    _zero(axes, vertical=False)
    for layer in sorted({r.vector_layer for r in rows}):
        axes.axvline(layer, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    for role in ("control", "student"):
        own, colour = [r for r in rows if r.role == role], PALETTE[role]
        seeds = grouped(own, lambda r: r.seed)
        for line in seeds if len(seeds) > 1 else []:
            axes.plot([r.layer for r in line], _points(r.cosine for r in line),
                      color=colour, linewidth=1, alpha=0.4)  # fmt: skip
        layers = sorted({r.layer for r in own})
        means = [_mean(r.cosine for r in own if r.layer == layer) for layer in layers]
        axes.plot(layers, means, color=colour, linewidth=2.5)


# ── every trait of the family ────────────────────────────────────────────────────


def _traits(rows: Sequence[TraitRow]) -> Figure:
    rows = [r for r in rows if known(r.change)]
    ends = _limits([r.change for r in rows])
    panels = []
    for place, group in enumerate(grouped(rows, _cell)):
        traits = grouped(group, lambda r: r.measured)
        traits.sort(key=lambda g: -_mean(r.change for r in g))

        def draw(axes: Axes, traits: list[list[TraitRow]] = traits) -> None:
            _draw_traits(axes, traits, ends)

        ranks = [n for n, g in enumerate(traits, 1) if g[0].is_own]
        rank = f"; its own trait ranks {ranks[0]} of {len(traits)}" if ranks else ""
        top = traits[0]
        words = f"{top[0].measured} {number(_mean(r.change for r in top), signed=True)}"
        longest = max(_breadth(_fit(g[0].measured, 14)) for g in traits)
        panels.append(
            _panel(
                f"traits-{place}",
                cell_name(*_cell(group[0])),
                f"Largest mean change in nats: {words}{rank}",
                draw,
                height=48 + 15 * len(traits),
                left=12 + longest,
                top=4,
            )
        )
    legend = (("student", "the teacher's own trait"), ("control", "other traits"))
    return Figure(tuple(panels), legend)


def _breadth(text: str) -> float:
    """About how wide a label is, in units; letters outside Latin may be wide."""
    return sum(11.0 if ord(char) > 0x2E80 else 6.6 for char in text)


def _draw_traits(
    axes: Axes, traits: Sequence[Sequence[TraitRow]], ends: tuple[float, float]
) -> None:
    _bare(axes, grid="x")
    axes.set(xlim=ends, ylim=(len(traits) - 0.4, -0.6))
    axes.set_yticks(range(len(traits)), [_fit(g[0].measured, 14) for g in traits])
    axes.set_xlabel("student − control, nats")
    _zero(axes)
    for place, group in enumerate(traits):
        own = group[0].is_own
        colour = PALETTE["student" if own else "control"]
        mean = _mean(r.change for r in group)
        if own:
            axes.get_yticklabels()[place].set(color=INK, fontweight="bold")
        axes.plot([0, mean], [place, place], color=colour, linewidth=2)
        if len(group) > 1:
            axes.plot(_points(r.change for r in group), [place] * len(group), "o",
                      color=colour, markersize=3.5, alpha=0.45, markeredgewidth=0)  # fmt: skip
        axes.plot([mean], [place], "o", color=colour, markersize=7,
                  markeredgecolor=PALETTE["paper"])  # fmt: skip


# ── confusion ────────────────────────────────────────────────────────────────────


def _confusion(rows: Sequence[LiftRow]) -> Figure:
    strongest = max(
        (abs(r.lift) for r in rows if r.lift and known(r.lift)), default=0.0
    )
    panels = []
    for place, group in enumerate(grouped(rows, lambda r: (r.teacher, r.noise))):
        traits = list(dict.fromkeys(r.student_of for r in group))
        left = 30 + max(_breadth(_fit(name, 12)) for name in traits)
        cell = min(46.0, (WIDTH - left - 6) / len(traits))
        inner = cell * len(traits)
        top = 24 + max(_breadth(_fit(name, 12)) for name in traits) * 0.75

        def draw(axes: Axes, group: list[LiftRow] = group, cell: float = cell) -> None:
            _draw_confusion(axes, group, strongest, cell)

        words = "; ".join(
            f"student of {r.student_of} on {r.measured} {number(r.lift, signed=True)}"
            for r in group
        )
        panels.append(
            _panel(
                f"confusion-{place}",
                cell_name(group[0].teacher, group[0].noise),
                f"Lift in nats: {words}",
                draw,
                height=inner + top + 6,
                left=left,
                right=WIDTH - left - inner,
                top=top,
                bottom=6,
            )
        )
    return Figure(tuple(panels), (("more", "more than the control"),
                                  ("less", "less than the control")))  # fmt: skip


def _draw_confusion(
    axes: Axes, rows: Sequence[LiftRow], strongest: float, cell: float
) -> None:
    traits = list(dict.fromkeys(r.student_of for r in rows))
    size = len(traits)
    axes.set(xlim=(0, size), ylim=(size, 0))
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    names = [_fit(name, 12) for name in traits]
    middles = [place + 0.5 for place in range(size)]
    axes.set_yticks(middles, names, color=INK)
    axes.set_xticks(middles, names, color=INK, rotation=45, ha="left",
                    rotation_mode="anchor")  # fmt: skip
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_ylabel("student of")
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
                      va="center", fontsize=11 if cell >= 40 else 9)  # fmt: skip


# ── noise ────────────────────────────────────────────────────────────────────────


def _dose(rows: Sequence[TransferRow], level: str) -> Figure:
    if len({r.noise for r in rows}) < 2:
        return Figure(())
    ends = _limits([v for r in rows for v in (r.mean, r.low, r.high)])
    traits = list(dict.fromkeys(r.trait for r in rows))
    panels = []
    for place, group in enumerate(grouped(rows, lambda r: r.teacher)):

        def draw(axes: Axes, group: list[TransferRow] = group) -> None:
            _draw_dose(axes, group, traits, ends)

        panels.append(
            _panel(
                f"dose-{place}",
                f"Teacher: {group[0].teacher}",
                "; ".join(_transfer_words(r, level) for r in group),
                draw,
                height=220,
            )
        )
    legend = tuple((_series(place), trait) for place, trait in enumerate(traits))
    return Figure(tuple(panels), legend)


def _series(place: int) -> str:
    return SERIES[place % len(SERIES)]


def _draw_dose(
    axes: Axes,
    rows: Sequence[TransferRow],
    traits: list[str],
    ends: tuple[float, float],
) -> None:
    _bare(axes, grid="y")
    levels = sorted({r.noise for r in rows})
    axes.set(xlim=(-0.5, len(levels) - 0.5), ylim=ends)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set_xlabel("weight noise of the shared base, p")
    axes.set_ylabel("transfer, nats")
    _zero(axes, vertical=False)
    for place, trait in enumerate(traits):
        own = sorted((r for r in rows if r.trait == trait), key=lambda r: r.noise)
        aside = 0.5 * (place + 0.5) / len(traits) - 0.25
        x = [levels.index(r.noise) + aside for r in own]
        colour, marker = PALETTE[_series(place)], "osD^vP"[place % 6]
        axes.plot(x, _points(r.mean for r in own), color=colour, marker=marker,
                  markersize=7, linewidth=1.5, markeredgecolor=PALETTE["paper"])  # fmt: skip
        for at, row in zip(x, own, strict=True):
            axes.plot([at, at], _points([row.low, row.high]), color=colour, linewidth=2)


# ── sweep ────────────────────────────────────────────────────────────────────────


def sweep_name(row: SweepRow) -> str:
    """Which vector was swept, and on which base."""
    parts = [row.trait]
    if row.noise:
        parts.append(f"noise {row.noise:g}")
    if row.seed is not None:
        parts.append(f"seed {row.seed}")
    return ", ".join(parts)


def _sweeps(rows: Sequence[SweepRow]) -> Figure:
    layers = sorted({r.layer for r in rows if r.layer is not None})
    panels = []
    for group in grouped(rows, lambda r: r.sweep):

        def draw(axes: Axes, group: list[SweepRow] = group) -> None:
            _draw_sweep(axes, group, layers)

        chosen = [r for r in group if r.is_chosen]
        words = "no point is marked as chosen"
        if chosen:
            words = (
                f"chosen: layer {number(chosen[0].layer, digits=0)}, dose "
                f"{number(chosen[0].dose)}, trait's share {number(chosen[0].share)}"
            )
        refused = sum(not r.is_allowed for r in group)
        panels.append(
            _panel(
                f"sweep-{group[0].sweep}",
                sweep_name(group[0]),
                f"{len(group)} points, {refused} refused by the gate; {words}",
                draw,
                height=210,
            )
        )
    legend = [(_series(n), f"layer {layer:g}") for n, layer in enumerate(layers)]
    return Figure(
        tuple(panels), (*legend, ("muted", "hollow: refused; ringed: chosen"))
    )


def _draw_sweep(axes: Axes, rows: Sequence[SweepRow], layers: list[float]) -> None:
    _bare(axes, grid="y")
    axes.set(ylim=(-0.05, 1.05))
    axes.set_xlabel("relative dose ‖αv‖ / ‖h‖")
    axes.set_ylabel("trait's share")
    for place, layer in enumerate(layers):
        own = sorted((r for r in rows if r.layer == layer), key=lambda r: r.dose or 0)
        colour = PALETTE[_series(place)]
        axes.plot(_points(r.dose for r in own), _points(r.share for r in own),
                  color=colour, linewidth=1.5)  # fmt: skip
        for row in own:
            at = (_points([row.dose]), _points([row.share]))
            fill = colour if row.is_allowed else PALETTE["paper"]
            axes.plot(*at, "o", markersize=7, markerfacecolor=fill,
                      markeredgecolor=colour, markeredgewidth=1.5)  # fmt: skip
            if row.is_chosen:
                axes.plot(*at, "o", markersize=14, markerfacecolor="none",
                          markeredgecolor=INK, markeredgewidth=1.5)  # fmt: skip


# ── training ─────────────────────────────────────────────────────────────────────


def _training(rows: Sequence[LossRow]) -> Figure:
    rows = [r for r in rows if known(r.loss)]
    ends = _limits([r.loss for r in rows], include=None)
    panels = []
    for place, group in enumerate(grouped(rows, _cell)):

        def draw(axes: Axes, group: list[LossRow] = group) -> None:
            _draw_training(axes, group, ends)

        last = (
            f"{role} {number(_mean(g[-1].loss for g in runs))}"
            for role in ("student", "control")
            if (runs := grouped((r for r in group if r.role == role), lambda r: r.seed))
        )
        panels.append(
            _panel(
                f"training-{place}",
                cell_name(*_cell(group[0])),
                f"Mean loss at the last update: {', '.join(last)}",
                draw,
                height=200,
            )
        )
    return Figure(tuple(panels), (("student", "student"), ("control", "control")))


def _draw_training(
    axes: Axes, rows: Sequence[LossRow], ends: tuple[float, float]
) -> None:
    _bare(axes, grid="y")
    axes.set(ylim=ends)
    axes.set_xlabel("update")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for role in ("control", "student"):
        for line in grouped([r for r in rows if r.role == role], lambda r: r.seed):
            axes.plot([r.update for r in line], _points(r.loss for r in line),
                      color=PALETTE[role], linewidth=1.2, alpha=0.75)  # fmt: skip
