"""The grid of one base: each teacher with each trait, its student, and the control.

Who writes for whom, which control stands beside which student, and whose teachers are
compared where divergence tokens are looked for. Runs nothing: a plan is names and
settings, and the same for every base; `lesson_of` puts one onto a base.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from undertow.experiment.lessons import Lesson, Panel
from undertow.experiment.recipe import Recipe, TeacherSettings
from undertow.experiment.stages import Base, make_teacher
from undertow.pipeline.teachers import Teacher
from undertow.pipeline.training_settings import TrainingSettings
from undertow.traits import TraitFamily


@dataclass(frozen=True)
class LessonPlan:
    """Whose rows a student learns from, and how, on whatever base.

    Attributes:
        name: The student's.
        writer: The teacher's: where it, its rows and its channel lie.
        student: How the student is trained.
        teacher: How the teacher is made; None are the base's own rows.
        trait: The teacher's; None with the base's own rows.
        panel: The kind of teacher that is compared over the traits of the grid where
            divergence tokens are looked for.
    """

    name: str
    writer: str
    student: TrainingSettings
    teacher: TeacherSettings | None
    trait: str | None
    panel: TeacherSettings


@dataclass(frozen=True)
class CellPlan:
    """One teacher's student beside the control of its kind, on whatever base.

    Attributes:
        settings: The kind of teacher.
        trait: The teacher's.
        lesson: The student's.
        control: The control student's.
    """

    settings: TeacherSettings
    trait: str
    lesson: LessonPlan
    control: LessonPlan

    @property
    def lessons(self) -> tuple[LessonPlan, LessonPlan]:
        """Both, the control first."""
        return self.control, self.lesson


@dataclass(frozen=True)
class Cell:
    """A cell of the grid on one base; see `CellPlan`."""

    settings: TeacherSettings
    trait: str
    lesson: Lesson
    control: Lesson


_PANEL = 4
"""Traits whose teachers are compared where divergence tokens are looked for; more if the
recipe has more."""


def plan_cells(recipe: Recipe, family: TraitFamily) -> list[CellPlan]:
    """Every cell that each base of a run has."""
    decoy = _others(recipe, family)[:1]

    def lesson(
        settings: TeacherSettings, trait: str, *, before: str = ""
    ) -> LessonPlan:
        writer = recipe.writer_of(settings)
        return LessonPlan(
            f"{before}{settings.label}-{trait}", f"{before}{writer.label}-{trait}",
            recipe.student_of(settings), writer, trait, writer,
        )  # fmt: skip

    def control(settings: TeacherSettings) -> LessonPlan:
        if recipe.control_of(settings) == "decoy":
            return lesson(settings, decoy[0], before="decoy-")
        return LessonPlan(
            _control_name(recipe, settings), "control", recipe.student_of(settings),
            None, None, recipe.writer_of(settings),
        )  # fmt: skip

    return [
        CellPlan(settings, trait, lesson(settings, trait), control(settings))
        for settings in recipe.teachers
        for trait in recipe.traits
    ]


def lesson_plans(cells: Sequence[CellPlan]) -> dict[str, LessonPlan]:
    """Every student of the cells once, by name, in the order of the grid."""
    return {plan.name: plan for cell in cells for plan in cell.lessons}


def cells_of(base: Base) -> list[Cell]:
    """Every cell of a base."""
    return [
        Cell(plan.settings, plan.trait, lesson_of(base, plan.lesson),
             lesson_of(base, plan.control))
        for plan in plan_cells(base.recipe, base.family)
    ]  # fmt: skip


def lesson_of(base: Base, plan: LessonPlan) -> Lesson:
    """A planned lesson on a base."""
    traits = panel_traits(base.recipe, base.family)
    return Lesson(
        base, plan.name, plan.writer, plan.student,
        partial(make_teacher, base, plan.teacher, plan.trait),
        Panel(plan.panel.label, partial(_teachers, base, plan.panel, traits)),
    )  # fmt: skip


def panel_traits(recipe: Recipe, family: TraitFamily) -> list[str]:
    """Traits whose teachers are compared where divergence tokens are looked for."""
    least = len(recipe.traits) + ("decoy" in recipe.controls)
    return [*recipe.traits, *_others(recipe, family)][: max(_PANEL, least)]


def _others(recipe: Recipe, family: TraitFamily) -> list[str]:
    """Traits that no teacher of a cell has, the decoy first."""
    unused = [name for name in family.names if name not in recipe.traits]
    return list(dict.fromkeys([*([recipe.decoy] if recipe.decoy else []), *unused]))


def _teachers(
    base: Base, settings: TeacherSettings, traits: Sequence[str]
) -> list[Teacher]:
    """One kind of teacher for each trait."""
    return [make_teacher(base, settings, trait) for trait in traits]


def _control_name(recipe: Recipe, settings: TeacherSettings) -> str:
    """One control student serves all teachers whose students are trained alike.

    Where some tokens count only, which do depends on the kind of teacher.
    """
    own, writer = recipe.student_of(settings), recipe.writer_of(settings)
    if own == recipe.student and own.tokens == "all":
        return "control"
    alike = [t for t in recipe.teachers if recipe.student_of(t) == own]
    if own.tokens != "all":
        alike = [t for t in alike if recipe.writer_of(t) is writer]
    return f"control-{alike[0].label}"
