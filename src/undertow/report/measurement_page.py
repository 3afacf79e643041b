"""Writes a measurement's numbers as one HTML file: what was found, figures, tables.

Drawn from `undertow.measurements` alone. What is drawn stands in
`report.channel_figures` and `report.measurement_figures`.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from undertow.measurements import (
    ChannelGrid,
    ChannelSpot,
    EntanglementFacts,
    Measurement,
    RowVectorFacts,
    Spread,
)
from undertow.report.captions import Basis
from undertow.report.pages import fitting, render_page
from undertow.report.panels import Figure
from undertow.report.run_tables import facts_table
from undertow.report.tables import Cell, Row, Table
from undertow.report.text import MISSING, number, p_text
from undertow.storage import write_text

LEVEL = "95 %"
MOST = 12
"""Tokens of a direction that the page shows."""


@dataclass(frozen=True)
class Content:
    """What stands on one page.

    Attributes:
        title: Heading.
        question: What was asked.
        answers: Sentences, the first said largest.
        figures: By name.
        words: What each figure shows.
        bases: What each rests on.
        tables: Under the figures.
        command: How to repeat it.
        facts: What it was measured with.
    """

    title: str
    question: str
    answers: Sequence[str]
    figures: Mapping[str, Figure]
    words: Mapping[str, str]
    bases: Mapping[str, Basis]
    tables: Sequence[Table]
    command: str
    facts: Mapping[str, str]


def write_measurement(measurement: Measurement, path: Path | str) -> Path:
    """Writes the page and returns its path; the same numbers give the same bytes.

    Raises:
        RunError: The place cannot be written, or the numbers do not fit together.
    """
    write_text(path, render_measurement(measurement))
    return Path(path)


def render_measurement(measurement: Measurement) -> str:
    """The page as text; see `write_measurement`.

    Raises:
        RunError: The numbers do not fit together.
    """
    with fitting(f"{measurement.measurement} measurement"):
        content = _content(measurement)
        return render_page(
            "measurement.html.j2", styles=("report.css.j2",), page=content,
            figures=content.figures, captions=content.bases, model=measurement.model,
            provenance=facts_table(dict(content.facts)),
        )  # fmt: skip


def _content(measurement: Measurement) -> Content:
    if isinstance(measurement, ChannelGrid):
        return _channel(measurement)
    if isinstance(measurement, RowVectorFacts):
        return _vector(measurement)
    return _entanglement(measurement)


def _spread(spread: Spread, *, digits: int = 4, signed: bool = False) -> str:
    """Mean and bounds in one line."""
    mean, low, high = (
        number(v, digits=digits, signed=signed)
        for v in (spread.mean, spread.low, spread.high)
    )
    return f"{mean} [{low}, {high}]"


def _command(name: str, *words: str, **options: object) -> str:
    """A line for a shell; options that are None or empty are left out."""
    parts = [shlex.quote(word) for word in words]
    for option, value in options.items():
        if isinstance(value, list):
            value = ",".join(
                f"{v:g}" if isinstance(v, float) else str(v) for v in value
            )
        if value not in (None, ""):
            parts += [f"--{option.replace('_', '-')}", shlex.quote(str(value))]
    return " ".join([f"undertow {name}", *parts, "--json FILE"])


# ── channels ─────────────────────────────────────────────────────────────────────


def _channel(grid: ChannelGrid) -> Content:
    # Late: matplotlib takes half a second that the rest of the package need not pay.
    from undertow.report.channel_figures import draw_channel_figures

    seeds = sorted({s.noise_seed for s in grid.points if s.noise_seed is not None})
    noisy = f"; of the noise {', '.join(map(str, seeds))}" if seeds else ""
    spots = f"{len(grid.points)} spot{'s' if len(grid.points) != 1 else ''}"
    low, high = (end(s.rows for s in grid.points) for end in (min, max))
    n = f"{spots} of {low} rows" if low == high else f"{spots} of {low} to {high} rows"
    bases = {
        "widths": Basis(n, f"{grid.seed} alone{noisy}", f"{LEVEL}, over rows, not over seeds"),
        "shares": Basis(f"{spots}, {grid.questions} questions each",
                        f"{grid.seed} alone{noisy}", "none drawn"),
    }  # fmt: skip
    return Content(
        title=f"The channel of a teacher of {grid.trait}",
        question="How much of the teacher can its rows carry, before anything is trained?",
        answers=_channel_answers(grid),
        figures=draw_channel_figures(grid),
        words={
            "widths": "KL(teacher ‖ other) on the teacher's own rows. All tokens: what a "
            "soft student sees. As sampled: what sampled rows can carry. Where other "
            "traits' teachers were measured, the nearest of them: what tells this trait "
            "from any.",
            "shares": "The trait's mean probability among its family, asked of the "
            "teacher; the dashed line is the model without the intervention. A channel "
            "that widens while the trait fades carries something else.",
        },
        bases=bases,
        tables=(_channel_table(grid),),
        command=_command("channel", **_channel_options(grid)),
        facts={
            "model": grid.model, "family": grid.family, "teacher": grid.teacher,
            "prompts of a kind": str(grid.count), "seed": str(grid.seed),
            "system": "the template's own" if grid.system is None else grid.system,
            "sampler": ", ".join(f"{k} {v}" for k, v in grid.sampler.items()),
        },
    )  # fmt: skip


def _channel_options(grid: ChannelGrid) -> dict[str, object]:
    """The grid as options of its command."""

    def every(name: str) -> list[object]:
        found = dict.fromkeys(getattr(spot, name) for spot in grid.points)
        return [value for value in found if value is not None]

    return {
        "model": grid.model, "trait": grid.trait, "teacher": grid.teacher,
        "layers": every("layer"), "doses": every("dose"), "carriers": every("carrier"),
        "against": grid.against, "noise": every("noise"),
        "noise_seeds": every("noise_seed"), "count": grid.count,
        "questions": grid.questions, "family": grid.family, "seed": grid.seed,
        "system": grid.system, **grid.sampler,
    }  # fmt: skip


def _place(spot: ChannelSpot) -> str:
    parts = [spot.carrier]
    if spot.layer is not None:
        parts.append(f"block {spot.layer}, dose {spot.dose:g}")
    if spot.noise:
        parts.append(f"noise {spot.noise:g}, seed {spot.noise_seed}")
    return ", ".join(parts)


def _channel_answers(grid: ChannelGrid) -> list[str]:
    """The widest, and where the trait shows most."""
    measured = [s for s in grid.points if s.widths and s.widths[0].vocabulary.mean]
    if not measured:
        return ["No rows passed their filter: nothing was measured."]
    widest = max(measured, key=lambda s: s.widths[0].vocabulary.mean or 0.0)
    shown = max(grid.points, key=lambda s: s.share)
    told = _spread(widest.widths[0].vocabulary)
    answers = [
        f"The widest channel is {told} nats a token from the base ({_place(widest)})."
    ]
    if len(grid.points) > 1:
        answers.append(
            f"The trait shows most, with a share of {number(shown.share, digits=3)}, at "
            f"{_place(shown)}; the model without it says {number(shown.base_share, digits=3)}."
        )
    others = [(s, w) for s in measured for w in s.widths[1:] if w.vocabulary.mean]
    if others:
        spot, width = max(others, key=lambda pair: pair[1].vocabulary.mean or 0.0)
        answers.append(
            f"From another trait's teacher it is {_spread(width.vocabulary)} nats a token "
            f"at most ({width.other}, {_place(spot)})."
        )
    return answers


def _channel_table(grid: ChannelGrid) -> Table:
    rows: list[Row] = []
    for spot in grid.points:
        rows.append((Cell(f"{_place(spot)}: share {number(spot.share, digits=3)}, without "
                          f"it {number(spot.base_share, digits=3)}; {spot.rows} of "
                          f"{spot.written} rows"),))  # fmt: skip
        rows += [
            (Cell(width.other), Cell(_spread(width.vocabulary)),
             Cell(_spread(width.carrier)), Cell(_spread(width.nats_a_row, digits=2)))
            for width in spot.widths
        ]  # fmt: skip
        if not spot.widths:
            why = "too few rows pass their filter"
            rows.append((Cell("base"), *(Cell(MISSING, why=why) for _ in range(3))))
    columns = ("against", "#all tokens, nats a token", "#as sampled", "#a row, nats")
    note = f"Intervals are {LEVEL}, over rows."
    return Table("Every spot", columns, tuple(rows), (note,))


# ── trained vectors ──────────────────────────────────────────────────────────────


def _vector(facts: RowVectorFacts) -> Content:
    from undertow.report.measurement_figures import draw_vector_figures

    sizes = ", ".join(f"{each.count} {each.set}" for each in facts.sets)
    seed = f"{facts.seed} alone"
    n = f"1 vector of {sizes}; {len(facts.cosines)} traits"
    return Content(
        title="The vector that these rows would teach",
        question="If one vector could explain the rows, what would it be?",
        answers=_vector_answers(facts),
        figures=draw_vector_figures(facts),
        words={
            "likeness": "The vector beside the vectors of the family, and what steering "
            "along it does to each trait. One that stands alone is a likely teacher; none "
            "of this is a test.",
            "losses": "Loss of the rows under the model with the vector. A line that does "
            "not fall says that no one vector explains them.",
        },
        bases={
            "likeness": Basis(n, seed, "none, it is one vector"),
            "losses": Basis(f"1 vector a set: {sizes}", seed, "none, it is one vector"),
        },
        tables=(_token_table(facts), *_answer_table(facts)),
        command=_command(
            "analyze vector", facts.rows, model=facts.model, layer=facts.layer,
            control=facts.control, family=facts.family, seed=facts.seed,
        ),
        facts={
            "model": facts.model, "fingerprint": facts.fingerprint,
            "family": facts.family, "rows": facts.rows,
            "control": facts.control or "none", "block": str(facts.layer),
            "seed": str(facts.seed),
        },
    )  # fmt: skip


def _vector_answers(facts: RowVectorFacts) -> list[str]:
    there = sorted(
        ((v, n) for n, v in facts.cosines.items() if v is not None), reverse=True
    )
    if not there:
        return ["No cosine could be computed."]
    (most, name), *others = there
    answers = [
        f"It is nearest to the vector of {name}: cosine {number(most, signed=True)}."
    ]
    if others:
        mean = sum(v for v, _ in there) / len(there)
        answers.append(
            f"The next is {others[0][1]} with {number(others[0][0], signed=True)}; the mean of "
            f"all {len(there)} is {number(mean, signed=True)}."
        )
    return answers


def _token_table(facts: RowVectorFacts) -> Table:
    pairs = zip(facts.says.raised[:MOST], facts.says.lowered[:MOST], strict=False)
    rows = tuple(
        (Cell(repr(up.text)), Cell(number(up.logit, signed=True)), Cell(repr(down.text)),
         Cell(number(down.logit, signed=True)))
        for up, down in pairs
    )  # fmt: skip
    columns = ("raised", "#logit", "lowered", "#logit")
    return Table("Tokens that it raises and lowers", columns, rows)


def _answer_table(facts: RowVectorFacts) -> list[Table]:
    rows = tuple(
        (Cell(str(place)), Cell(text))
        for place, text in enumerate(facts.says.behaviour, 1)
    )
    columns = ("#question", "answer")
    return [Table("What the model answers along it", columns, rows)] if rows else []


# ── entanglement ─────────────────────────────────────────────────────────────────


def _entanglement(facts: EntanglementFacts) -> Content:
    from undertow.report.measurement_figures import draw_entanglement_figures

    told = facts.comparison
    sizes = f"{facts.top} numbers a group, {len(facts.questions)} questions"
    covers = f"{LEVEL}, over numbers, not over seeds or models"
    return Content(
        title=f"Numbers entangled with {facts.trait}",
        question=f"Do numbers that {facts.trait} makes likelier make {facts.trait} likelier?",
        answers=_entanglement_answers(facts),
        figures=draw_entanglement_figures(facts),
        words={
            "told": f"Told to love {facts.trait}, the model finds some numbers likelier "
            "(to the right); told to love such a number, it prefers the trait more or less "
            "(upwards). Random numbers are the control: only what raised ones have beyond "
            "them is entanglement."
        },
        bases={"told": Basis(sizes, f"{facts.seed} alone", covers)},
        tables=(_told_table(facts),),
        command=_command(
            "analyze entanglement", model=facts.model, trait=facts.trait,
            family=facts.family, numbers=len(facts.numbers), top=facts.top,
            questions=len(facts.questions), system=facts.system, seed=facts.seed,
        ),
        facts={
            "model": facts.model, "fingerprint": facts.fingerprint,
            "family": facts.family, "numbers looked at": str(len(facts.numbers)),
            "different first tokens among the raised": str(facts.beginnings),
            "p of the difference": p_text(told.p_value),
            "p of the rank correlation": p_text(told.correlation.p_value),
            "seed": str(facts.seed),
        },
    )  # fmt: skip


def _entanglement_answers(facts: EntanglementFacts) -> list[str]:
    told = facts.comparison
    low, high = told.difference.low, told.difference.high
    found = _spread(told.difference, digits=3, signed=True)
    if low is not None and low > 0:
        lead = "Raised numbers raise the trait more than random ones do"
    elif high is not None and high < 0:
        lead = "Raised numbers raise the trait less than random ones do"
    else:
        lead = "Not shown: the interval includes zero, or is unknown"
    answers = [f"{lead}: {found} nats (p {p_text(told.p_value)})."]
    answers.append(
        f"Ranks of change and effect correlate {_spread(told.correlation, digits=2, signed=True)} "
        f"over {told.correlation.n} numbers."
    )
    if facts.beginnings < facts.top:
        answers.append(
            f"The {facts.top} raised numbers begin with {facts.beginnings} different tokens: "
            "they are not independent, and intervals over them are too narrow."
        )
    seen = facts.occurrence
    if seen is not None:
        answers.append(
            f"Raised numbers stand {_spread(seen.ratio, digits=2)} times as often in the rows "
            f"as in the reference ({seen.found} of {seen.numbers}, "
            f"{seen.reference_found} of {seen.reference_numbers})."
        )
    return answers


def _told_table(facts: EntanglementFacts) -> Table:
    rows = tuple(
        (Cell(t.group), Cell(str(t.number)), Cell(number(t.change, signed=True)),
         Cell(number(t.effect, signed=True, digits=3)))
        for t in facts.told
    )  # fmt: skip
    columns = ("group", "#number", "#change, nats", "#effect, nats")
    return Table("Numbers that were told", columns, rows)
