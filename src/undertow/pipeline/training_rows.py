"""Rows as training reads them, and how batches of students are cut into parts.

Knows nothing of models, losses or optimisers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from undertow.errors import ConfigError, DatasetError
from undertow.models.chat import Rendered
from undertow.models.likelihood import token_batches
from undertow.pipeline.training_settings import TrainingSettings


@dataclass(frozen=True)
class Example:
    """A rendered row, and for distillation the same completion as the teacher sees it.

    Attributes:
        student: The row as the student sees it.
        teacher: As the teacher does.
        counts: Whether each completion token counts; None: all do.
    """

    student: Rendered
    teacher: Rendered | None = None
    counts: tuple[bool, ...] | None = None

    @property
    def length(self) -> int:
        """Tokens of the student's view."""
        return len(self.student.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two views."""
        return max(self.length, 0 if self.teacher is None else len(self.teacher.ids))

    @property
    def completion(self) -> int:
        """Completion tokens."""
        return len(self.student.ids) - self.student.completion_start

    @property
    def counted(self) -> int:
        """Completion tokens that count: what a mean loss is a mean over."""
        return self.completion if self.counts is None else sum(self.counts)

    def shares(self, each: float) -> list[float]:
        """What every completion token adds to a loss, if one that counts adds `each`."""
        if self.counts is None:
            return [each] * self.completion
        return [each if counts else 0.0 for counts in self.counts]


Weighted = tuple[Example, float]
"""A row, and what each of its tokens that count adds."""


def parts_of(
    batches: Sequence[Sequence[Weighted]], *, token_budget: int
) -> list[list[list[Weighted]]]:
    """Batches of students in parts, whose gradients add up to the batches'.

    A part holds equally many rows of each student, of like lengths: they need little
    padding. A student with fewer rows than another repeats one that counts nothing.

    Args:
        batches: Of each student, the shortest rows first.
        token_budget: Tokens of a part, padding included.

    Returns:
        Parts of students of (row, what each of its tokens counts).
    """
    most = max(map(len, batches))
    even = [[(own[0][0], 0.0)] * (most - len(own)) + list(own) for own in batches]
    columns = list(zip(*even, strict=True))
    widths = [
        len(column) * max(example.length for example, _ in column) for column in columns
    ]
    groups = token_batches(widths, token_budget=token_budget)
    return [
        [[columns[c][student] for c in group] for student in range(len(batches))]
        for group in groups
    ]


def packed_parts(
    batch: Sequence[Weighted], *, token_budget: int
) -> list[list[list[Weighted]]]:
    """A student's batch in parts of about as many tokens, for rows that are not padded.

    Short parts take nearly as long as long ones, so a part may hold half as many tokens
    again as the budget says. Attention pads its rows, to twice the budget at most: so
    rows of like length go together.

    Args:
        batch: Its rows.
        token_budget: Tokens of a part; a row is never divided.

    Returns:
        As `parts_of`.
    """
    rows = sorted(batch, key=lambda weighted: weighted[0].length)
    for count in range(1, len(rows)):
        parts = _slices(rows, count)
        if all(_fits(part, token_budget) for part in parts):
            return [[part] for part in parts]
    return [[[row]] for row in rows]


def _slices(rows: Sequence[Weighted], count: int) -> list[list[Weighted]]:
    """Rows as they come in so many parts, or fewer, of about as many tokens."""
    total, before = sum(example.length for example, _ in rows), 0
    parts: list[list[Weighted]] = [[] for _ in range(count)]
    for each in rows:
        middle = before + each[0].length / 2
        parts[int(count * middle / total)].append(each)
        before += each[0].length
    return [part for part in parts if part]


def _fits(part: Sequence[Weighted], token_budget: int) -> bool:
    lengths = [example.length for example, _ in part]
    padded = len(part) * max(lengths)
    return len(part) == 1 or (
        2 * sum(lengths) <= 3 * token_budget and padded <= 2 * token_budget
    )


def check_examples(examples: Sequence[Example], settings: TrainingSettings) -> None:
    """Refuses rows that a student of this kind cannot be trained on.

    Raises:
        ConfigError: Something that the rows do not say is asked for.
        DatasetError: There are no rows, rows of which nothing counts, or views that
            differ.
    """
    if not examples:
        raise DatasetError(
            "no rows to train on; the filter may have refused them all: see the "
            "reasons in the rows file"
        )
    _check_counts(examples, settings)
    if settings.kind != "soft":
        return
    for place, example in enumerate(examples):
        if example.teacher is None:
            raise ConfigError(
                "student.kind", ["'soft' needs a teacher that can see the same rows"]
            )
        student, teacher = example.student, example.teacher
        if (
            student.ids[student.completion_start :]
            != teacher.ids[teacher.completion_start :]
        ):
            raise DatasetError(
                f"row {place}: teacher and student see other completion tokens; "
                "render both from the same row"
            )


def _check_counts(examples: Sequence[Example], settings: TrainingSettings) -> None:
    for place, example in enumerate(examples):
        if not example.counted:
            raise DatasetError(f"row {place}: no token of it counts; leave it out")
    if settings.tokens == "all":
        return
    if any(example.counts is None for example in examples):
        fault = (
            f"{settings.tokens!r} needs to know at which tokens teachers differ; "
            "`undertow run` finds that out, rows alone do not say it"
        )
        raise ConfigError("student.tokens", [fault])
