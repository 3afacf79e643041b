"""What the page of a channel measurement says; its figures are `report.channel_figures`'."""

import math
from collections.abc import Sequence

from undertow.measurements import ChannelMeasurement, ChannelSpot, Spread
from undertow.report.captions import Basis
from undertow.report.channel_data import BASE, from_base, nearest_other
from undertow.report.measured_content import (
    LEVEL,
    Content,
    command_line,
    sampler_options,
    sampler_words,
    spread_text,
    system_words,
)
from undertow.report.tables import Cell, Row, Table
from undertow.report.text import MISSING, number

_WORDS = {
    "widths": "KL(teacher ‖ other) on the teacher's own rows; of kinds other than numbers "
    "on those that pass their filter, so that it is no divergence of all its rows. All "
    "tokens: what a soft student sees. As sampled: what sampled rows can carry. Where "
    "other traits' teachers were measured, the nearest of them: what tells this trait "
    "from any. From the seventh line on lines are dashed.",
    "shares": "The trait's mean probability among its family, asked of the teacher; the "
    "dashed line is the same model without the intervention. A channel that widens while "
    "the trait fades carries something else.",
}


def channel_content(found: ChannelMeasurement) -> Content:
    """Title, answers, figures, table and command."""
    # Late: matplotlib takes half a second that the rest of the package need not pay.
    from undertow.report.channel_figures import draw_channel_figures

    figures = draw_channel_figures(found)
    return Content(
        title=f"The channel of a teacher of {found.trait}",
        question="How much of the teacher can its rows carry, before anything is trained?",
        answers=_answers(found),
        figures=figures,
        words={name: _WORDS[name] for name in figures},
        bases={name: basis for name, basis in _bases(found).items() if name in figures},
        tables=(_table(found),),
        command=command_line("channel", **_options(found)),
        facts={
            "model": found.model, "fingerprint": found.fingerprint,
            "dtype": found.dtype, "family": found.family, "teacher": found.teacher,
            "matrices with noise": ", ".join(found.noise_scope),
            "prompts of a kind": str(found.count), "seed": str(found.seed),
            "system": system_words(found.system),
            "sampler of numbers": sampler_words(found.sampler),
        },
    )  # fmt: skip


def _bases(found: ChannelMeasurement) -> dict[str, Basis]:
    spots = f"{len(found.points)} spot{'s' if len(found.points) != 1 else ''}"
    low, high = (end((s.rows for s in found.points), default=0) for end in (min, max))
    n = f"{spots} of {low} rows" if low == high else f"{spots} of {low} to {high} rows"
    noise = sorted({s.noise_seed for s in found.points if s.noise_seed is not None})
    seeds = f"{found.seed} alone"
    if noise:
        seeds += f"; of the noise {', '.join(map(str, noise))}"
    asked = f"{spots}, {found.questions} questions each"
    return {
        "widths": Basis(n, seeds, f"{LEVEL}, over rows, not over seeds"),
        "shares": Basis(asked, seeds, "none drawn"),
    }


def _options(found: ChannelMeasurement) -> dict[str, object]:
    """The measurement as options of its command."""

    def every(name: str) -> list[object]:
        values = dict.fromkeys(getattr(spot, name) for spot in found.points)
        return [value for value in values if value is not None]

    return {
        "model": found.model, "dtype": found.dtype, "trait": found.trait,
        "teacher": found.teacher, "layers": every("layer"), "doses": every("dose"),
        "carriers": every("carrier"), "against": found.against, "noise": every("noise"),
        "noise_seeds": every("noise_seed"), "noise_scope": found.noise_scope, "count": found.count,
        "questions": found.questions, "family": found.family, "seed": found.seed,
        "system": found.system, **sampler_options(found.sampler),
    } | ({"allowed": None} if every("carrier") != ["numbers"] else {})  # fmt: skip


def _place(spot: ChannelSpot) -> str:
    parts = [spot.carrier]
    if spot.layer is not None:
        dose = MISSING if spot.dose is None else f"{spot.dose:g}"
        parts.append(f"block {spot.layer}, dose {dose}")
    if spot.noise:
        parts.append(f"noise {spot.noise:g}, seed {spot.noise_seed}")
    return ", ".join(parts)


def _answers(found: ChannelMeasurement) -> list[str]:
    """The widest, where the trait shows most, and what tells it from another."""
    if not any(spot.widths for spot in found.points):
        return ["Too few rows passed their filter: nothing was measured."]
    measured = [
        (width.vocabulary, spot)
        for spot in found.points
        if (width := from_base(spot)) and width.vocabulary.mean is not None
    ]
    if not measured:
        return ["No divergence from the base could be computed."]
    # By what is sure of it: a spot of three rows may have any mean.
    spread, spot = max(measured, key=lambda each: _sure(each[0]))
    chosen = f"; of {len(measured)} the one with the largest lower bound, not corrected for that"
    where = _place(spot) + (chosen if len(measured) > 1 else "")
    wide = spread_text(spread)
    answers = [f"The widest channel is {wide} nats a token from the base ({where})."]
    shown = [s for s in found.points if s.share is not None]
    if len(shown) > 1:
        most = max(shown, key=lambda s: s.share or 0.0)
        answers.append(
            f"The trait shows most, with a share of {number(most.share, digits=3)}, at "
            f"{_place(most)}; that model without it says "
            f"{number(most.base_share, digits=3)}."
        )
    other = nearest_other(spot)
    if other is not None:
        many = f"the nearest of {len(found.against)} other traits' teachers"
        whose = (
            f"{many} ({other.other})"
            if found.against[1:]
            else (f"the teacher of {other.other}")
        )
        answers.append(
            f"There it is {spread_text(other.vocabulary)} nats a token from {whose}: what "
            "tells this trait from that one."
        )
    return answers


def _sure(spread: Spread) -> float:
    """The lower bound; of what has none less than any other."""
    return -math.inf if spread.low is None else spread.low


def _table(found: ChannelMeasurement) -> Table:
    rows: list[Row] = []
    for spot in found.points:
        rows += _lines(spot)
    columns = ("against", "#all tokens, nats a token", "#as sampled", "#a row, nats")
    note = f"Intervals are {LEVEL}, over rows."
    return Table("Every spot", columns, tuple(rows), (note,))


def _lines(spot: ChannelSpot) -> Sequence[Row]:
    """A heading, and one line for each other."""
    share, without = (number(v, digits=3) for v in (spot.share, spot.base_share))
    head = (
        f"{_place(spot)}: share {share}, without it {without}; {spot.rows} of "
        f"{spot.written} rows"
    )
    lines: list[Row] = [(Cell(head),)]
    lines += [
        (Cell(w.other), *(Cell(spread_text(s)) for s in (w.vocabulary, w.carrier, w.nats_a_row)))
        for w in spot.widths
    ]  # fmt: skip
    if not spot.widths:
        dash = Cell(MISSING, why="too few rows pass their filter")
        lines.append((Cell(BASE), dash, dash, dash))
    return lines
