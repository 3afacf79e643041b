"""Draws every figure of a report as small SVG panels, made for the width of a phone.

Needs matplotlib; the data comes from `report.figure_data`, the parts from
`report.panels`, the colours from the page's style sheet.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from undertow.report.drawings import (
    breadth,
    draw_confusion,
    draw_dose,
    draw_readouts,
    draw_shift,
    draw_sweep,
    draw_training,
    draw_traits,
    draw_transfer,
    fit,
    grouped,
    limits,
    mean_of,
    series,
)
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
from undertow.report.inner_figures import draw_inner_figures
from undertow.report.panels import WIDTH, Figure, make_panel
from undertow.report.panels import Panel as Panel
from undertow.report.svg import ROLES
from undertow.report.text import (
    cell_name,
    interval_text,
    known,
    level_text,
    mean_text,
    noise_name,
    number,
    teacher_name,
)
from undertow.results import Results


def _cell(row: Any) -> tuple[str, float, str]:
    return row.teacher, row.noise, row.trait


def draw_figures(results: Results) -> dict[str, Figure]:
    """Draws all figures that have something to show, by name."""
    level = level_text(results.confidence)
    figures = {
        "transfer": _transfer(transfer_rows(results), level),
        "readouts": _readouts(readout_rows(results)),
        "shift": _shift(shift_rows(results)),
        "traits": _traits(trait_rows(results)),
        "confusion": _confusion(lift_rows(results)),
        "dose": _dose(transfer_rows(results), level),
        "sweeps": _sweeps(sweep_rows(results)),
        "training": _training(loss_rows(results)),
        **draw_inner_figures(results),
    }
    return {name: figure for name, figure in figures.items() if figure.panels}


def _transfer(rows: Sequence[TransferRow], level: str) -> Figure:
    if not any(known(r.mean) for r in rows):
        return Figure(())
    ends = limits([v for r in rows for v in (r.mean, r.low, r.high)])
    panels, noisy = [], any(r.noise for r in rows)
    for place, group in enumerate(grouped(rows, lambda r: r.teacher)):
        draw = partial(draw_transfer, rows=group, ends=ends, noisy=noisy)
        panels.append(
            make_panel(
                f"transfer-{place}",
                f"Teacher: {group[0].teacher}",
                "; ".join(_transfer_words(r, level) for r in group),
                draw,
                height=44.0 + 44 * len(group),
                left=4.0,
                right=4.0,
                top=2.0,
            )
        )
    return Figure(tuple(panels), (("student", "interval excludes zero"),
                                  ("control", "includes zero, or no interval")))  # fmt: skip


def _transfer_words(row: TransferRow, level: str) -> str:
    name, mean = f"{row.trait} at noise {row.noise:g}", mean_text(row.transfer)
    if not known(row.mean):
        return f"{name}: not computed"
    if not (known(row.low) and known(row.high)):
        return f"{name}: {mean} nats, no interval"
    return f"{name}: {mean} nats, {level} interval {interval_text(row.transfer)}"


def _readouts(rows: Sequence[ReadoutRow]) -> Figure:
    rows = [r for r in rows if r.measure == "preference" and known(r.mean)]
    panels, noisy = [], any(r.noise for r in rows)
    for place, group in enumerate(grouped(rows, _cell)):
        ends = limits([v for r in group for v in (r.mean, r.low, r.high)], include=None)
        draw = partial(draw_readouts, rows=group, ends=ends)
        roles = grouped(group, lambda r: r.role)
        words = (f"{g[0].role} {number(mean_of(r.mean for r in g))}" for g in roles)
        panels.append(
            make_panel(
                f"readouts-{place}",
                cell_name(*_cell(group[0]), is_noisy=noisy),
                f"Mean preference in nats: {', '.join(words)}",
                draw,
                height=48.0 + 30 * len(ROLES),
                left=62.0,
                top=4.0,
            )
        )
    return Figure(tuple(panels))


def _shift(rows: Sequence[ShiftRow]) -> Figure:
    rows = [r for r in rows if known(r.cosine)]
    ends = limits([r.cosine for r in rows])
    panels, noisy = [], any(r.noise for r in rows)
    for place, group in enumerate(grouped(rows, _cell)):
        draw = partial(draw_shift, rows=group, ends=ends)
        at = [r for r in group if r.layer == r.vector_layer]
        words = (
            f"{role} {number(mean_of(r.cosine for r in at if r.role == role))}"
            for role in ("student", "control")
        )
        panels.append(
            make_panel(
                f"shift-{place}",
                cell_name(*_cell(group[0]), is_noisy=noisy),
                f"Mean cosine at the vector's layer: {', '.join(words)}",
                draw,
                height=210.0,
            )
        )
    return Figure(tuple(panels), (("student", "student"), ("control", "control")))


def _traits(rows: Sequence[TraitRow]) -> Figure:
    rows = [r for r in rows if known(r.change)]
    ends = limits([r.change for r in rows])
    panels, noisy = [], any(r.noise for r in rows)
    for place, group in enumerate(grouped(rows, _cell)):
        traits = grouped(group, lambda r: r.measured)
        traits.sort(key=lambda g: -mean_of(r.change for r in g))
        draw = partial(draw_traits, traits=traits, ends=ends)
        ranks = [n for n, g in enumerate(traits, 1) if g[0].is_own]
        rank = f"; its own trait ranks {ranks[0]} of {len(traits)}" if ranks else ""
        top = traits[0]
        words = (
            f"{top[0].measured} {number(mean_of(r.change for r in top), signed=True)}"
        )
        longest = max(breadth(fit(g[0].measured, 14)) for g in traits)
        panels.append(
            make_panel(
                f"traits-{place}",
                cell_name(*_cell(group[0]), is_noisy=noisy),
                f"Largest mean change in nats: {words}{rank}",
                draw,
                height=48.0 + 15 * len(traits),
                left=12 + longest,
                top=4.0,
            )
        )
    legend = (("student", "the teacher's own trait"), ("control", "other traits"))
    return Figure(tuple(panels), legend)


def _confusion(rows: Sequence[LiftRow]) -> Figure:
    if not any(known(r.lift) for r in rows):
        return Figure(())
    strongest = max(
        (abs(r.lift) for r in rows if r.lift and known(r.lift)), default=0.0
    )
    panels, noisy = [], any(r.noise for r in rows)
    for place, group in enumerate(grouped(rows, lambda r: (r.teacher, r.noise))):
        traits = list(dict.fromkeys(r.student_of for r in group))
        longest = max(breadth(fit(name, 12)) for name in traits)
        left, right = 30 + longest, 6 + 0.7 * breadth(fit(traits[-1], 12))
        # The last name leans over half a cell of its own.
        cell = min(46.0, (WIDTH - left - right) / (len(traits) - 0.5))
        inner = cell * len(traits)
        top = 24 + 0.75 * longest
        draw = partial(draw_confusion, rows=group, strongest=strongest, cell=cell)
        words = "; ".join(
            f"student of {r.student_of} on {r.measured} {number(r.lift, signed=True)}"
            for r in group
        )
        panels.append(
            make_panel(
                f"confusion-{place}",
                teacher_name(group[0].teacher, group[0].noise, is_noisy=noisy),
                f"Lift in nats: {words}",
                draw,
                height=inner + top + 6,
                left=left,
                right=WIDTH - left - inner,
                top=top,
                bottom=6.0,
            )
        )
    return Figure(tuple(panels), (("more", "more than the control"),
                                  ("less", "less than the control")))  # fmt: skip


def _dose(rows: Sequence[TransferRow], level: str) -> Figure:
    rows = [r for r in rows if known(r.mean)]
    if len({r.noise for r in rows}) < 2:
        return Figure(())
    ends = limits([v for r in rows for v in (r.mean, r.low, r.high)])
    traits = list(dict.fromkeys(r.trait for r in rows))
    panels = []
    for place, group in enumerate(grouped(rows, lambda r: r.teacher)):
        draw = partial(draw_dose, rows=group, traits=traits, ends=ends)
        panels.append(
            make_panel(
                f"dose-{place}",
                f"Teacher: {group[0].teacher}",
                "; ".join(_transfer_words(r, level) for r in group),
                draw,
                height=220.0,
                left=56.0,
            )
        )
    legend = tuple((series(place), trait) for place, trait in enumerate(traits))
    return Figure(tuple(panels), legend)


def _sweep_name(row: SweepRow) -> str:
    noise = noise_name(row.noise or 0.0, is_noisy=False)
    seed = "" if row.seed is None else f", seed {row.seed}"
    return f"{row.trait}{noise}{seed}"


def _sweeps(rows: Sequence[SweepRow]) -> Figure:
    rows = [r for r in rows if known(r.dose) and known(r.share)]
    layers = sorted({r.layer for r in rows if r.layer is not None})
    panels = []
    for group in grouped(rows, lambda r: r.sweep):
        draw = partial(draw_sweep, rows=group, layers=layers)
        chosen = [r for r in group if r.is_chosen]
        words = "no point is marked as chosen"
        if chosen:
            words = (
                f"chosen: layer {number(chosen[0].layer, digits=0)}, dose "
                f"{number(chosen[0].dose)}, trait's share {number(chosen[0].share)}"
            )
        refused = sum(not r.is_allowed for r in group)
        panels.append(
            make_panel(
                f"sweep-{group[0].sweep}",
                _sweep_name(group[0]),
                f"{len(group)} points, {refused} refused by the gate; {words}",
                draw,
                height=210.0,
                left=56.0,
            )
        )
    legend = [(series(n), f"layer {layer:g}") for n, layer in enumerate(layers)]
    return Figure(tuple(panels), tuple(legend))


def _training(rows: Sequence[LossRow]) -> Figure:
    rows = [r for r in rows if known(r.loss)]
    ends = limits([r.loss for r in rows], include=None)
    panels, noisy = [], any(r.noise for r in rows)
    for place, group in enumerate(grouped(rows, _cell)):
        draw = partial(draw_training, rows=group, ends=ends)
        last = (
            f"{role} {number(mean_of(g[-1].loss for g in runs))}"
            for role in ("student", "control")
            if (runs := grouped((r for r in group if r.role == role), lambda r: r.seed))
        )
        panels.append(
            make_panel(
                f"training-{place}",
                cell_name(*_cell(group[0]), is_noisy=noisy),
                f"Mean loss at the last update: {', '.join(last)}",
                draw,
                height=200.0,
                left=56.0,
            )
        )
    return Figure(tuple(panels), (("student", "student"), ("control", "control")))
