"""`train`: a student of rows, and a control student beside it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from undertow.cli.rows import content_of
from undertow.cli.tracking import Track, check, tracking
from undertow.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from undertow.experiment.tracking import Tracking
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
    track: Track = None,
) -> None:
    """Trains a student on rows, and a control student if control rows are given.

    The teacher options are for --kind soft, which fits the student to what that
    teacher would say to the same rows. The same command continues an interrupted
    training. The folder is a LoRA adapter as PEFT reads it.

    Started by `accelerate launch --use_fsdp --num_processes N -m undertow train …`, N
    processes hold a part of the model each and share every batch.
    """
    from undertow.traits import load_family

    with _together():
        check(track)
        settings = training.settings()
        traits = load_family(family)
        _check_sources(rows, likes, control)
        sets = {"student": _accepted(rows, use) if rows else _liking(traits, likes)}
        if control is not None:
            sets["control"] = _accepted(control, use)
        _check_teaching(settings, teaching, decoy or decoy_vector)
        if settings.kind == "soft":
            teaching.check(traits)
        model = _loaded(loading)
        teachers = {} if settings.kind != "soft" else _teachers(
            teaching, model, traits, has_control=control is not None, decoy=decoy,
            vector=decoy_vector,
        )  # fmt: skip
        # Of a vector its numbers are told with the teacher.
        more = {"adapter": content_of(teaching)} if teaching.adapter else {}
        facts = _facts(
            model, settings, sets, teachers, seed=seed, system=system, **more
        )
        known = {"model": model.name, "seed": seed, "training": settings.model_dump()}
        with _opened(out, facts) as run, tracking(track, out, known) as told:
            for role, found in sets.items():
                teacher = teachers.get(role)
                _train(run, model, role, found, settings, teacher, seed, system, told)
        say(f"adapter  {out}" if settings.kind != "full" else f"weights  {out}")
        if control is not None:
            say(f"control  {out / 'control'}")


def _together() -> AbstractContextManager[object]:
    """Joins the processes that `accelerate launch` started, if there are several."""
    if not os.environ.get("WORLD_SIZE"):  # what joins them is heavy
        return nullcontext()
    from undertow.pipeline.distributed import joined

    return joined()


def _loaded(loading: Loading) -> "Model":
    """The model; of several processes, each has its part of it.

    Raises:
        ConfigError: It is told where it shall be, and each has a device of its own.
    """
    from undertow.models.loading import choose_dtype
    from undertow.pipeline.distributed import processes

    here = processes()
    if here.count == 1:
        return loading.load()
    if loading.device != "auto" or loading.device_map is not None:
        fault = "each process has its device; leave --device and --device-map out"
        raise ConfigError("launch", [fault])
    dtype, _ = choose_dtype(loading.dtype, here.device)
    name: Any = str(dtype).removeprefix("torch.")
    return here.sharded(replace(loading, device="cpu", dtype=name).load())


@contextmanager
def _opened(out: Path, facts: str) -> "Iterator[Run]":
    """The run's directory, which one process opens for all."""
    from undertow.pipeline.distributed import processes
    from undertow.runs import Run, open_run

    if not processes().is_first:
        processes().wait()
        yield Run(out)
        return
    with open_run(out, recipe_text=facts) as run:
        processes().wait()
        yield run


def _check_teaching(
    settings: "TrainingSettings", teaching: Teaching, decoy: object
) -> None:
    if settings.kind != "soft" and (teaching != Teaching(teacher="none") or decoy):
        fault = "teacher and decoy options belong to --kind soft; rows need no teacher"
        raise ConfigError("train", [fault])
    if settings.kind == "soft" and teaching.teacher == "none":
        fault = "--kind soft needs a --teacher to fit the student to"
        raise ConfigError("train", [fault])


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


def _teachers(
    teaching: Teaching,
    model: "Model",
    family: "TraitFamily",
    *,
    has_control: bool,
    decoy: str | None,
    vector: Path | None,
) -> "dict[str, Teacher]":
    """Whom a soft student is fitted to, and whom its control, if there is one."""
    found = {"student": teaching.make(model, family)}
    if has_control:
        found["control"] = _decoy(teaching, model, family, decoy=decoy, vector=vector)
    return found


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
    told: "Tracking",
) -> None:
    """One student, unless it is there already."""
    from undertow.pipeline.distributed import processes
    from undertow.pipeline.students import (
        rendered_examples,
        save_student,
        student_files,
    )
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
    told.log({f"rows/{role}": float(len(rows))})

    def tell(done: int, total: int, loss: float) -> None:
        report(f"training {role}", done, total, f"loss {loss:.4f}")
        told.update(role, done, loss)

    with progress() as report:
        student = train_student(
            model, examples, settings=settings, seed=seed, directory=folder,
            teacher=(lambda: teacher.acting(model)) if teacher else nullcontext,
            on_update=tell,
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
    if processes().is_first:
        save_student(model, student, folder, facts=facts)
        run.finish(
            role, {"losses": list(student.losses)}, files=student_files(folder),
            scratch=[folder / CHECKPOINT],
        )  # fmt: skip
    say(f"{role:<8} loss {_losses(student.losses)}")


def _losses(losses: Sequence[float]) -> str:
    """Mean of the first and the last quarter, nats a token."""
    part = max(1, len(losses) // 4)
    first, last = losses[:part], losses[-part:]
    return f"{sum(first) / part:.3f} → {sum(last) / part:.3f} nats a token"
