"""Runs a recipe: base, control, teachers, rows, students, read-outs, in that order.

Every stage leaves its payload in the run directory and is skipped when it is there,
so a run that was killed goes on where it stood. What the payloads mean together is
`experiment.summary`'s business; what a stage does is `pipeline`'s.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from undertow.analysis.shifts import mean_shift, shift_cosines
from undertow.config import dump_settings
from undertow.errors import ConfigError, DatasetError
from undertow.experiment.recipe import Recipe, SteerSettings, TeacherSettings
from undertow.experiment.summary import summarise
from undertow.interventions.extraction import extract_vector
from undertow.interventions.noise import add_weight_noise
from undertow.interventions.steering import SteeringVector, load_vector, save_vector
from undertow.models.adapters import load_adapter, save_adapter
from undertow.models.carrier import carrier_ids
from undertow.models.chat import render_prompt, render_row
from undertow.models.loading import Model, fingerprint, load_model, save_checkpoint
from undertow.models.sampling import SamplerSettings
from undertow.pipeline.evaluation import preference, sampled_answers
from undertow.pipeline.filters import filter_rows
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.sweep import sweep_strength
from undertow.pipeline.teachers import (
    Teacher,
    finetuned_teacher,
    prompted_teacher,
    steered_teacher,
)
from undertow.pipeline.training import (
    Example,
    Student,
    TrainingSettings,
    train_student,
)
from undertow.records import Row
from undertow.results import Results
from undertow.runs import Run, open_run, provenance
from undertow.storage import read_rows, write_json, write_rows
from undertow.traits import TraitFamily, load_family

VECTOR_PROMPTS = 256
"""Number prompts over which the "prompts" way of extraction averages."""

Progress = Callable[[str, int, int, str], None]
"""Called with (stage, done, total, note)."""


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class _Base:
    """The base of one noise level and seed, with everything that stages need."""

    recipe: Recipe
    family: TraitFamily
    run: Run
    model: Model
    noise: float
    seed: int
    progress: Progress

    @property
    def name(self) -> str:
        return f"noise-{self.noise:g}/seed-{self.seed}"

    def path(self, *parts: str) -> Path:
        return self.run.path("bases", *self.name.split("/"), *parts)


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
        RunError: The directory is locked or belongs to another recipe.
        ConfigError: A trait, decoy or layer that does not exist.
    """
    family = load_family(recipe.family)
    _check(recipe, family)
    with open_run(Path(directory), recipe_text=dump_settings(recipe)) as run:
        for noise in recipe.noise.levels:
            model: Model | None = None
            for seed in recipe.seeds:
                if noise or model is None:
                    progress("load", 0, 1, recipe.model.name)
                    model = _load(recipe)
                base = _Base(recipe, family, run, model, noise, seed, progress)
                _run_base(base)
        results = summarise(recipe, family, run)
        write_json(run.path("results.json"), results.model_dump(mode="json"))
    return results


def _check(recipe: Recipe, family: TraitFamily) -> None:
    names = {trait.name for trait in family.traits}
    wanted = [*recipe.traits, *([recipe.decoy] if recipe.decoy else [])]
    faults = [
        f"trait {name!r} is not in the family {family.name!r}; it has "
        f"{', '.join(sorted(names))}"
        for name in wanted
        if name not in names
    ]
    if faults:
        raise ConfigError("recipe", faults)


def _load(recipe: Recipe) -> Model:
    settings = recipe.model
    return load_model(
        settings.name,
        dtype=settings.dtype,
        device=settings.device,
        template=settings.template,
        blocks_path=settings.blocks_path,
    )


def _run_base(base: _Base) -> None:
    """All cells that share one base."""
    recipe = base.recipe
    if base.noise > 0:
        base = _noised(base)
    _provenance(base)
    _readout(base, "base", Teacher(kind="none"))
    for settings in recipe.teachers:
        control = _control(base, settings)
        for trait in recipe.traits:
            _run_cell(base, settings, trait, control)


def _noised(base: _Base) -> _Base:
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
    if noise.keep and not base.run.is_done(f"{base.name}/checkpoint"):
        facts = {
            "noise": base.noise,
            "seed": base.seed,
            "matrices": len(report.matrices),
        }
        save_checkpoint(model, base.path("checkpoint"), provenance=facts)
        base.run.finish(f"{base.name}/checkpoint", facts)
    return replace(base, model=model)


def _provenance(base: _Base) -> None:
    if base.run.is_done("provenance"):
        return
    model, recipe = base.model, base.recipe
    facts = provenance(
        model=model.name,
        model_fingerprint=model.fingerprint,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        dtype_reason=model.reason,
        template=model.template.name,
        template_digest=model.template.digest,
        system=recipe.model.system,
        sampler=recipe.rows.sampler.model_dump_json(),
    )
    base.run.finish("provenance", facts)


def _readout(base: _Base, name: str, teacher: Teacher) -> None:
    """Reads the preference of the base acting as somebody."""
    stage = f"{base.name}/{name}/readout"
    if base.run.is_done(stage):
        return
    base.progress(f"{name}: read-out", 0, 1, "")
    recipe = base.recipe
    settings = recipe.evaluation
    questions = base.family.questions[: settings.questions]
    family = replace(base.family, questions=questions)
    with teacher.acting(base.model) as model:
        asked = preference(
            model, family, system=recipe.model.system, trait_prompt=teacher.prompt
        )
        payload: dict[str, Any] = {
            "traits": list(asked.traits),
            "total_logprobs": asked.total_logprobs.tolist(),
        }
        if settings.samples:
            answers = sampled_answers(
                model,
                family,
                samples=settings.samples,
                seed=base.seed,
                sampler=SamplerSettings(max_new_tokens=settings.max_new_tokens),
                system=recipe.model.system,
                trait_prompt=teacher.prompt,
            )
            payload |= {"hits": answers.hits.tolist(), "valid": answers.valid.tolist()}
    base.run.finish(stage, payload)
    base.progress(f"{name}: read-out", 1, 1, "")


def _control(base: _Base, settings: TeacherSettings) -> str:
    """Makes the control student for one kind of teacher; returns its name."""
    recipe = base.recipe
    if recipe.control_kind == "none":
        name = "control"
        _student(base, name, Teacher(kind="none"))
        return name
    used = set(recipe.traits)
    others = [t.name for t in base.family.traits if t.name not in used]
    if not others:
        raise ConfigError("decoy", ["every trait of the family is already a trait"])
    decoy = recipe.decoy or others[0]
    name = f"decoy-{settings.kind}-{decoy}"
    if not _is_complete(base, name):
        _student(base, name, _teacher(base, settings, decoy))
    return name


def _is_complete(base: _Base, name: str) -> bool:
    return base.run.is_done(f"{base.name}/{name}/student/readout")


def _run_cell(base: _Base, settings: TeacherSettings, trait: str, control: str) -> None:
    name = f"{settings.kind}-{trait}"
    if base.run.is_done(f"{base.name}/{name}/cell"):
        return
    teacher = _teacher(base, settings, trait)
    _readout(base, f"{name}/teacher", teacher)
    student = _student(base, name, teacher)
    shift = _shift(base, name, control, teacher, student)
    base.run.finish(
        f"{base.name}/{name}/cell",
        {
            "teacher": settings.kind,
            "trait": trait,
            "noise": base.noise,
            "seed": base.seed,
            "control": control,
            "shift": shift,
        },
    )


def _teacher(base: _Base, settings: TeacherSettings, trait: str) -> Teacher:
    recipe, model = base.recipe, base.model
    if settings.kind == "prompt":
        return prompted_teacher(base.family, trait)
    if settings.kind == "steer":
        assert settings.steer is not None
        vector, strength = _vector(base, settings.steer, trait)
        return steered_teacher(vector, strength=strength, trait=trait)
    tuning = settings.finetune or TrainingSettings(
        learning_rate=1e-3, batch_size=16, max_updates=24
    )
    stage = f"finetune-{trait}: teacher"
    return finetuned_teacher(
        model,
        base.family,
        trait,
        settings=tuning,
        seed=base.seed,
        system=recipe.model.system,
        on_update=lambda done, total, loss: base.progress(
            stage, done, total, f"loss {loss:.3f}"
        ),
    )


def _vector(
    base: _Base, settings: SteerSettings, trait: str
) -> tuple[SteeringVector, float]:
    """Extracts (or reads back) a vector and settles its layer and strength."""
    stage, path = (
        f"{base.name}/vectors/{trait}",
        base.path("vectors", f"{trait}.safetensors"),
    )
    if base.run.is_done(stage):
        return load_vector(path), float(base.run.payload(stage)["strength"])
    base.progress(f"vector {trait}", 0, 1, settings.method)
    model, sweep = base.model, settings.sweep
    layers = sweep.layers if sweep else (settings.layer,)
    vector = extract_vector(
        model, method=settings.method, family=base.family, trait=trait,
        layers=tuple(layer for layer in layers if layer is not None),
        prompts=number_prompts(VECTOR_PROMPTS, seed=base.seed),
        system=base.recipe.model.system, seed=base.seed,
    )  # fmt: skip
    points: list[dict[str, Any]] = []
    if sweep:
        found = sweep_strength(
            model, vector, family=base.family, trait=trait, doses=sweep.doses,
            system=base.recipe.model.system, max_leak=sweep.max_leak,
            min_pass=sweep.min_pass, sampler=base.recipe.rows.sampler, seed=base.seed,
        )  # fmt: skip
        points = [point.as_dict() for point in found.points]
        layer, strength = found.layer, found.strength
    else:
        assert settings.layer is not None
        layer = settings.layer
        strength = (
            settings.strength
            if settings.strength is not None
            else vector.strength_of_dose(settings.dose, layer)
        )
    vector = vector.at(layer)
    save_vector(vector, path)
    base.run.finish(
        stage, {"trait": trait, "layer": layer, "strength": strength, "points": points}
    )
    return vector, strength


def _student(base: _Base, name: str, teacher: Teacher) -> Student:
    """Rows of a teacher, a student of those rows, and its read-out."""
    rows = _rows(base, name, teacher)
    student = _trained(base, name, teacher, rows)
    acting = Teacher(kind="finetune", student=student)
    _readout(base, f"{name}/student", acting)
    return student


def _rows(base: _Base, name: str, teacher: Teacher) -> list[Row]:
    """Generates and filters; returns the rows that a student may see."""
    recipe, settings = base.recipe, base.recipe.rows
    stage, path = f"{base.name}/{name}/rows", base.path(name, "rows.jsonl")
    if not base.run.is_done(stage):
        rows = generate_rows(
            base.model, teacher, number_prompts(settings.count, seed=base.seed),
            seed=base.seed, sampler=settings.sampler, system=recipe.model.system,
            batch_size=settings.batch_size, partial=base.path(name, "rows.partial"),
            on_rows=lambda done, total, tokens: base.progress(
                f"{name}: rows", done, total, f"{tokens} tokens"),
        )  # fmt: skip
        verdicts = filter_rows(
            rows, max_values=settings.max_values, banned=settings.banned
        )
        write_rows(path, rows, verdicts={v.row_id: v for v in verdicts})
        reasons: dict[str, int] = {}
        for verdict in verdicts:
            for reason in verdict.reasons:
                reasons[reason] = reasons.get(reason, 0) + 1
        accepted = [v.accepted or not settings.filter for v in verdicts]
        base.run.finish(
            stage,
            {"generated": len(rows), "accepted": accepted, "reasons": reasons},
        )
    kept = base.run.payload(stage)["accepted"]
    rows = [row for row, ok in zip(read_rows(path), kept, strict=True) if ok]
    if not rows:
        raise DatasetError(
            f"{path}: none of {len(kept)} rows passed the filter; look at their "
            "reasons, lower the strength or the noise, or write more rows"
        )
    return rows[: settings.use]


def _trained(base: _Base, name: str, teacher: Teacher, rows: Sequence[Row]) -> Student:
    recipe, settings = base.recipe, base.recipe.student
    stage, folder = f"{base.name}/{name}/training", base.path(name, "student")
    if base.run.is_done(stage):
        return _read_student(base, stage, folder)
    system, soft = recipe.model.system, settings.kind == "soft"
    examples = [
        Example(
            render_row(base.model, row, system=system),
            render_row(base.model, row, system=system, trait_prompt=teacher.prompt)
            if soft
            else None,
        )
        for row in rows
    ]
    student = train_student(
        base.model, examples, settings=settings, seed=base.seed, directory=folder,
        teacher=(lambda: teacher.acting(base.model)) if soft else nullcontext,
        carrier=carrier_ids(base.model) if settings.soft_tokens == "numbers" else None,
        on_update=lambda done, total, loss: base.progress(
            f"{name}: training", done, total, f"loss {loss:.4f}"),
    )  # fmt: skip
    if student.adapter is not None:
        save_adapter(student.adapter, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(student.weights or {}, folder / "weights.safetensors")
    base.run.finish(
        stage,
        {"rows": len(rows), "updates": list(student.updates),
         "losses": list(student.losses)},
    )  # fmt: skip
    return student


def _read_student(base: _Base, stage: str, folder: Path) -> Student:
    payload = base.run.payload(stage)
    adapter = weights = None
    if (folder / "adapter_config.json").exists():
        adapter = load_adapter(base.model, folder)
    else:
        weights = load_file(folder / "weights.safetensors")
    return Student(
        adapter, weights, tuple(payload["updates"]), tuple(payload["losses"])
    )


def _shift(
    base: _Base, name: str, control: str, teacher: Teacher, student: Student
) -> dict[str, Any] | None:
    """Cosine of the students' shifts with the teacher's vector, layer by layer."""
    count = base.recipe.evaluation.shift_rows
    if teacher.vector is None or not count:
        return None
    base.progress(f"{name}: shift", 0, 1, "")
    model, vector = base.model, teacher.vector
    path = base.path(control, "rows.jsonl")
    rows = [
        render_row(model, row, system=base.recipe.model.system)
        for row in read_rows(path)[:count]
    ]
    other = _read_student(
        base, f"{base.name}/{control}/training", base.path(control, "student")
    )
    layer = vector.layers[0]
    direction = vector.direction(layer)
    cosines = {}
    for role, who in (("student", student), ("control", other)):
        shift = mean_shift(model, rows, acting=lambda who=who: who.applied(model))
        cosines[role] = shift_cosines(shift, direction)
    base.progress(f"{name}: shift", 1, 1, "")
    layers = list(range(len(model.architecture.blocks)))
    return {"layers": layers, "vector_layer": layer, **{
        role: np.asarray(values, dtype=float).tolist() for role, values in cosines.items()
    }}  # fmt: skip
