"""Names the kind of intervention behind a student, by students whose kind is known.

Known students are those of a run: their traces on one base are learnt from, and how
often the kind is named right is measured on traits that were left out. What the traces
are is `analysis.fingerprint`'s business.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow.analysis.fingerprint import Traces, traces, trait_cosines
from undertow.analysis.shifts import mean_states, shift_profile
from undertow.config import load_settings
from undertow.errors import DatasetError, RunError, VectorMismatchError
from undertow.experiment.recipe import Recipe
from undertow.interventions.extraction import family_vectors
from undertow.interventions.prompting import trait_prompt
from undertow.models.chat import Rendered, render_row
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.students import FACTS, load_student
from undertow.pipeline.teachers import Teacher
from undertow.pipeline.training import Student
from undertow.runs import RECIPE
from undertow.stats import Interval, binomial_interval
from undertow.stats.classification import (
    Classifier,
    held_out_names,
    learnt_classifier,
)
from undertow.storage import read_json, write_json
from undertow.traits import TraitFamily

Tell = Callable[[str, int, int], None]
_FORMAT = 1
_FACTS = {
    "base": str, "fingerprint": str, "count": int, "seed": int, "family": str,
    "system": str | None,
}  # fmt: skip
_FAR = 1e9
"""More than any trace can be: cosines, standard deviations, logs of ratios."""


@dataclass(frozen=True)
class Yardstick:
    """What students of one base are held against.

    Attributes:
        rows: The base's own rows, on which shifts are measured.
        vectors: [trait, layer, hidden], "tell_me" of each trait of the family.
        personas: [trait, layer, hidden], shift of the base under each persona.
        names: Of the traits.
    """

    rows: Sequence[Rendered]
    vectors: Tensor
    personas: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class KnownStudent:
    """A student whose teacher is known."""

    kind: str
    teacher: str
    trait: str
    seed: int
    traces: Traces


@dataclass(frozen=True)
class Fingerprint:
    """What a student's shift says of its teacher.

    Attributes:
        kind: "steer", "prompt" or "finetune": the likeliest of those known.
        probabilities: Of each kind, as equally likely beforehand.
        traces: The numbers it rests on.
        traits: The family's traits by mean cosine of their vector with the shift over
            the last third of the blocks, largest first.
        accuracy: Share of known students whose kind was named right by the students of
            other traits, with its interval; n is their number, without those whose kind
            no other trait's student has.
    """

    kind: str
    probabilities: dict[str, float]
    traces: Traces
    traits: tuple[tuple[str, float], ...]
    accuracy: Interval


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


def make_yardstick(
    model: Model,
    family: TraitFamily,
    *,
    count: int = 12,
    seed: int = 77,
    system: str | None = None,
    tell: Tell = _silent,
) -> Yardstick:
    """Lets the base write number rows and reads it under every persona of the family.

    Raises:
        VectorMismatchError: The family has fewer than three traits.

    Cost: a pass over the rows for each trait.
    """
    if len(family.names) < 3:
        raise VectorMismatchError(
            f"family {family.name!r} has {len(family.names)} traits; a student's is told "
            "from the others' with three or more"
        )
    sampler = SamplerSettings(allowed="list", max_new_tokens=60)
    rows = generate_rows(
        model, Teacher(kind="none"), number_prompts(count, seed=seed), seed=seed,
        sampler=sampler, system=system,
    )  # fmt: skip
    plain = [render_row(model, row, system=system) for row in rows]
    base, personas = mean_states(model, plain), []
    for place, name in enumerate(family.names):
        tell("personas", place, len(family.names))
        told = [
            render_row(
                model, row, system=system, trait_prompt=trait_prompt(family, name)
            )
            for row in rows
        ]
        personas.append(mean_states(model, told) - base)
    tell("personas", len(family.names), len(family.names))
    vectors = family_vectors(model, family, system=system)
    return Yardstick(
        plain,
        torch.stack([vectors[name].directions for name in family.names]),
        torch.stack(personas),
        family.names,
    )


def student_traces(
    model: Model, student: Student, yardstick: Yardstick
) -> tuple[Traces, tuple[tuple[str, float], ...]]:
    """A student's traces, and the traits by how far it moved along their vectors.

    Raises:
        DatasetError: The student has not moved from its base.
    """
    profile = shift_profile(
        model, yardstick.rows, acting=partial(student.applied, model)
    )
    found = traces(profile, vectors=yardstick.vectors, personas=yardstick.personas)
    if not all(math.isfinite(value) for value in found.values()):
        raise DatasetError(
            f"the student does not move the base's stream (traces {found.values()}): it "
            "was not trained, or it is no student of this base"
        )
    along = trait_cosines(profile, yardstick.vectors)
    mean = along[:, 2 * along.shape[1] // 3 :].mean(1)
    order = mean.argsort(descending=True).tolist()
    return found, tuple((yardstick.names[i], float(mean[i])) for i in order)


# ── students whose kind is known ─────────────────────────────────────────────────


def run_recipe(directory: Path) -> Recipe:
    """The recipe of a run: which family and system setting its students belong to.

    Raises:
        ConfigError: The folder holds none.
    """
    return load_settings(Recipe, directory / RECIPE)


def run_students(
    model: Model, directory: Path, yardstick: Yardstick, *, tell: Tell = _silent
) -> list[KnownStudent]:
    """Traces of every student of a run that learnt from a teacher on the clean base.

    Controls of another trait are among them; students of the untouched base are not.

    Raises:
        ConfigError: The folder holds no recipe.
        VectorMismatchError: The run's base is another model.
        DatasetError: No such student is there.
    """
    found = list(_students_of(directory))
    if not found:
        raise DatasetError(
            f"{directory}: no student of a teacher on the clean base (noise-0); name the "
            "directory of a run that trained some"
        )
    known = []
    for place, (kind, teacher, trait, seed, folder) in enumerate(found):
        tell("students", place, len(found))
        try:
            own, _ = student_traces(model, load_student(model, folder), yardstick)
        except DatasetError as error:
            raise DatasetError(f"{folder}: {error}") from error
        known.append(KnownStudent(kind, teacher, trait, seed, own))
    tell("students", len(found), len(found))
    return known


def _students_of(directory: Path) -> Iterator[tuple[str, str, str, int, Path]]:
    """(kind, teacher's label, trait, seed, folder) of each student that is finished."""
    recipe = run_recipe(directory)
    for seed in recipe.seeds:
        place = directory / "bases" / "noise-0" / f"seed-{seed}"
        for settings in recipe.teachers:
            for prefix in ("", "decoy-"):
                start = f"{prefix}{settings.label}-"
                for cell in sorted(place.glob(f"{start}*")):
                    folder = cell / "student" / "training"
                    trait = cell.name.removeprefix(start)
                    if (folder / FACTS).is_file():
                        yield settings.kind, settings.label, trait, seed, folder


def write_known(
    model: Model,
    known: Sequence[KnownStudent],
    path: Path,
    *,
    count: int,
    seed: int,
    family: str,
    system: str | None,
    run: str,
) -> None:
    """Keeps known students, the name of their run, and how the yardstick was made."""
    facts = {
        "format": _FORMAT, "base": model.name, "fingerprint": model.fingerprint,
        "count": count, "seed": seed, "family": family, "system": system, "run": run,
        "students": [asdict(each) for each in known],
    }  # fmt: skip
    write_json(path, facts)


def read_known(path: Path) -> tuple[list[KnownStudent], dict[str, Any]]:
    """Reads what `write_known` wrote: the students, and the facts beside them.

    Raises:
        DatasetError: The file is not there, or is none of these.
    """
    facts = read_json(path)
    try:
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']!r}")
        if missing := set(_FACTS) - set(facts):
            raise ValueError(f"without {sorted(missing)}")
        for name, kind in _FACTS.items():
            if not isinstance(facts[name], kind):
                raise TypeError(f"{name}: {facts[name]!r}")
        students = [_known_student(each) for each in facts.pop("students")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path}: no known students ({error!r}); expected a file of "
            "`undertow analyze students`"
        ) from error
    return students, facts


def _known_student(kept: Mapping[str, Any]) -> KnownStudent:
    """One of them.

    Raises:
        TypeError: Something of another kind.
        ValueError: Traces that are none.
    """
    found = KnownStudent(**{**kept, "traces": Traces(**kept["traces"])})
    if not all(isinstance(t, str) for t in (found.kind, found.teacher, found.trait)):
        raise TypeError(f"names {found.kind!r}, {found.teacher!r}, {found.trait!r}")
    if not all(-_FAR < value < _FAR for value in found.traces.values()):
        raise ValueError(f"traces {found.traces.values()}")
    return found


def held_out(known: Sequence[KnownStudent]) -> list[str | None]:
    """Each known student's kind as the students of other traits name it."""
    return held_out_names(
        [each.traces.values() for each in known],
        [each.kind for each in known],
        [each.trait for each in known],
    )


def accuracy(known: Sequence[KnownStudent]) -> Interval:
    """Share of known students named right when their trait is left out.

    Those whose kind no other trait's student has are not counted; NaN if none is left.
    """
    pairs = zip(held_out(known), known, strict=True)
    right = [name == each.kind for name, each in pairs if name is not None]
    return binomial_interval(sum(right), len(right))


def named_right(
    students: Sequence[KnownStudent], known: Sequence[KnownStudent]
) -> Interval:
    """Share of a run's students that known ones of other runs name right.

    Raises:
        RunError: The known students are of one kind, or too few.
    """
    learnt = _learnt(known)
    right = [learnt.named(each.traces.values()) == each.kind for each in students]
    return binomial_interval(sum(right), len(right))


def _learnt(known: Sequence[KnownStudent]) -> Classifier:
    try:
        return learnt_classifier(
            [each.traces.values() for each in known], [each.kind for each in known]
        )
    except ValueError as error:
        raise RunError(
            f"known students: {error}; use a run with several kinds of teacher"
        ) from error


def fingerprint_student(
    model: Model,
    student: Student,
    yardstick: Yardstick,
    known: Sequence[KnownStudent],
) -> Fingerprint:
    """Names the kind of intervention behind a student.

    Args:
        model: The base of all.
        student: The one in question.
        yardstick: As the known students' traces were taken.
        known: Of two kinds or more.

    Raises:
        RunError: The known students are of one kind, or too few.
    """
    own, traits = student_traces(model, student, yardstick)
    shares = _learnt(known).probabilities(own.values())
    return Fingerprint(
        kind=max(shares, key=lambda kind: shares[kind]),
        probabilities=shares,
        traces=own,
        traits=traits,
        accuracy=accuracy(known),
    )
