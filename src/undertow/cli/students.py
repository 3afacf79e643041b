"""`train` and `evaluate`: a student of rows, and what models prefer."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import (
    Family,
    Loading,
    Seed,
    Steering,
    System,
    Teaching,
    Training,
    expanded,
    refuse_existing,
    words,
)
from undertow.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from undertow.models.loading import Model
    from undertow.pipeline.evaluation import Preference, SampledAnswers
    from undertow.pipeline.teachers import Teacher
    from undertow.pipeline.training import TrainingSettings
    from undertow.records import Row
    from undertow.runs import Run
    from undertow.stats import Interval
    from undertow.traits import TraitFamily

SHOWN_TRAITS = 10
"""Traits in the table of `evaluate` when none are named."""


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
    raise ConfigError(
        "train",
        [
            "--kind soft with --control needs a decoy, since the base distilled into "
            "itself learns nothing: --decoy TRAIT for --teacher prompt, --decoy-vector "
            f"FILE for --teacher steer; the teacher is {teaching.teacher!r}"
        ],
    )


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
    from undertow.models.carrier import carrier_ids
    from undertow.pipeline.students import rendered_examples, save_student
    from undertow.pipeline.training import batch_order, train_student

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
    numbers = settings.kind == "soft" and settings.soft_tokens == "numbers"
    with progress() as report:
        student = train_student(
            model, examples, settings=settings, seed=seed, directory=folder,
            teacher=(lambda: teacher.acting(model)) if teacher else nullcontext,
            carrier=carrier_ids(model) if numbers else None,
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
    say(f"{role:<8} loss {_losses(student.losses)}")


def _losses(losses: Sequence[float]) -> str:
    """Mean of the first and the last quarter, nats a token."""
    part = max(1, len(losses) // 4)
    first, last = losses[:part], losses[-part:]
    return f"{sum(first) / part:.3f} → {sum(last) / part:.3f} nats a token"


@dataclass(frozen=True)
class _Reading:
    """What one model answered."""

    name: str
    asked: "Preference"
    sampled: "SampledAnswers | None"


@expanded
def evaluate(
    *,
    loading: Loading,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a student; may be repeated."),
    ] = None,
    control: Annotated[
        Path | None, typer.Option(help="Folder of the control student.")
    ] = None,
    steering: Steering,
    persona: Annotated[
        str | None, typer.Option(help="Also read the base told to love this trait.")
    ] = None,
    family: Family = "animals",
    traits: Annotated[
        str | None,
        typer.Option(help="Traits in the table, with commas; else the students' own."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Also sample so many answers a question.")
    ] = 0,
    seed: Seed = 0,
    system: System = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="All numbers, as JSON.")
    ] = None,
) -> None:
    """Reads preferences: the base, and students, control or vector beside it.

    Preference is the log-odds of a trait against the rest of its family, in nats,
    with a 95 % interval over questions. Transfer is student minus control.
    """
    from undertow.storage import write_json
    from undertow.traits import load_family

    if json_file is not None:
        refuse_existing(json_file)
    if faults := steering.faults():
        raise ConfigError("steering options", faults)
    members = load_family(family)
    named = words(traits) if traits is not None else ()
    for name in named:
        members.trait(name)
    model = loading.load()
    actors = _actors(model, members, adapter or [], control, steering, persona=persona)
    readings = []
    with progress() as report:
        for place, (name, teacher) in enumerate(actors.items()):
            report("read-out", place, len(actors), name)
            reading = _read(model, members, name, teacher, samples, seed, system)
            readings.append(reading)
        report("read-out", len(actors), len(actors), "")
    chosen = named or _own_traits(readings, actors, adapter or [])
    students = [str(folder) for folder in adapter or []]
    transfers = _transfers(readings, students, chosen) if control is not None else []
    for line in [*_table(readings, chosen), *_transfer_lines(transfers)]:
        say(line)
    if json_file is not None:
        facts = {"model": model.name, "fingerprint": model.fingerprint,
                 "template": model.template.digest, "system": system,
                 "family": members.name, "questions": list(members.questions),
                 "samples": samples, "seed": seed}  # fmt: skip
        write_json(json_file, _numbers(facts, readings, transfers))
        say(f"numbers  {json_file}")


def _actors(
    model: "Model",
    family: "TraitFamily",
    adapters: Sequence[Path],
    control: Path | None,
    steering: Steering,
    *,
    persona: str | None,
) -> "dict[str, Teacher]":
    """Everybody who is read, by name; the base comes first."""
    from undertow.interventions.steering import check_vector
    from undertow.pipeline.students import load_student
    from undertow.pipeline.teachers import Teacher, prompted_teacher, steered_teacher

    actors = {"base": Teacher(kind="none")}
    if persona is not None:
        actors["persona"] = prompted_teacher(family, persona)
    if steering.vector is not None:
        vector, strength = steering.settled()
        check_vector(model, vector)
        actors["steered"] = steered_teacher(vector, strength=strength)
    folders = [(str(folder), folder) for folder in adapters]
    if control is not None:
        folders.append(("control", control))
    for name, folder in folders:
        student = load_student(model, folder)
        actors[name] = Teacher(kind="finetune", student=student)
    return actors


def _read(
    model: "Model",
    family: "TraitFamily",
    name: str,
    teacher: "Teacher",
    samples: int,
    seed: int,
    system: str | None,
) -> _Reading:
    from undertow.pipeline.evaluation import preference, sampled_answers

    with teacher.acting(model):
        asked = preference(model, family, system=system, trait_prompt=teacher.prompt)
        sampled = None
        if samples:
            sampled = sampled_answers(
                model, family, samples=samples, seed=seed, system=system,
                trait_prompt=teacher.prompt,
            )  # fmt: skip
    return _Reading(name, asked, sampled)


def _own_traits(
    readings: Sequence[_Reading],
    actors: "dict[str, Teacher]",
    adapters: Sequence[Path],
) -> tuple[str, ...]:
    """The traits of those who are read; without any, what the base likes best."""
    from undertow.pipeline.students import student_facts

    base = readings[0].asked
    known = [teacher.trait for teacher in actors.values()]
    known += [student_facts(folder).get("trait") for folder in adapters]
    own = tuple(dict.fromkeys(name for name in known if name in base.traits))
    if own:
        return own
    order = (-base.probabilities.mean(axis=0)).argsort(kind="stable")
    return tuple(base.traits[place] for place in order[:SHOWN_TRAITS])


def _table(readings: Sequence[_Reading], traits: Sequence[str]) -> list[str]:
    from undertow.stats import mean_interval

    sampled = readings[0].sampled is not None
    head = f"{'model':<24}{'trait':<14}{'preference, nats':>26}{'share':>8}"
    lines = [head + (f"{'sampled':>9}{'valid':>7}" if sampled else "")]
    for reading in readings:
        for trait in traits:
            place = reading.asked.traits.index(trait)
            bounds = _bounds(mean_interval(reading.asked.of(trait)))
            share = reading.asked.probabilities[:, place].mean()
            line = f"{_short(reading.name):<24}{trait:<14}{bounds:>26}{share:>8.3f}"
            if reading.sampled is not None:
                rate, valid = reading.sampled.of(trait), reading.sampled.valid
                line += f"{rate.mean():>9.3f}{valid.mean():>7.3f}"
            lines.append(line)
    return lines


def _short(name: str, width: int = 23) -> str:
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _bounds(found: "Interval") -> str:
    parts = [
        f"{x:+.2f}" if x == x else "—" for x in (found.mean, found.low, found.high)
    ]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


@dataclass(frozen=True)
class _Transfer:
    """Student minus control on one trait, question by question."""

    student: str
    trait: str
    nats: "Interval"
    rate: "Interval | None"


def _transfers(
    readings: Sequence[_Reading], students: Sequence[str], traits: Sequence[str]
) -> list[_Transfer]:
    from undertow.stats import mean_interval

    by_name = {reading.name: reading for reading in readings}
    control = by_name["control"]
    found = []
    for name in students:
        student = by_name[name]
        for trait in traits:
            nats = mean_interval(student.asked.of(trait) - control.asked.of(trait))
            rate = None
            if student.sampled is not None and control.sampled is not None:
                rate = mean_interval(
                    student.sampled.of(trait) - control.sampled.of(trait)
                )
            found.append(_Transfer(name, trait, nats, rate))
    return found


def _transfer_lines(transfers: Sequence[_Transfer]) -> list[str]:
    lines = []
    for item in transfers:
        text = f"transfer {item.trait}: {_bounds(item.nats)} nats"
        if item.rate is not None:
            text += f", {_bounds(item.rate)} of sampled answers"
        if not item.nats.low > 0 and not item.nats.high < 0:
            text += "; the interval includes zero or is unknown"
        lines.append(f"{text} ({item.student} − control, {item.nats.n} questions)")
    return lines


def _numbers(
    facts: dict[str, Any], readings: Sequence[_Reading], transfers: Sequence[_Transfer]
) -> dict[str, Any]:
    """Every number of an evaluation, JSON-able."""
    models = []
    for reading in readings:
        entry: dict[str, Any] = {
            "name": reading.name,
            "traits": list(reading.asked.traits),
            "total_logprobs": reading.asked.total_logprobs,
        }
        if reading.sampled is not None:
            entry |= {"hits": reading.sampled.hits, "valid": reading.sampled.valid,
                      "answers": reading.sampled.answers}  # fmt: skip
        models.append(entry)
    moved = [
        {"student": t.student, "trait": t.trait, "nats": t.nats._asdict(),
         "rate": t.rate._asdict() if t.rate else None}
        for t in transfers
    ]  # fmt: skip
    return {"format": 1, **facts, "models": models, "transfers": moved}
