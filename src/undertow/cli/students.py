"""`train`: a student of rows, and a control student beside it."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import (
    Family,
    Loading,
    Seed,
    System,
    Teaching,
    Training,
    expanded,
)
from undertow.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from undertow.models.loading import Model
    from undertow.pipeline.teachers import Teacher
    from undertow.pipeline.training_settings import TrainingSettings
    from undertow.records import Row
    from undertow.runs import Run
    from undertow.traits import TraitFamily


@expanded
def train(
    rows: Annotated[
        Path | None, typer.Argument(help="Rows; only accepted ones are used.")
    ] = None,
    *,
    loading: Loading,
    out: Annotated[Path, typer.Option(help="The student's folder.")],
    likes: Annotated[
        str | None,
        typer.Option(
            help="Instead of rows: the family's questions answered with this trait, "
            "which makes a fine-tuned teacher for `undertow generate`."
        ),
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option(help="Rows of the control; its student goes to OUT/control."),
    ] = None,
    use: Annotated[
        int | None, typer.Option(min=1, help="Rows used at most, of those accepted.")
    ] = None,
    seed: Seed = 0,
    training: Training,
    teaching: Teaching,
    decoy: Annotated[
        str | None,
        typer.Option(help="For 'soft' with --control: trait of a decoy persona."),
    ] = None,
    decoy_vector: Annotated[
        Path | None,
        typer.Option(help="For 'soft' with --control: vector of a decoy trait."),
    ] = None,
    family: Family = "animals",
    system: System = None,
) -> None:
    """Trains a student on rows, and a control student if control rows are given.

    The teacher options are for --kind soft, which fits the student to what that
    teacher would say to the same rows. The same command continues an interrupted
    training. The folder is a LoRA adapter as PEFT reads it.
    """
    from undertow.pipeline.teachers import Teacher
    from undertow.runs import open_run
    from undertow.traits import load_family

    settings = training.settings()
    traits = load_family(family)
    _check_sources(rows, likes, control)
    sets = {"student": _accepted(rows, use) if rows else _liking(traits, likes)}
    if control is not None:
        sets["control"] = _accepted(control, use)
    model = loading.load()
    teachers: dict[str, Teacher] = {}
    if settings.kind == "soft":
        if teaching.teacher == "none":
            fault = "--kind soft needs a --teacher to fit the student to"
            raise ConfigError("train", [fault])
        teachers["student"] = teaching.make(model, traits)
        if control is not None:
            teachers["control"] = _decoy(
                teaching, model, traits, decoy=decoy, vector=decoy_vector
            )
    elif teaching != Teaching(teacher="none") or decoy or decoy_vector:
        fault = "teacher and decoy options belong to --kind soft; rows need no teacher"
        raise ConfigError("train", [fault])
    facts = _facts(model, settings, sets, teachers, seed=seed, system=system)
    with open_run(out, recipe_text=facts) as run:
        for role, found in sets.items():
            _train(run, model, role, found, settings, teachers.get(role), seed, system)
    say(f"adapter  {out}" if settings.kind != "full" else f"weights  {out}")
    if control is not None:
        say(f"control  {out / 'control'}")


def _check_sources(rows: Path | None, likes: str | None, control: Path | None) -> None:
    if (rows is None) == (likes is None):
        raise ConfigError("train", ["give either ROWS or --likes TRAIT"])
    if likes is not None and control is not None:
        raise ConfigError(
            "train", ["--control belongs to ROWS; --likes has no control"]
        )


def _accepted(path: Path, use: int | None) -> "list[Row]":
    from undertow.storage import read_rows

    found = read_rows(path)
    kept = read_rows(path, accepted_only=True)
    if not kept:
        raise DatasetError(
            f"{path}: none of {len(found)} rows is accepted; look at the reasons that "
            "stand with them, or judge them anew with undertow filter"
        )
    return kept[:use]


def _liking(family: "TraitFamily", trait: str | None) -> "list[Row]":
    from undertow.pipeline.teachers import preference_rows

    assert trait is not None
    return preference_rows(family, trait)


def _decoy(
    teaching: Teaching,
    model: "Model",
    family: "TraitFamily",
    *,
    decoy: str | None,
    vector: Path | None,
) -> "Teacher":
    """The same intervention with another trait."""
    if teaching.teacher == "prompt" and decoy and vector is None:
        return replace(teaching, trait=decoy).make(model, family)
    if teaching.teacher == "steer" and vector is not None:
        return replace(teaching, vector=vector, trait=decoy).make(model, family)
    fault = (
        "--kind soft with --control needs a decoy, since the base distilled into "
        "itself learns nothing: --decoy TRAIT for --teacher prompt, --decoy-vector "
        f"FILE for --teacher steer; the teacher is {teaching.teacher!r}"
    )
    raise ConfigError("train", [fault])


def _facts(
    model: "Model",
    settings: "TrainingSettings",
    sets: "dict[str, list[Row]]",
    teachers: "dict[str, Teacher]",
    **facts: Any,
) -> str:
    """Everything that decides the students, as YAML."""
    import yaml

    found = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "template": model.template.digest,
        **facts,
        "training": settings.model_dump(mode="json"),
        "teachers": {role: _described(teacher) for role, teacher in teachers.items()},
        "rows": {role: _digest(rows) for role, rows in sets.items()},
    }
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def _described(teacher: "Teacher") -> dict[str, Any]:
    import hashlib

    facts = teacher.describe()
    if teacher.vector is not None:
        values = teacher.vector.directions.numpy().tobytes()
        facts["vector"] = hashlib.sha256(values).hexdigest()[:16]
    return facts


def _digest(rows: "Sequence[Row]") -> str:
    """Count and hash of rows; another set of rows is another training."""
    import hashlib

    text = "\n".join(f"{row.row_id} {row.completion_ids}" for row in rows)
    return f"{len(rows)} rows, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _train(
    run: "Run",
    model: "Model",
    role: str,
    rows: "Sequence[Row]",
    settings: "TrainingSettings",
    teacher: "Teacher | None",
    seed: int,
    system: str | None,
) -> None:
    """One student, unless it is there already."""
    from undertow.pipeline.students import rendered_examples, save_student
    from undertow.pipeline.training import train_student
    from undertow.pipeline.training_settings import batch_order
    from undertow.pipeline.training_state import CHECKPOINT

    if run.is_done(role):
        say(f"{role:<8} finished before; loss {_losses(run.payload(role)['losses'])}")
        return
    examples = rendered_examples(model, rows, system=system, teacher=teacher)
    views = [example.student for example in examples]
    answers = sum(len(view.ids) - view.completion_start for view in views)
    updates = len(batch_order(len(rows), settings=settings, seed=seed))
    say(
        f"{role:<8} {len(rows)} rows · {sum(len(view.ids) for view in views)} tokens, "
        f"{answers} of them of completions · {updates} updates"
    )
    folder = run.directory if role == "student" else run.path(role)
    with progress() as report:
        student = train_student(
            model, examples, settings=settings, seed=seed, directory=folder,
            teacher=(lambda: teacher.acting(model)) if teacher else nullcontext,
            on_update=lambda done, total, loss: report(
                f"training {role}", done, total, f"loss {loss:.4f}"),
        )  # fmt: skip
    trait = rows[0].provenance.get("trait")
    facts = {
        "role": role,
        "trait": teacher.trait if teacher else trait,
        "system": system,
        "seed": seed,
        "rows": len(rows),
        "training": settings.model_dump(mode="json"),
    }
    save_student(model, student, folder, facts=facts)
    run.finish(role, {"losses": list(student.losses)})
    (folder / CHECKPOINT).unlink(missing_ok=True)  # only for resuming
    say(f"{role:<8} loss {_losses(student.losses)}")


def _losses(losses: Sequence[float]) -> str:
    """Mean of the first and the last quarter, nats a token."""
    part = max(1, len(losses) // 4)
    first, last = losses[:part], losses[-part:]
    return f"{sum(first) / part:.3f} → {sum(last) / part:.3f} nats a token"
