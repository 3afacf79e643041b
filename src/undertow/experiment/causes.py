"""Whether a student's mean shift is enough for what it became, and needed for it.

At one block the shift's mean over completion tokens of control rows is added to the base,
which should then prefer the trait if the shift is enough, and taken from the student,
which should then prefer it no more if the shift is needed. Knows nothing of the teacher.
"""

from undertow.analysis.shifts import shift_profile
from undertow.experiment.lessons import Lesson, learnt, shift_rows
from undertow.interventions.steering import SteeringVector, steering
from undertow.pipeline.evaluation import preference


def read_causes(lesson: Lesson, control: Lesson) -> None:
    """Reads the base with the student's shift, and the student without it.

    Nothing if the recipe names no block, or it was done before.

    Args:
        lesson: The student's; it is trained.
        control: On whose teacher's rows the shift is measured.
    """
    base, recipe = lesson.base, lesson.base.recipe
    layer = recipe.evaluation.cause_layer
    stage = f"{base.place}/{lesson.name}/causes"
    if layer is None or base.run.is_done(stage):
        return
    base.progress(stage, 0, 2, "")
    student, model, system = learnt(lesson), base.model, recipe.model.system
    found = shift_profile(
        model, shift_rows(control), acting=lambda: student.applied(model)
    )
    vector = SteeringVector(
        directions=found.mean[layer][None].float(), layers=(layer,),
        method="shift", trait=lesson.name, n=found.tokens,
        fingerprint=model.fingerprint, model_name=model.name,
        residual_norms=(float(found.base_energy[layer].sqrt()),),
    )  # fmt: skip
    with steering(model, vector, strength=1.0):
        added = preference(model, base.family, system=system)
    base.progress(stage, 1, 2, "")
    with student.applied(model), steering(model, vector, strength=-1.0):
        taken = preference(model, base.family, system=system)
    base.run.finish(
        stage,
        {"layer": layer,
         "added": {"total_logprobs": added.total_logprobs.tolist()},
         "taken": {"total_logprobs": taken.total_logprobs.tolist()}},
    )  # fmt: skip
    base.progress(stage, 2, 2, "")
