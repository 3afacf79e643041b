"""Figures of what stands behind a transfer: how it came, channels, gradients of rows.

Needs matplotlib; the data comes from `report.figure_data`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from undertow.report.drawings import (
    INK,
    MUTED,
    PAPER,
    Axes,
    bare,
    draw_confusion,
    grouped,
    limits,
    mean_of,
    points,
    series,
    zero,
)
from undertow.report.figure_data import (
    ChannelRow,
    EmergenceRow,
    GradientRow,
    LiftRow,
    channel_rows,
    emergence_rows,
    gradient_rows,
)
from undertow.report.inner_tables import (
    MEASURES,
    SCOPES,
    prediction_words,
    scope_of,
    way_words,
    ways_of,
)
from undertow.report.panels import WIDTH, Figure, Panel, make_panel
from undertow.report.shape_data import shape_rows, spectrum_rows
from undertow.report.shape_figures import shape_figure
from undertow.report.svg import PALETTE
from undertow.report.text import cell_name, known, noise_name, number
from undertow.results import Number, Results

MARKS = "osD^vP"


def draw_inner_figures(results: Results) -> dict[str, Figure]:
    """Every figure of this module that has something to show, by name."""
    figures = {
        "shape": shape_figure(shape_rows(results), spectrum_rows(results)),
        "emergence": _emergence(emergence_rows(results)),
        "channel": _channel(results),
        "scores": _scores(gradient_rows(results)),
        "gradients": _by_layer(gradient_rows(results)),
        "doses": _by_dose(gradient_rows(results)),
    }
    return {name: figure for name, figure in figures.items() if figure.panels}


def _legend(traits: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((series(place), trait) for place, trait in enumerate(traits))


# ── emergence ────────────────────────────────────────────────────────────────────


def _emergence(rows: Sequence[EmergenceRow]) -> Figure:
    """A panel a cell: transfer over updates, a line for each seed; then directions."""
    noisy = any(r.noise for r in rows)
    ends = limits([v for r in rows for v in (r.transfer, r.low, r.high)])
    panels = []
    for place, group in enumerate(grouped(rows, _cell)):
        last = [line[-1] for line in grouped(group, lambda r: r.seed)]
        mean = mean_of(r.transfer for r in last)
        panels.append(
            make_panel(
                f"emergence-{place}", cell_name(*_cell(group[0]), is_noisy=noisy),
                f"Student − control at the last update that both have: {number(mean)} nats",
                partial(draw_emergence, rows=group, ends=ends), height=210.0, left=56.0,
            )
        )  # fmt: skip
    steered = grouped((r for r in rows if known(r.cosine)), _cell)
    if steered:
        words = (
            f"{cell_name(*_cell(group[0]), is_noisy=noisy)} {number(mean_of(ends_of(group)))}"
            for group in steered
        )
        panels.append(
            make_panel(
                "emergence-direction", "cos(shift, vector), at the vector's block",
                f"At the last update: {'; '.join(words)}",
                partial(draw_directions, cells=steered), height=210.0, left=56.0,
            )
        )  # fmt: skip
    names = [cell_name(*_cell(group[0]), is_noisy=noisy) for group in steered]
    return Figure(tuple(panels), _legend(names))


def _cell(row: EmergenceRow) -> tuple[str, float, str]:
    return row.teacher, row.noise, row.trait


def ends_of(rows: Sequence[EmergenceRow]) -> list[Number]:
    """The last cosine of every seed."""
    return [line[-1].cosine for line in grouped(rows, lambda r: r.seed)]


def draw_emergence(
    axes: Axes, rows: Sequence[EmergenceRow], ends: tuple[float, float]
) -> None:
    """Student − control with its interval, a line for each seed."""
    bare(axes, grid="y")
    zero(axes, vertical=False)
    axes.set(ylim=ends)
    axes.set_xlabel("update")
    axes.set_ylabel("student − control, nats")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for line in grouped(rows, lambda r: r.seed):
        updates = [r.update for r in line]
        axes.vlines(updates, points(r.low for r in line), points(r.high for r in line),
                    color=PALETTE["student"], linewidth=1, alpha=0.75)  # fmt: skip
        axes.plot(updates, points(r.transfer for r in line), "o-", markersize=5,
                  color=PALETTE["student"], linewidth=2)  # fmt: skip


def draw_directions(axes: Axes, cells: Sequence[Sequence[EmergenceRow]]) -> None:
    """A line for each cell and seed; beyond six cells dashed."""
    bare(axes, grid="y")
    zero(axes, vertical=False)
    axes.set_xlabel("update")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for place, cell in enumerate(cells):
        for line in grouped(cell, lambda r: r.seed):
            axes.plot([r.update for r in line], points(r.cosine for r in line), "o",
                      color=PALETTE[series(place)], linewidth=2, markersize=4,
                      linestyle="-" if place < 6 else (0, (4, 2)))  # fmt: skip
    axes.set_ylim(*limits([r.cosine for cell in cells for r in cell]))


# ── channels ─────────────────────────────────────────────────────────────────────


def _channel(results: Results) -> Figure:
    every, ways = channel_rows(results), ways_of(results)
    traits = list(dict.fromkeys(r.trait for r in every))
    panels: list[Panel] = []
    for place, (student, way) in enumerate(ways):
        rows = [r for r in every if (r.student, r.way) == (student, way)]
        said: dict[str, str] = {
            p.of: prediction_words(p)
            for p in results.predictions
            if (p.student, p.way, p.scope) == (student, way, scope_of(student))
        }
        name = f" ({way_words(student, way)})" if ways[1:] else ""
        panels += _channel_panels(
            rows, said, traits, scope=scope_of(student), after=f"-{place}" * bool(place),
            name=name,
        )  # fmt: skip
    return Figure(tuple(panels), _legend(traits))


def _channel_panels(
    rows: Sequence[ChannelRow],
    said: Mapping[str, str],
    traits: Sequence[str],
    *,
    scope: str,
    after: str,
    name: str,
) -> Iterator[Panel]:
    """Of students that were trained alike."""
    for measure, words in MEASURES.items():
        there = [
            r for r in rows if known(getattr(r, measure)) and (getattr(r, scope) or 0) > 0
        ]  # fmt: skip
        if len(there) < 3:
            continue
        draw = partial(
            draw_channel, rows=there, scope=scope, measure=measure, traits=traits
        )
        title = words.partition(":")[0].partition(", nats")[0]
        yield make_panel(
            f"channel-{measure}{after}", title + name,
            said.get(measure, "too few cells for a correlation"), draw,
            height=230.0, left=52.0,
        )  # fmt: skip


def draw_channel(
    axes: Axes,
    rows: Sequence[ChannelRow],
    scope: str,
    measure: str,
    traits: Sequence[str],
) -> None:
    """One mark a cell: how wide its channel is, and what became of its student."""
    bare(axes, grid="y")
    axes.set_xscale("log")
    widths = points(getattr(r, scope) for r in rows)
    axes.set(xlim=(min(widths) / 1.4, max(widths) * 1.4),
             ylim=limits([getattr(r, measure) for r in rows]))  # fmt: skip
    # Labels stand side by side: three a decade if there are two decades at most.
    subs = (1.0, 2.0, 5.0) if max(widths) < 50 * min(widths) else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"channel {SCOPES[scope]}, nats a token")
    axes.set_ylabel(MEASURES[measure].removeprefix("transfer: "))
    zero(axes, vertical=False)
    for place, trait in enumerate(traits):
        own = [r for r in rows if r.trait == trait]
        axes.plot(points(getattr(r, scope) for r in own),
                  points(getattr(r, measure) for r in own), MARKS[place % 6],
                  color=PALETTE[series(place)], markersize=8, linestyle="none",
                  markeredgecolor=PAPER)  # fmt: skip


# ── gradients ────────────────────────────────────────────────────────────────────


def _scores(rows: Sequence[GradientRow]) -> Figure:
    """A matrix a teacher: rows of each trait against each trait's vector."""
    steered = [r.vector_layer for r in rows if r.vector_layer is not None]
    if not steered:
        return Figure(())
    at = [
        r for r in rows
        if r.trait and r.seed == rows[0].seed
        and r.layer == (steered[0] if r.vector_layer is None else r.vector_layer)
    ]  # fmt: skip
    strongest = max(
        (abs(r.cosine) for r in at if r.cosine and known(r.cosine)), default=0
    )
    noisy = any(r.noise for r in rows)
    panels = []
    for place, group in enumerate(grouped(at, lambda r: (r.teacher, r.noise, r.layer))):
        traits = list(dict.fromkeys(str(r.trait) for r in group))
        own = [r.cosine for r in group if r.is_own]
        others = [r.cosine for r in group if not r.is_own]
        left, top = 96.0, 70.0
        cell = min(52.0, (WIDTH - left - 24) / max(len(traits), 1))
        lifts = [
            LiftRow(r.teacher, r.noise, str(r.trait), r.vector, r.cosine) for r in group
        ]
        draw = partial(
            draw_confusion, rows=lifts, strongest=strongest, cell=cell, what="rows of"
        )
        panels.append(
            make_panel(
                f"scores-{place}",
                f"{group[0].teacher}, block {group[0].layer}"
                f"{noise_name(group[0].noise, is_noisy=noisy)}",
                f"Mean cosine with the own vector {number(mean_of(own), signed=True)}, "
                f"with others' {number(mean_of(others), signed=True)}",
                draw, height=cell * len(traits) + top + 6, left=left,
                right=WIDTH - left - cell * len(traits), top=top, bottom=6.0,
            )
        )  # fmt: skip
    legend = (("more", "along the vector"), ("less", "against it"))
    return Figure(tuple(panels), legend)


LINES = {
    "student": "own trait's vector",
    "control": "other traits' vectors",
    "base": "rows of the untouched base",
}


def _by_layer(rows: Sequence[GradientRow]) -> Figure:
    """Cosines block by block, for each block at which teachers were steered."""
    panels = []
    for layer in sorted({r.vector_layer for r in rows if r.vector_layer is not None}):
        here = [r for r in rows if r.vector_layer == layer]
        lines = {
            "student": [r for r in here if r.is_own],
            "control": [r for r in here if not r.is_own],
            "base": [r for r in rows if r.kind == "none"],
        }
        at = {
            name: mean_of(r.cosine for r in line if r.layer == layer)
            for name, line in lines.items()
        }
        panels.append(
            make_panel(
                f"gradients-{layer}", f"Steered after block {layer}",
                "Mean cosine there: " + "; ".join(
                    f"{LINES[name]} {number(value, signed=True, digits=3)}"
                    for name, value in at.items()
                ),
                partial(draw_by_layer, lines=lines, layer=layer),
                height=210.0, left=52.0,
            )
        )  # fmt: skip
    return Figure(tuple(panels), tuple(LINES.items()))


def draw_by_layer(axes: Axes, lines: dict[str, list[GradientRow]], layer: int) -> None:
    """Mean cosine after each block: own vectors, others', and the base's rows."""
    bare(axes, grid="y")
    axes.set_xlabel("layer (block, from 0)")
    axes.set_ylabel("cosine")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    zero(axes, vertical=False)
    axes.axvline(layer, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    for name in ("base", "control", "student"):
        own = lines[name]
        sets = grouped(own, lambda r: (r.teacher, r.trait, r.noise, r.seed, r.vector))
        for line in sets if name == "student" else []:
            axes.plot([r.layer for r in line], points(r.cosine for r in line),
                      color=PALETTE[name], linewidth=1, alpha=0.35)  # fmt: skip
        layers = sorted({r.layer for r in own})
        means = [mean_of(r.cosine for r in own if r.layer == at) for at in layers]
        axes.plot(layers, means, color=PALETTE[name], linewidth=2.5)


def _by_dose(rows: Sequence[GradientRow]) -> Figure:
    """The mean score of a row over its teacher's dose, where there are several."""
    panels: list[Panel] = []
    traits = list(dict.fromkeys(r.vector for r in rows))
    for layer in sorted({r.vector_layer for r in rows if r.vector_layer is not None}):
        at = [
            r for r in rows
            if r.layer == layer and known(r.dose) and known(r.nats)
            and (r.kind == "none" or (r.is_own and r.vector_layer == layer))
        ]  # fmt: skip
        if len({r.dose for r in at}) < 3:
            continue
        panels.append(
            make_panel(
                f"doses-{layer}", f"Steered after block {layer}",
                "; ".join(
                    f"dose {number(g[0].dose)}: {number(mean_of(r.nats for r in g))}"
                    for g in grouped(sorted(at, key=lambda r: r.dose or 0),
                                     lambda r: round(r.dose or 0, 6))
                ),
                partial(draw_by_dose, rows=at, traits=traits), height=220.0, left=52.0,
            )
        )  # fmt: skip
    return Figure(tuple(panels), _legend(traits))


def draw_by_dose(
    axes: Axes, rows: Sequence[GradientRow], traits: Sequence[str]
) -> None:
    """Mean nats a row by dose of its teacher, two standard errors each way."""
    bare(axes, grid="y")
    axes.set_xlabel("teacher's dose ‖αv‖ / ‖h‖")
    axes.set_ylabel("score, nats a row by dose")
    zero(axes, vertical=False)
    for place, trait in enumerate(traits):
        own = sorted((r for r in rows if r.vector == trait), key=lambda r: r.dose or 0)
        colour = PALETTE[series(place)]
        x, y = points(r.dose for r in own), points(r.nats for r in own)
        axes.plot(x, y, MARKS[place % 6], color=colour, markersize=8, linewidth=1.2,
                  linestyle="-", markeredgecolor=PAPER)  # fmt: skip
        for at, row in zip(x, own, strict=True):
            if row.nats is not None and row.nats_se is not None:
                ends = [row.nats - 2 * row.nats_se, row.nats + 2 * row.nats_se]
                axes.plot([at, at], ends, color=colour, linewidth=1.5, zorder=1.9)
    axes.tick_params(axis="x", colors=INK)
