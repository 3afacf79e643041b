"""A recipe's stages: each is run once, in order, and goes on where it was cut."""

import json
from pathlib import Path
from typing import Any

import pytest

from undertow.errors import ConfigError, DatasetError, RunError
from undertow.experiment import Recipe, run_experiment, running
from undertow.interventions.steering import load_vector
from undertow.models.loading import load_model
from undertow.models.tiny import save_tiny
from undertow.results import Results
from undertow.storage import read_json, read_rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny Llama."""
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny")


def recipe(tiny: Path, **changes: Any) -> Recipe:
    """A small grid; changes replace whole settings."""
    data: dict[str, Any] = {
        "title": "tiny",
        "question": "does it run?",
        "model": {"name": str(tiny), "dtype": "float32"},
        "traits": ["owl"],
        "teachers": [
            {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}},
            {"kind": "prompt"},
        ],
        "seeds": [0, 1],
        "rows": {
            "count": 6,
            "batch_size": 4,
            "sampler": {"allowed": "list", "max_new_tokens": 24},
        },
        "student": {"batch_size": 2, "rank": 2, "learning_rate": 0.01},
        "evaluation": {"questions": 2, "shift_rows": 3},
    }
    return Recipe.model_validate(data | changes)


def measured(results: Results) -> dict[str, Any]:
    """Everything that does not depend on when and how long."""
    data = results.model_dump(mode="json")
    del data["seconds"], data["provenance"]["time"]
    return data


def stages(directory: Path) -> set[str]:
    """Names of the finished stages."""
    folder = directory / "stages"
    return {str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.json")}


def test_a_run_leaves_what_the_design_names(tiny: Path, tmp_path: Path) -> None:
    results = run_experiment(recipe(tiny), tmp_path / "run")

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


def test_what_depends_on_the_base_alone_is_done_once(
    tiny: Path, tmp_path: Path
) -> None:
    run_experiment(recipe(tiny), tmp_path / "run")
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
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(tiny)
    first = run_experiment(settings, tmp_path / "run")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(running, "load_model", refuse)
    assert measured(run_experiment(settings, tmp_path / "run")) == measured(first)


@pytest.mark.slow
def test_a_run_that_is_cut_anywhere_ends_like_an_unbroken_one(
    tiny: Path, tmp_path: Path
) -> None:
    settings = recipe(
        tiny,
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


def test_soft_students_are_compared_with_a_decoy(tiny: Path, tmp_path: Path) -> None:
    settings = recipe(
        tiny,
        seeds=[0],
        teachers=[{"kind": "prompt"}],
        student={"kind": "soft", "batch_size": 3, "rank": 2},
    )
    results = run_experiment(settings, tmp_path / "run")
    # The first trait of the family that the run does not use.
    assert results.conditions[0].notes == ["control: decoy-prompt-dolphin"]
    assert any("decoy teacher" in limit for limit in results.limits)
    assert any("probabilities of every token" in limit for limit in results.limits)


def test_each_noised_base_has_its_own_readouts_and_can_be_kept(
    tiny: Path, tmp_path: Path
) -> None:
    settings = recipe(
        tiny,
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
    assert len(prints | {load_model(tiny).fingerprint}) == 3
    assert [(f.noise, f.ratio.n) for f in results.noise_factors] == [(0.2, 2)]


def test_norm_says_how_long_what_is_added_is(tiny: Path, tmp_path: Path) -> None:
    steer = {"layer": 2, "norm": 8.0}
    settings = recipe(tiny, seeds=[0], teachers=[{"kind": "steer", "steer": steer}])
    run_experiment(settings, tmp_path / "run")
    stage = tmp_path / "run" / "stages" / "noise-0" / "vectors" / "steer-owl.json"
    vector = load_vector(
        tmp_path / "run" / "bases" / "noise-0" / "vectors" / "steer-owl.safetensors"
    )
    strength = read_json(stage)["payload"]["strength"]
    assert strength * vector.norm(2) == pytest.approx(8.0)


def test_a_sweep_settles_layer_and_strength_and_is_kept(
    tiny: Path, tmp_path: Path
) -> None:
    sweep = {"layers": [0, 2], "doses": [0.2], "min_pass": 0.0}
    settings = recipe(
        tiny, seeds=[0], teachers=[{"kind": "steer", "steer": {"sweep": sweep}}]
    )
    found = run_experiment(settings, tmp_path / "run").sweeps
    assert len(found) == 1
    assert [p["layer"] for p in found[0].points] == [0, 2]
    best = max(found[0].points, key=lambda p: float(p["share"] or 0))
    assert (found[0].layer, found[0].strength) == (best["layer"], best["strength"])


def test_two_teachers_of_one_kind_need_names(tiny: Path, tmp_path: Path) -> None:
    teachers = [
        {"kind": "steer", "name": name, "steer": {"layer": 1, "dose": dose}}
        for name, dose in (("weak", 0.1), ("strong", 1.0))
    ]
    results = run_experiment(
        recipe(tiny, seeds=[0], teachers=teachers), tmp_path / "run"
    )
    assert [t.teacher for t in results.transfers] == ["weak", "strong"]


def test_traits_that_are_not_there_are_all_named_at_once(
    tiny: Path, tmp_path: Path
) -> None:
    settings = recipe(tiny, traits=["owl", "unicorn"], decoy="hydra", control="decoy")
    with pytest.raises(ConfigError) as caught:
        run_experiment(settings, tmp_path / "run")
    assert "'unicorn'" in str(caught.value)
    assert "'hydra'" in str(caught.value)
    assert not (tmp_path / "run").exists(), "refused before anything is written"


def test_an_unknown_layer_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    from undertow.errors import VectorMismatchError

    steer = {"layer": 40, "dose": 0.5}
    settings = recipe(tiny, teachers=[{"kind": "steer", "steer": steer}])
    with pytest.raises(VectorMismatchError, match="unknown layer 40"):
        run_experiment(settings, tmp_path / "run")


def test_a_directory_of_another_recipe_is_refused(tiny: Path, tmp_path: Path) -> None:
    run_experiment(recipe(tiny, seeds=[0]), tmp_path / "run")
    with pytest.raises(RunError, match="belongs to another recipe"):
        run_experiment(recipe(tiny, seeds=[1]), tmp_path / "run")


def test_rows_that_all_fail_the_filter_stop_the_run(tiny: Path, tmp_path: Path) -> None:
    settings = recipe(
        tiny, rows={"count": 4, "sampler": {"allowed": "all", "max_new_tokens": 8}}
    )
    with pytest.raises(DatasetError, match="none of 4 rows passed the filter"):
        run_experiment(settings, tmp_path / "run")
    verdicts = tmp_path / "run/bases/noise-0/seed-0/control/rows.jsonl"
    assert len(read_rows(verdicts)) == 4, "the rows are kept to look at"
