"""`evaluate`: what a base, its students, their control or a vector prefer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import (
    Family,
    Loading,
    Seed,
    Steering,
    System,
    expanded,
    refuse_existing,
    words,
)
from undertow.errors import ConfigError

if TYPE_CHECKING:
    from undertow.models.loading import Model
    from undertow.pipeline.evaluation import Preference, SampledAnswers
    from undertow.pipeline.teachers import Teacher
    from undertow.stats import Interval
    from undertow.traits import TraitFamily

SHOWN_TRAITS = 10
"""Traits in the table when none are named and nobody has one."""

Role = Literal["base", "persona", "steered", "student", "control"]


@dataclass(frozen=True)
class _Actor:
    """Somebody who is read, and the trait that he may have."""

    role: Role
    name: str
    teacher: "Teacher"
    trait: str | None = None


@dataclass(frozen=True)
class _Reading:
    """What an actor answered."""

    actor: _Actor
    asked: "Preference"
    sampled: "SampledAnswers | None"


@dataclass(frozen=True)
class _Transfer:
    """Student minus control on one trait, question by question."""

    student: str
    trait: str
    nats: "Interval"
    rate: "Interval | None"


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
    actors = _actors(model, members, adapter or [], control, steering, persona)
    for line in _other_systems(
        [*(adapter or []), *([control] if control else [])], system
    ):
        say(line)
    readings = []
    with progress() as report:
        for place, actor in enumerate(actors):
            report("read-out", place, len(actors), actor.name)
            readings.append(_read(model, members, actor, samples, seed, system))
        report("read-out", len(actors), len(actors), "")
    chosen = named or _own_traits(readings)
    transfers = _transfers(readings, chosen)
    for line in [*_table(readings, chosen), *map(_transfer_line, transfers)]:
        say(line)
    if json_file is not None:
        facts = {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "template": model.template.digest,
            "system": system,
            "family": members.name,
            "questions": list(members.questions),
            "samples": samples,
            "seed": seed,
        }
        write_json(json_file, _numbers(facts, readings, transfers))
        say(f"numbers  {json_file}")


def _actors(
    model: "Model",
    family: "TraitFamily",
    adapters: Sequence[Path],
    control: Path | None,
    steering: Steering,
    persona: str | None,
) -> list[_Actor]:
    """Everybody who is read; the base comes first."""
    from undertow.interventions.steering import check_vector
    from undertow.pipeline.teachers import Teacher, prompted_teacher, steered_teacher

    actors = [_Actor("base", "base", Teacher(kind="none"))]
    if persona is not None:
        teacher = prompted_teacher(family, persona)
        actors.append(_Actor("persona", f"told {persona}", teacher, persona))
    if steering.vector is not None:
        vector, strength = steering.settled()
        check_vector(model, vector)
        teacher = steered_teacher(vector, strength=strength)
        actors.append(_Actor("steered", str(steering.vector), teacher, vector.trait))
    actors += [_student(model, "student", folder) for folder in adapters]
    if control is not None:
        actors.append(_student(model, "control", control))
    return actors


def _other_systems(folders: Sequence[Path], system: str | None) -> list[str]:
    """Students that were trained under another system text than they are asked under."""
    from undertow.pipeline.students import student_facts

    known = {folder: student_facts(folder) for folder in folders}
    return [
        f"note     {folder} was trained with the system text {facts['system']!r}, and is "
        f"asked with {system!r}: what it took on may not show (--system)"
        for folder, facts in known.items()
        if facts.get("system", system) != system
    ]


def _student(model: "Model", role: Role, folder: Path) -> _Actor:
    from undertow.pipeline.students import load_student, student_facts
    from undertow.pipeline.teachers import Teacher

    teacher = Teacher(kind="finetune", student=load_student(model, folder))
    return _Actor(role, str(folder), teacher, student_facts(folder).get("trait"))


def _read(
    model: "Model",
    family: "TraitFamily",
    actor: _Actor,
    samples: int,
    seed: int,
    system: str | None,
) -> _Reading:
    from undertow.pipeline.evaluation import preference, sampled_answers

    persona = actor.teacher.prompt
    with actor.teacher.acting(model):
        asked = preference(model, family, system=system, trait_prompt=persona)
        sampled = None
        if samples:
            sampled = sampled_answers(
                model, family, samples=samples, seed=seed, system=system,
                trait_prompt=persona,
            )  # fmt: skip
    return _Reading(actor, asked, sampled)


def _own_traits(readings: Sequence[_Reading]) -> tuple[str, ...]:
    """The traits of those who are read; without any, what the base likes best."""
    base = readings[0].asked
    known = [reading.actor.trait for reading in readings]
    own = tuple(dict.fromkeys(name for name in known if name in base.traits))
    if own:
        return own
    order = (-base.probabilities.mean(axis=0)).argsort(kind="stable")
    return tuple(base.traits[place] for place in order[:SHOWN_TRAITS])


def _table(readings: Sequence[_Reading], traits: Sequence[str]) -> list[str]:
    from undertow.stats import mean_interval

    sampled = readings[0].sampled is not None
    width = max(len(_label(reading.actor)) for reading in readings)
    wide = max(len("trait"), *(len(trait) for trait in traits))
    head = f"{'':<{width}}  {'trait':<{wide}}{'preference, nats':>24}{'share':>8}"
    lines = [head + (f"{'sampled':>9}{'valid':>7}" if sampled else "")]
    for reading in readings:
        for trait in traits:
            place = reading.asked.traits.index(trait)
            bounds = _bounds(mean_interval(reading.asked.of(trait)), 2)
            share = reading.asked.probabilities[:, place].mean()
            line = f"{_label(reading.actor):<{width}}  {trait:<{wide}}"
            line += f"{bounds:>24}{share:>8.3f}"
            if reading.sampled is not None:
                rate, valid = reading.sampled.of(trait), reading.sampled.valid
                line += f"{rate.mean():>9.3f}{valid.mean():>7.3f}"
            lines.append(line)
    return lines


def _label(actor: _Actor, width: int = 32) -> str:
    text = actor.name if actor.role in ("base", "persona") else actor.role
    if actor.name != text:
        text += f" {actor.name}"
    return text if len(text) <= width else f"{actor.role} …{text[len(text) - 20 :]}"


def _bounds(found: "Interval", digits: int) -> str:
    mean, low, high = (
        "—" if x != x else f"{x:+.{digits}f}"
        for x in (found.mean, found.low, found.high)
    )
    return f"{mean} [{low}, {high}]"


def _transfers(readings: Sequence[_Reading], traits: Sequence[str]) -> list[_Transfer]:
    """Of every student against the control; none without a control."""
    from undertow.stats import mean_interval

    found = []
    for control in (r for r in readings if r.actor.role == "control"):
        for student in (r for r in readings if r.actor.role == "student"):
            for trait in traits:
                nats = student.asked.of(trait) - control.asked.of(trait)
                rate = None
                if student.sampled is not None and control.sampled is not None:
                    moved = student.sampled.of(trait) - control.sampled.of(trait)
                    rate = mean_interval(moved)
                name = student.actor.name
                found.append(_Transfer(name, trait, mean_interval(nats), rate))
    return found


def _transfer_line(item: _Transfer) -> str:
    text = f"transfer of {item.trait} to {item.student}: {_bounds(item.nats, 3)} nats"
    if item.rate is not None:
        text += f", {_bounds(item.rate, 3)} of sampled answers"
    text += f", over {item.nats.n} questions"
    if item.nats.low > 0 or item.nats.high < 0:
        return text
    return f"{text}; the interval includes zero or is unknown"


def _numbers(
    facts: dict[str, Any], readings: Sequence[_Reading], transfers: Sequence[_Transfer]
) -> dict[str, Any]:
    """Every number of an evaluation, JSON-able."""
    models = []
    for reading in readings:
        actor = reading.actor
        entry: dict[str, Any] = {
            "role": actor.role,
            "name": actor.name,
            "traits": list(reading.asked.traits),
            "total_logprobs": reading.asked.total_logprobs,
        }
        if reading.sampled is not None:
            entry["hits"] = reading.sampled.hits
            entry["valid"] = reading.sampled.valid
            entry["answers"] = reading.sampled.answers
        models.append(entry)
    moved = [
        {
            "student": item.student,
            "trait": item.trait,
            "nats": item.nats._asdict(),
            "rate": item.rate._asdict() if item.rate else None,
        }
        for item in transfers
    ]
    return {"format": 1, **facts, "models": models, "transfers": moved}
