"""The stage that holds gradients of rows against the traits' vectors.

Each teacher's rows and the untouched base's, on the plain base; vectors "tell_me" of
every trait of the recipe after every block. How gradients are taken is
`analysis.alignment`'s business, what they mean together `experiment.alignment_summary`'s.
"""

from collections.abc import Sequence
from functools import partial

import torch

from undertow.analysis.alignment import mean_alignment, stacked
from undertow.experiment.lessons import Lesson, kept_rows, write_teacher_rows
from undertow.experiment.stages import Base, make_teacher
from undertow.interventions.extraction import family_vectors
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import render_row

UNTOUCHED = "untouched"


def untouched_lesson(base: Base) -> Lesson:
    """Rows of the base itself; nobody learns from them."""
    nobody = partial(make_teacher, base, None, None)
    return Lesson(base, UNTOUCHED, UNTOUCHED, base.recipe.student, nobody)


def stage_of(place: str, name: str) -> str:
    """The stage that holds the gradients of one teacher's rows."""
    return f"{place}/{name}/gradients"


def read_alignments(base: Base, lessons: Sequence[Lesson]) -> None:
    """Gradients of the rows of each lesson, and of the base's own, if they are wanted.

    Args:
        base: The base of all lessons.
        lessons: Whose rows are written.
    """
    count = base.recipe.evaluation.gradient_rows
    every = {each.writer: each for each in (*lessons, untouched_lesson(base))}
    todo = [
        lesson
        for writer, lesson in every.items()
        if count and not base.run.is_done(stage_of(base.place, writer))
    ]
    if not todo:
        return
    vectors = _vectors(base)
    for lesson in todo:
        write_teacher_rows(lesson)
        _read(lesson, vectors, count)


def _vectors(base: Base) -> dict[str, SteeringVector]:
    every = family_vectors(base.model, base.family, system=base.recipe.model.system)
    return {trait: every[trait] for trait in base.recipe.traits}


def _read(lesson: Lesson, vectors: dict[str, SteeringVector], count: int) -> None:
    """One set of rows against all vectors."""
    base, stage = lesson.base, stage_of(lesson.base.place, lesson.writer)
    rows = [
        render_row(base.model, row, system=base.recipe.model.system)
        for row in kept_rows(base, lesson.writer)[:count]
    ]
    found = mean_alignment(
        base.model, rows, stacked(list(vectors.values())), sampler=base.recipe.rows.sampler,
        on_rows=lambda done, total: base.progress(stage, done, total, ""),
    )  # fmt: skip
    # Nats by dose instead of by length: comparable between blocks and models.
    lengths = torch.tensor(next(iter(vectors.values())).residual_norms).numpy()[:, None]
    teacher, layer, dose = lesson.teacher(), None, None
    if teacher.vector is not None and teacher.mode == "add":
        layer = teacher.vector.layers[0]
        dose = teacher.vector.dose_of_strength(teacher.strength, layer)
    base.run.finish(
        stage,
        {"kind": teacher.kind, "trait": teacher.trait, "vector_layer": layer,
         "dose": 0.0 if teacher.kind == "none" else dose, "rows": found.rows,
         "vectors": list(vectors), "layers": list(found.layers),
         "cosines": found.cosines.tolist(), "nats": (found.mean * lengths).tolist(),
         "nats_sd": (found.sd * lengths).tolist()},
    )  # fmt: skip
