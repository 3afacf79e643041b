"""The tables of what stands behind a transfer: channels, and gradients of rows.

A channel is KL(teacher ‖ base) on the teacher's rows, measured before students were
trained; gradients are those of rows on the plain base, held against the traits'
vectors. Knows nothing of drawing.
"""

from typing import Literal

from undertow.report.tables import Cell, Table, estimate_cell
from undertow.report.text import estimate_text, known, level_text, noise_name, p_text
from undertow.results import Prediction, Results

SCOPES = {"vocabulary": "over all tokens", "carrier": "as sampled"}
MEASURES = {
    "transfer": "transfer: student − control, nats",
    "from_base": "student − base, nats",
    "shift_size": "size of the student's shift",
    "shift_cosine": "cos(student's shift, vector)",
}
Scope = Literal["vocabulary", "carrier"]


def scope_of(student: str) -> Scope:
    """Which channel a kind of student learns through."""
    return "vocabulary" if student == "soft" else "carrier"


def ways_of(results: Results) -> list[tuple[str, str]]:
    """(kind, way) of students, in the order of the grid."""
    return list(dict.fromkeys((t.student, t.way) for t in results.transfers))


def way_words(student: str, way: str) -> str:
    """How students were trained: their kind, and what was otherwise."""
    return f"{student}, {way}" if way else student


def channel_table(results: Results) -> Table:
    """The channel of each cell beside its transfer."""
    rows = [
        (
            Cell(t.trait, f"{t.teacher}, noise {t.noise:g}"),
            estimate_cell(t.channel.vocabulary, signed=False, least=3),
            estimate_cell(t.channel.carrier, signed=False, least=3),
            estimate_cell(t.channel.nats_a_row, signed=False),
            estimate_cell(t.transfer),
        )
        for t in results.transfers
        if t.channel is not None
    ]
    note = (
        "KL(teacher ‖ base) on the teacher's own rows, nats a token: over all tokens, "
        "which is what a soft student sees, and over what the sampler may draw, which is "
        "all that sampled rows can carry. Brackets: "
        f"{level_text(results.confidence)} intervals, over seeds, or over rows where "
        "there is one seed."
    )
    columns = ("trait", "#all tokens", "#as sampled", "#nats a row", "#transfer, nats")
    return Table("Channel by teacher, noise and trait", columns, tuple(rows), (note,))


def prediction_table(results: Results) -> Table:
    """Whether wider channels went with more transfer."""
    is_mixed = len(ways_of(results)) > 1
    rows = [
        (
            Cell(MEASURES[found.of], _which(found, is_mixed=is_mixed)),
            estimate_cell(found.correlation),
            Cell(str(found.correlation.n)),
            Cell(p_text(found.p_value)),
        )
        for found in results.predictions
    ]
    note = (
        "Spearman's rank correlation over the cells of the grid. Cells share their base, "
        "and some their trait or control, so the interval, which takes them for "
        "independent, is narrower than it should be; p is not corrected for the number of "
        "lines. p: share of orders with at least "
        "this correlation, the true one included."
    )
    columns = ("of the channel with", "#ρ", "#cells", "#p")
    return Table("What the channel foretold", columns, tuple(rows), (note,))


def _which(found: Prediction, *, is_mixed: bool) -> str:
    students = f"; students: {way_words(found.student, found.way)}" if is_mixed else ""
    return f"channel {SCOPES[found.scope]}{students}"


def cause_table(results: Results) -> Table:
    """What each student's mean shift does when it is added, and when it is taken."""
    rows = [
        (
            Cell(c.trait, f"{c.teacher}, noise {c.noise:g}, seed {c.seed}"),
            Cell(str(c.causes.layer)),
            estimate_cell(c.causes.whole),
            estimate_cell(c.causes.sufficient),
            estimate_cell(c.causes.necessary),
        )
        for c in results.conditions
        if c.causes is not None
    ]
    note = (
        "The student's mean shift over completion tokens, after one block. Sufficient: "
        "how far the base moves when the shift is added to it at every token. Necessary: "
        "how far the student falls back when it is taken away. Both are to be held "
        f"against student − base. Brackets: {level_text(results.confidence)} intervals "
        "over questions."
    )
    columns = ("trait", "#block", "#student − base", "#base + shift − base",
               "#student − (student − shift)")  # fmt: skip
    return Table("What the shift does, nats", columns, tuple(rows), (note,))


def prediction_words(found: Prediction) -> str:
    """A correlation in words."""
    if not known(found.correlation.mean):
        return "no correlation could be computed"
    rho = estimate_text(found.correlation)
    return f"ρ = {rho} over {found.correlation.n} cells, p {p_text(found.p_value)}"


def gradient_table(results: Results) -> Table:
    """Own vectors against others', and the line over doses, at each block."""
    noisy = any(fit.noise for fit in results.alignment_fits)
    rows = [
        (
            Cell(f"block {fit.layer}", noise_name(fit.noise, is_noisy=noisy).lstrip(", ")),
            estimate_cell(fit.own, least=3),
            estimate_cell(fit.other, least=3),
            estimate_cell(fit.difference, least=3, absent="there is one vector only"),
            estimate_cell(fit.unsteered, least=3, absent="every teacher was steered"),
            estimate_cell(fit.untouched, least=3),
            estimate_cell(fit.correlation),
            estimate_cell(fit.slope),
            estimate_cell(fit.curvature),
        )
        for fit in results.alignment_fits
    ]  # fmt: skip
    note = (
        "cos(mean gradient, vector): of rows that were steered at this block, with "
        "their own trait's vector and with the others'; of rows whose teacher had the "
        "trait by other means, with that trait's; of the base's own rows, with all. r "
        "and slope: of the mean score of a row (nats by relative dose) over the dose of "
        "its teacher, the base's rows at dose 0, fitted for each trait by itself (four "
        "sets or more); bend: the square's factor if a parabola is fitted instead. "
        f"Brackets: {level_text(results.confidence)} intervals, over traits or vectors."
    )
    columns = ("block", "#own vector", "#others'", "#difference", "#unsteered", "#base", "#r over doses",
               "#slope", "#bend")  # fmt: skip
    return Table("Gradients against vectors", columns, tuple(rows), (note,))
