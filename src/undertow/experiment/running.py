"""Runs a recipe: base, control, teachers, rows, students, read-outs, in that order.

A run that was killed goes on where it stood, since every stage is skipped when its
payload is there. What one stage does is `experiment.stages`' business, what the
payloads mean together `experiment.summary`'s.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertow.config import dump_settings, load_settings
from undertow.errors import ConfigError, RunError
from undertow.experiment.alignment import read_alignments
from undertow.experiment.audits import audit_blind, is_audited
from undertow.experiment.causes import read_causes
from undertow.experiment.cells import Cell, cells_of
from undertow.experiment.emergence import read_emergence
from undertow.experiment.lessons import (
    divergence_stage,
    read_channel,
    read_shift,
    read_student_out,
    train_lessons,
    write_teacher_rows,
)
from undertow.experiment.recipe import ModelSettings, Recipe
from undertow.experiment.stages import (
    Base,
    Progress,
    read_out,
    read_teacher_out,
    with_questions,
)
from undertow.experiment.summary import summarise
from undertow.interventions.noise import add_weight_noise
from undertow.models.architecture import matrix_kind
from undertow.models.hooks import check_layers
from undertow.models.loading import Model, fingerprint, load_model, save_checkpoint
from undertow.models.registry import REGISTRY, describe
from undertow.models.weights import copied_weights, put_back
from undertow.pipeline.teachers import Teacher
from undertow.results import Results
from undertow.runs import Run, open_run, provenance
from undertow.storage import write_json
from undertow.traits import TraitFamily, load_family


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


def run_experiment(
    recipe: Recipe,
    directory: Path | str,
    *,
    together: int | None = None,
    progress: Progress = _silent,
) -> Results:
    """Runs every stage of a recipe that is not done yet and returns the results.

    Args:
        recipe: The grid and its settings.
        directory: The run directory; made if missing, continued if it is this
            recipe's.
        together: Students that are trained side by side, at most; changes speed and,
            by rounding, nothing else. None takes what suits the device.
        progress: Told of every step.

    Raises:
        RunError: The directory is locked, belongs to another recipe, or was begun with
            another model, family or dtype.
        ConfigError: A trait, decoy or layer that does not exist.
        DatasetError: The filter refused every row of a teacher, or of a set to audit.
        TrainingError: A loss is no longer finite.
    """
    family = with_questions(load_family(recipe.family), recipe.evaluation.questions)
    _check(recipe, family)
    with open_run(
        Path(directory), recipe_text=dump_settings(recipe), resolve=_resolved
    ) as run:
        model: Model | None = None
        for noise in recipe.noise.levels:
            model = None
            todo = [
                seed
                for seed in recipe.seeds
                if not run.is_done(f"noise-{noise:g}/seed-{seed}/complete")
            ]
            # Noise makes a base of its own for each seed; without it one serves all.
            for seeds in ([s] for s in todo) if noise else [todo] * bool(todo):
                _write_elsewhere(recipe, family, run, seeds, progress)
                model = _load(recipe.model, progress)
                bases = [Base(recipe, family, run, model, noise, seed, progress,
                              is_foreign=recipe.writer is not None)
                         for seed in seeds]  # fmt: skip
                _run_bases(bases, together or _usual_together(model))
        if not is_audited(recipe, run):
            clean = None if recipe.noise.levels[-1] else model
            _run_audits(recipe, family, run, clean, progress)
        results = summarise(recipe, family, run)
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


def _load(settings: ModelSettings, progress: Progress) -> Model:
    progress(f"load {settings.name}", 0, 1, "")
    model = load_model(
        settings.name,
        dtype=settings.dtype,
        device=settings.device,
        template=settings.template,
        blocks_path=settings.blocks_path,
        norm_path=settings.norm_path,
    )
    progress(f"load {settings.name}", 1, 1, model.reason)
    return model


def _write_elsewhere(
    recipe: Recipe,
    family: TraitFamily,
    run: Run,
    seeds: Sequence[int],
    progress: Progress,
) -> None:
    """Lets teachers of another model write the rows, if the recipe names one, once."""
    if recipe.writer is None or run.is_done("writer/complete"):
        return
    model = _load(recipe.writer, progress)
    facts = {
        "model": model.name, "model_fingerprint": model.fingerprint,
        "template_digest": model.template.digest,
        "dtype": str(model.dtype).removeprefix("torch."),
    }  # fmt: skip
    _same_origin(run, "writer/model", facts)
    for seed in seeds:
        base = Base(recipe, family, run, model, 0.0, seed, progress)
        for lesson in (each for cell in cells_of(base) for each in cell.lessons):
            write_teacher_rows(lesson)
            read_teacher_out(base, lesson.writer, lesson.teacher())
    run.finish("writer/complete", {})


def _run_audits(
    recipe: Recipe,
    family: TraitFamily,
    run: Run,
    model: Model | None,
    progress: Progress,
) -> None:
    """Audits with the clean base of the first seed; loads it if it is not at hand."""
    model = model or _load(recipe.model, progress)
    base = Base(recipe, family, run, model, 0.0, recipe.seeds[0], progress)
    _keep_provenance(base)
    audit_blind(base)


def _usual_together(model: Model) -> int:
    """A processor gains nothing by several students in one pass."""
    return 1 if model.device.type == "cpu" else 16


def _run_bases(bases: Sequence[Base], together: int) -> None:
    """All cells of bases that share their weights: teachers, students, read-outs."""
    bases = [_prepared(base) for base in bases]
    cells = [cell for base in bases for cell in cells_of(base)]
    lessons = {lesson.stage: lesson for cell in cells for lesson in cell.lessons}
    for lesson in lessons.values():
        write_teacher_rows(lesson)
    for cell in cells:
        read_channel(cell.lesson)
    train_lessons(list(lessons.values()), together=together)
    for cell in cells:
        _read_cell(cell)
        read_causes(cell.lesson, cell.control)
        for lesson in cell.lessons:
            read_emergence(lesson, cell.control)
    for base in bases:
        read_alignments(base, [c.lesson for c in cells if c.lesson.base is base])
        base.run.finish(f"{base.place}/complete", {})


def _prepared(base: Base) -> Base:
    """The base with its noise, and its own preference read."""
    if base.recipe.evaluation.cause_layer is not None:
        check_layers(base.model, [base.recipe.evaluation.cause_layer])
    _keep_provenance(base)
    if base.noise > 0:
        base = _noised(base)
    read_out(base, f"{base.shared}/base", Teacher(kind="none"), seed=base.shared_seed)
    return base


def _noised(base: Base) -> Base:
    """The base with noise; if only one side has it, with the other side's weights."""
    noise, clean = base.recipe.noise, base.model
    names = [
        name
        for name, _ in clean.module.named_parameters()
        if matrix_kind(name, clean.module) in noise.scope and noise.on != "both"
    ]
    before = copied_weights(clean, names)
    report = add_weight_noise(
        clean,
        p=base.noise,
        seed=base.seed,
        scope=noise.scope,
        formula=noise.formula,
        distribution=noise.distribution,
    )
    noised = replace(
        clean,
        name=f"{clean.name}+noise{base.noise:g}",
        fingerprint=fingerprint(clean.module),
    )
    _keep_noise(base, noised, matrices=len(report.matrices))
    if noise.on == "teacher":
        after = copied_weights(noised, names)
        put_back(clean, before)
        return replace(base, teachers=after)
    return replace(
        base, model=noised, teachers=before if noise.on == "student" else None
    )


def _keep_noise(base: Base, noised: Model, *, matrices: int) -> None:
    """What was done to the base, and the base itself if the recipe asks for it."""
    noise, stage = base.recipe.noise, f"{base.place}/noise"
    if base.run.is_done(stage):
        return
    facts = {
        "p": base.noise, "seed": base.seed, "scope": list(noise.scope),
        "on": noise.on, "formula": noise.formula, "distribution": noise.distribution,
        "matrices": matrices, "fingerprint": noised.fingerprint,
    }  # fmt: skip
    if noise.keep:
        save_checkpoint(noised, base.path(f"{stage}/checkpoint"), provenance=facts)
    base.run.finish(stage, facts)


_ORIGIN = ("model_fingerprint", "template_digest", "dtype", "family_digest")
"""What a continued run has to share with its beginning, or its stages do not compare."""


def _keep_provenance(base: Base) -> None:
    """Writes the provenance, or checks that a continued run is still of that origin."""
    model, recipe = base.model, base.recipe
    registered = describe(model.name) if model.name in REGISTRY else {}
    facts = provenance(
        model=model.name,
        model_fingerprint=model.fingerprint,
        model_sha256=registered.get("gguf_sha256"),
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        dtype_reason=model.reason,
        template=model.template.name,
        template_digest=model.template.digest,
        system=recipe.model.system,
        sampler=recipe.rows.sampler.model_dump_json(),
        family_digest=_digest(base.family),
    )
    if base.recipe.writer is not None:
        facts["writer"] = base.recipe.writer.name
    _same_origin(base.run, "provenance", facts)


def _same_origin(run: Run, stage: str, facts: Mapping[str, Any]) -> None:
    """Keeps what a run was begun with, or checks that this is the same.

    Raises:
        RunError: It is not.
    """
    if not run.is_done(stage):
        run.finish(stage, facts)
        return
    first = run.payload(stage)
    changed = [
        f"  {name}: there {first[name]!r}, now {facts[name]!r}"
        for name in _ORIGIN
        if name in first and first[name] != facts[name]
    ]
    if changed:
        lines = "\n".join(changed)
        raise RunError(
            f"{run.directory}: begun with another model, family or dtype, whose "
            f"results do not compare:\n{lines}\nBring back what it was begun with, or "
            "choose another directory"
        )


def _digest(family: TraitFamily) -> str:
    """16 hexadecimal digits of a family: its file may have changed under its name."""
    return hashlib.sha256(repr(family).encode()).hexdigest()[:16]


def _read_cell(cell: Cell) -> None:
    """The teacher's preference, the student's shift, and where all of it lies."""
    base, lesson, control = cell.lesson.base, cell.lesson, cell.control
    stage = f"{base.place}/{lesson.name}/cell"
    if base.run.is_done(stage):
        return
    facts: dict[str, Any] = {
        "teacher": cell.settings.label,
        "trait": cell.trait,
        "noise": base.noise,
        "seed": base.seed,
        "writer": lesson.writer,
        "control": control.name,
        "control_writer": control.writer,
        "divergence": divergence_stage(lesson),
        "readouts": {
            "base": f"{base.shared}/base/readout",
            "teacher": read_teacher_out(base, lesson.writer, lesson.teacher()),
            "control": read_student_out(control),
            "student": read_student_out(lesson),
        },
        **read_shift(lesson, control),
    }
    base.run.finish(stage, facts)
