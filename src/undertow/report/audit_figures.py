"""Draws every figure of an audit as small SVG panels, made for the width of a phone.

Needs matplotlib; the data comes from `report.audit_data`, the parts from
`report.panels`, the colours from the page's style sheet.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby

from undertow.findings import Findings, MaxNull, Number
from undertow.report.audit_data import (
    BaselineRow,
    BatteryRow,
    HypothesisRow,
    PowerRow,
    baseline_rows,
    battery_rows,
    best_doses,
    hypothesis_rows,
    line_names,
    ordered_directions,
    peak,
    power_rows,
)
from undertow.report.audit_drawings import (
    LINE,
    NAME,
    Bar,
    HeatLine,
    draw_bars,
    draw_behind,
    draw_heat,
    draw_nats,
    draw_null,
    draw_power,
    told_apart,
)
from undertow.report.audit_words import POWER, ROLES
from undertow.report.drawings import Axes, breadth, draw_traits, fit, limits
from undertow.report.figure_data import TraitRow
from undertow.report.panels import Figure, Panel, make_panel
from undertow.report.text import known, number, share_text

MOST_LINES = 60
"""Lines of one panel; further ones stand in the table and in the CSV file."""
FULL_SHADE = 6.0
"""The z below which the heat map has no full shade, so that chance looks pale."""
SEPARATES = 0.6
"""AUROC from which a shortcut is said to tell the sets apart."""


def draw_audit_figures(findings: Findings) -> dict[str, Figure]:
    """Draws all figures that have something to show, by name."""
    figures = {
        "directions": _directions(findings),
        "hypotheses": _hypotheses(best_doses(hypothesis_rows(findings))),
        "explanation": _explanation(findings),
        "null": _null(findings),
        "power": _power(findings),
        "baselines": _baselines(baseline_rows(findings)),
        "battery": _battery(battery_rows(findings), findings.trait),
    }
    return {name: figure for name, figure in figures.items() if figure.panels}


# ── directions ───────────────────────────────────────────────────────────────────


def _directions(findings: Findings) -> Figure:
    heat = _heat(findings)
    legend = (
        ("more", "more like it than the reference"),
        ("less", "less like it"),
        ("student", f"dot: max-T p ≤ {findings.alpha:g}"),
    )
    return Figure(() if heat is None else (heat,), legend)


def _heat(findings: Findings) -> Panel | None:
    lines = _heat_lines(findings)
    sizes = [
        abs(v) for line in lines for v in line.values if v is not None and known(v)
    ]
    if not sizes:
        return None
    strongest = max(*sizes, FULL_SHADE)
    longest = max(
        breadth(fit(line.name, NAME)) for line in lines if not line.is_heading
    )
    said = (_heat_words(findings, lines), _significance_words(findings, lines))
    return make_panel(
        "directions-z",
        "Studentised difference z",
        ". ".join(said),
        partial(draw_heat, lines=lines, layers=findings.layers, strongest=strongest),
        height=78.0 + LINE * len(lines),
        left=8 + 0.9 * longest,
        right=18.0,
        top=38.0,
        bottom=40.0,
    )


def _heat_lines(findings: Findings) -> list[HeatLine]:
    """Headings and directions, each with as many values as there are layers."""
    lines: list[HeatLine] = []
    directions = ordered_directions(findings)
    several = len({d.role for d in directions}) > 1
    size = len(findings.layers)
    for role, group in groupby(directions, key=lambda d: d.role):
        if several:
            lines.append(HeatLine(ROLES[role], is_heading=True))
        for d in group:
            p = d.adjusted_p
            lines.append(
                HeatLine(
                    d.name,
                    (*d.z, *([None] * size))[:size],
                    is_significant=p is not None and p <= findings.alpha,
                    is_named=d.name == findings.trait,
                )
            )  # fmt: skip
    return lines


def _heat_words(findings: Findings, lines: Sequence[HeatLine]) -> str:
    tops = []
    for line in lines:
        at = peak(line.values)
        value = None if at is None else line.values[at]
        if at is not None and value is not None:
            tops.append((-abs(value), line.name, findings.layers[at], value))
    said = "; ".join(
        f"{name} {number(value, signed=True)} at layer {layer}"
        for _, name, layer, value in sorted(tops)[:5]
    )
    return f"Largest: {said}"


def _significance_words(findings: Findings, lines: Sequence[HeatLine]) -> str:
    names = [line.name for line in lines if line.is_significant]
    count = sum(not line.is_heading for line in lines)
    said = f": {', '.join(names)}" if 0 < len(names) <= 20 else ""
    return (
        f"Of {count} directions, {len(names)} with a max-T p of at most "
        f"{findings.alpha:g}{said}"
    )


# ── hypotheses ───────────────────────────────────────────────────────────────────


def _hypotheses(rows: Sequence[HypothesisRow]) -> Figure:
    rows = [r for r in rows if known(r.nats_per_row)]
    if not rows:
        return Figure(())
    nats = limits([v for r in rows for v in (r.nats_per_row, r.reference_nats_per_row)])
    behind = limits([v for r in rows for v in (r.behind, r.behind_low, r.behind_high)])
    panels = []
    for kind, name in (("prompt", "Trait prompts"), ("steer", "Steering vectors")):
        own = [r for r in rows if r.kind == kind][:MOST_LINES]
        if not own:
            continue
        draw = partial(draw_nats, rows=own, names=line_names(own), ends=nats)
        panels.append(
            _lines(f"nats-{kind}", f"{name}: nats a row", _nats_words(own), draw, own)
        )
        if any(known(r.behind) for r in own):
            draw = partial(draw_behind, rows=own, names=line_names(own), ends=behind)
            title = f"{name}: behind the leader"
            panels.append(
                _lines(f"behind-{kind}", title, _behind_words(own), draw, own)
            )
    legend = (
        ("student", "audited rows"),
        ("control", "reference rows"),
        ("ink", "behind the leader, told apart from it"),
        ("series-2", "not told apart"),
    )
    return Figure(tuple(panels), legend)


def _lines(
    key: str, title: str, words: str, draw: partial[None], rows: Sequence[HypothesisRow]
) -> Panel:
    longest = max(breadth(fit(name, 18)) for name in line_names(rows))
    return make_panel(
        key,
        title,
        words,
        draw,
        height=46.0 + LINE * max(2, len(rows)),
        left=10 + longest,
        right=48.0,
        top=4.0,
        bottom=42.0,
    )


def _nats_words(rows: Sequence[HypothesisRow]) -> str:
    return "; ".join(
        f"{name} {number(r.nats_per_row, signed=True)} on audited rows, "
        f"{number(r.reference_nats_per_row, signed=True)} on the reference"
        for name, r in zip(line_names(rows), rows, strict=True)
    )


def _behind_words(rows: Sequence[HypothesisRow]) -> str:
    far = sum(told_apart(r) for r in rows)
    close = [r.name for r in rows if known(r.behind) and not told_apart(r)]
    return f"{far} hypotheses are told apart from the leader, {len(close)} are not" + (
        f": {', '.join(close)}" if close else ""
    )


# ── null, power ──────────────────────────────────────────────────────────────────


def _null(findings: Findings) -> Figure:
    return _chance(
        "null", "Largest statistic under shuffled labels", findings.max_null,
        findings.alpha,
    )  # fmt: skip


def _explanation(findings: Findings) -> Figure:
    told = findings.explanation
    return _chance(
        "explanation", "Largest difference of gradients from the mixture's rows",
        told.gradient_null if told else None, (told.limit if told else None) or 0.0,
    )  # fmt: skip


def _chance(key: str, title: str, found: MaxNull | None, alpha: float) -> Figure:
    """What is observed beside what shuffled labels give."""
    draws = [d for d in found.draws if known(d)] if found else []
    if found is None or not draws:
        return Figure(())
    limit = _quantile(draws, alpha)
    words = (
        f"{found.permutations:,} permutations, largest statistics from "
        f"{number(min(draws))} to {number(max(draws))}; observed {number(found.observed)}"
    )
    if known(limit):
        words += f"; a share of {alpha:g} lies above {number(limit)}"
    draw = partial(draw_null, draws=draws, observed=found.observed, limit=limit)
    panel = make_panel(key, title, words, draw, height=222.0, left=56.0, top=26.0)
    legend = (
        ("control", "labels shuffled"),
        ("student", "observed"),
        ("ink", f"dashed: exceeded by {share_text(alpha)} of shuffles"),
    )
    return Figure((panel,), legend)


def _quantile(draws: Sequence[float], alpha: float) -> Number:
    """The draw that a share alpha of them exceeds; None if they are too few for it."""
    above = math.floor(alpha * len(draws))
    return sorted(draws)[-above - 1] if above >= 1 else None


def _power(findings: Findings) -> Figure:
    rows = [r for r in power_rows(findings) if known(r.power) and (r.fraction or 0) > 0]
    if len(rows) < 2:
        return Figure(())
    detectable = findings.detectable_fraction
    draw = partial(draw_power, rows=rows, detectable=detectable, level=POWER)
    said = "; ".join(_power_words(r) for r in rows)
    panel = make_panel(
        "power", "Power of this audit", said, draw, height=230.0, left=48.0, right=14.0
    )
    legend = [("student", "this audit")]
    if any(known(r.bound) for r in rows):
        legend.append(("teacher", "dashed: no test could do better"))
    if known(detectable):
        legend.append(("ink", f"found from {share_text(detectable)} on"))
    return Figure((panel,), tuple(legend))


def _power_words(row: PowerRow) -> str:
    bound = f", bound {number(row.bound)}" if known(row.bound) else ""
    return f"{share_text(row.fraction)} biased: power {number(row.power)}{bound}"


# ── baselines, battery ───────────────────────────────────────────────────────────


def _baselines(rows: Sequence[BaselineRow]) -> Figure:
    rows = [r for r in rows if known(r.auroc)]
    if not rows:
        return Figure(())
    bars = [
        Bar(r.name, r.auroc, r.low, r.high, number(r.auroc),
            "less" if r.separates else "control")
        for r in rows
    ]  # fmt: skip
    values = [v for r in rows for v in (r.auroc, r.low, r.high)]
    ends = limits([*values, SEPARATES], include=0.5)
    label = "AUROC, audited against reference"
    draw = partial(draw_bars, bars=bars, ends=ends, label=label, lines=(0.5, SEPARATES))
    words = "; ".join(f"{r.name} {number(r.auroc)}" for r in rows)
    panel = make_panel(
        "baselines", "AUROC of each shortcut", f"AUROC: {words}", draw,
        height=44.0 + 38 * len(rows), left=4.0, right=4.0, top=2.0,
    )  # fmt: skip
    legend = (
        ("less", f"separates: lower bound {SEPARATES} or more"),
        ("control", "does not"),
    )
    return Figure((panel,), legend)


def _battery(rows: Sequence[BatteryRow], trait: str | None) -> Figure:
    rows = [r for r in rows if known(r.change)][:MOST_LINES]
    if not rows:
        return Figure(())
    named = trait if trait in {r.trait for r in rows} else rows[0].trait
    lines = [
        [TraitRow("", 0.0, named, 0, r.trait, r.trait == named, r.change)] for r in rows
    ]
    ends = limits([r.change for r in rows])

    def draw(axes: Axes) -> None:
        draw_traits(axes, lines, ends)
        axes.set_xlabel("change of log-odds, nats")

    longest = max(breadth(fit(r.trait, 14)) for r in rows)
    words = "; ".join(f"{r.trait} {number(r.change, signed=True)}" for r in rows[:5])
    panel = make_panel(
        "battery", "Every trait, steered along it", f"Most raised, in nats: {words}",
        draw, height=48.0 + 15 * len(rows), left=12 + longest, top=4.0,
    )  # fmt: skip
    told = "the trait of the verdict" if named == trait else "most raised"
    return Figure((panel,), (("student", told), ("control", "other traits")))
