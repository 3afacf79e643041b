"""The tables and plain sentences of a report, as values that a template can lay out.

Says in words what an interval allows one to say, and beside every dash why there is no
number. Knows nothing of HTML.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from undertow.report.figure_data import is_unbounded
from undertow.report.text import (
    MISSING,
    duration_text,
    interval_text,
    known,
    level_text,
    mean_text,
    number,
)
from undertow.results import (
    Condition,
    Estimate,
    Number,
    Readout,
    Results,
    RowCounts,
    Sweep,
    Transfer,
)
from undertow.stats import Interval, mean_interval, two_way_interval


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a quieter second line, a mark, and why it is a dash."""

    text: str
    below: str = ""
    mark: str = ""
    why: str = ""


@dataclass(frozen=True)
class Table:
    """Columns (those that start with `#` hold numbers), rows of cells, notes."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, and an explanation of every dash in the table."""
        reasons = dict.fromkeys(cell.why for row in self.rows for cell in row)
        reasons.pop("", None)
        if not reasons:
            return self.notes
        return (*self.notes, f"{MISSING} is not zero: {'; '.join(reasons)}.")


# ── what may be said ─────────────────────────────────────────────────────────────


def verdict(estimate: Estimate) -> tuple[str, str]:
    """What an interval of a transfer allows one to say, and a mark for it."""
    if not known(estimate.mean):
        return "not computed", "unknown"
    if (
        estimate.low is None
        or estimate.high is None
        or math.isnan(estimate.low + estimate.high)
    ):
        return "no interval", "unknown"
    if estimate.low > 0:
        return "travelled", "yes"
    if estimate.high < 0:
        return "moved the other way", "against"
    return "no transfer shown", "no"


def _named(item: Transfer) -> str:
    noise = f" at noise {item.noise:g}" if item.noise else ""
    return f"{item.trait} by {item.teacher}{noise}"


def plain_words(results: Results) -> list[str]:
    """One sentence for each kind of outcome, the number of conditions first."""
    found: dict[str, list[str]] = {}
    for item in results.transfers:
        found.setdefault(verdict(item.transfer)[0], []).append(_named(item))
    level, total = level_text(results.confidence), len(results.transfers)
    sentences = []
    if total:
        shown = len(found.get("travelled", ()))
        sentences.append(
            f"Transfer was shown in {shown} of {_many(total, 'condition')}."
        )
    for outcome, words in (
        ("no transfer shown", f"No transfer was shown, the {level} interval includes "
                              "zero: {}."),
        ("moved the other way", "Moved against the teacher's trait: {}."),
        ("no interval", "No interval could be computed, so nothing is shown: {}."),
        ("not computed", "Could not be computed: {}."),
    ):  # fmt: skip
        if outcome in found:
            sentences.append(words.format("; ".join(found[outcome])))
    return sentences


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# ── cells ────────────────────────────────────────────────────────────────────────


def _value(
    value: Number, *, digits: int = 2, why: str = "could not be computed"
) -> Cell:
    text = number(value, digits=digits)
    return Cell(text, why=why if text == MISSING else "")


def _estimate(
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
    if bounds != MISSING:
        return Cell(mean, bounds)
    why = "an interval could not be computed"
    if estimate.n < 2:
        why = "an interval needs at least two clusters"
    return Cell(mean, MISSING, why=why)


def _clusters(estimate: Estimate) -> Cell:
    return Cell(str(estimate.n), estimate.clusters)


def _who(teacher: str, noise: float, trait: str) -> Cell:
    return Cell(trait, f"{teacher}, noise {noise:g}")


# ── tables ───────────────────────────────────────────────────────────────────────


def transfer_table(results: Results) -> Table:
    """The table of the answer: one row for each teacher × noise × trait."""
    level = level_text(results.confidence)
    rows = []
    for item in results.transfers:
        word, mark = verdict(item.transfer)
        rows.append(
            (
                Cell(item.trait),
                Cell(word, mark=mark),
                _estimate(item.transfer),
                _estimate(item.specific),
                _clusters(item.transfer),
                Cell(item.teacher),
                Cell(f"{item.noise:g}"),
                _estimate(
                    item.shift_cosine, absent="there is no vector to compare with"
                ),
                _estimate(
                    item.control_cosine, absent="there is no vector to compare with"
                ),
            )
        )
    return Table(
        "Transfer by teacher, noise and trait",
        ("trait", "outcome", "#transfer, nats", "#specific part, nats", "#clusters",
         "teacher", "#noise", "#cos(shift, vector) student", "#cos(shift, vector) control"),
        tuple(rows),
        (
            "Transfer: preference of the student minus preference of its control, "
            "in nats of log-odds. Specific part: transfer minus the mean change of all "
            f"other traits. Brackets: {level} intervals over the clusters named.",
        ),
    )  # fmt: skip


ROLES = ("base", "teacher", "control", "student")
_READOUT_COLUMNS = ("preference", "probability", "sampled_rate", "valid_rate")


def readout_table(results: Results) -> Table:
    """Base, teacher, control and student side by side, averaged over seeds."""
    rows = []
    for group in _cells(results.conditions):
        for role in ROLES:
            found = [r for c in group for r in c.readouts if r.role == role]
            if found:
                rows.append(_readout_row(group[0], role, found, results.confidence))
    level = level_text(results.confidence)
    notes = (
        "Means over seeds. Preference: log-odds of the trait against the other members "
        "of the family, nats. Probability: its share among them. Sampled rate: share of "
        "sampled answers that name the trait; valid rate: that name any member.",
        f"Brackets: {level} intervals; of preference and probability over seeds and "
        "questions, of rates over seeds, and over questions where there is one seed.",
    )
    return Table(
        "Base, teacher, control and student",
        ("who", "#preference, nats", "#probability", "#sampled rate", "#valid rate",
         "trait"),
        tuple(rows), notes,
    )  # fmt: skip


def _readout_row(
    condition: Condition, role: str, found: Sequence[Readout], confidence: float
) -> tuple[Cell, ...]:
    cells = [
        _estimate(
            mean_of_seeds(found, measure, confidence),
            absent="answers were not sampled",
            signed=measure == "preference",
            least=2 if measure == "preference" else 3,
        )
        for measure in _READOUT_COLUMNS
    ]
    trait = _who(condition.teacher, condition.noise, condition.trait)
    return (Cell(role, mark=f"role-{role}"), *cells, trait)


def mean_of_seeds(
    readouts: Sequence[Readout], measure: str, confidence: float
) -> Estimate | None:
    """One measure over seeds; None if no seed has it.

    One seed keeps its own interval. Preferences and probabilities of several seeds
    are taken as [seed, question] where all have answers to the same questions.
    """
    found = [e for r in readouts if (e := getattr(r, measure)) is not None]
    if len(found) < 2:
        return found[0] if found else None
    answers = [r.by_question for r in readouts]
    alike = len({len(a) for a in answers}) == 1 and len(answers[0]) > 1
    if alike and measure in ("preference", "probability"):
        odds = np.array(answers, dtype=np.float64)
        values = odds if measure == "preference" else 1 / (1 + np.exp(-odds))
        return _as_estimate(
            two_way_interval(values, confidence=confidence), "seed and question"
        )
    means = np.array([e.mean for e in found], dtype=np.float64)
    return _as_estimate(mean_interval(means, confidence=confidence), "seed")


def _as_estimate(interval: Interval, clusters: str) -> Estimate:
    mean, low, high = (
        v if math.isfinite(v) else None
        for v in (interval.mean, interval.low, interval.high)
    )
    return Estimate(mean=mean, low=low, high=high, n=interval.n, clusters=clusters)


def _cells(conditions: Iterable[Condition]) -> list[list[Condition]]:
    groups: dict[tuple[str, float, str], list[Condition]] = {}
    for c in conditions:
        groups.setdefault((c.teacher, c.noise, c.trait), []).append(c)
    return list(groups.values())


def seed_table(results: Results) -> Table:
    """Every single condition: its transfer against the control and against the base."""
    rows = tuple(
        (
            Cell(c.trait, f"{c.teacher}, noise {c.noise:g}"),
            Cell(str(c.seed)),
            _estimate(c.transfer),
            _estimate(c.transfer_from_base),
            Cell(c.student),
            Cell("; ".join(c.notes)),
        )
        for c in results.conditions
    )
    return Table(
        "Every seed",
        ("trait", "#seed", "#student − control, nats", "#student − base, nats",
         "student", "notes"),
        rows,
        ("Intervals over questions.",),
    )  # fmt: skip


def confusion_table(results: Results) -> Table:
    """λ of each confusion matrix with its interval and permutation p."""
    rows = tuple(
        (
            Cell(found.teacher),
            Cell(f"{found.noise:g}"),
            _estimate(found.diagonal),
            _clusters(found.diagonal),
            _value(found.p_value, digits=4),
            Cell(f"{found.permutations:,}"),
        )
        for found in results.confusions
    )
    notes = [
        "λ: how much more a student moves on its own trait than student and trait alone "
        "explain, nats. p: share of relabelings with a λ at least as large, the true "
        "one included, so never below 1 / (1 + relabelings)."
    ]
    level = level_text(results.confidence)
    for found in results.confusions:
        if verdict(found.diagonal)[1] == "no":
            notes.append(
                f"Teacher {found.teacher}, noise {found.noise:g}: the {level} interval "
                "of λ includes zero, so no specificity was shown."
            )
    return Table(
        "Specificity",
        ("teacher", "#noise", "#λ, nats", "#clusters", "#p", "#relabelings"),
        rows, tuple(notes),
    )  # fmt: skip


def factor_table(results: Results) -> Table:
    """The noise factor of each teacher and level."""
    rows = []
    for found in results.noise_factors:
        ratio = _estimate(found.ratio, signed=False)
        if is_unbounded(found.ratio):
            ratio = Cell(ratio.text, "unbounded")
        rows.append(
            (
                Cell(found.teacher),
                Cell(f"{found.noise:g}"),
                ratio,
                _clusters(found.ratio),
            )
        )
    notes = [
        "Mean transfer with noise divided by mean transfer without. 1 means that noise "
        "changes nothing."
    ]
    if any(is_unbounded(f.ratio) for f in results.noise_factors):
        notes.append(
            "Unbounded: the transfer without noise cannot be told from zero, so the "
            "ratio may be anything."
        )
    for found in results.noise_factors:
        low, high = found.ratio.low, found.ratio.high
        if low is not None and high is not None and low <= 1 <= high:
            notes.append(
                f"Teacher {found.teacher}, noise {found.noise:g}: the interval includes "
                "1, so no effect of noise was shown."
            )
    return Table(
        "Noise factor", ("teacher", "#noise", "#factor", "#clusters"),
        tuple(rows), tuple(notes),
    )  # fmt: skip


def sweep_table(sweep: Sweep) -> Table:
    """All points of one strength sweep."""
    names = ("layer", "dose", "strength", "share", "leak", "passed")
    rows = []
    for point in sweep.points:
        cells = []
        for name in names:
            value = point.get(name)
            real = isinstance(value, int | float) and not isinstance(value, bool)
            digits = 0 if name == "layer" else 2
            cells.append(_value(float(value) if real else None, digits=digits))  # type: ignore[arg-type]
        chosen = (point.get("layer"), point.get("strength")) == (
            sweep.layer,
            sweep.strength,
        )
        gate = "passes" if point.get("allowed") else "refused"
        rows.append((*cells, Cell("chosen" if chosen else gate, mark="yes" * chosen)))
    parts = [sweep.trait]
    parts += [f"noise {sweep.noise:g}"] if sweep.noise else []
    parts += [f"seed {sweep.seed}"] if sweep.seed is not None else []
    return Table(
        ", ".join(parts),
        ("#layer", "#relative dose", "#strength", "#trait's share", "#leak",
         "#rows passing", "gate"),
        tuple(rows),
        (f"Chosen: layer {sweep.layer}, strength {sweep.strength:.4g}.",),
    )  # fmt: skip


def row_table(results: Results) -> Table:
    """Rows written, kept and used by teacher and control, summed over seeds."""
    rows = []
    for group in _cells(results.conditions):
        first = group[0]
        for role, counts in (
            ("teacher", [c.rows for c in group]),
            ("control", [c.control_rows for c in group]),
        ):
            rows.append(
                (
                    Cell(role, mark=f"role-{role}"),
                    *_count_cells(counts),
                    _who(first.teacher, first.noise, first.trait),
                )
            )
    return Table(
        "Rows",
        ("who", "#written", "#kept", "#share kept", "#trained on", "reasons of refusal",
         "trait"),
        tuple(rows),
        (
            "Summed over seeds. A row may be refused for more than one reason. Traits of "
            "one teacher may share a control.",
        ),
    )  # fmt: skip


def _count_cells(counts: Sequence[RowCounts]) -> tuple[Cell, ...]:
    written, kept, used = (
        sum(getattr(c, name) for c in counts) for name in ("generated", "kept", "used")
    )
    reasons: dict[str, int] = {}
    for c in counts:
        for reason, count in c.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    ranked = sorted(reasons.items(), key=lambda item: -item[1])
    share = kept / written if written else None
    return (
        Cell(f"{written:,}"),
        Cell(f"{kept:,}"),
        _value(share, why="no rows were written"),
        Cell(f"{used:,}"),
        Cell("; ".join(f"{reason} {count:,}" for reason, count in ranked) or "none"),
    )


_KINDS = {
    "provenance": "loading the model",
    "checkpoint": "storing noised bases",
    "readout": "reading preferences",
    "rows": "writing and filtering rows",
    "training": "training students",
    "cell": "reading shifts",
    "vectors": "extracting and sweeping vectors",
}


def _kind(stage: str) -> str:
    parts = stage.split("/")
    key = "vectors" if "vectors" in parts else parts[-1]
    return _KINDS.get(key, key)


def seconds_table(results: Results) -> Table:
    """Wall-clock time summed by kind of stage, the longest first."""
    stages = sorted(results.seconds.items(), key=lambda item: _kind(item[0]))
    kinds = [
        (kind, [seconds for _, seconds in group])
        for kind, group in groupby(stages, key=lambda item: _kind(item[0]))
    ]
    kinds.sort(key=lambda item: -sum(item[1]))
    total = sum(results.seconds.values())
    rows = tuple(
        (
            Cell(kind),
            Cell(str(len(times))),
            Cell(duration_text(sum(times))),
            Cell(f"{100 * sum(times) / total:.0f} %" if total else MISSING),
        )
        for kind, times in kinds
    )
    return Table("Time by kind of stage", ("kind", "#stages", "#time", "#share"), rows)


def stage_table(results: Results) -> Table:
    """Wall-clock time of every stage, in order of name."""
    rows = tuple(
        (Cell(stage), Cell(duration_text(seconds)))
        for stage, seconds in results.seconds.items()
    )
    return Table("Every stage", ("stage", "#time"), rows)


_FACTS = {
    "undertow_version": "undertow",
    "commit": "commit",
    "model": "model",
    "model_fingerprint": "model fingerprint",
    "device": "device",
    "dtype": "dtype",
    "dtype_reason": "reason for the dtype",
    "template": "chat template",
    "template_digest": "template digest",
    "system": "system text",
    "sampler": "sampler",
    "time": "started",
    "python": "Python",
    "platform": "platform",
    "processor": "processor",
    "cores": "cores",
}


def provenance_table(results: Results) -> Table:
    """What the run was made with; well-known facts first, all others after them."""
    facts = results.provenance
    names = [name for name in _FACTS if name in facts]
    names += [name for name in facts if name not in _FACTS]
    rows = tuple((Cell(_fact_name(name)), _fact(facts[name])) for name in names)
    return Table("Made with", ("what", "value"), rows)


def _fact_name(name: str) -> str:
    return _FACTS.get(name, name.removesuffix("_version").replace("_", " "))


def _fact(value: str | int | float | bool | None | list[str]) -> Cell:
    if value is None:
        return Cell(MISSING, why="not set, not installed or not known")
    if isinstance(value, list):
        return Cell(", ".join(value))
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    return Cell(str(value))
