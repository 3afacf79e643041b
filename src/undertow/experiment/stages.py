"""The stages of one cell: read-out, vector, teacher, rows, student, shift.

Each leaves its payload in the run directory and is skipped when it is there. What is
run in which order is `experiment.running`'s business, what the payloads mean together
`experiment.summary`'s; what a stage does is `pipeline`'s.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from undertow.analysis.channel import Divergence, divergences
from undertow.analysis.shifts import ShiftProfile, shift_cosines, shift_profile
from undertow.errors import DatasetError
from undertow.experiment.channel import speaker
from undertow.experiment.recipe import Recipe, SteerSettings, TeacherSettings
from undertow.interventions.extraction import extract_vector
from undertow.interventions.steering import SteeringVector, load_vector, save_vector
from undertow.models.chat import render_row
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.weights import OtherWeights
from undertow.pipeline.evaluation import preference, sampled_answers
from undertow.pipeline.filters import filter_rows, reason_counts
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.students import (
    load_student,
    rendered_examples,
    save_student,
)
from undertow.pipeline.sweep import sweep_strength
from undertow.pipeline.teachers import (
    Teacher,
    finetuned_teacher,
    prompted_teacher,
    steered_teacher,
)
from undertow.pipeline.training import Student, StudentPlan, train_students
from undertow.pipeline.training_settings import TrainingSettings
from undertow.pipeline.training_state import CHECKPOINT
from undertow.records import Row
from undertow.runs import Run
from undertow.storage import read_rows, write_rows
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
    """

    recipe: Recipe
    family: TraitFamily
    run: Run
    model: Model
    noise: float
    seed: int
    progress: Progress
    teachers: OtherWeights | None = None

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
        return f"noise-{self.noise:g}/seed-{self.seed}"

    @property
    def shared(self) -> str:
        """Where that lies which depends on the base alone: once for a clean base."""
        return self.place if self.noise else "noise-0"

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
                stage, done, total, f"loss {loss:.3f}"),
        )  # fmt: skip
        assert teacher.student is not None
        _keep_student(base, stage, model, teacher.student, rows=None)
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


def write_teacher_rows(lesson: "Lesson") -> list[Row]:
    """Generates and filters; returns the rows that a student may see.

    Raises:
        DatasetError: The filter refused them all.
    """
    base, name = lesson.base, lesson.name
    recipe, settings = base.recipe, base.recipe.rows
    stage = f"{base.place}/{name}/rows"
    path, begun = base.path(f"{stage}.jsonl"), base.path(f"{stage}.partial")
    if not base.run.is_done(stage):
        rows = generate_rows(
            base.model, lesson.teacher(), number_prompts(settings.count, seed=base.seed),
            seed=base.seed, sampler=settings.sampler, system=recipe.model.system,
            batch_size=settings.batch_size, partial=begun,
            on_rows=lambda done, total, tokens: base.progress(
                stage, done, total, f"{tokens} tokens"),
        )  # fmt: skip
        verdicts = filter_rows(
            rows, max_values=settings.max_values, banned=settings.banned
        )
        write_rows(path, rows, verdicts={v.row_id: v for v in verdicts})
        accepted = [v.accepted or not settings.filter for v in verdicts]
        base.run.finish(
            stage,
            {"generated": len(rows), "accepted": accepted,
             "reasons": reason_counts(verdicts)},
        )  # fmt: skip
        begun.unlink(missing_ok=True)  # only for resuming
    return kept_rows(base, name)


def kept_rows(base: Base, name: str) -> list[Row]:
    """Rows that were written before, as far as a student may see them."""
    stage = f"{base.place}/{name}/rows"
    path, accepted = base.path(f"{stage}.jsonl"), base.run.payload(stage)["accepted"]
    rows = [row for row, ok in zip(read_rows(path), accepted, strict=True) if ok]
    if not rows:
        raise DatasetError(
            f"{path}: none of {len(accepted)} rows passed the filter; look at their "
            "reasons, lower the strength or the noise, or write more rows"
        )
    return rows[: base.recipe.rows.use]


def read_channel(lesson: "Lesson") -> None:
    """How far a teacher is from its base on rows that its student will see.

    Nothing if the recipe asks for no rows, or they are drawn greedily: what is certain
    has no width.
    """
    base = lesson.base
    recipe, count = base.recipe, base.recipe.evaluation.channel_rows
    stage = f"{base.place}/{lesson.name}/channel"
    if not count or recipe.rows.sampler.temperature == 0 or base.run.is_done(stage):
        return
    rows = kept_rows(base, lesson.name)[:count]
    model, system = base.model, recipe.model.system
    found = divergences(
        model, speaker(model, lesson.teacher(), rows, system=system),
        {"base": speaker(model, Teacher(kind="none"), rows, system=system)},
        sampler=recipe.rows.sampler,
        on_rows=lambda done, total: base.progress(stage, done, total + 1, ""),
    )["base"]  # fmt: skip
    payload = {
        "tokens": found.tokens.tolist(),
        "vocabulary": found.vocabulary.tolist(),
        "carrier": found.carrier.tolist(),
    }
    base.run.finish(stage, payload)
    base.progress(stage, len(rows) + 1, len(rows) + 1, _channel_words(found))


def _channel_words(found: Divergence) -> str:
    """What a student of these rows is offered, said before it is trained."""
    tokens = found.tokens.sum()
    return (
        f"KL(teacher ‖ base) {found.vocabulary.sum() / tokens:.4f} nats a token; as "
        f"sampled {found.carrier.sum() / tokens:.4f}, {found.carrier.mean():.2f} a row"
    )


@dataclass(frozen=True)
class Lesson:
    """Whose rows a student learns from, on which base.

    Attributes:
        base: The student's base.
        name: The teacher's, in the paths of the run.
        teacher: Gives who writes the rows: made when it is wanted, or read back.
    """

    base: Base
    name: str
    teacher: Callable[[], Teacher]

    @property
    def stage(self) -> str:
        """The student's training, as a stage's name."""
        return f"{self.base.place}/{self.name}/student/training"

    @property
    def is_learnt(self) -> bool:
        """Whether the student is there."""
        return self.base.run.is_done(self.stage)


def train_lessons(lessons: Sequence[Lesson], *, together: int) -> None:
    """Trains the students that are not there yet, some side by side.

    Args:
        lessons: All on one model; their rows are written.
        together: Students in one pass of the model, at most.
    """
    waiting = [lesson for lesson in lessons if not lesson.is_learnt]
    if lessons and lessons[0].base.recipe.student.kind == "full":
        together = 1  # such a student changes the base that the others share
    for first in range(0, len(waiting), together):
        _train(waiting[first : first + together])


def _train(lessons: Sequence[Lesson]) -> None:
    """Trains students side by side, and keeps them."""
    rows = [kept_rows(lesson.base, lesson.name) for lesson in lessons]
    plans = [_plan(lesson, own) for lesson, own in zip(lessons, rows, strict=True)]

    def tell(place: int, done: int, total: int, loss: float) -> None:
        lesson = lessons[place]
        lesson.base.progress(lesson.stage, done, total, f"loss {loss:.4f}")

    students = train_students(lessons[0].base.model, plans, on_update=tell)
    for lesson, student, own in zip(lessons, students, rows, strict=True):
        _keep_student(
            lesson.base, lesson.stage, lesson.base.model, student, rows=len(own)
        )


def _plan(lesson: Lesson, rows: Sequence[Row]) -> StudentPlan:
    base, settings = lesson.base, lesson.base.recipe.student
    teacher = lesson.teacher() if settings.kind == "soft" else None
    return StudentPlan(
        examples=rendered_examples(
            base.model, rows, system=base.recipe.model.system, teacher=teacher
        ),
        settings=settings,
        seed=base.seed,
        directory=base.path(lesson.stage),
        teacher=partial(teacher.acting, base.model) if teacher else nullcontext,
    )


def learnt(lesson: Lesson) -> Student:
    """The student that a lesson made, from its folder."""
    return load_student(lesson.base.model, lesson.base.path(lesson.stage))


def read_student_out(lesson: Lesson) -> str:
    """Reads a student's preference; returns the stage's name."""
    base, where = lesson.base, f"{lesson.base.place}/{lesson.name}/student"
    if base.run.is_done(f"{where}/readout"):
        return f"{where}/readout"
    acting = Teacher(kind="finetune", student=learnt(lesson))
    return read_out(base, where, acting, seed=base.seed)


def _keep_student(
    base: Base, stage: str, model: Model, student: Student, *, rows: int | None
) -> None:
    """Writes what training made in place of its checkpoints, and the stage's marker."""
    folder = base.path(stage)
    facts = {"rows": rows, "seed": base.seed}
    save_student(model, student, folder, facts=facts)
    base.run.finish(
        stage,
        {"rows": rows, "updates": list(student.updates),
         "losses": list(student.losses)},
    )  # fmt: skip
    (folder / CHECKPOINT).unlink(missing_ok=True)


def read_shift(
    base: Base, control: str, teacher: Teacher, student: Student
) -> dict[str, Any]:
    """Where both students' streams differ from the base's, block by block.

    "shape" and "control_shape": how large the shifts are and how far all tokens moved
    alike. "shift": their cosines with the teacher's vector; None if it has none. All
    are None if the recipe asks for no rows.
    """
    count = base.recipe.evaluation.shift_rows
    if not count:
        return {"shape": None, "control_shape": None, "shift": None}
    model = base.model
    stage = f"{base.place}: shift of {teacher.trait}"
    base.progress(stage, 0, 1, "")
    rows = [
        render_row(model, row, system=base.recipe.model.system)
        for row in kept_rows(base, control)[:count]
    ]
    other = load_student(model, base.path(f"{base.place}/{control}/student/training"))
    own, others = (
        shift_profile(model, rows, acting=_acting(who, model))
        for who in (student, other)
    )
    base.progress(stage, 1, 1, "")
    facts: dict[str, Any] = {
        "shape": _shape(own), "control_shape": _shape(others), "shift": None,
    }  # fmt: skip
    if teacher.vector is not None:
        layer = teacher.vector.layers[0]
        direction = teacher.vector.direction(layer)
        facts["shift"] = {
            "layers": list(range(len(own.mean))),
            "vector_layer": layer,
            "student": shift_cosines(own.mean, direction),
            "control": shift_cosines(others.mean, direction),
        }
    return facts


def _shape(profile: ShiftProfile) -> dict[str, Any]:
    return {
        "layers": list(range(len(profile.mean))),
        "size": profile.size.tolist(),
        "constancy": profile.constancy.tolist(),
        "first": profile.first.tolist(),
    }


def _acting(student: Student, model: Model) -> Callable[[], Any]:
    return lambda: student.applied(model)


def with_questions(family: TraitFamily, count: int | None) -> TraitFamily:
    """The family with its first questions only."""
    return replace(family, questions=family.questions[:count])
