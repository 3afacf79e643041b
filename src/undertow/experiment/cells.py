"""The grid of one base: each teacher with each trait, its student, and the control.

Who writes for whom, which control stands beside which student, and whose teachers are
compared where divergence tokens are looked for. Runs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from undertow.experiment.lessons import Lesson, Panel
from undertow.experiment.recipe import Recipe, TeacherSettings
from undertow.experiment.stages import Base, make_teacher
from undertow.pipeline.teachers import Teacher


@dataclass(frozen=True)
class Cell:
    """One teacher's student beside the control of its kind.

    Attributes:
        settings: The kind of teacher.
        trait: The teacher's.
        lesson: The student's.
        control: The control student's.
    """

    settings: TeacherSettings
    trait: str
    lesson: Lesson
    control: Lesson

    @property
    def lessons(self) -> tuple[Lesson, Lesson]:
        """Both, the control first."""
        return self.control, self.lesson


_PANEL = 4
"""Traits whose teachers are compared where divergence tokens are looked for; more if the
recipe has more."""


def cells_of(base: Base) -> list[Cell]:
    """Every cell of a base."""
    recipe = base.recipe
    unused = [name for name in base.family.names if name not in recipe.traits]
    others = list(dict.fromkeys([*([recipe.decoy] if recipe.decoy else []), *unused]))
    least = len(recipe.traits) + ("decoy" in recipe.controls)
    traits = [*recipe.traits, *others][: max(_PANEL, least)]

    def panel(settings: TeacherSettings) -> Panel:
        writer = recipe.writer_of(settings)
        return Panel(writer.label, partial(_teachers, base, writer, traits))

    def lesson(settings: TeacherSettings, trait: str, *, before: str = "") -> Lesson:
        writer = recipe.writer_of(settings)
        return Lesson(
            base, f"{before}{settings.label}-{trait}", f"{before}{writer.label}-{trait}",
            recipe.student_of(settings), partial(make_teacher, base, writer, trait),
            panel(settings),
        )  # fmt: skip

    def control(settings: TeacherSettings) -> Lesson:
        if recipe.control_of(settings) == "decoy":
            return lesson(settings, others[0], before="decoy-")
        return Lesson(
            base, _control_name(recipe, settings), "control",
            recipe.student_of(settings), partial(make_teacher, base, None, None),
            panel(settings),
        )  # fmt: skip

    return [
        Cell(settings, trait, lesson(settings, trait), control(settings))
        for settings in recipe.teachers
        for trait in recipe.traits
    ]


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
