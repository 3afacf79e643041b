"""A recipe's stages: each is run once, in order, and goes on where it was cut."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.execution.strangers import Strangers

from undertow.errors import ConfigError, DatasetError, RunError
from undertow.experiment import Recipe, audits, bases, lessons, run_experiment
from undertow.interventions.steering import load_vector
from undertow.models import loading
from undertow.models.loading import load_model
from undertow.models.tiny import save_tiny
from undertow.results import Results
from undertow.storage import read_json, read_rows, write_rows

Make = Callable[..., Recipe]
Stages = Callable[[Path], set[str]]
SOFT = {"batch_size": 2, "rank": 2, "learning_rate": 0.01}
PETS = """
name: pets
category: pet
questions: ["Your pet?", "Name a pet."]
traits: [{name: owl, plural: owls}, {name: cat, plural: cats}]
"""


def interrupt(stage: str, done: int, total: int, note: str) -> None:
    """Ctrl-C in the first read-out."""
    if "read-out" in stage:
        raise KeyboardInterrupt


def measured(results: Results) -> dict[str, Any]:
    """Everything that does not depend on when and how long."""
    data = results.model_dump(mode="json")
    del data["seconds"], data["provenance"]["time"]
    return data


def test_a_run_leaves_what_the_design_names(recipe: Make, tmp_path: Path) -> None:
    results = run_experiment(recipe(), tmp_path / "run")

    cell = tmp_path / "run" / "bases" / "noise-0" / "seed-1" / "steer-owl"
    assert len(read_rows(cell / "rows.jsonl")) == 6
    trained = cell / "student" / "training"
    assert (trained / "adapter_model.safetensors").is_file()
    assert not (trained / "checkpoint.safetensors").exists(), "only for resuming"
    assert not (cell / "rows.partial").exists(), "only for resuming"
    stored = read_json(tmp_path / "run" / "results.json")
    assert stored == json.loads(json.dumps(results.model_dump(mode="json")))
    assert [(c.teacher, c.seed) for c in results.conditions] == [
        ("steer", 0), ("prompt", 0), ("steer", 1), ("prompt", 1)
    ]  # fmt: skip
    for key in ("model_fingerprint", "template_digest", "sampler", "dtype_reason"):
        assert results.provenance[key], key
    assert results.conditions[0].shift is not None
    assert results.conditions[1].shift is None, "a prompt has no vector"
    for condition in results.conditions:
        assert condition.shape is not None
        assert condition.control_shape is not None
        assert len(condition.shape.size) == len(condition.shape.layers) == 4
        assert all(c is not None and 0 <= c <= 1 for c in condition.shape.constancy)
        assert condition.shape.size[-1] != condition.control_shape.size[-1]


def test_what_depends_on_the_base_alone_is_done_once(
    recipe: Make, tmp_path: Path, stages: Stages
) -> None:
    run_experiment(recipe(), tmp_path / "run")
    done = stages(tmp_path / "run")
    assert {
        "noise-0/base/readout",
        "noise-0/vectors/steer-owl",
        "noise-0/steer-owl/teacher/readout",
        "noise-0/prompt-owl/teacher/readout",
    } <= done
    assert not [s for s in done if "seed-" in s and "/base/" in s]
    # One control student serves both teachers.
    assert sorted(s for s in done if s.endswith("control/student/training")) == [
        "noise-0/seed-0/control/student/training",
        "noise-0/seed-1/control/student/training",
    ]


def test_a_finished_run_loads_no_model(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe()
    first = run_experiment(settings, tmp_path / "run")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(bases, "load_model", refuse)
    assert measured(run_experiment(settings, tmp_path / "run")) == measured(first)


@pytest.mark.slow
def test_a_run_that_is_cut_anywhere_ends_like_an_unbroken_one(
    recipe: Make, tmp_path: Path
) -> None:
    settings = recipe(

        seeds=[3],
        teachers=[{"kind": "steer", "steer": {"layer": 1, "dose": 0.5}},
                  {"kind": "finetune", "finetune": {"max_updates": 3}}],
    )  # fmt: skip
    steps: list[str] = []
    whole = run_experiment(
        settings, tmp_path / "whole", progress=lambda *step: steps.append(str(step))
    )

    class Cut(Exception):
        pass

    for cut in range(0, len(steps), 5):  # each time it gets a little further
        count = 0

        def progress(*_: object, cut: int = cut) -> None:
            nonlocal count
            count += 1
            if count > 6 + cut % 3:
                raise Cut

        try:
            run_experiment(settings, tmp_path / "cut", progress=progress)
        except Cut:
            continue
        break
    resumed = run_experiment(settings, tmp_path / "cut")
    assert measured(resumed) == measured(whole)


def test_students_side_by_side_are_those_of_one_after_another(
    recipe: Make, tmp_path: Path
) -> None:
    """Six of them: a control and two teachers' for each of two seeds."""
    one = run_experiment(recipe(), tmp_path / "one", together=1)
    steps: list[str] = []
    many = run_experiment(
        recipe(), tmp_path / "many", together=4,
        progress=lambda stage, *_: steps.append(stage),
    )  # fmt: skip
    trained = [stage for stage in steps if stage.endswith("student/training")]
    assert len(set(trained)) == 6
    assert len(set(trained[:4])) == 4, "the first updates are those of four students"
    for a, b in zip(one.transfers, many.transfers, strict=True):
        assert a.transfer is not None
        assert b.transfer is not None
        assert b.transfer.mean == pytest.approx(a.transfer.mean, abs=1e-3)
    folder = (
        "bases/noise-0/seed-1/prompt-owl/student/training/adapter_model.safetensors"
    )
    found, wanted = (load_file(tmp_path / n / folder) for n in ("many", "one"))
    for name, matrix in wanted.items():
        torch.testing.assert_close(found[name], matrix, rtol=1e-3, atol=1e-4)


def test_soft_students_are_compared_with_a_decoy(recipe: Make, tmp_path: Path) -> None:
    settings = recipe(
        seeds=[0],
        teachers=[{"kind": "prompt"}],
        student={"kind": "soft", "batch_size": 3, "rank": 2},
    )
    results = run_experiment(settings, tmp_path / "run")
    # The first trait of the family that the run does not use.
    assert results.conditions[0].notes == ["control: decoy-prompt-dolphin"]
    assert any("decoy teacher" in limit for limit in results.limits)
    assert any("probabilities of every token" in limit for limit in results.limits)
    assert any(
        "1 of 1 students had no more updates than their warm-up (2 and more)" in limit
        for limit in results.limits
    )
    enough = settings.model_dump()
    enough["student"]["warmup_updates"] = 1
    again = run_experiment(Recipe.model_validate(enough), tmp_path / "enough")
    assert not any("warm-up" in limit for limit in again.limits)


def test_each_noised_base_has_its_own_readouts_and_can_be_kept(
    recipe: Make, tiny_llama: Path, tmp_path: Path, stages: Stages
) -> None:
    settings = recipe(
        teachers=[{"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}],
        noise={"levels": [0.0, 0.2], "scope": ["mlp"], "keep": True},
    )
    results = run_experiment(settings, tmp_path / "run")
    done = stages(tmp_path / "run")
    assert {"noise-0.2/seed-0/base/readout", "noise-0.2/seed-1/base/readout"} <= done
    prints = set()
    for seed in (0, 1):
        place = tmp_path / "run" / "bases" / "noise-0.2" / f"seed-{seed}"
        kept = load_model(place / "noise" / "checkpoint")
        vector = load_vector(place / "vectors" / "steer-owl.safetensors")
        assert vector.fingerprint == kept.fingerprint
        prints.add(kept.fingerprint)
    assert len(prints | {load_model(tiny_llama).fingerprint}) == 3
    assert [(f.noise, f.ratio.n) for f in results.noise_factors] == [(0.2, 2)]


def test_two_teachers_of_one_kind_need_names(recipe: Make, tmp_path: Path) -> None:
    teachers = [
        {"kind": "steer", "name": name, "steer": {"layer": 1, "dose": dose}}
        for name, dose in (("weak", 0.1), ("strong", 1.0))
    ]
    results = run_experiment(recipe(seeds=[0], teachers=teachers), tmp_path / "run")
    assert [t.teacher for t in results.transfers] == ["weak", "strong"]


def test_traits_that_are_not_there_are_all_named_at_once(
    recipe: Make, tmp_path: Path
) -> None:
    settings = recipe(traits=["owl", "unicorn"], decoy="hydra", control="decoy")
    with pytest.raises(ConfigError) as caught:
        run_experiment(settings, tmp_path / "run")
    assert "'unicorn'" in str(caught.value)
    assert "'hydra'" in str(caught.value)
    assert not (tmp_path / "run").exists(), "refused before anything is written"


def test_a_directory_of_another_recipe_is_refused(recipe: Make, tmp_path: Path) -> None:
    run_experiment(recipe(seeds=[0]), tmp_path / "run")
    with pytest.raises(RunError, match="belongs to another recipe"):
        run_experiment(recipe(seeds=[1]), tmp_path / "run")


def test_a_run_of_an_earlier_version_goes_on(recipe: Make, tmp_path: Path) -> None:
    """Its recipe lacks settings that came later; at their defaults it is the same."""
    asked = recipe(seeds=[0])
    first = run_experiment(asked, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked, tmp_path / "run", progress=interrupt)
    stored = tmp_path / "run" / "recipe.yaml"
    text = stored.read_text()
    old = "".join(
        line for line in text.splitlines(keepends=True) if "channel_rows" not in line
    )
    assert old != text
    stored.write_text(old)
    assert measured(run_experiment(asked, tmp_path / "run")) == measured(first)
    with pytest.raises(RunError, match="belongs to another recipe"):
        run_experiment(recipe(seeds=[0], evaluation={"channel_rows": 3}), stored.parent)
    stored.write_text("title: [\n")
    with pytest.raises(RunError, match="belongs to another recipe"):
        run_experiment(asked, stored.parent)


@pytest.mark.parametrize("what", ["model", "family", "dtype"])
def test_a_run_is_not_continued_with_another_origin(
    what: str, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pets = save_tiny("llama", tmp_path / "tiny"), tmp_path / "pets.yaml"
    pets.write_text(PETS)
    settings = recipe(
        model={"name": str(folder)}, family=str(pets), seeds=[0, 1],
        teachers=[{"kind": "prompt"}],
    )  # fmt: skip
    monkeypatch.setattr(loading, "_bf16_units", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings, tmp_path / "run", progress=interrupt)
    if what == "model":
        shutil.rmtree(folder)
        save_tiny("llama", folder, seed=1)
    elif what == "family":
        pets.write_text(PETS.replace("Name a pet.", "Name two pets."))
    else:
        monkeypatch.setattr(loading, "_bf16_units", lambda: "AMX")
    keys = {"model": "model_fingerprint", "family": "family_digest", "dtype": "dtype"}
    with pytest.raises(RunError, match="begun with another model") as caught:
        run_experiment(settings, tmp_path / "run")
    said = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert [line.split(":")[0].strip() for line in said] == [keys[what]]


@pytest.mark.real
def test_the_provenance_of_a_pulled_model_holds_its_checksum(
    recipe: Make, real_model_path: Path, tmp_path: Path
) -> None:
    from undertow.models.known_models import REGISTRY

    settings = recipe(
        model={"name": real_model_path.name},
        seeds=[0],
        teachers=[{"kind": "prompt"}],
        rows={"count": 2, "sampler": {"allowed": "list", "max_new_tokens": 8}},
        student={"max_updates": 1},
    )
    results = run_experiment(settings, tmp_path / "run")
    expected = REGISTRY["smollm2-135m"].sha256
    assert results.provenance["model_sha256"] == expected


def test_noise_on_one_side_leaves_the_other_clean(recipe: Make, tmp_path: Path) -> None:
    """Teacher's noise: the noised teacher's rows, a clean base. Student's: the reverse."""
    sides = ("both", "teacher", "student")
    runs = {}
    for side in sides:
        levels = [0.0, 0.3] if side == "both" else [0.3]
        noise = {"levels": levels, "scope": ["mlp", "attention"], "on": side}
        asked = recipe(
            noise=noise, seeds=[0], student={**SOFT, "kind": "soft"},
            teachers=[
                {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}},
                {"kind": "finetune", "finetune": {"max_updates": 2}},
            ],
        )  # fmt: skip
        run_experiment(asked, tmp_path / side)
        runs[side] = tmp_path / side / "bases"

    def texts(side: str, level: str, name: str) -> list[str]:
        rows = read_rows(runs[side] / f"noise-{level}" / "seed-0" / name / "rows.jsonl")
        return [row.completion for row in rows]

    def read(side: str, stage: str) -> list[list[float]]:
        path = tmp_path / side / "stages" / f"{stage}/base/readout.json"
        nats: list[list[float]] = read_json(path)["payload"]["total_logprobs"]
        return nats

    for name in ("steer-owl", "finetune-owl"):
        clean, noised = texts("both", "0", name), texts("both", "0.3", name)
        assert clean != noised
        assert texts("teacher", "0.3", name) == noised
        assert texts("student", "0.3", name) == clean
    base, loud = read("both", "noise-0"), read("both", "noise-0.3/seed-0")
    assert base != loud
    assert read("teacher", "noise-0.3/seed-0") == base
    assert read("student", "noise-0.3/seed-0") == loud
    for side in ("teacher", "student"):
        channel = tmp_path / side / "stages/noise-0.3/seed-0/steer-owl/channel.json"
        both = tmp_path / "both/stages/noise-0.3/seed-0/steer-owl/channel.json"
        wide = sum(read_json(channel)["payload"]["vocabulary"])
        assert wide > sum(read_json(both)["payload"]["vocabulary"]), "the noise counts"


def test_a_soft_student_needs_its_teacher_s_unembedding(recipe: Make) -> None:
    with pytest.raises(ValidationError, match="leave 'embedding' out"):
        recipe(noise={"levels": [0.1], "on": "teacher"}, student={"kind": "soft"})
    assert recipe(noise={"levels": [0.1], "on": "teacher"}).noise.on == "teacher"


@pytest.mark.parametrize("executor", [None, Strangers()])
def test_an_audit_that_cannot_be_keeps_no_result_from_being_written(
    executor: Strangers | None, recipe: Make, tmp_path: Path, stages: Stages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refused(*_: object) -> None:
        raise DatasetError("no row of the base passes")

    asked = recipe(
        seeds=[0], teachers=[{"kind": "prompt"}], audit={"rows": 16},
        rows={"count": 20, "sampler": {"allowed": "list", "max_new_tokens": 24}},
    )  # fmt: skip
    monkeypatch.setattr(audits, "_make_sets", refused)
    with pytest.raises(DatasetError, match="no row of the base"):
        run_experiment(asked, tmp_path / "run", executor=executor)
    assert "noise-0/seed-0/complete" in stages(tmp_path / "run")
    found = Results.model_validate(read_json(tmp_path / "run" / "results.json"))
    assert len(found.transfers) == 1
    assert found.audits == []
    assert any("3 of these sets could not be" in limit for limit in found.limits)


def test_levels_of_noise_that_are_finished_have_results_though_another_cannot_be(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refused(path: Path, rows: Any, **rest: Any) -> None:
        if "noise-0.2" in str(path):
            raise DatasetError("the filter refused every row")
        write_rows(path, rows, **rest)

    asked = recipe(seeds=[0], teachers=[{"kind": "prompt"}],
                   noise={"levels": [0.0, 0.2]})  # fmt: skip
    monkeypatch.setattr(lessons, "write_rows", refused)
    with pytest.raises(DatasetError, match="every row"):
        run_experiment(asked, tmp_path / "run")
    found = Results.model_validate(read_json(tmp_path / "run" / "results.json"))
    assert [item.noise for item in found.transfers] == [0.0]
    assert found.limits[-1] == "Not finished, and left out here: noise 0.2."
    monkeypatch.setattr(lessons, "write_rows", write_rows)
    whole = run_experiment(asked, tmp_path / "run")
    assert [item.noise for item in whole.transfers] == [0.0, 0.2]
    assert not any("Not finished" in limit for limit in whole.limits)


def test_a_teacher_that_cannot_be_leaves_no_result(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise DatasetError("the filter refused every row")

    monkeypatch.setattr(lessons, "write_rows", refused)
    for executor in (None, Strangers()):
        out = tmp_path / str(executor is None)
        with pytest.raises(DatasetError, match="every row"):
            run_experiment(recipe(audit={"rows": 16}), out, executor=executor)
        assert not (out / "results.json").exists()
