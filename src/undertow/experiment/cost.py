"""What a recipe will take, counted from its own plan before anything runs.

The jobs are those of a run in which nothing is done yet (`jobs.Plan`), so students, rows
and updates are counted as they will be, and at most: a filter may refuse rows. Tokens are
guessed from lengths of texts. A token of a LoRA's row is read forward and backward
(4 operations a weight, see `rates`), a soft student's by its teacher too, and in full
training the weights have gradients of their own (6 each). Loads no weights; their loading,
noise on them, and a judge's answers take time that is not counted.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from undertow.audit.cost import CHARACTERS, SHARE, TEMPLATE, Size, missing_blocks
from undertow.audit.cost import expected_cost as audit_cost
from undertow.errors import ConfigError
from undertow.experiment import alignment
from undertow.experiment.cells import lesson_plans, panel_traits, plan_cells
from undertow.experiment.jobs import IsDone, Job, Plan, Verb, audit_phases
from undertow.experiment.rates import Passes, Rate, known_size
from undertow.experiment.recipe import Recipe, SteerSettings, TeacherSettings
from undertow.experiment.stages import FINETUNING, VECTOR_PROMPTS, with_questions
from undertow.pipeline.teachers import preference_rows
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Message, Row
from undertow.traits import TraitFamily, answer_spellings, load_family

LENGTH = 0.7
"""Of the longest completion that rows reach on average; 0.70 to 0.72 of the stored ones."""
_READOUTS: tuple[Verb, ...] = ("base", "teacher-readout", "readout")
_SHOWN = 64  # prompts whose lengths stand for all
_SWEEP_ROWS, _SWEEP_QUESTIONS = 48, 12  # of each point of a strength sweep
_STEPS = 60  # updates of a trained vector, each on a quarter of the questions
_LINE_BYTES, _TOKEN_BYTES = 650, 8  # of a stored row: its frame and prompt, and a token
_LINEAR = 7  # linear layers of a block, one side of each as wide as the stream


@dataclass(frozen=True)
class Cost:
    """What is to be expected of a run, or of what is left of it.

    Attributes:
        bases: Models that everything descends from: one for all seeds without noise,
            one a seed with it.
        cells: Teachers with a student, over traits, bases and seeds.
        students: That are trained, controls among them.
        tuned: Teachers that are fine-tuned.
        rows: Prompts answered, each once: what a filter refuses is not tried again.
        drawn_tokens: Of rows and of answers to questions, at most.
        updates: Of students and fine-tuned teachers, at most.
        updates_each: Of a student, the fewest and the most; zeros without students.
        cold: Students that have no more updates than their warm-up takes.
        trained_tokens: That these see, prompts included, about.
        readouts: Of bases, teachers and students; students on their way included.
        judged: Rows that a judge is asked about, at most.
        passes: Through each model, by its name.
        sizes: Of those whose size is known.
        disk_bytes: Of rows, of students and fine-tuned teachers, of noised bases that
            are kept; about.
    """

    bases: int
    cells: int
    students: int
    tuned: int
    rows: int
    drawn_tokens: int
    updates: int
    updates_each: tuple[int, int]
    cold: int
    trained_tokens: int
    readouts: int
    judged: int
    passes: Mapping[str, Passes]
    sizes: Mapping[str, Size]
    disk_bytes: Mapping[str, int]

    @property
    def unsized(self) -> list[str]:
        """Models whose size is not known; with any, there are no operations."""
        return [name for name in self.passes if name not in self.sizes]

    @property
    def operations(self) -> float | None:
        """In all: multiplications and additions."""
        if self.unsized:
            return None
        found = (p.operations(self.sizes[name]) for name, p in self.passes.items())
        return math.fsum(chain.from_iterable(found))

    def seconds(self, rate: Rate) -> float | None:
        """Wall-clock on one machine: within a factor of two for the stored studies."""
        if self.unsized:
            return None
        return math.fsum(
            rate.seconds(p, self.sizes[name]) for name, p in self.passes.items()
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self) | {"operations": self.operations}


def recipe_sizes(recipe: Recipe) -> dict[str, Size]:
    """Of a recipe's models, those that are known without a network."""
    models = [recipe.model, *([recipe.writer] if recipe.writer else [])]
    found = {model.name: known_size(model.name) for model in models}
    return {name: size for name, size in found.items() if size is not None}


def recipe_cost(
    recipe: Recipe,
    *,
    sizes: Mapping[str, Size],
    is_done: IsDone = frozenset[str]().__contains__,
) -> Cost:
    """Counts what a run of a recipe has to do.

    Args:
        recipe: The grid and its settings.
        sizes: Of the models that it names, as far as they are known.
        is_done: Whether a stage is finished, of a run that goes on.

    Raises:
        ConfigError: The family is not there, or has not the traits that are asked for; a
            block that a model of known size has not.
    """
    _check_layers(recipe, sizes)
    family = with_questions(load_family(recipe.family), recipe.evaluation.questions)
    for trait in (*recipe.traits, *([recipe.decoy] if recipe.decoy else [])):
        family.trait(trait)
    if "decoy" in recipe.controls and not set(family.names) - set(recipe.traits):
        fault = "decoy: every trait of the family is already a trait; leave one out"
        raise ConfigError("recipe", [fault])
    return _Count(recipe, family, is_done).cost(sizes)


def _check_layers(recipe: Recipe, sizes: Mapping[str, Size]) -> None:
    """Refuses blocks that the models have not, as far as their sizes are known."""
    steered: dict[str, int | None] = {}
    for place, teacher in enumerate(recipe.teachers):
        if (steer := teacher.steer) is None:
            continue
        where = f"teachers.{place}.steer"
        steered[f"{where}.layer"] = steer.layer
        for each, layer in enumerate(steer.sweep.layers if steer.sweep else ()):
            steered[f"{where}.sweep.layers.{each}"] = layer
    read: dict[str, int | None] = {
        "evaluation.cause_layer": recipe.evaluation.cause_layer
    }
    audited = recipe.audit.settings.layers if recipe.audit else None
    for each, layer in enumerate(audited or ()):
        read[f"audit.settings.layers.{each}"] = layer
    asked = [((recipe.writer or recipe.model).name, steered), (recipe.model.name, read)]
    faults = [
        fault
        for model, blocks in asked
        if model in sizes
        for fault in missing_blocks(blocks, size=sizes[model], model=model)
    ]
    if faults:
        raise ConfigError("recipe", faults)


def training_counts(settings: TrainingSettings, rows: int) -> tuple[int, int]:
    """Updates that training makes on so many rows, and rows that it sees in them."""
    epoch = -(-rows // settings.batch_size)
    every = settings.epochs * epoch
    updates = min(every, settings.max_updates or every)
    whole, part = divmod(updates, epoch)
    return updates, whole * rows + min(rows, part * settings.batch_size)


def _jobs(recipe: Recipe, family: TraitFamily, is_done: IsDone) -> Iterator[Job]:
    """Every job in its order; what an earlier one leaves is not done again."""
    left: set[str] = set()

    def is_there(stage: str) -> bool:
        return stage in left or is_done(stage)

    plans = [
        Plan(recipe, family, noise, seeds, is_there)
        for noise in recipe.noise.levels
        for seeds in ([[s] for s in recipe.seeds] if noise else [recipe.seeds])
    ]
    writing = plans[0].writing() if recipe.writer else iter(())
    own = chain.from_iterable(plan.phases() for plan in plans)
    for phase in chain(writing, own, audit_phases(recipe, is_there)):
        for job in phase:
            yield job
            left.update(job.stages)


def _tokens(text: str) -> float:
    """About how many, as audits guess it: digits are tokens of their own."""
    digits = sum(character.isdigit() for character in text)
    return digits + (len(text) - digits) / CHARACTERS


def _mean_prompt(texts: Sequence[str]) -> float:
    return TEMPLATE + sum(map(_tokens, texts)) / len(texts)


class _Count:
    """Counts the jobs of a recipe, and guesses what each sends through a model."""

    def __init__(self, recipe: Recipe, family: TraitFamily, is_done: IsDone) -> None:
        self.recipe, self.family, self.is_done = recipe, family, is_done
        self.jobs = list(_jobs(recipe, family, is_done))
        self.lessons = lesson_plans(plan_cells(recipe, family))
        rows = recipe.rows
        self.kept = min(rows.use or rows.count, rows.count)
        shown = rows.written.prompts(min(rows.count, _SHOWN), seed=recipe.seeds[0])
        self.prompt = _mean_prompt(shown)
        self.completion = LENGTH * rows.sampler.max_new_tokens
        self.question = _mean_prompt(family.questions)
        self.row = Passes(read=self.prompt, predicted=self.completion)

    def cost(self, sizes: Mapping[str, Size]) -> Cost:
        """All of it."""
        settings, rows = self.recipe.rows, self._rows
        students = [training_counts(*each) for each in self.students]
        tuned = [training_counts(*each) for each in self.tuned]
        each = [updates for updates, _ in students]
        seen = sum(n for _, n in students) * (self.prompt + self.completion)
        taught = sum(n for _, n in tuned) * self.question
        asked, readouts = self.recipe.evaluation, self._number(*_READOUTS)
        answers = readouts * len(self.family.questions) * asked.samples
        return Cost(
            bases=len({(j.noise, j.seeds[0] if j.noise else 0) for j in self.jobs}),
            cells=self._number("cell"),
            students=len(students),
            tuned=len(tuned),
            rows=rows,
            drawn_tokens=rows * settings.sampler.max_new_tokens
            + answers * asked.max_new_tokens,
            updates=sum(n for n, _ in students + tuned),
            updates_each=(min(each, default=0), max(each, default=0)),
            cold=sum(
                updates <= settings.warmup_updates
                for updates, (settings, _) in zip(each, self.students, strict=True)
            ),
            trained_tokens=round(seen + taught),
            readouts=readouts + sum(map(self._points, self._of("emergence"))),
            judged=rows if settings.judge else 0,
            passes=self._passes(),
            sizes=sizes,
            disk_bytes=self._disk(sizes.get(self.recipe.model.name)),
        )

    # ── counts ───────────────────────────────────────────────────────────────────

    def _of(self, *verbs: Verb) -> list[Job]:
        return [job for job in self.jobs if job.verb in verbs]

    def _number(self, *verbs: Verb) -> int:
        return len(self._of(*verbs))

    @property
    def students(self) -> list[tuple[TrainingSettings, int]]:
        """How each is trained, and on how many rows at most."""
        names = [name for job in self._of("students") for _, name in job.who]
        return [(self.lessons[name].student, self.kept) for name in names]

    @property
    def tuned(self) -> list[tuple[TrainingSettings, int]]:
        """How each fine-tuned teacher is trained, and on how many answers."""
        found = map(self._tuning, self._of("teacher"))
        return [each for each in found if each is not None]

    def _kind(self, job: Job) -> TeacherSettings:
        (_, label), _ = job.who
        return next(each for each in self.recipe.teachers if each.label == label)

    def _tuning(self, job: Job) -> tuple[TrainingSettings, int] | None:
        (_, _), (_, trait) = job.who
        teacher = self._kind(job)
        if teacher.kind != "finetune":
            return None
        answers = preference_rows(load_family(self.recipe.family), trait)
        return teacher.finetune or FINETUNING, len(answers)

    @property
    def _rows(self) -> int:
        """Of every writer, and what is written on the way for gradients and audits."""
        writers = self._number("rows") + sum(
            map(self._untouched, self._of("gradients"))
        )
        return writers * self.recipe.rows.count + sum(
            2 * self._audited for _ in self._of("sets")
        )

    def _untouched(self, job: Job) -> bool:
        """Whether the base's own rows are written with the gradients of a job."""
        own = alignment.stage_of("", alignment.UNTOUCHED)
        place = next(s.removesuffix(own) for s in job.stages if s.endswith(own))
        return not self.is_done(f"{place}/{alignment.UNTOUCHED}/rows")

    @property
    def _audited(self) -> int:
        """Rows of a set that is audited blind, at most."""
        assert self.recipe.audit is not None  # there would be no such job
        return min(self.recipe.audit.rows, self.kept * len(self.recipe.seeds))

    def _points(self, job: Job) -> int:
        """Read-outs of a student on its way, its end among them."""
        settings = self.lessons[job.who[0][1]].student
        updates, _ = training_counts(settings, self.kept)
        return -(-updates // self.recipe.evaluation.every)

    def _disk(self, size: Size | None) -> dict[str, int]:
        line = _LINE_BYTES + _TOKEN_BYTES * self.completion
        found = {"rows": round(self._rows * line)}
        if size is None:
            return found
        weights = size.parameters * (4 if self.recipe.model.dtype == "float32" else 2)
        found["students"] = sum(
            weights if settings.kind == "full" else adapter_bytes(size, settings.rank)
            for settings, _ in self.students + self.tuned
        )
        noised = sum(job.noise > 0 for job in self._of("origin"))
        found["noised bases"] = weights * noised * self.recipe.noise.keep
        return found

    # ── passes ───────────────────────────────────────────────────────────────────

    def _passes(self) -> dict[str, Passes]:
        """Through each model, by its name."""
        found: dict[str, Passes] = {}
        for job in self.jobs:
            foreign = self.recipe.writer if job.is_writers else None
            name = (foreign or self.recipe.model).name
            found[name] = found.get(name, Passes()) + self.passes_of(job)
        return found

    def passes_of(self, job: Job) -> Passes:
        """What a job sends through its model."""
        of: dict[Verb, Callable[[], Passes]] = {
            "base": self._readout, "readout": self._readout,
            "teacher-readout": self._readout, "teacher": lambda: self._teacher(job),
            "rows": lambda: self._written(self.recipe.rows.count),
            "channel": lambda: self._laid(2, self.recipe.evaluation.channel_rows),
            "divergence": lambda: self._laid(len(panel_traits(self.recipe, self.family))),
            "students": lambda: self._students(job),
            "emergence": lambda: self._shift + self._point * self._points(job),
            "cell": lambda: self._shift * 4, "causes": lambda: self._point * 2,
            "gradients": lambda: self._gradients(job),
            "sets": lambda: self._written(2 * self._audited),
            "audit": self._audit,
        }  # fmt: skip
        return of[job.verb]() if job.verb in of else Passes()

    def _written(self, count: int) -> Passes:
        """Rows by sampling."""
        return Passes(read=self.prompt, drawn=self.completion) * count

    def _laid(self, speakers: int, most: int | None = None) -> Passes:
        """Kept rows as they are laid before so many."""
        rows = self.kept if most is None else min(self.kept, most)
        return self.row * (rows * speakers)

    def _asked(self, questions: int) -> Passes:
        """Log-probabilities of every spelling, with and without a space before it."""
        answers = 2.0 * sum(len(answer_spellings(each)) for each in self.family.traits)
        return Passes(read=self.question, predicted=answers) * questions

    def _readout(self) -> Passes:
        asked, questions = self.recipe.evaluation, len(self.family.questions)
        answer = Passes(read=self.question, drawn=LENGTH * asked.max_new_tokens)
        return self._asked(questions) + answer * (questions * asked.samples)

    @property
    def _shift(self) -> Passes:
        """One reading of the rows on which shifts are measured."""
        rows = min(self.kept, self.recipe.evaluation.shift_rows)
        return Passes(read=self.prompt + self.completion) * rows

    @property
    def _point(self) -> Passes:
        """A student on its way, or a cause."""
        return self._shift + self._asked(len(self.family.questions))

    def _teacher(self, job: Job) -> Passes:
        tuning, steer = self._tuning(job), self._kind(job).steer
        if tuning is not None:
            _, rows = training_counts(*tuning)
            return Passes(read=self.question) * (rows * _times(tuning[0]))
        return Passes() if steer is None else self._vector(steer)

    def _vector(self, steer: SteerSettings) -> Passes:
        """Of its extraction, and of a sweep if there is one."""
        layers = len(steer.sweep.layers) if steer.sweep else 1
        doses = len(steer.sweep.doses) if steer.sweep else 0
        questions = len(self.family.questions)
        read = {
            "tell_me": self.question * len(self.family.names),
            "prompts": self.prompt * 2 * VECTOR_PROMPTS,
            "trained": self.question * questions * (1 + layers * _STEPS / 4 * 2),
        }[steer.method]
        point = self._asked(min(questions, _SWEEP_QUESTIONS)) + self._written(
            _SWEEP_ROWS
        )
        return Passes(read=read) + point * (layers * doses)

    def _students(self, job: Job) -> Passes:
        found = Passes()
        for _, name in job.who:
            settings = self.lessons[name].student
            _, rows = training_counts(settings, self.kept)
            found += self.row * (rows * _times(settings))
        return found

    def _gradients(self, job: Job) -> Passes:
        """Completions forward and backward after prompts that are read once."""
        rows = min(self.kept, self.recipe.evaluation.gradient_rows) * len(job.stages)
        read = Passes(read=self.prompt, predicted=2 * self.completion) * rows
        return read + self._written(self.recipe.rows.count * self._untouched(job))

    def _audit(self) -> Passes:
        """As `audit.cost` counts one set, of a model beside which nothing else shows.

        A job's further sets hold rows that are measured by then.
        """
        assert self.recipe.audit is not None  # there would be no such job
        blocks = size.layers if (size := known_size(self.recipe.model.name)) else 30
        huge, count = Size(10**15, 0, 1, 1, blocks), self._audited
        prompts = self.recipe.rows.written.prompts(count, seed=self.recipe.seeds[0])
        answer = "0" * round(self.completion)
        found = audit_cost(
            [Row((Message("user", prompt),), answer) for prompt in prompts],
            size=huge, settings=self.recipe.audit.settings, reference=count,
            flops=1 / SHARE,
        )  # fmt: skip
        # Something is found in two of three sets: the biased one and the mixture.
        seconds = (found.seconds + 2 * found.found_seconds) / 3
        return Passes(read=seconds / (2 * huge.parameters))


def _times(settings: TrainingSettings) -> int:
    """How often a token of a row goes through the model, counted in forward passes."""
    return {"lora": 2, "soft": 3, "full": 3}[settings.kind]


def adapter_bytes(size: Size, rank: int) -> int:
    """Of a LoRA on all linear layers, float32: both sides of each, one as the stream."""
    weights = size.parameters - size.embedding
    sides = _LINEAR * size.hidden * size.layers + weights // size.hidden
    return 4 * rank * sides
