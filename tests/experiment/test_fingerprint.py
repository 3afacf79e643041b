"""Known students of a run, what is learnt from them, and a student in question."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from undertow.analysis.fingerprint import Traces
from undertow.errors import ConfigError, DatasetError, RunError, VectorMismatchError
from undertow.experiment import Recipe, run_experiment
from undertow.experiment.fingerprint import (
    KnownStudent,
    accuracy,
    fingerprint_student,
    held_out,
    make_yardstick,
    read_known,
    run_students,
    student_traces,
    write_known,
)
from undertow.models.loading import Model, load_model
from undertow.pipeline.students import load_student
from undertow.pipeline.training import Student
from undertow.traits import load_family

Make = Callable[..., Recipe]
ANIMALS = load_family("animals")
FAMILY = replace(ANIMALS, traits=ANIMALS.traits[:5])


def known(kind: str, trait: str, persona: float, seed: int = 0) -> KnownStudent:
    return KnownStudent(kind, kind, trait, seed, Traces(persona, 2.0, 1.0))


KNOWN = [
    known(kind, trait, level + 0.01 * place)
    for kind, level in (("steer", 0.1), ("prompt", 0.6))
    for place, trait in enumerate(("owl", "cat", "dog"))
]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return load_model(str(tiny_llama), dtype="float32")


@pytest.fixture
def run(recipe: Make, tmp_path: Path) -> Path:
    """A run with two kinds of teacher, soft students and their decoys."""
    asked = recipe(
        seeds=[3], decoy="cat",
        student={"kind": "soft", "batch_size": 2, "rank": 2, "learning_rate": 0.01},
        evaluation={"questions": 2, "shift_rows": 0, "channel_rows": 0},
    )  # fmt: skip
    run_experiment(asked, tmp_path / "run")
    return tmp_path / "run"


def test_students_of_a_run_are_found_with_their_kinds(run: Path, model: Model) -> None:
    yardstick = make_yardstick(model, FAMILY, count=3)
    assert yardstick.vectors.shape == yardstick.personas.shape == (5, 4, 32)
    found = run_students(model, run, yardstick)
    assert [(s.kind, s.teacher, s.trait, s.seed) for s in found] == [
        ("steer", "steer", "owl", 3), ("steer", "steer", "cat", 3),
        ("prompt", "prompt", "owl", 3), ("prompt", "prompt", "cat", 3),
    ]  # fmt: skip
    folder = run / "bases/noise-0/seed-3/decoy-prompt-cat/student/training"
    own, traits = student_traces(model, load_student(model, folder), yardstick)
    assert found[3].traces == own
    assert sorted(name for name, _ in traits) == sorted(FAMILY.names)
    values = [value for _, value in traits]
    assert values == sorted(values, reverse=True)


def test_the_yardstick_s_personas_are_shifts_of_the_base(model: Model) -> None:
    """Personas change what the base computes; the trait's own name tells them apart."""
    yardstick = make_yardstick(model, FAMILY, count=3)
    again = make_yardstick(model, FAMILY, count=3)
    assert torch.equal(yardstick.personas, again.personas)
    assert float(yardstick.personas.norm(dim=-1).min()) > 0
    assert not torch.equal(yardstick.personas[0], yardstick.personas[1])
    with pytest.raises(VectorMismatchError, match="has 2 traits"):
        make_yardstick(model, replace(FAMILY, traits=FAMILY.traits[:2]), count=3)


def test_a_student_is_named_by_those_known(run: Path, model: Model) -> None:
    yardstick = make_yardstick(model, FAMILY, count=3)
    folder = run / "bases/noise-0/seed-3/prompt-owl/student/training"
    student = load_student(model, folder)
    own, _ = student_traces(model, student, yardstick)
    near = [
        replace(each, traces=replace(own, persona=own.persona + shift))
        for each, shift in zip(KNOWN, (3, 3.1, 3.2, 0.1, 0.2, 0.1), strict=True)
    ]
    found = fingerprint_student(model, student, yardstick, near)
    assert found.kind == "prompt"
    assert found.probabilities["prompt"] > 0.99
    assert found.traces == own
    assert (found.accuracy.mean, found.accuracy.n) == (1.0, 6)
    with pytest.raises(RunError, match="use a run with several kinds of teacher"):
        fingerprint_student(model, student, yardstick, near[:3])


def test_held_out_names_do_not_see_the_own_trait() -> None:
    assert held_out(KNOWN) == [s.kind for s in KNOWN]
    # An owl that looks like a persona's is wrong, and only for itself.
    alone = [known(kind, "owl", 0.1) for kind in ("steer", "prompt", "prompt")]
    assert held_out(alone) == [None] * 3
    assert accuracy(alone).n == 0, "who cannot be named is not named wrong"
    odd = [*KNOWN[1:], known("steer", "owl", 0.6)]
    assert held_out(odd)[-1] == "prompt"
    assert accuracy(odd).mean == pytest.approx(5 / 6)
    assert 0.3 < accuracy(odd).low < 5 / 6 < accuracy(odd).high < 1


def test_known_students_are_kept_whole(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    write_known(
        model, KNOWN, path, count=3, seed=7, family="animals", system=None, run="r"
    )
    students, facts = read_known(path)
    assert students == KNOWN
    assert (facts["count"], facts["seed"]) == (3, 7)
    assert facts["fingerprint"] == model.fingerprint
    whole = path.read_text()
    for text in (
        "{}",
        "[]",
        *(
            re.sub(r'"persona": [-\d.]+', f'"persona": {odd}', whole, count=1)
            for odd in ("1e999", "1e300", "null", "[]", '"1"', "9" * 400)
        ),
        whole.replace('"kind": "steer"', '"kind": []', 1),
        whole.replace('"count": 3', '"count": "3"'),
        whole.replace('"family": "animals"', '"family": {}'),
        '{"format": 2, "students": []}',
        '{"format": 1, "students": [1]}',
        '{"format": 1, "base": "b", "fingerprint": "f", "count": 3, "students": []}',
    ):
        path.write_text(text)
        with pytest.raises(DatasetError, match="no known students"):
            read_known(path)


def test_a_folder_that_is_no_run_is_refused(
    model: Model, recipe: Make, tmp_path: Path
) -> None:
    yardstick = make_yardstick(model, FAMILY, count=2)
    with pytest.raises(ConfigError):
        run_students(model, tmp_path, yardstick)
    (tmp_path / "recipe.yaml").write_text(
        "title: t\nquestion: q\nmodel: {name: m}\ntraits: [owl]\nteachers: [{kind: prompt}]"
    )
    with pytest.raises(DatasetError, match="no student of a teacher on the clean base"):
        run_students(model, tmp_path, yardstick)


def test_a_student_that_has_not_moved_has_no_traces(model: Model) -> None:
    weights = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    yardstick = make_yardstick(model, FAMILY, count=2)
    with pytest.raises(DatasetError, match="does not move the base's stream"):
        student_traces(model, Student(None, weights, (), ()), yardstick)
