"""The tables of what a run measured, as values that a template can lay out.

Beside every dash stands why there is no number. Knows nothing of HTML; the tables of
how the run was made are in `report.run_tables`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from undertow.report.figure_data import is_unbounded
from undertow.report.text import (
    MISSING,
    cell_name,
    interval_text,
    level_text,
    mean_text,
    noise_name,
    number,
)
from undertow.report.verdicts import NOT_SHOWN, verdict
from undertow.results import Condition, Estimate, Number, Readout, Results, Sweep
from undertow.stats import Interval, mean_interval, two_way_interval


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a quieter second line, a mark, why it is a dash, a link.

    A link is a place beside the page; who fills it in answers for where it leads.
    """

    text: str
    below: str = ""
    mark: str = ""
    why: str = ""
    href: str = ""


Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Columns (those that start with `#` hold numbers), rows of cells, notes.

    A row of one cell is the heading of those below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, and an explanation of every dash in the table."""
        reasons = dict.fromkeys(c.why for row in self.rows for c in row if c.why)
        if not reasons:
            return self.notes
        numbers = any(column.startswith("#") for column in self.columns)
        never = " It never means zero." if numbers else ""
        return (*self.notes, f"{MISSING} means: {'; '.join(reasons)}.{never}")


def value_cell(
    value: Number, *, digits: int = 2, why: str = "could not be computed"
) -> Cell:
    """A number, or a dash with its reason."""
    text = number(value, digits=digits)
    return Cell(text, why=why if text == MISSING else "")


def estimate_cell(
    estimate: Estimate | None,
    *,
    absent: str = "was not measured",
    signed: bool = True,
    least: int = 2,
) -> Cell:
    """Mean over interval, with the reason for what is missing."""
    if estimate is None:
        return Cell(MISSING, why=absent)
    mean = mean_text(estimate, signed=signed, least=least)
    if mean == MISSING:
        return Cell(MISSING, why="could not be computed")
    bounds = interval_text(estimate, signed=signed, least=least)
    few = estimate.n < 2
    why = "an interval needs two clusters" if few else "no interval could be computed"
    return Cell(mean, bounds, why=why if bounds == MISSING else "")


def _clusters(estimate: Estimate) -> Cell:
    return Cell(str(estimate.n), estimate.clusters)


_MARKS = {"travelled": "yes", "moved the other way": "against"}


def transfer_table(results: Results) -> Table:
    """The table of the answer: one row for each teacher × noise × trait."""
    absent = "there is no vector to compare with"
    rows = []
    for item in results.transfers:
        outcome = verdict(item.transfer)
        rows.append((
            Cell(item.trait, f"{item.teacher}, noise {item.noise:g}"),
            Cell(outcome, mark=_MARKS.get(outcome, "no")),
            estimate_cell(item.transfer),
            estimate_cell(item.from_base),
            estimate_cell(item.specific),
            _clusters(item.transfer),
            estimate_cell(item.shift_cosine, absent=absent),
            estimate_cell(item.control_cosine, absent=absent),
        ))  # fmt: skip
    note = (
        "Transfer: preference of the student minus preference of its control, nats of "
        "log-odds; at zero they prefer the trait equally. Student − base: what remains "
        "of it if the control lost some of its own. Specific part: transfer minus "
        "the mean change of all other traits. cos: of the shift in the residual stream "
        "with the teacher's vector, at the vector's layer. Brackets: "
        f"{level_text(results.confidence)} intervals over the clusters named."
    )
    columns = (
        "trait", "outcome", "#transfer, nats", "#student − base, nats",
        "#specific part, nats", "#clusters",
        "#cos, student", "#cos, control",
    )  # fmt: skip
    return Table("Transfer by teacher, noise and trait", columns, tuple(rows), (note,))


def cells_of(conditions: Iterable[Condition]) -> list[tuple[str, list[Condition]]]:
    """The seeds of each teacher × noise × trait, with a name for it."""
    groups: dict[tuple[str, float, str], list[Condition]] = {}
    for c in conditions:
        groups.setdefault((c.teacher, c.noise, c.trait), []).append(c)
    noisy = any(noise for _, noise, _ in groups)
    return [(cell_name(*key, is_noisy=noisy), group) for key, group in groups.items()]


# ── read-outs ────────────────────────────────────────────────────────────────────

ROLES = ("base", "teacher", "control", "student")
_MEASURES = {
    "preference": (
        "#preference, nats",
        "Preference: log-odds of the trait against the other members of the family.",
    ),
    "probability": ("#probability", "Probability: its share among them."),
    "sampled_rate": (
        "#sampled rate",
        "Sampled rate: share of sampled answers that name the trait.",
    ),
    "valid_rate": ("#valid rate", "Valid rate: share that name any member."),
}
"""Heading and meaning of each measure of a read-out."""


def readout_table(results: Results) -> Table:
    """Base, teacher, control and student side by side, averaged over seeds."""
    readouts = [r for c in results.conditions for r in c.readouts]
    names = [m for m in _MEASURES if any(getattr(r, m) for r in readouts)]
    rows: list[Row] = []
    for name, group in cells_of(results.conditions):
        rows.append((Cell(name),))
        for role in ROLES:
            found = [r for c in group for r in c.readouts if r.role == role]
            if found:
                rows.append(_readout_row(role, found, names, results.confidence))
    columns = ("who", *(_MEASURES[name][0] for name in names))
    meanings = " ".join(_MEASURES[name][1] for name in names)
    brackets = (
        f"Brackets: {level_text(results.confidence)} intervals, of preference and "
        "probability over seeds and questions, of rates over seeds; over questions "
        "where there is one seed. Shares end at 0 and 1."
    )
    sampled = () if "sampled_rate" in names else ("Answers were not sampled.",)
    return Table(
        "Base, teacher, control and student", columns, tuple(rows),
        (f"Means over seeds. {meanings}", brackets, *sampled),
    )  # fmt: skip


def _readout_row(
    role: str, found: Sequence[Readout], names: Sequence[str], confidence: float
) -> Row:
    cells = []
    for name in names:
        estimate = mean_of_seeds(found, name, confidence=confidence)
        is_share = name != "preference"
        if estimate is not None and is_share:
            estimate = _as_share(estimate)
        cells.append(
            estimate_cell(
                estimate,
                absent="answers were not sampled",
                signed=not is_share,
                least=3 if is_share else 2,
            )
        )
    return (Cell(role, mark=f"role-{role}"), *cells)


def _as_share(estimate: Estimate) -> Estimate:
    """Student's interval, cut where a share ends."""
    low, high = estimate.low, estimate.high
    if low is None or high is None:
        return estimate
    bounds = {"low": max(0.0, low), "high": min(1.0, high)}
    return estimate.model_copy(update=bounds)


def mean_of_seeds(
    readouts: Sequence[Readout], measure: str, *, confidence: float
) -> Estimate | None:
    """One measure over seeds; None if no seed has it.

    One seed keeps its own interval. Preferences and probabilities of several seeds
    are taken as [seed, question] where all answer as many questions.
    """
    found = [e for r in readouts if (e := getattr(r, measure)) is not None]
    if len(found) < 2:
        return found[0] if found else None
    answers = [r.by_question for r in readouts]
    alike = len({len(a) for a in answers}) == 1 and len(answers[0]) > 1
    if alike and measure in ("preference", "probability"):
        odds = np.array(answers, dtype=np.float64)
        values = odds if measure == "preference" else 1 / (1 + np.exp(-odds))
        both = two_way_interval(values, confidence=confidence)
        return as_estimate(both, "seed and question")
    means = np.array([e.mean for e in found], dtype=np.float64)
    return as_estimate(mean_interval(means, confidence=confidence), "seed")


def as_estimate(interval: Interval, clusters: str) -> Estimate:
    """An interval as results hold it: what is not finite is missing."""
    mean, low, high = (
        v if math.isfinite(v) else None
        for v in (interval.mean, interval.low, interval.high)
    )
    return Estimate(mean=mean, low=low, high=high, n=interval.n, clusters=clusters)


def seed_table(results: Results) -> Table:
    """Every single condition: its transfer against the control and against the base."""
    rows: list[Row] = []
    for name, group in cells_of(results.conditions):
        rows.append((Cell(name),))
        rows += [
            (
                Cell(f"seed {c.seed}"),
                estimate_cell(c.transfer),
                estimate_cell(c.transfer_from_base),
                Cell(c.student),
                Cell("; ".join(_notes(c))),
            )
            for c in group
        ]
    columns = (
        "seed", "#student − control, nats", "#student − base, nats", "student", "notes",
    )  # fmt: skip
    level = level_text(results.confidence)
    note = f"Brackets: {level} intervals over questions."
    return Table("Every seed", columns, tuple(rows), (note,))


def _notes(condition: Condition) -> list[str]:
    share = condition.divergent_share
    if share is None:
        return condition.notes
    return [*condition.notes, f"divergence tokens: {share:.1%} of all"]


# ── specificity, noise, strength ─────────────────────────────────────────────────


def confusion_table(results: Results) -> Table:
    """λ of each confusion matrix with its interval and permutation p."""
    rows = tuple(
        (
            Cell(found.teacher, f"noise {found.noise:g}"),
            estimate_cell(found.diagonal),
            _clusters(found.diagonal),
            value_cell(found.p_value, digits=4),
            Cell(f"{found.permutations:,}"),
        )
        for found in results.confusions
    )
    level = level_text(results.confidence)
    flat = [
        f"Teacher {found.teacher}{noise_name(found.noise, is_noisy=True)}: the {level} "
        "interval of λ includes zero, so no specificity was shown."
        for found in results.confusions
        if verdict(found.diagonal) == NOT_SHOWN
    ]
    note = (
        "λ: how much more a student moves on its own trait than student and trait alone "
        "explain, nats. p: share of relabelings with a λ at least as large, the true "
        "one included, so never below 1 / (1 + relabelings)."
    )
    columns = ("teacher", "#λ, nats", "#clusters", "#p", "#relabelings")
    return Table("Specificity", columns, rows, (note, *flat))


def factor_table(results: Results) -> Table:
    """The noise factor of each teacher and level."""
    rows, notes = [], []
    for found in results.noise_factors:
        ratio = estimate_cell(found.ratio, signed=False)
        if is_unbounded(found.ratio):
            ratio = Cell(ratio.text, "unbounded")
        name = Cell(found.teacher, f"noise {found.noise:g}")
        rows.append((name, ratio, _clusters(found.ratio)))
        low, high = found.ratio.low, found.ratio.high
        if low is not None and high is not None and low <= 1 <= high:
            notes.append(
                f"Teacher {found.teacher}, noise {found.noise:g}: the interval includes 1, "
                "so no effect of noise was shown."
            )
    if any(is_unbounded(f.ratio) for f in results.noise_factors):
        notes.append(
            "Unbounded: the transfer without noise cannot be told from zero, so the "
            "ratio may be anything."
        )
    note = (
        "Mean transfer with noise divided by mean transfer without; at 1 noise changes "
        f"nothing. Brackets: {level_text(results.confidence)} intervals."
    )
    columns = ("teacher", "#factor", "#clusters")
    return Table("Noise factor", columns, tuple(rows), (note, *notes))


def sweep_table(sweep: Sweep) -> Table:
    """All points of one strength sweep."""
    names = ("layer", "dose", "strength", "share", "leak", "passed")
    rows = []
    for point in sweep.points:
        numbers = (
            value_cell(_real(point.get(name)), digits=0 if name == "layer" else 2)
            for name in names
        )
        place = (point.get("layer"), point.get("strength"))
        gate = "passes" if point.get("allowed") else "refused"
        is_chosen = place == (sweep.layer, sweep.strength)
        rows.append((*numbers, Cell("chosen", mark="yes") if is_chosen else Cell(gate)))
    note = f"Chosen: layer {sweep.layer}, strength {sweep.strength:.4g}."
    columns = (
        "#layer", "#relative dose", "#strength", "#trait's share", "#leak",
        "#rows passing", "gate",
    )  # fmt: skip
    return Table(sweep_name(sweep), columns, tuple(rows), (note,))


def sweep_name(sweep: Sweep) -> str:
    """Which vector was swept, and on which base."""
    noise = noise_name(sweep.noise or 0.0, is_noisy=False)
    seed = "" if sweep.seed is None else f", seed {sweep.seed}"
    return f"{sweep.trait}{noise}{seed}"


def _real(value: float | bool | str | None) -> Number:  # noqa: FBT001
    return None if value is None or isinstance(value, bool | str) else float(value)
