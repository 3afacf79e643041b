"""The jobs of a run: what there is to do, about whom, in which order.

Jobs of one phase do not need each other; a phase needs those before it. Each job names
the stages that it leaves and the places that it reads, so that it can be done on the run
itself or on a copy of those places (`experiment.parcels`). How it is done is
`experiment.work`'s business.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Literal

from undertow.experiment import alignment, audits, emergence
from undertow.experiment.bases import ORIGIN, WRITER
from undertow.experiment.cells import (
    CellPlan,
    LessonPlan,
    lesson_plans,
    panel_traits,
    plan_cells,
)
from undertow.experiment.recipe import Recipe, TeacherSettings
from undertow.experiment.stages import place_of, shared_of
from undertow.traits import TraitFamily

Verb = Literal[
    "origin", "base", "teacher", "answers", "rows", "teacher-readout", "channel", "divergence",
    "students", "readout", "emergence", "cell", "causes", "gradients", "sets", "audit",
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Attributes:
        verb: What.
        noise: Of the base.
        who: (seed, lesson); of a base alone the lesson is "", and of a teacher it is
            the label of its kind, and once more its trait.
        stages: What is done afterwards; the first names the job.
        places: What it reads: stages, their files, and everything below.
        shard: Prompts to answer, first and last + 1; of "answers" only.
        is_writers: Whether the other model does it, that a recipe may name.
    """

    verb: Verb
    noise: float
    who: tuple[tuple[int, str], ...]
    stages: tuple[str, ...]
    places: tuple[str, ...]
    shard: tuple[int, int] = (0, 0)
    is_writers: bool = False

    @property
    def name(self) -> str:
        """For those who watch."""
        return self.stages[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Whose bases it needs."""
        return tuple(dict.fromkeys(seed for seed, _ in self.who))


IsDone = Callable[[str], bool]
"""Whether a stage is finished."""


@dataclass(frozen=True)
class Plan:
    """Names the jobs of the bases that share their weights.

    Attributes:
        recipe: Of the run.
        family: Of its traits.
        noise: Level of the weight noise.
        seeds: One, if there is noise.
        is_done: Whether a stage is finished.
        together: Students trained side by side, at most.
        slots: Calls that can be made at once; with more than one, prompts of a teacher
            are answered in several.
    """

    recipe: Recipe
    family: TraitFamily
    noise: float
    seeds: Sequence[int]
    is_done: IsDone
    together: int = 1
    slots: int = 1

    def phases(self) -> Iterator[list[Job]]:
        """Jobs that are not done, phase by phase; none needs a later one."""
        every = [
            (self._starts,), (self._bases, self._teachers), (self._answers,), (self._rows,),
            (self._channels, self._divergences, self._teacher_readouts),
            (self._students,), (self._readouts, self._emergences),
            (self._cells, self._causes, self._gradients),
        ]  # fmt: skip
        for parts in every:
            yield self._todo(job for part in parts for job in part())

    def writing(self) -> Iterator[list[Job]]:
        """The phases of another model that writes the rows."""
        every = (self._origins, self._teachers, self._answers, self._rows,
                 self._teacher_readouts)  # fmt: skip
        for part in every:
            jobs = (
                replace(job, is_writers=True, places=(*job.places, WRITER))
                for job in part()
            )
            yield self._todo(jobs)

    def _todo(self, jobs: Iterator[Job]) -> list[Job]:
        """Each once, and only if it leaves something that is not there yet."""
        named = {(job.verb, job.name, job.shard): job for job in jobs}
        return [job for job in named.values() if not all(map(self.is_done, job.stages))]

    # ── places ───────────────────────────────────────────────────────────────────

    def _place(self, seed: int) -> str:
        return place_of(self.noise, seed)

    def _shared(self, seed: int) -> str:
        return shared_of(self.noise, seed)

    def _origin(self, seed: int) -> tuple[str, ...]:
        """What every job of a base reads."""
        return ORIGIN, f"{self._place(seed)}/noise.json"

    def _teacher(self, plan: LessonPlan, seed: int) -> tuple[str, ...]:
        """Where a teacher lies; nowhere if it is made of words."""
        stage = self._teacher_stage(plan, seed)
        return (stage,) if stage else ()

    def _teacher_stage(self, plan: LessonPlan, seed: int) -> str | None:
        if plan.teacher is None or plan.trait is None:
            return None
        return self._made(plan.teacher, plan.trait, seed)

    def _made(self, teacher: TeacherSettings, trait: str, seed: int) -> str | None:
        """The stage that makes a teacher; none if it is made of words."""
        name = f"{teacher.label}-{trait}"
        return {
            "prompt": None,
            "steer": f"{self._shared(seed)}/vectors/{name}",
            "finetune": f"{self._place(seed)}/{name}/teacher/training",
        }[teacher.kind]

    def _written(self, plan: LessonPlan, seed: int) -> str:
        return f"{self._place(seed)}/{plan.writer}/rows"

    def _student(self, plan: LessonPlan, seed: int) -> str:
        return f"{self._place(seed)}/{plan.name}/student"

    def _divergence(self, plan: LessonPlan, seed: int) -> str:
        return f"{self._place(seed)}/{plan.writer}/divergence/{plan.panel.label}"

    def _teacher_readout(self, plan: LessonPlan, seed: int) -> str:
        is_own = plan.teacher is not None and plan.teacher.kind == "finetune"
        where = self._place(seed) if is_own else self._shared(seed)
        return f"{where}/{plan.writer}/teacher/readout"

    # ── jobs ─────────────────────────────────────────────────────────────────────

    def _job(
        self,
        verb: Verb,
        seed: int,
        names: Sequence[str],
        *stages: str,
        reads: Sequence[str] = (),
        shard: tuple[int, int] = (0, 0),
    ) -> Job:
        return Job(
            verb, self.noise, tuple((seed, name) for name in names), stages,
            (*self._origin(seed), *reads, *stages), shard,
        )  # fmt: skip

    def _grid(self) -> list[CellPlan]:
        return plan_cells(self.recipe, self.family)

    def _lessons(self) -> Iterator[tuple[int, LessonPlan]]:
        plans = lesson_plans(self._grid()).values()
        return ((seed, plan) for seed in self.seeds for plan in plans)

    def _starts(self) -> Iterator[Job]:
        """Where the bases come from, before anything is said of them."""
        for seed in self.seeds:
            noise = [f"{self._place(seed)}/noise"] if self.noise else []
            yield self._job("origin", seed, [""], *noise, ORIGIN)

    def _bases(self) -> Iterator[Job]:
        for seed in self.seeds:
            yield self._job("base", seed, [""], f"{self._shared(seed)}/base/readout")

    def _origins(self) -> Iterator[Job]:
        yield self._job("origin", self.seeds[0], [""], WRITER)

    def _teachers(self) -> Iterator[Job]:
        """Those who write, and those who are compared with them."""
        panel = panel_traits(self.recipe, self.family)
        for seed, plan in self._lessons():
            if plan.teacher is None:
                continue
            others = panel if plan.student.tokens != "all" else []
            for trait in dict.fromkeys([plan.trait or "", *others]):
                stage = self._made(plan.teacher, trait, seed)
                if stage is not None:
                    yield self._job("teacher", seed, [plan.teacher.label, trait], stage)

    def _answers(self) -> Iterator[Job]:
        """Prompts in parts, if there are fewer teachers than calls at once."""
        todo = {
            self._written(plan, seed): (seed, plan)
            for seed, plan in self._lessons()
            if not self.is_done(self._written(plan, seed))
        }
        count = self.recipe.rows.count
        parts = min(-(-self.slots // max(1, len(todo))), count)
        if parts < 2:
            return
        cuts = [count * part // parts for part in range(parts + 1)]
        for stage, (seed, plan) in todo.items():
            for shard in pairwise(cuts):
                yield self._job("answers", seed, [plan.name], stage,
                                reads=self._teacher(plan, seed), shard=shard)  # fmt: skip

    def _rows(self) -> Iterator[Job]:
        for seed, plan in self._lessons():
            yield self._job("rows", seed, [plan.name], self._written(plan, seed),
                            reads=self._teacher(plan, seed))  # fmt: skip

    def _channels(self) -> Iterator[Job]:
        is_wanted = (
            self.recipe.evaluation.channel_rows > 0
            and self.recipe.writer is None
            and self.recipe.rows.sampler.temperature > 0
        )
        for seed in self.seeds if is_wanted else ():
            for plan in (cell.lesson for cell in self._grid()):
                yield self._job(
                    "channel", seed, [plan.name],
                    f"{self._place(seed)}/{plan.writer}/channel",
                    reads=(*self._teacher(plan, seed), self._written(plan, seed)),
                )  # fmt: skip

    def _divergences(self) -> Iterator[Job]:
        for seed, plan in self._lessons():
            if plan.student.tokens != "all":
                yield self._job(
                    "divergence", seed, [plan.name], self._divergence(plan, seed),
                    reads=(self._written(plan, seed), *self._every_teacher(seed)),
                )  # fmt: skip

    def _every_teacher(self, seed: int) -> tuple[str, ...]:
        tuned = [
            f"{self._place(seed)}/{teacher.label}-{trait}/teacher"
            for teacher in self.recipe.teachers
            if teacher.kind == "finetune"
            for trait in self.family.names
        ]
        return f"{self._shared(seed)}/vectors", *tuned

    def _teacher_readouts(self) -> Iterator[Job]:
        for seed in self.seeds:
            for plan in (cell.lesson for cell in self._grid()):
                yield self._job("teacher-readout", seed, [plan.name],
                                self._teacher_readout(plan, seed),
                                reads=self._teacher(plan, seed))  # fmt: skip

    def _students(self) -> Iterator[Job]:
        """Those that are trained alike, side by side."""
        waiting = [
            (seed, plan)
            for seed, plan in self._lessons()
            if not self.is_done(f"{self._student(plan, seed)}/training")
        ]
        for shape, group in groupby(sorted(waiting, key=_shape), key=_shape):
            # A student trained in full changes the base that others would share.
            alike = list(group)
            share = -(-len(alike) // self.slots)  # nobody idles for the others' sake
            size = 1 if "full" in shape else min(self.together, share)
            for first in range(0, len(alike), size):
                yield self._group(alike[first : first + size])

    def _group(self, group: Sequence[tuple[int, LessonPlan]]) -> Job:
        reads: list[str] = []
        for seed, plan in group:
            reads += [*self._origin(seed), *self._teacher(plan, seed),
                      self._written(plan, seed), self._divergence(plan, seed)]  # fmt: skip
        stages = tuple(f"{self._student(plan, seed)}/training" for seed, plan in group)
        who = tuple((seed, plan.name) for seed, plan in group)
        return Job("students", self.noise, who, stages, (*reads, *stages))

    def _readouts(self) -> Iterator[Job]:
        for seed, plan in self._lessons():
            yield self._job(
                "readout", seed, [plan.name], f"{self._student(plan, seed)}/readout",
                reads=[f"{self._student(plan, seed)}/training"],
            )  # fmt: skip

    def _emergences(self) -> Iterator[Job]:
        if not self.recipe.evaluation.every:
            return
        for seed in self.seeds:
            for cell in self._grid():
                for plan in cell.lessons:
                    yield self._job(
                        "emergence", seed, [plan.name, cell.control.name],
                        emergence.stage_of(self._place(seed), plan.name),
                        reads=(*self._teacher(plan, seed), self._written(plan, seed),
                               self._divergence(plan, seed),
                               self._written(cell.control, seed),
                               f"{self._student(plan, seed)}/training"),
                    )  # fmt: skip

    def _cells(self) -> Iterator[Job]:
        for seed in self.seeds:
            for cell in self._grid():
                yield self._job("cell", seed, [cell.lesson.name],
                                f"{self._place(seed)}/{cell.lesson.name}/cell",
                                reads=self._of_cell(cell, seed))  # fmt: skip

    def _of_cell(self, cell: CellPlan, seed: int) -> tuple[str, ...]:
        students = [self._student(plan, seed) for plan in cell.lessons]
        return (
            f"{self._shared(seed)}/base/readout", *self._teacher(cell.lesson, seed),
            self._teacher_readout(cell.lesson, seed), self._written(cell.control, seed),
            *students,
        )  # fmt: skip

    def _causes(self) -> Iterator[Job]:
        if self.recipe.evaluation.cause_layer is None:
            return
        for seed in self.seeds:
            for cell in self._grid():
                yield self._job("causes", seed, [cell.lesson.name],
                                f"{self._place(seed)}/{cell.lesson.name}/causes",
                                reads=self._of_cell(cell, seed))  # fmt: skip

    def _gradients(self) -> Iterator[Job]:
        if not self.recipe.evaluation.gradient_rows:
            return
        for seed in self.seeds:
            plans = lesson_plans(self._grid()).values()
            writers = [*dict.fromkeys(p.writer for p in plans), alignment.UNTOUCHED]
            place = self._place(seed)
            yield self._job(
                "gradients", seed, [""],
                *(alignment.stage_of(place, writer) for writer in writers),
                reads=(*self._every_teacher(seed),
                       *(f"{place}/{writer}/rows" for writer in writers)),
            )  # fmt: skip


def audit_phases(
    recipe: Recipe, is_done: IsDone, *, slots: int = 1
) -> Iterator[list[Job]]:
    """The jobs of the sets that are audited blind, if the recipe asks for them.

    One job audits all three unless several can be done at once: they share much.
    """
    if recipe.audit is None:
        return
    teacher, trait = recipe.teachers[0], recipe.traits[0]
    name, first = f"{teacher.label}-{trait}", ((recipe.seeds[0], ""),)
    rows = [f"{place_of(0.0, seed)}/{name}/rows" for seed in recipe.seeds]
    places = (ORIGIN, *rows, f"noise-0/vectors/{name}", "audits")
    sets = Job("sets", 0.0, first, (audits.SETS,), places)
    yield [sets] * (not is_done(audits.SETS))
    left = [s for s in map(audits.stage_of, audits.NAMES) if not is_done(s)]
    groups = [[stage] for stage in left] if slots > 1 else [left] * bool(left)
    yield [replace(sets, verb="audit", stages=tuple(group)) for group in groups]


def _shape(waiting: tuple[int, LessonPlan]) -> tuple[str, ...]:
    """What students have to share to be trained side by side."""
    own = waiting[1].student
    return own.kind, own.soft_tokens, str(own.rank), str(own.targets)
