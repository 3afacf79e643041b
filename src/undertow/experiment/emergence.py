"""How a student became what it is: read-outs of it while it was being trained.

Training keeps a low-rank student every so many updates; here each is read as the
finished one is: its preference, and where its shift points. Knows nothing of training.
"""

from typing import Any

from undertow.analysis.shifts import mean_states, shift_cosines
from undertow.experiment.lessons import Lesson, learnt, shift_rows, train_lessons
from undertow.pipeline.evaluation import preference
from undertow.pipeline.students import load_student
from undertow.pipeline.training import UPDATES, Student


def stage_of(place: str, name: str) -> str:
    """The stage that reads a student on its way."""
    return f"{place}/{name}/emergence"


def read_emergence(lesson: Lesson, control: Lesson) -> None:
    """Reads a student at every update at which it was kept, and at its end.

    Nothing if the recipe does not ask for it. What was kept on the way is dropped then.

    Args:
        lesson: The student's; it is trained.
        control: On whose teacher's rows the shift is measured.
    """
    base = lesson.base
    stage, folder = stage_of(base.place, lesson.name), base.path(lesson.stage)
    if not base.recipe.evaluation.every or base.run.is_done(stage):
        return
    train_lessons([lesson])  # again, if what was kept on the way is gone
    kept = sorted((folder / UPDATES).glob("[0-9]*"))
    reader, points, last = _Reader(lesson, control), [], learnt(lesson)
    for done, path in enumerate(kept):
        base.progress(stage, done, len(kept) + 1, f"update {int(path.name)}")
        student = load_student(base.model, path)
        points.append({"update": int(path.name), **reader.read(student)})
    points.append({"update": last.updates[-1], **reader.read(last)})
    base.run.finish(
        stage, {"vector_layer": reader.layer, "points": points},
        scratch=[folder / UPDATES],
    )  # fmt: skip
    base.progress(stage, len(kept) + 1, len(kept) + 1, "")


class _Reader:
    """Reads students of one base: what the base's stream is, is read once."""

    def __init__(self, lesson: Lesson, control: Lesson) -> None:
        self.base, self.rows = lesson.base, shift_rows(control)
        self.states = mean_states(self.base.model, self.rows)
        self.vector = lesson.teacher().vector
        self.layer = None if self.vector is None else self.vector.layers[0]

    def read(self, student: Student) -> dict[str, Any]:
        """Log-probabilities of every answer, and the shift's cosine if there is a vector."""
        model, system = self.base.model, self.base.recipe.model.system
        cosine = None
        with student.applied(model):
            asked = preference(model, self.base.family, system=system)
            states = mean_states(model, self.rows)
        if self.vector is not None and self.layer is not None:
            direction = self.vector.direction(self.layer)
            cosine = shift_cosines(states - self.states, direction)[self.layer]
        return {"total_logprobs": asked.total_logprobs.tolist(), "cosine": cosine}
