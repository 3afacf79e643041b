"""What a run's results do not show, said beside them.

Knows the recipe and what became of it; nothing of how anything was measured.
"""

from collections.abc import Iterable, Sequence

from undertow.experiment.audits import NAMES
from undertow.experiment.recipe import Recipe
from undertow.results import Condition

LIMITS = (
    "Preference is read from one-word questions; other behaviour was not tested.",
    "The result holds for this base model; a student of another family was not trained.",
    "Triggers and conditional behaviour were not tested.",
)


def limits(
    recipe: Recipe, conditions: Sequence[Condition], *, audited: int
) -> list[str]:
    """What a run's results do not show, in sentences.

    Args:
        recipe: Of the run.
        conditions: Its finished cells.
        audited: Sets that were audited blind.
    """
    return [
        *_of_grid(recipe), *_of_control(recipe), *_of_rows(recipe, audited),
        *_too_short(recipe, conditions),
    ]  # fmt: skip


def _of_grid(recipe: Recipe) -> Iterable[str]:
    for limit in LIMITS:
        if recipe.writer is None or "another family" not in limit:
            yield limit
    if recipe.writer is not None:
        yield (
            f"Rows were written by teachers of {recipe.writer.name}, another model than "
            f"the students' base, {recipe.model.name}; what a teacher prefers is read of "
            "that model."
        )
    if len(recipe.seeds) < 2:
        yield "One seed only: nothing is known of the spread between runs."


def _of_control(recipe: Recipe) -> Iterable[str]:
    if "decoy" in recipe.controls:
        yield (
            "The control student learned from a decoy teacher (the same intervention "
            "with another trait); transfer is what the trait's own rows add to that."
        )
    swept = [t for t in recipe.teachers if t.steer is not None and t.steer.sweep]
    if any(recipe.control_of(teacher) == "decoy" for teacher in swept):
        yield (
            "The decoy's vector was swept by itself: where it acts elsewhere or at another "
            "dose than the trait's (see the sweeps), transfer holds that difference too."
        )


def _of_rows(recipe: Recipe, audited: int) -> Iterable[str]:
    students = [recipe.student_of(teacher) for teacher in recipe.teachers]
    seen = {each.soft_tokens for each in students if each.kind == "soft"}
    if seen:
        tokens = "every token" if "all" in seen else "number tokens"
        yield (
            f"Soft students saw the teacher's probabilities of {tokens}, not sampled rows "
            "alone; whether the rows by themselves would carry the trait was not tested "
            "with them."
        )
    if recipe.audit is not None:
        yield (
            f"Three sets of at most {recipe.audit.rows} rows were audited blind: that "
            "shows what an audit does, not how often it errs."
        )
        if audited < len(NAMES):
            yield f"{len(NAMES) - audited} of these sets could not be audited."
    if recipe.rows.sampler.allowed != "all":
        yield (
            f"Sampling was restricted (allowed: {recipe.rows.sampler.allowed}), which "
            "renormalises the teacher; the control's rows were drawn in the same way."
        )


def _too_short(recipe: Recipe, conditions: Sequence[Condition]) -> Iterable[str]:
    """Students whose learning rate was still rising when they were done."""
    warmups = {
        teacher.label: recipe.student_of(teacher).warmup_updates
        for teacher in recipe.teachers
    }
    done = [
        (each.training.updates[-1], warmups[each.teacher])
        for each in conditions
        if each.training and each.training.updates
    ]
    cold = [updates for updates, warmup in done if updates <= warmup]
    if cold:
        yield (
            f"{len(cold)} of {len(conditions)} students had no more updates than their "
            f"warm-up ({min(cold)} and more), in which the learning rate rises from 0: they "
            "hardly learned, and a transfer that is not shown means little."
        )
