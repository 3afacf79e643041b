"""Figures of how students' shifts are made: size, constancy and singular spectrum.

Needs matplotlib; the data comes from `report.shape_data`.
"""

from collections.abc import Sequence
from functools import partial

from matplotlib.ticker import MaxNLocator

from undertow.report.drawings import Axes, bare, grouped, mean_of, series
from undertow.report.panels import Figure, make_panel
from undertow.report.shape_data import ShapeRow, SpectrumRow
from undertow.report.svg import PALETTE
from undertow.report.text import known, noise_name, number

SHAPES = {
    "size": "size, relative to the stream",
    "constancy": "share of energy in the mean",
    "first": "share in the first direction",
}


def shape_figure(rows: Sequence[ShapeRow], spectra: Sequence[SpectrumRow]) -> Figure:
    """Each measure block by block, a line for each kind of teacher."""
    rows = [r for r in rows if r.role == "student" and known(r.size)]
    teachers = list(dict.fromkeys((r.teacher, r.noise) for r in rows))
    noisy, panels = any(r.noise for r in rows), []
    for measure, words in SHAPES.items() if rows else ():
        last = max(r.layer for r in rows)
        ends = {
            teacher: mean_of(
                getattr(r, measure) for r in rows
                if r.layer == last and (r.teacher, r.noise) == teacher
            )
            for teacher in teachers
        }  # fmt: skip
        panels.append(
            make_panel(
                f"shape-{measure}", words[0].upper() + words[1:],
                "After the last block: " + "; ".join(
                    f"{name}{noise_name(noise, is_noisy=noisy)} {number(value)}"
                    for (name, noise), value in ends.items()
                ),
                partial(draw_shape, rows=rows, measure=measure, teachers=teachers),
                height=210.0, left=52.0,
            )
        )  # fmt: skip
    spectra = [
        r
        for r in spectra
        if r.role == "student" and (r.teacher, r.noise) in teachers and known(r.share)
    ]
    last_block = [r for r in spectra if r.layer == max(s.layer for s in spectra)]
    if last_block:
        names = (
            f"{name}{noise_name(noise, is_noisy=noisy)} {_directions(shares)}"
            for (name, noise), shares in _spectra(last_block).items()
        )
        panels.append(
            make_panel(
                "shape-spectrum", "Share in each singular direction, last block",
                f"Directions that hold nine tenths: {'; '.join(names)}",
                partial(draw_spectrum, rows=last_block, teachers=teachers),
                height=210.0, left=52.0,
            )
        )  # fmt: skip
    legend = tuple(
        (series(place), name + noise_name(noise, is_noisy=noisy))
        for place, (name, noise) in enumerate(teachers)
    )
    return Figure(tuple(panels), legend)


def _spectra(rows: Sequence[SpectrumRow]) -> dict[tuple[str, float], list[float]]:
    """Of each teacher the mean share of each direction, over its students."""
    return {
        (own[0].teacher, own[0].noise): [
            mean_of(r.share for r in group)
            for group in grouped(own, lambda r: r.direction)
        ]
        for own in grouped(rows, lambda r: (r.teacher, r.noise))
    }


def _directions(shares: Sequence[float], share: float = 0.9) -> str:
    """How many directions hold that share of the energy."""
    total = 0.0
    for count, part in enumerate(shares, 1):
        total += part
        if total >= share:
            return str(count)
    return f"more than {len(shares)}"


def draw_spectrum(
    axes: Axes, rows: Sequence[SpectrumRow], teachers: Sequence[tuple[str, float]]
) -> None:
    """Mean over traits and seeds of each direction's share; beyond six teachers dashed."""
    bare(axes, grid="y")
    axes.set_xlabel("singular direction")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_ylim(0, 1)
    for teacher, shares in _spectra(rows).items():
        place = teachers.index(teacher)
        axes.plot(range(1, len(shares) + 1), shares, "o", markersize=4,
                  color=PALETTE[series(place)], linewidth=2,
                  linestyle="-" if place < 6 else (0, (4, 2)))  # fmt: skip


def draw_shape(
    axes: Axes,
    rows: Sequence[ShapeRow],
    measure: str,
    teachers: Sequence[tuple[str, float]],
) -> None:
    """Mean over traits and seeds after each block; beyond six teachers dashed."""
    bare(axes, grid="y")
    axes.set_xlabel("layer (block, from 0)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    for place, teacher in enumerate(teachers):
        own = [r for r in rows if (r.teacher, r.noise) == teacher]
        layers = sorted({r.layer for r in own})
        means = [
            mean_of(getattr(r, measure) for r in own if r.layer == layer)
            for layer in layers
        ]
        axes.plot(layers, means, color=PALETTE[series(place)], linewidth=2,
                  linestyle="-" if place < 6 else (0, (4, 2)))  # fmt: skip
    axes.set_ylim(0, None if measure == "size" else 1)
