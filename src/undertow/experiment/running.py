"""Runs a recipe: base, control, teachers, rows, students, read-outs, in that order.

A run that was killed goes on where it stood, since every stage is skipped when its
payload is there. What one stage does is `experiment.stages`' business, what the
payloads mean together `experiment.summary`'s.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertow.config import dump_settings
from undertow.errors import ConfigError, RunError
from undertow.experiment.audits import audit_blind, is_audited
from undertow.experiment.recipe import Recipe, TeacherSettings
from undertow.experiment.stages import (
    Base,
    Progress,
    make_student,
    make_teacher,
    read_out,
    read_shift,
    read_teacher_out,
    with_questions,
)
from undertow.experiment.summary import summarise
from undertow.interventions.noise import add_weight_noise
from undertow.models.loading import Model, fingerprint, load_model, save_checkpoint
from undertow.models.registry import REGISTRY, describe
from undertow.pipeline.teachers import Teacher
from undertow.results import Results
from undertow.runs import Run, open_run, provenance
from undertow.storage import write_json
from undertow.traits import TraitFamily, load_family


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


def run_experiment(
    recipe: Recipe, directory: Path | str, *, progress: Progress = _silent
) -> Results:
    """Runs every stage of a recipe that is not done yet and returns the results.

    Args:
        recipe: The grid and its settings.
        directory: The run directory; made if missing, continued if it is this
            recipe's.
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
    with open_run(Path(directory), recipe_text=dump_settings(recipe)) as run:
        model: Model | None = None
        for noise in recipe.noise.levels:
            model = None
            for seed in recipe.seeds:
                if run.is_done(f"noise-{noise:g}/seed-{seed}/complete"):
                    continue
                if noise or model is None:
                    model = _load(recipe, progress)
                _run_base(Base(recipe, family, run, model, noise, seed, progress))
        if not is_audited(recipe, run):
            clean = None if recipe.noise.levels[-1] else model
            _run_audits(recipe, family, run, clean, progress)
        results = summarise(recipe, family, run)
        write_json(run.path("results.json"), results.model_dump(mode="json"))
    return results


def _check(recipe: Recipe, family: TraitFamily) -> None:
    names = set(family.names)
    wanted = [*recipe.traits, *([recipe.decoy] if recipe.decoy else [])]
    faults = [
        f"trait {name!r} is not in the family {family.name!r}; it has "
        f"{', '.join(sorted(names))}"
        for name in wanted
        if name not in names
    ]
    if recipe.control_kind == "decoy" and not names - set(recipe.traits):
        faults.append(
            "decoy: every trait of the family is already a trait; leave one out"
        )
    if faults:
        raise ConfigError("recipe", faults)


def _load(recipe: Recipe, progress: Progress) -> Model:
    settings = recipe.model
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


def _run_audits(
    recipe: Recipe,
    family: TraitFamily,
    run: Run,
    model: Model | None,
    progress: Progress,
) -> None:
    """Audits with the clean base of the first seed; loads it if it is not at hand."""
    model = model or _load(recipe, progress)
    base = Base(recipe, family, run, model, 0.0, recipe.seeds[0], progress)
    _keep_provenance(base)
    audit_blind(base)


def _run_base(base: Base) -> None:
    """All cells that share one base."""
    _keep_provenance(base)
    if base.noise > 0:
        base = _noised(base)
    read_out(base, f"{base.shared}/base", Teacher(kind="none"), seed=base.shared_seed)
    for settings in base.recipe.teachers:
        control = _make_control(base, settings)
        for trait in base.recipe.traits:
            _run_cell(base, settings, trait, control)
    base.run.finish(f"{base.place}/complete", {})


def _noised(base: Base) -> Base:
    noise = base.recipe.noise
    report = add_weight_noise(
        base.model,
        p=base.noise,
        seed=base.seed,
        scope=noise.scope,
        formula=noise.formula,
        distribution=noise.distribution,
    )
    model = replace(
        base.model,
        name=f"{base.model.name}+noise{base.noise:g}",
        fingerprint=fingerprint(base.model.module),
    )
    stage = f"{base.place}/noise"
    if not base.run.is_done(stage):
        facts = {
            "p": base.noise, "seed": base.seed, "scope": list(noise.scope),
            "formula": noise.formula, "distribution": noise.distribution,
            "matrices": len(report.matrices), "fingerprint": model.fingerprint,
        }  # fmt: skip
        if noise.keep:
            save_checkpoint(model, base.path(f"{stage}/checkpoint"), provenance=facts)
        base.run.finish(stage, facts)
    return replace(base, model=model)


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
    if not base.run.is_done("provenance"):
        base.run.finish("provenance", facts)
        return
    first = base.run.payload("provenance")
    changed = [
        f"  {name}: there {first[name]!r}, now {facts[name]!r}"
        for name in _ORIGIN
        if name in first and first[name] != facts[name]
    ]
    if changed:
        lines = "\n".join(changed)
        raise RunError(
            f"{base.run.directory}: begun with another model, family or dtype, whose "
            f"results do not compare:\n{lines}\nBring back what it was begun with, or "
            "choose another directory"
        )


def _digest(family: TraitFamily) -> str:
    """16 hexadecimal digits of a family: its file may have changed under its name."""
    return hashlib.sha256(repr(family).encode()).hexdigest()[:16]


def _make_control(base: Base, settings: TeacherSettings) -> str:
    """Makes the control student for one kind of teacher; returns its name."""
    recipe = base.recipe
    if recipe.control_kind == "none":
        make_student(base, "control", Teacher(kind="none"))
        return "control"
    unused = [name for name in base.family.names if name not in recipe.traits]
    decoy = recipe.decoy or unused[0]
    name = f"decoy-{settings.label}-{decoy}"
    make_student(base, name, make_teacher(base, settings, decoy))
    return name


def _run_cell(base: Base, settings: TeacherSettings, trait: str, control: str) -> None:
    name = f"{settings.label}-{trait}"
    stage = f"{base.place}/{name}/cell"
    if base.run.is_done(stage):
        return
    teacher = make_teacher(base, settings, trait)
    teacher_out = read_teacher_out(base, name, teacher)
    student = make_student(base, name, teacher)
    facts: dict[str, Any] = {
        "teacher": settings.label,
        "trait": trait,
        "noise": base.noise,
        "seed": base.seed,
        "control": control,
        "readouts": {
            "base": f"{base.shared}/base/readout",
            "teacher": teacher_out,
            "control": f"{base.place}/{control}/student/readout",
            "student": f"{base.place}/{name}/student/readout",
        },
        "shift": read_shift(base, control, teacher, student),
    }
    base.run.finish(stage, facts)
