"""Draws one panel of an audit's figures on given axes, in the colours of the palette.

Which panels there are, and what they say in words, is `report.audit_figures`'s
business. A number that is missing leaves a gap or is crossed out, never a zero.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from undertow.findings import Number
from undertow.report.audit_data import HypothesisRow, PowerRow, peak
from undertow.report.drawings import INK, MUTED, PAPER, RULE, Axes, bare, fit, points
from undertow.report.svg import PALETTE
from undertow.report.text import known, number, share_text

STEPS = 8
"""Shades of a heat map on each side of zero."""
LINE = 14.0
"""Units of height of one direction of a heat map, and of one hypothesis."""
NULL_BINS = 24
NAME = 19
"""Characters of a direction's name that are drawn."""


class HeatLine(NamedTuple):
    """One line of a heat map: the heading of a role, or a direction's values."""

    name: str
    values: tuple[Number, ...] = ()
    is_heading: bool = False
    is_significant: bool = False
    is_named: bool = False


def draw_heat(
    axes: Axes, lines: Sequence[HeatLine], layers: Sequence[int], strongest: float
) -> None:
    """A cell for each direction and layer, shaded by its number's size and sign.

    Cells of one shade are one shape, so sixty directions by forty layers stay a
    small file.
    """
    axes.set(xlim=(0, max(1, len(layers))), ylim=(len(lines), 0))
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for sign in (1, -1):
        for step in range(1, STEPS + 1):
            cells = list(_runs(lines, sign * step, strongest))
            _fill(axes, cells, colour=_shade(sign * step))
    _cross_out(axes, lines)
    _heat_names(axes, lines)
    _layer_ticks(axes, layers)
    _scale(axes, len(layers), strongest)
    best = _largest(lines)
    if best is not None:
        row, column = best
        frame = Rectangle((column - 0.1, row - 0.05), 1.2, 1.1, facecolor="none",
                          edgecolor=INK, linewidth=1.8, clip_on=False)  # fmt: skip
        axes.add_patch(frame)


def _step(value: Number, strongest: float) -> int | None:
    """Shade of a number, −8 to 8; None if there is no number."""
    if value is None or not known(value):
        return None
    return round(STEPS * value / strongest) if strongest else 0


def _shade(step: int) -> tuple[str, float]:
    return PALETTE["more" if step > 0 else "less"], 0.92 * abs(step) / STEPS


def _runs(
    lines: Sequence[HeatLine], step: int, strongest: float
) -> Iterator[tuple[int, int, int]]:
    """Row, first and last column of neighbours that share a shade."""
    for row, line in enumerate(lines):
        first = None
        for column, value in enumerate([*line.values, None]):
            same = column < len(line.values) and _step(value, strongest) == step
            if same and first is None:
                first = column
            elif not same and first is not None:
                yield row, first, column
                first = None


def _fill(
    axes: Axes, cells: Sequence[tuple[int, int, int]], colour: tuple[str, float]
) -> None:
    if not cells:
        return
    corners, codes = [], []
    for row, first, last in cells:
        top, bottom = row + 0.04, row + 0.96
        corners += [(first, top), (last, top), (last, bottom), (first, bottom), (0, 0)]
        codes += [Outline.MOVETO] + [Outline.LINETO] * 3 + [Outline.CLOSEPOLY]
    axes.add_patch(PathPatch(Outline(corners, codes), facecolor=colour, linewidth=0))


def _cross_out(axes: Axes, lines: Sequence[HeatLine]) -> None:
    """A short stroke in every cell that has no number."""
    corners, codes = [], []
    for row, line in enumerate(lines):
        for column, value in enumerate(line.values):
            if value is None or not known(value):
                corners += [(column + 0.2, row + 0.5), (column + 0.8, row + 0.5)]
                codes += [Outline.MOVETO, Outline.LINETO]
    if corners:
        strokes = PathPatch(Outline(corners, codes), facecolor="none", edgecolor=MUTED)
        axes.add_patch(strokes)


def _heat_names(axes: Axes, lines: Sequence[HeatLine]) -> None:
    axes.set_yticks([])
    for row, line in enumerate(lines):
        place = {"transform": axes.get_yaxis_transform(), "va": "center"}
        if line.is_heading:
            axes.text(0, row + 0.55, line.name, color=MUTED, fontsize=10.5, **place)
            continue
        weight = "bold" if line.is_named else "normal"
        axes.text(-0.02, row + 0.5, fit(line.name, NAME), color=INK, fontsize=10.5,
                  ha="right", fontweight=weight, **place)  # fmt: skip
        if line.is_significant:
            axes.plot([1.025], [row + 0.5], "o", color=PALETTE["student"], markersize=5,
                      transform=axes.get_yaxis_transform(), clip_on=False)  # fmt: skip


def _layer_ticks(axes: Axes, layers: Sequence[int]) -> None:
    every = max(1, math.ceil(len(layers) / 8))
    shown = range(0, len(layers), every)
    axes.set_xticks([n + 0.5 for n in shown], [str(layers[n]) for n in shown])
    axes.set_xlabel("layer (block, from 0)")


def _scale(axes: Axes, columns: int, strongest: float) -> None:
    """What the shades mean, above the map."""
    width, low, high = max(1, columns) / (2 * STEPS + 1), -1.2, -0.55
    for place, step in enumerate(range(-STEPS, STEPS + 1)):
        square = Rectangle((place * width, low), width, high - low, linewidth=0,
                           facecolor=_shade(step), clip_on=False)  # fmt: skip
        axes.add_patch(square)
    digits = 1 if strongest >= 1 else 2
    for at, value in ((0.0, -strongest), (0.5, 0.0), (1.0, strongest)):
        text = number(value, digits=digits, signed=True) if value else "0"
        axes.text(at * max(1, columns), low - 0.15, text, color=MUTED, fontsize=10.5,
                  ha=("left", "center", "right")[int(2 * at)], va="bottom")  # fmt: skip


def _largest(lines: Sequence[HeatLine]) -> tuple[int, int] | None:
    """Row and column of the number that is largest in size."""
    found = []
    for row, line in enumerate(lines):
        column = peak(line.values)
        value = None if column is None else line.values[column]
        if column is not None and value is not None:
            found.append((-abs(value), row, column))
    return min(found)[1:] if found else None


def _named_lines(axes: Axes, names: Sequence[str], texts: Sequence[str]) -> None:
    """Names to the left of their lines and figures to the right."""
    axes.set(ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks([])
    for row, (name, text) in enumerate(zip(names, texts, strict=True)):
        place = {
            "transform": axes.get_yaxis_transform(),
            "va": "center",
            "fontsize": 11,
        }
        axes.text(-0.02, row, fit(name, 18), ha="right", color=INK, **place)
        axes.text(1.02, row, text, ha="left", color=MUTED, **place)


def draw_nats(
    axes: Axes,
    rows: Sequence[HypothesisRow],
    names: Sequence[str],
    ends: tuple[float, float],
) -> None:
    """Nats a row of each hypothesis: audited rows, reference rows, a line between."""
    bare(axes, grid="x")
    axes.set(xlim=ends)
    axes.set_xlabel("log-likelihood ratio, nats a row")
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    texts = [number(r.nats_per_row, signed=True) for r in rows]
    _named_lines(axes, names, texts)
    for y, row in enumerate(rows):
        both = points([row.reference_nats_per_row, row.nats_per_row])
        axes.plot(both, [y, y], color=RULE, linewidth=2, zorder=1.5)
        hollow = row.role == "decoy"
        for value, colour in zip(both, ("control", "student"), strict=True):
            face = PAPER if hollow else PALETTE[colour]
            axes.plot([value], [y], "o", markersize=6.5, markerfacecolor=face,
                      markeredgecolor=PALETTE[colour] if hollow else PAPER,
                      markeredgewidth=1.5 if hollow else 1)  # fmt: skip


def draw_behind(
    axes: Axes,
    rows: Sequence[HypothesisRow],
    names: Sequence[str],
    ends: tuple[float, float],
) -> None:
    """How far each hypothesis is behind the leader, with its interval."""
    bare(axes, grid="x")
    axes.set(xlim=ends)
    axes.set_xlabel("behind the leader, nats a row")
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    _named_lines(axes, names, [number(r.behind, signed=True) for r in rows])
    for y, row in enumerate(rows):
        colour = PALETTE["ink" if told_apart(row) else "series-2"]
        axes.plot(points([row.behind_low, row.behind_high]), [y, y], color=colour,
                  linewidth=2, alpha=0.7, solid_capstyle="round")  # fmt: skip
        axes.plot(points([row.behind]), [y], "o", color=colour, markersize=6,
                  markeredgecolor=PAPER)  # fmt: skip


def told_apart(row: HypothesisRow) -> bool:
    """Whether the interval behind the leader excludes zero."""
    low = row.behind_low
    return low is not None and known(low) and low > 0


def draw_null(
    axes: Axes, draws: Sequence[float], observed: Number, limit: Number
) -> None:
    """Histogram of the permuted maxima, the observed one, the one of error rate α."""
    bare(axes, grid="y")
    axes.set_xlabel("largest statistic (max-T)")
    axes.set_ylabel("permutations")
    low, high = min(draws), max(draws)
    width = (high - low) / NULL_BINS or 1.0
    edges = [low + width * n for n in range(NULL_BINS + 1)]
    axes.hist(draws, bins=edges, color=PALETTE["control"], alpha=0.75)
    if limit is not None and known(limit):
        axes.axvline(limit, color=INK, linewidth=1.2, linestyle=(0, (3, 3)))
    if observed is None or not known(observed):
        return
    axes.axvline(observed, color=PALETTE["student"], linewidth=2.5)
    left, right = min(low, observed), max(high, observed)
    air = 0.06 * (right - left) or 0.5
    axes.set_xlim(left - air, right + air)
    is_right = observed > (left + right) / 2
    axes.annotate(
        f"observed {number(observed)}", (observed, 1.02), xycoords=("data", "axes fraction"),
        xytext=(4 if is_right else -4, 0), textcoords="offset points", va="bottom",
        ha="right" if is_right else "left", color=INK,
    )  # fmt: skip


TICKS = tuple(m * 10.0**e for e in range(-6, 1) for m in (1, 3))
"""Shares at which an axis of shares may have a tick."""


def draw_power(
    axes: Axes, rows: Sequence[PowerRow], detectable: Number, level: float
) -> None:
    """Power by share of biased rows on a logarithmic axis, with the bound.

    Args:
        axes: Where to draw.
        rows: Shares above 0, smallest first.
        detectable: Where to mark the smallest share that is found.
        level: The power that counts as found; a line is drawn there.
    """
    bare(axes, grid="y")
    x = [math.log10(r.fraction or math.nan) for r in rows]
    axes.set(ylim=(-0.03, 1.05), xlabel="share of biased rows", ylabel="power")
    axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.text(x[0], level + 0.015, share_text(level), color=MUTED, fontsize=10.5,
              va="bottom")  # fmt: skip
    bound = PALETTE["teacher"]
    axes.plot(x, points(r.bound for r in rows), color=bound, linewidth=1.8, linestyle=(0, (5, 2)))  # fmt: skip
    axes.plot(x, points(r.power for r in rows), "o-", color=PALETTE["student"],
              linewidth=2.5, markersize=5.5, markeredgecolor=PAPER)  # fmt: skip
    if detectable is not None and known(detectable) and detectable > 0:
        at = math.log10(detectable)
        axes.plot([at, at], [-0.03, level], color=INK, linewidth=1.2)
        axes.plot([at], [level], "D", color=INK, markersize=6.5, markeredgecolor=PAPER)
    inside = [t for t in TICKS if x[0] - 0.02 <= math.log10(t) <= x[-1] + 0.02]
    every = [t for n, t in enumerate(reversed(inside)) if len(inside) < 7 or n % 2 == 0]
    axes.set_xticks([math.log10(t) for t in every], [share_text(t) for t in every])


class Bar(NamedTuple):
    """A named mean with bounds."""

    name: str
    mean: Number
    low: Number
    high: Number
    text: str
    colour: str


def draw_bars(
    axes: Axes,
    bars: Sequence[Bar],
    ends: tuple[float, float],
    *,
    label: str,
    lines: tuple[float, float],
) -> None:
    """Means with intervals, each named above its line.

    Args:
        axes: Where to draw.
        bars: What to draw, from the top.
        ends: Ends of the axis.
        label: What the axis measures.
        lines: Where nothing is told apart, drawn whole, and a limit, drawn dashed.
    """
    bare(axes, grid="x")
    axes.set(xlim=ends, ylim=(len(bars), 0), yticks=[], xlabel=label)
    axes.axvline(lines[0], color=MUTED, linewidth=1, zorder=1)
    axes.axvline(lines[1], color=INK, linewidth=1.2, linestyle=(0, (3, 3)), zorder=1)
    for row, bar in enumerate(bars):
        place = {"transform": axes.get_yaxis_transform(), "y": row + 0.34}
        axes.text(x=0.0, s=fit(bar.name, 30), color=INK, **place)
        axes.text(x=1.0, s=bar.text, ha="right", color=INK, **place)
        y, colour = row + 0.62, PALETTE[bar.colour]
        axes.plot(points([bar.low, bar.high]), [y, y], color=colour, linewidth=3,
                  solid_capstyle="round")  # fmt: skip
        axes.plot(points([bar.mean]), [y], "o", color=colour, markersize=8,
                  markeredgecolor=PAPER)  # fmt: skip
