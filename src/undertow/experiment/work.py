"""Does a job on bases, wherever they are: what each verb of `experiment.jobs` means.

Every stage that a job leaves is skipped when it is there. Knows nothing of who asks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from undertow.errors import RunError, shown
from undertow.experiment.alignment import read_alignments
from undertow.experiment.audits import NAMES, audit_sets, make_sets, stage_of
from undertow.experiment.causes import read_causes
from undertow.experiment.cells import (
    Cell,
    cells_of,
    lesson_of,
    lesson_plans,
    plan_cells,
)
from undertow.experiment.emergence import read_emergence
from undertow.experiment.jobs import Job, Verb
from undertow.experiment.lessons import (
    Lesson,
    answer_prompts,
    divergence_stage,
    read_channel,
    read_divergence,
    read_shift,
    read_student_out,
    train_lessons,
    write_teacher_rows,
)
from undertow.experiment.stages import Base, make_teacher, read_out, read_teacher_out
from undertow.pipeline.teachers import Teacher

Bases = Mapping[int, Base]
"""The bases of a job, by seed."""


def do(job: Job, bases: Bases) -> None:
    """Does a job.

    Args:
        job: What, about whom.
        bases: Ready for work, by seed.

    Raises:
        DatasetError: The filter refused every row of a teacher, or of a set to audit.
        TrainingError: A loss is no longer finite.
        RunError: Something that it reads is not there.
    """
    _VERBS[job.verb](job, bases)
    run = bases[job.seeds[0]].run
    left = [stage for stage in job.stages if not run.is_done(stage)]
    if left and job.verb != "answers":  # these are gathered by whoever writes the rows
        raise RunError(
            f"{job.verb} left no {shown(left)}: a fault of undertow; report it"
        )


def _lessons(job: Job, bases: Bases) -> list[Lesson]:
    found = []
    for seed, name in job.who:
        base = bases[seed]
        plans = lesson_plans(plan_cells(base.recipe, base.family))
        found.append(lesson_of(base, plans[name]))
    return found


def _cell(job: Job, bases: Bases) -> Cell:
    seed, name = job.who[0]
    return next(cell for cell in cells_of(bases[seed]) if cell.lesson.name == name)


def _base(job: Job, bases: Bases) -> None:
    base = bases[job.seeds[0]]
    read_out(base, f"{base.shared}/base", Teacher(kind="none"), seed=base.shared_seed)


def _origin(job: Job, bases: Bases) -> None:
    """Whoever made the base ready has left where it comes from."""


def _teacher(job: Job, bases: Bases) -> None:
    (seed, label), (_, trait) = job.who
    base = bases[seed]
    kind = next(each for each in base.recipe.teachers if each.label == label)
    make_teacher(base, kind, trait)


def _answers(job: Job, bases: Bases) -> None:
    answer_prompts(_lessons(job, bases)[0], *job.shard)


def _rows(job: Job, bases: Bases) -> None:
    write_teacher_rows(_lessons(job, bases)[0])


def _teacher_readout(job: Job, bases: Bases) -> None:
    lesson = _lessons(job, bases)[0]
    read_teacher_out(lesson.base, lesson.writer, lesson.teacher())


def _channel(job: Job, bases: Bases) -> None:
    read_channel(_lessons(job, bases)[0])


def _divergence(job: Job, bases: Bases) -> None:
    read_divergence(_lessons(job, bases)[0])


def _students(job: Job, bases: Bases) -> None:
    train_lessons(_lessons(job, bases))


def _readout(job: Job, bases: Bases) -> None:
    read_student_out(_lessons(job, bases)[0])


def _emergence(job: Job, bases: Bases) -> None:
    lesson, control = _lessons(job, bases)
    read_emergence(lesson, control)


def _causes(job: Job, bases: Bases) -> None:
    cell = _cell(job, bases)
    read_causes(cell.lesson, cell.control)


def _gradients(job: Job, bases: Bases) -> None:
    base = bases[job.seeds[0]]
    plans = lesson_plans(plan_cells(base.recipe, base.family))
    read_alignments(base, [lesson_of(base, plan) for plan in plans.values()])


def _read_cell(job: Job, bases: Bases) -> None:
    """The student's shift, and where everything of the cell lies."""
    cell = _cell(job, bases)
    base, lesson, control = cell.lesson.base, cell.lesson, cell.control
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
    base.run.finish(job.name, facts)


def _sets(job: Job, bases: Bases) -> None:
    make_sets(bases[job.seeds[0]])


def _audit(job: Job, bases: Bases) -> None:
    names = [name for name in NAMES if stage_of(name) in job.stages]
    audit_sets(bases[job.seeds[0]], names)


_VERBS = cast(
    "Mapping[Verb, Callable[[Job, Bases], None]]",
    {
        "origin": _origin, "base": _base, "teacher": _teacher, "answers": _answers, "rows": _rows,
        "teacher-readout": _teacher_readout, "channel": _channel,
        "divergence": _divergence, "students": _students, "readout": _readout,
        "emergence": _emergence, "cell": _read_cell, "causes": _causes,
        "gradients": _gradients, "sets": _sets, "audit": _audit,
    },
)  # fmt: skip


def all_bases(bases: Sequence[Base]) -> Bases:
    """Bases as jobs ask for them."""
    return {base.seed: base for base in bases}
