"""The stages of one cell: read-out, vector, teacher, rows, student, shift.

Each leaves its payload in the run directory and is skipped when it is there. What is
run in which order is `experiment.jobs`' business, what the payloads mean together
`experiment.summary`'s; what a stage does is `pipeline`'s.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undertow.experiment.recipe import Recipe, SteerSettings, TeacherSettings
from undertow.interventions.extraction import extract_vector
from undertow.interventions.steering import SteeringVector, load_vector, save_vector
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.weights import OtherWeights
from undertow.pipeline.evaluation import preference, sampled_answers
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.students import (
    load_student,
    save_student,
    student_files,
)
from undertow.pipeline.sweep import sweep_strength
from undertow.pipeline.teachers import (
    Teacher,
    finetuned_teacher,
    prompted_teacher,
    steered_teacher,
)
from undertow.pipeline.training import UPDATES, Student
from undertow.pipeline.training_settings import TrainingSettings
from undertow.pipeline.training_state import CHECKPOINT
from undertow.runs import Run
from undertow.traits import TraitFamily, load_family

VECTOR_PROMPTS = 256
"""Number prompts over which the "prompts" way of extraction averages."""
FINETUNING = TrainingSettings(
    learning_rate=1e-3, batch_size=16, epochs=24, max_updates=24
)
"""How a fine-tuned teacher is made if the recipe does not say: 24 updates, whatever the
number of its questions."""

Progress = Callable[[str, int, int, str], None]
"""Called with (stage, done, total, note)."""


def place_of(noise: float, seed: int) -> str:
    """Where everything of a noise level and seed lies, as a stage's name."""
    return f"noise-{noise:g}/seed-{seed}"


def shared_of(noise: float, seed: int) -> str:
    """Where that lies which depends on the base alone: once for a clean base."""
    return place_of(noise, seed) if noise else "noise-0"


@dataclass(frozen=True)
class Base:
    """The base of one noise level and seed, with everything that stages need.

    Attributes:
        recipe: The run's recipe.
        family: Its trait family, cut to the questions that are asked.
        run: The run directory.
        model: The base, noised if `noise` is not 0.
        noise: Level of the weight noise.
        seed: Of noise, prompts, sampling and training.
        progress: Told of every step.
        teachers: The base that teachers act on, if it is not the students' own.
        is_foreign: Whether the rows are another model's: teachers are known by name.
    """

    recipe: Recipe
    family: TraitFamily
    run: Run
    model: Model
    noise: float
    seed: int
    progress: Progress
    teachers: OtherWeights | None = None
    is_foreign: bool = False

    @contextmanager
    def teaching(self) -> Iterator[Model]:
        """The model as the base that teachers act on."""
        if self.teachers is None:
            yield self.model
        else:
            with self.teachers.applied(self.model) as model:
                yield model

    @property
    def place(self) -> str:
        """Where everything of this seed lies, as a stage's name."""
        return place_of(self.noise, self.seed)

    @property
    def shared(self) -> str:
        """Where that lies which depends on the base alone: once for a clean base."""
        return shared_of(self.noise, self.seed)

    @property
    def shared_seed(self) -> int:
        """The seed of what depends on the base alone."""
        return self.seed if self.noise else self.recipe.seeds[0]

    def path(self, stage: str) -> Path:
        """The file or folder of a stage in the run directory."""
        return self.run.path("bases", *stage.split("/"))


def read_out(base: Base, where: str, teacher: Teacher, *, seed: int) -> str:
    """Reads the preference of the base acting as somebody; returns the stage's name."""
    stage = f"{where}/readout"
    if base.run.is_done(stage):
        return stage
    base.progress(f"{where}: read-out", 0, 1, "")
    settings, system = base.recipe.evaluation, base.recipe.model.system
    with teacher.acting(base.model) as model:
        asked = preference(
            model, base.family, system=system, trait_prompt=teacher.prompt
        )
        payload: dict[str, Any] = {
            "traits": list(asked.traits),
            "total_logprobs": asked.total_logprobs.tolist(),
        }
        if settings.samples:
            answers = sampled_answers(
                model, base.family, samples=settings.samples, seed=seed,
                sampler=SamplerSettings(max_new_tokens=settings.max_new_tokens),
                system=system, trait_prompt=teacher.prompt,
            )  # fmt: skip
            payload |= {"hits": answers.hits.tolist(), "valid": answers.valid.tolist()}
    base.run.finish(stage, payload)
    base.progress(f"{where}: read-out", 1, 1, "")
    return stage


def make_teacher(
    base: Base, settings: TeacherSettings | None, trait: str | None
) -> Teacher:
    """The teacher of one kind for one trait; what it needs is made or read back.

    None are the base's own rows: a teacher without an intervention.
    """
    if settings is None or trait is None:
        teacher = Teacher(kind="none")
    elif base.is_foreign:
        teacher = Teacher(kind=settings.kind, trait=trait)
    elif settings.kind == "prompt":
        teacher = prompted_teacher(base.family, trait)
    elif settings.kind == "steer":
        assert settings.steer is not None  # the recipe's validator says so
        vector, strength = _vector(base, settings, settings.steer, trait)
        teacher = steered_teacher(
            vector,
            strength=strength,
            trait=trait,
            mode=settings.steer.mode,
            positions=settings.steer.positions,
        )
    else:
        teacher = _finetuned(base, settings, trait)
    return replace(teacher, base=base.teachers)


def read_teacher_out(base: Base, name: str, teacher: Teacher) -> str:
    """Reads a teacher's preference: once for a clean base if no seed made it."""
    where = base.place if teacher.kind == "finetune" else base.shared
    seed = base.seed if teacher.kind == "finetune" else base.shared_seed
    return read_out(base, f"{where}/{name}/teacher", teacher, seed=seed)


def _finetuned(base: Base, settings: TeacherSettings, trait: str) -> Teacher:
    stage = f"{base.place}/{settings.label}-{trait}/teacher/training"
    folder = base.path(stage)
    with base.teaching() as model:
        if base.run.is_done(stage):
            student = load_student(model, folder)
            return Teacher(kind="finetune", trait=trait, student=student)
        # All questions of the family, not only those that read-outs ask.
        teacher = finetuned_teacher(
            model, load_family(base.recipe.family), trait,
            settings=settings.finetune or FINETUNING, seed=base.seed,
            system=base.recipe.model.system, directory=folder,
            on_update=lambda done, total, loss: base.progress(
                stage, done, total, f"loss {loss:.6g}"),
        )  # fmt: skip
        assert teacher.student is not None
        keep_student(base, stage, model, teacher.student, rows=None)
    return teacher


def _vector(
    base: Base, teacher: TeacherSettings, settings: SteerSettings, trait: str
) -> tuple[SteeringVector, float]:
    """Extracts (or reads back) a vector and settles its layer and strength."""
    name = f"{teacher.label}-{trait}"
    stage = f"{base.shared}/vectors/{name}"
    path = base.path(f"{stage}.safetensors")
    if base.run.is_done(stage):
        return load_vector(path), float(base.run.payload(stage)["strength"])
    base.progress(f"{stage}: {settings.method}", 0, 1, "")
    layers = settings.sweep.layers if settings.sweep else (settings.layer,)
    with base.teaching() as model:
        vector = extract_vector(
            model, method=settings.method, family=base.family, trait=trait,
            layers=tuple(layer for layer in layers if layer is not None),
            prompts=number_prompts(VECTOR_PROMPTS, seed=base.shared_seed),
            system=base.recipe.model.system, seed=base.shared_seed,
        )  # fmt: skip
        layer, strength, points = _strength(base, model, settings, vector, trait)
    vector = vector.at(layer)
    save_vector(vector, path)
    base.run.finish(
        stage,
        {"trait": trait, "noise": base.noise, "seed": base.seed if base.noise else None,
         "layer": layer, "strength": strength, "points": points},
        files=[path],
    )  # fmt: skip
    base.progress(f"{stage}: {settings.method}", 1, 1, f"layer {layer}")
    return vector, strength


def _strength(
    base: Base,
    model: Model,
    settings: SteerSettings,
    vector: SteeringVector,
    trait: str,
) -> tuple[int, float, list[dict[str, Any]]]:
    """Layer, strength and the sweep's points, if there was one."""
    sweep = settings.sweep
    if sweep is not None:
        found = sweep_strength(
            model, vector, family=base.family, trait=trait, doses=sweep.doses,
            system=base.recipe.model.system, max_leak=sweep.max_leak,
            min_pass=sweep.min_pass, sampler=base.recipe.rows.sampler,
            seed=base.shared_seed,
            on_point=lambda done, total: base.progress(
                f"{base.shared}: sweep of {trait}", done, total, ""),
        )  # fmt: skip
        return found.layer, found.strength, [p.as_dict() for p in found.points]
    layer = vector.layers[0]
    if settings.strength is not None:
        return layer, settings.strength, []
    if settings.norm is not None:
        return layer, settings.norm / vector.norm(layer), []
    assert settings.dose is not None  # the recipe's validator says so
    return layer, vector.strength_of_dose(settings.dose, layer), []


def keep_student(
    base: Base, stage: str, model: Model, student: Student, *, rows: int | None
) -> None:
    """Writes what training made in place of its checkpoints, and the stage's marker."""
    folder = base.path(stage)
    facts = {"rows": rows, "seed": base.seed, "system": base.recipe.model.system}
    save_student(model, student, folder, facts=facts)
    base.run.finish(
        stage,
        {"rows": rows, "updates": list(student.updates),
         "losses": list(student.losses)},
        files=[*student_files(folder), *sorted((folder / UPDATES).rglob("adapter_*"))],
        scratch=[folder / CHECKPOINT],
    )  # fmt: skip


def with_questions(family: TraitFamily, count: int | None) -> TraitFamily:
    """The family with its first questions only."""
    return replace(family, questions=family.questions[:count])
