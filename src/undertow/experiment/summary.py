"""What the payloads of a finished run mean together: transfers, intervals, λ, words.

Reads the run directory only; nothing here loads a model. Every difference is taken
question by question before it is averaged, and a control stands beside every claim.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from undertow.experiment.alignment_summary import alignment_fits, alignments
from undertow.experiment.audits import NAMES, stage_of
from undertow.experiment.channel_summary import (
    cell_channel,
    channel_ratio,
    mean_channel,
    predictions,
    scope_of,
)
from undertow.experiment.emergence_summary import emergence
from undertow.experiment.estimates import Matrix, estimate, log_odds, number
from undertow.experiment.limits import limits
from undertow.experiment.recipe import Recipe
from undertow.pipeline.training_settings import TrainingSettings
from undertow.report.text import estimate_text
from undertow.results import (
    AuditOutcome,
    Causes,
    Channel,
    Condition,
    Confusion,
    Estimate,
    NoiseFactor,
    Number,
    Readout,
    Results,
    RowCounts,
    ShiftByLayer,
    ShiftShape,
    Sweep,
    TrainingTrace,
    Transfer,
)
from undertow.runs import Run
from undertow.stats import (
    mean_interval,
    ratio_interval,
    specificity,
    two_way_interval,
)
from undertow.traits import TraitFamily

ROLES: tuple[Literal["base", "teacher", "control", "student"], ...] = (
    "base",
    "teacher",
    "control",
    "student",
)


@dataclass(frozen=True)
class _Cell:
    """A finished cell with its read-outs as log-odds [question, trait]."""

    facts: dict[str, Any]
    channel: Channel | None
    base: Matrix
    teacher: Matrix
    control: Matrix
    student: Matrix

    def difference(self, trait: int) -> Matrix:
        """[question]: student − control, nats."""
        result: Matrix = self.student[:, trait] - self.control[:, trait]
        return result

    def from_base(self, trait: int) -> Matrix:
        """[question]: student − base, nats."""
        result: Matrix = self.student[:, trait] - self.base[:, trait]
        return result

    def specific(self, trait: int) -> Matrix:
        """[question]: the trait's difference minus the mean of all other traits'."""
        change = self.student - self.control
        others = np.delete(change, trait, axis=1).mean(axis=1)
        result: Matrix = change[:, trait] - others
        return result


def summarise(recipe: Recipe, family: TraitFamily, run: Run) -> Results:
    """Builds `Results` from the payloads of a finished run."""
    names = [trait.name for trait in family.traits]
    cells = list(_cells(recipe, run))
    conditions = [_condition(recipe, run, cell, names) for cell in cells]
    transfers = list(_transfers(recipe, cells, names))
    gradients, audits = alignments(recipe, run), _audits(recipe, run)
    facts = run.payload("provenance")
    return Results(
        title=recipe.title,
        question=recipe.question,
        model=recipe.model.name,
        headline=headline(transfers),
        conditions=conditions,
        transfers=transfers,
        noise_factors=list(_noise_factors(recipe, cells, names)),
        predictions=predictions(transfers),
        confusions=list(_confusions(recipe, cells, names)),
        alignments=gradients,
        alignment_fits=alignment_fits(gradients),
        sweeps=_sweeps(recipe, run),
        audits=audits,
        limits=limits(recipe, conditions, audited=len(audits)),
        provenance={k: v if _plain(v) else str(v) for k, v in facts.items()},
        seconds=run.seconds(),
    )


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _cells(recipe: Recipe, run: Run) -> Iterable[_Cell]:
    for noise in recipe.noise.levels:
        for seed in recipe.seeds:
            for settings in recipe.teachers:
                for trait in recipe.traits:
                    place = f"noise-{noise:g}/seed-{seed}"
                    name = f"{settings.label}-{trait}"
                    facts = run.payload(f"{place}/{name}/cell")
                    odds = {
                        role: log_odds(run.payload(stage))
                        for role, stage in facts["readouts"].items()
                    }
                    known = {"writer": name, "control_writer": facts["control"]}
                    facts = known | facts | {"place": place, "name": name}
                    facts["student"] = recipe.student_of(settings)
                    channel = cell_channel(run, place, facts["writer"])
                    yield _Cell(facts, channel, **odds)


def _condition(recipe: Recipe, run: Run, cell: _Cell, names: list[str]) -> Condition:
    facts, trait = cell.facts, names.index(cell.facts["trait"])
    place, name, control = facts["place"], facts["name"], facts["control"]
    way = _way(recipe, facts["student"])
    change = (cell.student - cell.control).mean(axis=0)
    return Condition(
        key=f"{place}/{name}",
        teacher=facts["teacher"],
        noise=facts["noise"],
        trait=facts["trait"],
        seed=facts["seed"],
        student=facts["student"].kind,
        rows=_row_counts(run, place, name, facts["writer"]),
        control_rows=_row_counts(run, place, control, facts["control_writer"]),
        readouts=[
            _readout(run.payload(facts["readouts"][role]), role, trait)
            for role in ROLES
        ],
        transfer=estimate(mean_interval(cell.difference(trait)), "question"),
        transfer_from_base=estimate(mean_interval(cell.from_base(trait)), "question"),
        all_traits={n: number(change[i]) for i, n in enumerate(names)},
        channel=cell.channel,
        divergent_share=_divergent_share(run, facts.get("divergence")),
        shift=ShiftByLayer(**facts["shift"]) if facts["shift"] else None,
        shape=_shape(facts.get("shape")),
        control_shape=_shape(facts.get("control_shape")),
        causes=_causes(run, cell, trait),
        emergence=emergence(run, facts, cell.base, trait),
        training=_trace(run.payload(f"{place}/{name}/student/training")),
        control_training=_trace(run.payload(f"{place}/{control}/student/training")),
        notes=[f"control: {control}", *([f"trained with {way}"] if way else [])],
    )


def _divergent_share(run: Run, stage: str | None) -> Number:
    if stage is None or not run.is_done(stage):
        return None
    return number(run.payload(stage)["share"])


def _causes(run: Run, cell: _Cell, trait: int) -> Causes | None:
    stage = f"{cell.facts['place']}/{cell.facts['name']}/causes"
    if not run.is_done(stage):
        return None
    facts = run.payload(stage)
    added, taken = (log_odds(facts[key])[:, trait] for key in ("added", "taken"))
    return Causes(
        layer=facts["layer"],
        whole=estimate(mean_interval(cell.from_base(trait)), "question"),
        sufficient=estimate(mean_interval(added - cell.base[:, trait]), "question"),
        necessary=estimate(mean_interval(cell.student[:, trait] - taken), "question"),
    )


def _shape(facts: dict[str, Any] | None) -> ShiftShape | None:
    return ShiftShape(**facts) if facts else None


def _way(recipe: Recipe, student: TrainingSettings) -> str:
    """How a student was trained otherwise than the recipe says of all."""
    own, usual = student.model_dump(), recipe.student.model_dump()
    return ", ".join(
        f"{key} {own[key]}" for key in own if key != "kind" and own[key] != usual[key]
    )


def _row_counts(run: Run, place: str, name: str, writer: str) -> RowCounts:
    rows = run.payload(f"{place}/{writer}/rows")
    training = run.payload(f"{place}/{name}/student/training")
    return RowCounts(
        generated=rows["generated"],
        kept=sum(rows["accepted"]),
        used=training["rows"],
        reasons=rows["reasons"],
    )


def _readout(payload: dict[str, Any], role: Any, trait: int) -> Readout:
    odds = log_odds(payload)[:, trait]
    shares = 1 / (1 + np.exp(-odds))
    hits = valid = None
    if "hits" in payload:
        hits = estimate(mean_interval(np.array(payload["hits"])[:, trait]), "question")
        valid = estimate(mean_interval(payload["valid"]), "question")
    return Readout(
        role=role,
        preference=estimate(mean_interval(odds), "question"),
        probability=estimate(mean_interval(shares), "question"),
        sampled_rate=hits,
        valid_rate=valid,
        by_question=[number(v) for v in odds],
    )


def _trace(payload: dict[str, Any]) -> TrainingTrace:
    updates, losses = payload["updates"], payload["losses"]
    every = max(1, math.ceil(len(updates) / 200))
    return TrainingTrace(
        updates=updates[::every], loss=[number(v) for v in losses[::every]]
    )


def _over_seeds(rows: Sequence[Matrix]) -> Estimate:
    """Interval of [seed][question] values over seeds, and questions where possible."""
    if len(rows) < 2:
        return estimate(mean_interval(rows[0]), "question")
    return estimate(two_way_interval(np.stack(rows)), "seed and question")


def _groups(
    recipe: Recipe, cells: Sequence[_Cell]
) -> Iterable[tuple[str, float, str, list[_Cell]]]:
    for settings in recipe.teachers:
        for noise in recipe.noise.levels:
            for trait in recipe.traits:
                key = (settings.label, noise, trait)
                yield (*key, [
                    c for c in cells
                    if (c.facts["teacher"], c.facts["noise"], c.facts["trait"]) == key
                ])  # fmt: skip


def _transfers(
    recipe: Recipe, cells: Sequence[_Cell], names: list[str]
) -> Iterable[Transfer]:
    for teacher, noise, trait, group in _groups(recipe, cells):
        column = names.index(trait)
        cosines: dict[str, Estimate | None] = {"student": None, "control": None}
        shifts = [c.facts["shift"] for c in group if c.facts["shift"]]
        if shifts:
            for role in cosines:
                values = [s[role][s["vector_layer"]] for s in shifts]
                cosines[role] = estimate(mean_interval(values), "seed")
        yield Transfer(
            teacher=teacher,
            noise=noise,
            trait=trait,
            student=group[0].facts["student"].kind,
            way=_way(recipe, group[0].facts["student"]),
            transfer=_over_seeds([c.difference(column) for c in group]),
            from_base=_over_seeds([c.from_base(column) for c in group]),
            specific=_over_seeds([c.specific(column) for c in group]),
            shift_cosine=cosines["student"],
            control_cosine=cosines["control"],
            shift_size=_shift_size(group),
            channel=mean_channel([c.channel for c in group]),
        )


def _shift_size(group: Sequence[_Cell]) -> Number:
    """After the last block; None if a seed's was not measured."""
    shapes = [cell.facts.get("shape") for cell in group]
    sizes = [shape["size"][-1] for shape in shapes if shape]
    if len(sizes) < len(group) or None in sizes:
        return None
    return number(float(np.mean(sizes)))


def _noise_factors(
    recipe: Recipe, cells: Sequence[_Cell], names: list[str]
) -> Iterable[NoiseFactor]:
    """Ratio of mean transfers over seeds; nothing if there is no clean level."""
    levels = [level for level in recipe.noise.levels if level > 0]
    if 0.0 not in recipe.noise.levels:
        return
    for settings in recipe.teachers:
        clean = _seed_means(recipe, cells, names, settings.label, 0.0)
        clean_channels = _channels(recipe, cells, settings.label, 0.0)
        for level in levels:
            noised = _seed_means(recipe, cells, names, settings.label, level)
            ratio = ratio_interval(noised, clean)
            yield NoiseFactor(
                teacher=settings.label,
                noise=level,
                ratio=estimate(ratio, "seed"),
                channel=channel_ratio(
                    _channels(recipe, cells, settings.label, level),
                    clean_channels,
                    scope=scope_of(recipe.student_of(settings).kind),
                ),
            )


def _channels(
    recipe: Recipe, cells: Sequence[_Cell], teacher: str, noise: float
) -> list[Channel | None]:
    """Of each seed, over its traits: they share their base."""
    own = [
        c for c in cells if (c.facts["teacher"], c.facts["noise"]) == (teacher, noise)
    ]
    return [
        mean_channel([c.channel for c in own if c.facts["seed"] == seed])
        for seed in recipe.seeds
    ]


def _seed_means(
    recipe: Recipe,
    cells: Sequence[_Cell],
    names: list[str],
    teacher: str,
    noise: float,
) -> list[float]:
    """Transfer of each seed, over its traits: they share base and control."""
    means = []
    for seed in recipe.seeds:
        key = (teacher, noise, seed)
        of_seed = [
            c.difference(names.index(c.facts["trait"]))
            for c in cells
            if (c.facts["teacher"], c.facts["noise"], c.facts["seed"]) == key
        ]
        means.append(float(np.mean(of_seed)))
    return means


def _confusions(
    recipe: Recipe, cells: Sequence[_Cell], names: list[str]
) -> Iterable[Confusion]:
    if len(recipe.traits) < 2:
        return
    columns = [names.index(trait) for trait in recipe.traits]
    for settings in recipe.teachers:
        for noise in recipe.noise.levels:
            lift = []
            for trait in recipe.traits:
                changes = [
                    (c.student - c.control).mean(axis=0)[columns]
                    for c in cells
                    if (c.facts["teacher"], c.facts["noise"], c.facts["trait"])
                    == (settings.label, noise, trait)
                ]
                lift.append(np.mean(changes, axis=0))
            found = specificity(np.stack(lift), permutations=10_000, seed=0)
            yield Confusion(
                teacher=settings.label,
                noise=noise,
                traits=list(recipe.traits),
                lift=[[number(v) for v in row] for row in lift],
                diagonal=Estimate(
                    mean=number(found.lam),
                    low=number(found.low),
                    high=number(found.high),
                    n=len(recipe.traits),
                    clusters="trait",
                ),
                p_value=number(found.p_value),
                permutations=found.permutations,
            )


def _sweeps(recipe: Recipe, run: Run) -> list[Sweep]:
    found = []
    for noise in recipe.noise.levels:
        places = [f"noise-{noise:g}/seed-{seed}" for seed in recipe.seeds]
        for place in places if noise else ["noise-0"]:
            for settings in recipe.teachers:
                for trait in recipe.traits:
                    stage = f"{place}/vectors/{settings.label}-{trait}"
                    if run.is_done(stage) and run.payload(stage)["points"]:
                        found.append(Sweep(**run.payload(stage)))
    return found


def _audits(recipe: Recipe, run: Run) -> list[AuditOutcome]:
    if recipe.audit is None:
        return []
    stages = (stage_of(name) for name in NAMES)
    return [
        AuditOutcome(**run.payload(stage)) for stage in stages if run.is_done(stage)
    ]


def headline(transfers: Sequence[Transfer]) -> str:
    """The answer in words: what travelled, what did not, and what is unknown."""
    sentences = []
    for item in transfers:
        is_soft = item.student == "soft"
        way = "by distillation on the rows" if is_soft else "through the rows"
        estimate = item.transfer
        what = f"{item.trait} by {item.teacher}"
        if item.noise:
            what += f" at noise {item.noise:g}"
        if estimate.mean is None or estimate.low is None or estimate.high is None:
            sentences.append(f"{what}: no interval could be computed.")
            continue
        figures = (
            f"{estimate_text(estimate)} nats against the control, {estimate.n} clusters "
            f"({estimate.clusters})"
        )
        if estimate.low > 0:
            sentences.append(f"{what} travelled {way}: {figures}.")
        elif estimate.high < 0:
            sentences.append(f"{what} moved the other way: {figures}.")
        else:
            sentences.append(
                f"{what}: no transfer shown, the interval holds zero: {figures}."
            )
    return " ".join(sentences)
