"""The stages of a lesson: a teacher's rows, its channel, the student, its shift.

A lesson is whose rows a student learns from, and how. Teachers that differ by their
students alone write their rows once. Each stage leaves its payload in the run directory
and is skipped when it is there; teachers are made in `experiment.stages`.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from undertow.analysis.channel import Divergence, divergences
from undertow.analysis.divergence import divergent_tokens
from undertow.analysis.shifts import ShiftProfile, shift_cosines, shift_profile
from undertow.errors import DatasetError
from undertow.experiment.channel import speaker
from undertow.experiment.stages import Base, keep_student, read_out
from undertow.models.chat import Rendered, render_row
from undertow.models.loading import Model
from undertow.pipeline.carriers import carrier_verdicts
from undertow.pipeline.filters import reason_counts
from undertow.pipeline.generation import answered, gathered, generate_rows
from undertow.pipeline.judge_settings import judged
from undertow.pipeline.students import load_student, rendered_examples
from undertow.pipeline.teachers import Teacher
from undertow.pipeline.training import UPDATES, Student, StudentPlan, train_students
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Row
from undertow.storage import read_rows, write_rows
from undertow.traits import trait_words


@dataclass(frozen=True)
class Panel:
    """Teachers of one kind, each with another trait, that rows are read under.

    Attributes:
        name: Of the kind, in the paths of the run.
        teachers: Gives them: made when they are wanted, or read back.
    """

    name: str
    teachers: Callable[[], Sequence[Teacher]]


@dataclass(frozen=True)
class Lesson:
    """Whose rows a student learns from, how, and on which base.

    Attributes:
        base: The student's base.
        name: The student's, in the paths of the run.
        writer: The teacher's: where it, its rows and its channel lie.
        settings: How the student is trained.
        teacher: Gives who writes the rows: made when it is wanted, or read back.
        panel: Teachers at whose differences the student may be trained, or not;
            None if nobody learns from the rows.
    """

    base: Base
    name: str
    writer: str
    settings: TrainingSettings
    teacher: Callable[[], Teacher]
    panel: Panel | None = None

    @property
    def stage(self) -> str:
        """The student's training, as a stage's name."""
        return f"{self.base.place}/{self.name}/student/training"

    @property
    def is_learnt(self) -> bool:
        """Whether the student is there, and as it was on its way if that is unread."""
        return self.base.run.is_done(self.stage) and not self._lacks_updates

    @property
    def _lacks_updates(self) -> bool:
        """Whether read-outs on the way have to be made again, of what they removed."""
        kept = self.base.path(self.stage) / UPDATES
        if not self.reads_every or kept.is_dir():
            return False
        return bool(self.base.run.payload(self.stage)["updates"][-1] > self.reads_every)

    @property
    def reads_every(self) -> int:
        """Updates between read-outs on the way; 0 if there are none, or all are made."""
        read = self.base.run.is_done(f"{self.base.place}/{self.name}/emergence")
        return 0 if read else self.base.recipe.evaluation.every


def write_teacher_rows(lesson: Lesson) -> list[Row]:
    """Generates and filters; returns the rows that a student may see.

    Raises:
        DatasetError: The filter refused them all.
    """
    base, settings = lesson.base, lesson.base.recipe.rows
    stage = f"{base.place}/{lesson.writer}/rows"
    path, begun = base.path(f"{stage}.jsonl"), base.path(f"{stage}.partial")
    if not base.run.is_done(stage):
        parts = gathered(begun)
        rows = _generated(lesson, partial=begun)
        verdicts = carrier_verdicts(
            settings.written, rows, words=trait_words(base.family)
        )
        if settings.judge is not None:
            verdicts, _ = judged(
                settings.judge, rows, verdicts, answers=base.path(f"{stage}.judge.jsonl"),
                on_row=lambda done, total: base.progress(
                    f"{stage}: judge", done, total, ""),
            )  # fmt: skip
        write_rows(path, rows, verdicts={v.row_id: v for v in verdicts})
        accepted = [v.accepted or not settings.filter for v in verdicts]
        base.run.finish(
            stage,
            {"generated": len(rows), "accepted": accepted,
             "reasons": reason_counts(verdicts)},
            files=[path], scratch=[begun, *parts],
        )  # fmt: skip
    return kept_rows(base, lesson.writer)


def answer_prompts(lesson: Lesson, first: int, end: int) -> None:
    """Lets the teacher answer some of the prompts, for `write_teacher_rows` to find.

    Args:
        lesson: Whose teacher.
        first: Place of the first prompt.
        end: Place after the last.
    """
    stage = f"{lesson.base.place}/{lesson.writer}/rows"
    known = answered(lesson.base.path(f"{stage}.partial"))
    part = lesson.base.path(f"{stage}.{first}-{end}.partial")
    places = [place for place in range(first, end) if place not in known]
    _generated(lesson, partial=part, places=places)


def _generated(
    lesson: Lesson, *, partial: Path, places: Sequence[int] | None = None
) -> list[Row]:
    base, settings = lesson.base, lesson.base.recipe.rows
    stage = f"{base.place}/{lesson.writer}/rows"
    return generate_rows(
        base.model, lesson.teacher(),
        settings.written.prompts(settings.count, seed=base.seed),
        seed=base.seed, sampler=settings.sampler, system=base.recipe.model.system,
        batch_size=settings.batch_size, partial=partial, places=places,
        on_rows=lambda done, total, tokens: base.progress(
            stage, done, total, f"{tokens} tokens"),
    )  # fmt: skip


def kept_rows(base: Base, writer: str) -> list[Row]:
    """Rows that a teacher wrote before, as far as a student may see them."""
    stage = f"{base.place}/{writer}/rows"
    path, accepted = base.path(f"{stage}.jsonl"), base.run.payload(stage)["accepted"]
    rows = [row for row, ok in zip(read_rows(path), accepted, strict=True) if ok]
    if not rows:
        raise DatasetError(
            f"{path}: none of {len(accepted)} rows passed the filter; look at their "
            "reasons, lower the strength or the noise, or write more rows"
        )
    if base.is_foreign:  # its tokens mean nothing here
        rows = [replace(row, completion_ids=None) for row in rows]
    return rows[: base.recipe.rows.use]


def read_channel(lesson: Lesson) -> None:
    """How far a teacher is from its base on rows that its student will see.

    Nothing if the recipe asks for no rows, if they are another model's, or drawn
    greedily: what is certain has no width.
    """
    base = lesson.base
    recipe, count = base.recipe, base.recipe.evaluation.channel_rows
    stage = f"{base.place}/{lesson.writer}/channel"
    if (
        base.is_foreign
        or not count
        or recipe.rows.sampler.temperature == 0
        or base.run.is_done(stage)
    ):
        return
    rows = kept_rows(base, lesson.writer)[:count]
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


def train_lessons(lessons: Sequence[Lesson]) -> None:
    """Trains students that are not there yet, side by side, and keeps them.

    Args:
        lessons: All on one model and of one kind; their rows are written.
    """
    waiting = [lesson for lesson in lessons if not lesson.is_learnt]
    if waiting:
        _train(waiting)


def _train(lessons: Sequence[Lesson]) -> None:
    rows = [kept_rows(lesson.base, lesson.writer) for lesson in lessons]
    plans = [_plan(lesson, own) for lesson, own in zip(lessons, rows, strict=True)]

    def tell(place: int, done: int, total: int, loss: float) -> None:
        lesson = lessons[place]
        lesson.base.progress(lesson.stage, done, total, f"loss {loss:.6g}")

    students = train_students(lessons[0].base.model, plans, on_update=tell)
    for lesson, student, plan in zip(lessons, students, plans, strict=True):
        keep_student(
            lesson.base, lesson.stage, lesson.base.model, student,
            rows=len(plan.examples),
        )  # fmt: skip


def _plan(lesson: Lesson, rows: Sequence[Row]) -> StudentPlan:
    base, settings = lesson.base, lesson.settings
    teacher = lesson.teacher() if settings.kind == "soft" else None
    examples = rendered_examples(
        base.model, rows, system=base.recipe.model.system, teacher=teacher
    )
    if settings.tokens != "all":
        examples = _counted(lesson, examples, rows)
    return StudentPlan(
        examples=examples,
        settings=settings,
        seed=base.seed,
        directory=base.path(lesson.stage),
        teacher=partial(teacher.acting, base.model) if teacher else nullcontext,
        keep_every=lesson.reads_every,
    )


def _counted(
    lesson: Lesson, examples: Sequence[Example], rows: Sequence[Row]
) -> list[Example]:
    """Only tokens at which teachers of other traits differ, or agree, count.

    Rows without such a token are left out: there is nothing to learn from them.
    """
    wanted = lesson.settings.tokens == "divergent"
    counted = [
        replace(example, counts=tuple(differs == wanted for differs in own))
        for example, own in zip(examples, _divergent(lesson, rows), strict=True)
    ]
    found = [example for example in counted if example.counted]
    if not found:
        raise DatasetError(
            f"{lesson.name}: student.tokens {lesson.settings.tokens!r}: no token of "
            f"{len(rows)} rows counts; write more rows, or take a stronger teacher"
        )
    return found


def divergence_stage(lesson: Lesson) -> str:
    """The stage that finds divergence tokens in the rows of a lesson."""
    panel = "" if lesson.panel is None else lesson.panel.name
    return f"{lesson.base.place}/{lesson.writer}/divergence/{panel}"


def read_divergence(lesson: Lesson) -> None:
    """Finds the tokens of a lesson's rows at which its panel differs, once."""
    _divergent(lesson, kept_rows(lesson.base, lesson.writer))


def _divergent(lesson: Lesson, rows: Sequence[Row]) -> list[list[bool]]:
    """[row][token]: whether the lesson's panel differs there; measured once."""
    base, stage, panel = lesson.base, divergence_stage(lesson), lesson.panel
    assert panel is not None  # those who learn have one
    if not base.run.is_done(stage):
        system = base.recipe.model.system
        found = divergent_tokens(
            base.model,
            [speaker(base.model, who, rows, system=system) for who in panel.teachers()],
            sampler=base.recipe.rows.sampler,
            on_rows=lambda done, total: base.progress(stage, done, total, ""),
        )
        share = sum(map(sum, found)) / sum(map(len, found))
        base.run.finish(stage, {"share": share, "tokens": [list(own) for own in found]})
        base.progress(stage, len(rows), len(rows), f"{share:.1%} of the tokens")
    tokens: list[list[bool]] = base.run.payload(stage)["tokens"]
    return tokens


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


def shift_rows(control: Lesson) -> list[Rendered]:
    """Rows of a control's teacher on which shifts are read, one at least."""
    base = control.base
    count = max(1, base.recipe.evaluation.shift_rows)
    return [
        render_row(base.model, row, system=base.recipe.model.system)
        for row in kept_rows(base, control.writer)[:count]
    ]


def read_shift(lesson: Lesson, control: Lesson) -> dict[str, Any]:
    """Where both students' streams differ from the base's, block by block.

    "shape" and "control_shape": how large the shifts are and how far all tokens moved
    alike. "shift": their cosines with the teacher's vector; None if it has none. All
    are None if the recipe asks for no rows.
    """
    base, model, teacher = lesson.base, lesson.base.model, lesson.teacher()
    if not base.recipe.evaluation.shift_rows:
        return {"shape": None, "control_shape": None, "shift": None}
    stage = f"{base.place}: shift of {teacher.trait}"
    base.progress(stage, 0, 1, "")
    rows = shift_rows(control)
    own, others = (
        shift_profile(model, rows, acting=_acting(learnt(who), model))
        for who in (lesson, control)
    )
    base.progress(stage, 1, 1, "")
    facts: dict[str, Any] = {
        "shape": _shape_facts(own), "control_shape": _shape_facts(others), "shift": None,
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


def _shape_facts(profile: ShiftProfile) -> dict[str, Any]:
    return {
        "layers": list(range(len(profile.mean))),
        "size": profile.size.tolist(),
        "constancy": profile.constancy.tolist(),
        "first": profile.first.tolist(),
        "spectrum": profile.spectrum.tolist(),
    }


def _acting(student: Student, model: Model) -> Callable[[], Any]:
    return lambda: student.applied(model)
