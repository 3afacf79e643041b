"""What each figure of a run rests on: how many, which seeds, what its interval covers.

A caption explains its figure in words that are the same for every run; these are the
three facts that are not, read from the results alone. Knows nothing of drawing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from undertow.report.text import known, level_text
from undertow.results import Condition, Estimate, Results

LISTED_SEEDS = 8
"""More seeds than these are given by their ends."""
_EACH_LINE = "none drawn, each thin line is one student"


class Basis(NamedTuple):
    """What a figure rests on, in words."""

    n: str
    seeds: str
    interval: str

    @property
    def words(self) -> str:
        """The end of a caption."""
        return f"n: {self.n}. Seeds: {self.seeds}. Interval: {self.interval}."


def captions(results: Results, names: Iterable[str]) -> dict[str, Basis]:
    """What each of the named figures rests on.

    Args:
        results: What the run measured.
        names: Of figures, as `report.figures.draw_figures` gives them.
    """
    return {name: _BASES[name](results) for name in names}


# ── words ────────────────────────────────────────────────────────────────────────


def counted(numbers: Iterable[int], thing: str) -> str:
    """`1 row`, `10 questions`; `8 to 10 questions` where not all are alike."""
    found = sorted(set(numbers)) or [0]
    ends = (
        f"{found[0]:,}" if found[0] == found[-1] else f"{found[0]:,} to {found[-1]:,}"
    )
    return f"{ends} {thing}{'' if found == [1] else 's'}"


def _seeds(seeds: Iterable[int | None]) -> str:
    found = sorted({seed for seed in seeds if seed is not None})
    if len(found) > LISTED_SEEDS:
        return f"{len(found)}, from {found[0]} to {found[-1]}"
    listed = ", ".join(map(str, found)) or "not recorded"
    return f"{listed} alone" if len(found) == 1 else listed


def _plural(clusters: str) -> str:
    """`seed and question` as `seeds and questions`."""
    return " and ".join(f"{word}s" for word in clusters.split(" and "))


def _covers(
    results: Results, estimates: Iterable[Estimate | None], *, by_seed: bool = False
) -> str:
    """What intervals are over; where there is none, that it takes two clusters.

    `by_seed` says that each seed has its own, beside the others.
    """
    bounded = [e for e in estimates if e is not None and known(e.low) and known(e.high)]
    if not bounded:
        return "none, it takes two clusters or more"
    over = " or ".join(dict.fromkeys(_plural(e.clusters) for e in bounded))
    within = "" if any("seed" in e.clusters for e in bounded) else ", not over seeds"
    within = ", each seed by itself" if by_seed else within
    return f"{level_text(results.confidence)}, over {over}{within}"


def _students(conditions: Sequence[Condition], *more: str, asked: bool) -> str:
    """How many students, asked how many questions, and of how many rows each."""
    questions = [
        c.transfer.n for c in conditions if c.transfer.clusters == "question"
    ]  # fmt: skip
    whose = "its control" if len(conditions) == 1 else "their controls"
    who = f"{counted([len(conditions)], 'student')} beside {whose}"
    rows = counted((c.rows.used for c in conditions), "row")
    each = f"{counted(questions, 'question')} and {rows} each" if asked else None
    return ", ".join((who, each or f"trained on {rows} each", *more))


def _basis(
    conditions: Sequence[Condition], interval: str, *more: str, asked: bool = True
) -> Basis:
    """Of a figure that shows these students; whether it shows what they answered."""
    n = _students(conditions, *more, asked=asked)
    return Basis(n, _seeds(c.seed for c in conditions), interval)


# ── figures ──────────────────────────────────────────────────────────────────────


def _transfer(results: Results) -> Basis:
    every = [item.transfer for item in results.transfers]
    return _basis(results.conditions, _covers(results, every))


def _readouts(results: Results) -> Basis:
    every = [r.preference for c in results.conditions for r in c.readouts]
    return _basis(results.conditions, _covers(results, every, by_seed=True))


def _shift(results: Results) -> Basis:
    there = [c for c in results.conditions if c.shift is not None]
    return _basis(there, _EACH_LINE, asked=False)


def _shape(results: Results) -> Basis:
    there = [c for c in results.conditions if c.shape is not None]
    lines = Counter((c.teacher, c.noise) for c in there)
    means = f"{counted(lines.values(), 'student')} a line"
    return _basis(there, "none drawn, lines are means", means, asked=False)


def _traits(results: Results) -> Basis:
    traits = counted((len(c.all_traits) for c in results.conditions), "trait")
    return _basis(
        results.conditions, "none drawn, each small dot is one student", traits
    )


def _confusion(results: Results) -> Basis:
    over = _covers(results, [found.diagonal for found in results.confusions])
    sizes = counted((len(found.traits) for found in results.confusions), "trait")
    cells = f"none in the cells; that of λ, in the table: {over}"
    return _basis(results.conditions, cells, f"{sizes} a matrix")


def _channel(results: Results) -> Basis:
    cells = [t.channel.vocabulary for t in results.transfers if t.channel is not None]
    means = Counter(counted([e.n], e.clusters) for e in cells)
    over = _covers(results, [found.correlation for found in results.predictions])
    n = f"{counted([len(cells)], 'cell')}, each channel a mean over {' or '.join(means)}"
    seeds = _seeds(c.seed for c in results.conditions)
    return Basis(n, seeds, f"none drawn; that of ρ, in the table: {over}")


def _sets(results: Results) -> tuple[str, str]:
    """Sets of rows whose gradients were taken, and their seeds."""
    rows = counted((each.rows for each in results.alignments), "row")
    n = f"{counted([len(results.alignments)], 'set')} of {rows}"
    return n, _seeds(each.seed for each in results.alignments)


def _gradients(results: Results) -> Basis:
    over = _covers(results, [fit.own for fit in results.alignment_fits])
    return Basis(*_sets(results), f"none drawn; those of the table: {over}")


def _doses(results: Results) -> Basis:
    strokes = "two standard errors each way, over rows, not over traits or seeds"
    return Basis(*_sets(results), strokes)


def _scores(results: Results) -> Basis:
    first = [e for e in results.alignments if e.seed == results.alignments[0].seed]
    n, seeds = _sets(results.model_copy(update={"alignments": first}))
    return Basis(n, seeds, "none drawn, each cell is one set")


def _sweeps(results: Results) -> Basis:
    points = counted((len(sweep.points) for sweep in results.sweeps), "point")
    n = f"{counted([len(results.sweeps)], 'sweep')} of {points}"
    return Basis(n, _seeds(s.seed for s in results.sweeps), "none drawn")


def _emergence(results: Results) -> Basis:
    there = [c for c in results.conditions if c.emergence is not None]
    reads = [e for c in there if c.emergence for e in c.emergence.transfer]
    times = counted((len(c.emergence.updates) for c in there if c.emergence), "time")
    return _basis(there, _covers(results, reads, by_seed=True), f"read {times}")


def _training(results: Results) -> Basis:
    there = [c for c in results.conditions if c.training is not None]
    last = [c.training.updates[-1] for c in there if c.training and c.training.updates]
    return _basis(there, _EACH_LINE, counted(last, "update"), asked=False)


_BASES: dict[str, Callable[[Results], Basis]] = {
    "transfer": _transfer,
    "readouts": _readouts,
    "shift": _shift,
    "shape": _shape,
    "traits": _traits,
    "confusion": _confusion,
    "dose": _transfer,
    "channel": _channel,
    "gradients": _gradients,
    "doses": _doses,
    "scores": _scores,
    "sweeps": _sweeps,
    "emergence": _emergence,
    "training": _training,
}
"""By name of the figure."""
