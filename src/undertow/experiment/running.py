"""Runs a recipe: its jobs phase after phase here, or as they can be done on a cluster.

A run that was killed goes on where it stood, since every stage is skipped when its
payload is there. What there is to do is `experiment.jobs`' business, how it is done
`experiment.work`'s, what the payloads mean together `experiment.summary`'s.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from undertow.config import dump_settings, load_settings
from undertow.errors import ConfigError, UndertowError
from undertow.execution.executor import Executor, Later, Needs
from undertow.execution.local import Here
from undertow.experiment.audits import is_audited
from undertow.experiment.bases import keep_provenance, keep_writer, load, prepared
from undertow.experiment.elsewhere import Order, work
from undertow.experiment.flow import Flow
from undertow.experiment.jobs import Job, Plan, Verb, audit_phases
from undertow.experiment.parcels import accept, pack
from undertow.experiment.recipe import Recipe
from undertow.experiment.stages import Base, Progress, place_of, with_questions
from undertow.experiment.summary import summarise
from undertow.experiment.work import all_bases, do
from undertow.models.loading import Model
from undertow.results import Results
from undertow.runs import Run, open_run
from undertow.storage import write_json
from undertow.traits import TraitFamily, load_family


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


def run_experiment(
    recipe: Recipe,
    directory: Path | str,
    *,
    together: int | None = None,
    executor: Executor | None = None,
    needs: Needs | None = None,
    progress: Progress = _silent,
) -> Results:
    """Runs every stage of a recipe that is not done yet and returns the results.

    Args:
        recipe: The grid and its settings.
        directory: The run directory; made if missing, continued if it is this
            recipe's.
        together: Students that are trained side by side, at most; changes speed and,
            by rounding, nothing else. None takes what suits the device.
        executor: Who does the jobs; None does them here. A run may be begun by one and
            continued by another.
        needs: What a job takes of a machine, where that is not here.
        progress: Told of every step.

    Raises:
        RunError: The directory is locked, belongs to another recipe, or was begun with
            another model, family or dtype.
        ConfigError: A trait, decoy or layer that does not exist.
        DatasetError: The filter refused every row of a teacher, or of a set to audit.
            Whatever fails, the results of those levels of noise are written of which all
            cells are there.
        TrainingError: A loss is no longer finite.
    """
    family = with_questions(load_family(recipe.family), recipe.evaluation.questions)
    _check(recipe, family)
    executor, needs = executor or Here(), needs or Needs()
    with open_run(
        Path(directory), recipe_text=dump_settings(recipe), resolve=_resolved
    ) as run:
        try:
            if executor.is_here:
                _run_here(recipe, family, run, together, progress)
            else:
                _run_there(recipe, family, run, together, executor, needs, progress)
        except UndertowError:
            if levels := _finished_levels(recipe, run):
                _summarised(recipe, family, run, levels)
            raise
        return _summarised(recipe, family, run, recipe.noise.levels)


def _finished_levels(recipe: Recipe, run: Run) -> tuple[float, ...]:
    """Levels of noise of which every cell is there."""
    return tuple(
        level
        for level in recipe.noise.levels
        if all(run.is_done(_complete(level, seed)) for seed in recipe.seeds)
    )


def _summarised(
    recipe: Recipe, family: TraitFamily, run: Run, levels: Sequence[float]
) -> Results:
    """The results of these levels of noise, written down."""
    noise = recipe.noise.model_copy(update={"levels": tuple(levels)})
    results = summarise(recipe.model_copy(update={"noise": noise}), family, run)
    if left := [f"{level:g}" for level in recipe.noise.levels if level not in levels]:
        told = f"Not finished, and left out here: noise {', '.join(left)}."
        results = results.model_copy(update={"limits": [*results.limits, told]})
    write_json(run.path("results.json"), results.model_dump(mode="json"))
    return results


def _resolved(path: Path) -> str:
    """A stored recipe with settings that came later at their defaults, if it is one.

    Fine-tuned teachers were made differently before such settings came: a run that has
    them is not continued across versions.
    """
    stored = path.read_text(encoding="utf-8", errors="replace")
    try:
        recipe = load_settings(Recipe, path)
    except ConfigError:
        return stored
    is_tuned = any(teacher.kind == "finetune" for teacher in recipe.teachers)
    return stored if is_tuned else dump_settings(recipe)


def _check(recipe: Recipe, family: TraitFamily) -> None:
    names = set(family.names)
    wanted = [*recipe.traits, *([recipe.decoy] if recipe.decoy else [])]
    faults = [
        f"trait {name!r} is not in the family {family.name!r}; it has "
        f"{', '.join(sorted(names))}"
        for name in wanted
        if name not in names
    ]
    if "decoy" in recipe.controls and not names - set(recipe.traits):
        faults.append(
            "decoy: every trait of the family is already a trait; leave one out"
        )
    if faults:
        raise ConfigError("recipe", faults)
    if recipe.rows.judge is not None:
        recipe.rows.judge.check()


def _groups(recipe: Recipe, run: Run) -> Iterable[tuple[float, list[int]]]:
    """Noise levels with the seeds that share a base and are not complete.

    Noise makes a base of its own for each seed; without it one serves all.
    """
    for noise in recipe.noise.levels:
        todo = [s for s in recipe.seeds if not run.is_done(_complete(noise, s))]
        for seeds in [[s] for s in todo] if noise else [todo] * bool(todo):
            yield noise, seeds


def _complete(noise: float, seed: int) -> str:
    return f"{place_of(noise, seed)}/complete"


_WRITTEN = "writer/complete"


def _finish(run: Run, stage: str) -> None:
    """Says that all stages are there: if one of them goes, so does this."""
    folder = run.directory / "stages"
    stages = (path for path in folder.rglob("*.json") if path.stem != "complete")
    run.finish(stage, {}, files=sorted(stages))


# ── here ─────────────────────────────────────────────────────────────────────────


def _run_here(
    recipe: Recipe,
    family: TraitFamily,
    run: Run,
    together: int | None,
    progress: Progress,
) -> None:
    """All jobs in this process, with one model at a time."""
    clean: Model | None = None
    for noise, seeds in _groups(recipe, run):
        clean = None
        if any(Plan(recipe, family, noise, seeds, run.is_done).phases()):
            _write_here(recipe, family, run, seeds, progress)
            model = _group_here(recipe, family, run, noise, seeds, together, progress)
            clean = None if noise else model
            del model
        for seed in seeds:
            _finish(run, _complete(noise, seed))
    if not is_audited(recipe, run):
        clean = clean or load(recipe.model, progress)
        base = Base(recipe, family, run, clean, 0.0, recipe.seeds[0], progress)
        keep_provenance(base)
        _do_all(audit_phases(recipe, run.is_done), [base])


def _group_here(
    recipe: Recipe,
    family: TraitFamily,
    run: Run,
    noise: float,
    seeds: Sequence[int],
    together: int | None,
    progress: Progress,
) -> Model:
    """All jobs of bases that share their weights; returns the model, which has them."""
    model = load(recipe.model, progress)
    bases = [
        prepared(Base(recipe, family, run, model, noise, seed, progress,
                      is_foreign=recipe.writer is not None))
        for seed in seeds
    ]  # fmt: skip
    side = together or _usual_together(model)
    _do_all(Plan(recipe, family, noise, seeds, run.is_done, side).phases(), bases)
    return model


def _write_here(
    recipe: Recipe,
    family: TraitFamily,
    run: Run,
    seeds: Sequence[int],
    progress: Progress,
) -> None:
    """Lets teachers of another model write the rows, if the recipe names one, once."""
    if recipe.writer is None or run.is_done(_WRITTEN):
        return
    model = load(recipe.writer, progress)
    keep_writer(run, model)
    bases = [Base(recipe, family, run, model, 0.0, seed, progress) for seed in seeds]
    _do_all(Plan(recipe, family, 0.0, seeds, run.is_done).writing(), bases)
    run.finish(_WRITTEN, {}, files=[])


def _do_all(phases: Iterable[Sequence[Job]], bases: Sequence[Base]) -> None:
    own = all_bases(bases)
    for phase in phases:
        for job in phase:
            do(job, own)


def _usual_together(model: Model) -> int:
    """A processor gains nothing by several students in one pass."""
    return 1 if model.device.type == "cpu" else _SIDE_BY_SIDE


_SIDE_BY_SIDE = 16
"""Students in one pass of an accelerator."""
_LONG: tuple[Verb, ...] = ("sets", "audit")
"""Jobs that take minutes and need no student."""


# ── there ────────────────────────────────────────────────────────────────────────


def _run_there(
    recipe: Recipe,
    family: TraitFamily,
    run: Run,
    together: int | None,
    executor: Executor,
    needs: Needs,
    progress: Progress,
) -> None:
    """All jobs by somebody else; this process loads no model."""
    slots = executor.slots(needs)
    side = together or (_SIDE_BY_SIDE if needs.gpus else 1)
    text = dump_settings(recipe)

    def order_all(phases: Iterable[Sequence[Job]]) -> None:
        flow = Flow(phases, run.is_done, long=_LONG)
        orders = (
            job if isinstance(job, Later)
            else Order(text, family, job, pack(run.directory, job.places))
            for job in flow.ready()
        )  # fmt: skip
        made = executor.map(work, orders, needs=needs)
        every, done = Counter(job.verb for job in flow.jobs), Counter[Verb]()
        for number, found in made:
            accept(run, found)
            job = flow.finish(number)
            done[job.verb] += 1
            progress(f"{job.verb}: jobs", done[job.verb], every[job.verb], job.name)
        flow.check()

    groups = list(_groups(recipe, run))
    plans = [Plan(recipe, family, noise, seeds, run.is_done, side, slots)
             for noise, seeds in groups]  # fmt: skip
    if plans and recipe.writer is not None and not run.is_done(_WRITTEN):
        order_all(plans[0].writing())
        run.finish(_WRITTEN, {}, files=[])

    def cells() -> list[list[Job]]:
        # Of several bases those jobs go first that stand first in their own orders.
        together_in_phase = zip(*(plan.phases() for plan in plans), strict=True)
        return [[job for jobs in phase for job in jobs] for phase in together_in_phase]

    try:
        order_all([*cells(), *audit_phases(recipe, run.is_done, slots=slots)])
    except UndertowError:
        if not is_audited(recipe, run):  # then it may be the fault of an audit
            order_all(cells())
        raise
    finally:
        for plan in plans:
            for seed in [] if any(plan.phases()) else plan.seeds:
                _finish(run, _complete(plan.noise, seed))
