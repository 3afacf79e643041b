"""Single stages: what a vector, rows and their strengths come out as."""

from collections.abc import Callable
from pathlib import Path

import pytest

from undertow.errors import DatasetError, VectorMismatchError
from undertow.experiment import Recipe, run_experiment
from undertow.experiment.stages import FINETUNING, with_questions
from undertow.interventions.steering import load_vector
from undertow.pipeline.training_settings import batch_order
from undertow.storage import read_json, read_rows
from undertow.traits import load_family

Make = Callable[..., Recipe]


def test_norm_says_how_long_what_is_added_is(recipe: Make, tmp_path: Path) -> None:
    steer = {"layer": 2, "norm": 8.0}
    settings = recipe(seeds=[0], teachers=[{"kind": "steer", "steer": steer}])
    run_experiment(settings, tmp_path / "run")
    stage = tmp_path / "run" / "stages" / "noise-0" / "vectors" / "steer-owl.json"
    vector = load_vector(
        tmp_path / "run" / "bases" / "noise-0" / "vectors" / "steer-owl.safetensors"
    )
    strength = read_json(stage)["payload"]["strength"]
    assert strength * vector.norm(2) == pytest.approx(8.0)


def test_a_sweep_settles_layer_and_strength_and_is_kept(
    recipe: Make, tmp_path: Path
) -> None:
    sweep = {"layers": [0, 2], "doses": [0.2], "min_pass": 0.0}
    settings = recipe(
        seeds=[0], teachers=[{"kind": "steer", "steer": {"sweep": sweep}}]
    )
    found = run_experiment(settings, tmp_path / "run").sweeps
    assert len(found) == 1
    assert [p["layer"] for p in found[0].points] == [0, 2]
    best = max(found[0].points, key=lambda p: float(p["share"] or 0))
    assert (found[0].layer, found[0].strength) == (best["layer"], best["strength"])
    assert (found[0].noise, found[0].seed) == (0.0, None)


def test_a_sweep_of_a_noised_base_says_which(recipe: Make, tmp_path: Path) -> None:
    sweep = {"layers": [2], "doses": [0.2], "min_pass": 0.0}
    settings = recipe(
        seeds=[5],
        noise={"levels": [0.1]},
        teachers=[{"kind": "steer", "steer": {"sweep": sweep}}],
    )
    (found,) = run_experiment(settings, tmp_path / "run").sweeps
    assert (found.noise, found.seed) == (0.1, 5)


def test_an_unknown_layer_is_refused_by_name(recipe: Make, tmp_path: Path) -> None:
    steer = {"layer": 40, "dose": 0.5}
    settings = recipe(teachers=[{"kind": "steer", "steer": steer}])
    with pytest.raises(VectorMismatchError, match="unknown layer 40"):
        run_experiment(settings, tmp_path / "run")


def test_rows_that_all_fail_the_filter_stop_the_run(
    recipe: Make, tmp_path: Path
) -> None:
    settings = recipe(
        rows={"count": 4, "sampler": {"allowed": "all", "max_new_tokens": 8}}
    )
    with pytest.raises(DatasetError, match="none of 4 rows passed the filter"):
        run_experiment(settings, tmp_path / "run")
    verdicts = tmp_path / "run/bases/noise-0/seed-0/control/rows.jsonl"
    assert len(read_rows(verdicts)) == 4, "the rows are kept to look at"


def test_questions_are_cut_from_the_front_and_all_are_kept_for_none() -> None:
    animals = load_family("animals")
    assert with_questions(animals, 3).questions == animals.questions[:3]
    assert with_questions(animals, None) == animals


def test_a_finetuned_teacher_is_kept_and_has_taken_to_its_trait(
    recipe: Make, tmp_path: Path
) -> None:
    tuning = {"learning_rate": 0.02, "max_updates": 30, "batch_size": 8}
    settings = recipe(seeds=[0], teachers=[{"kind": "finetune", "finetune": tuning}])
    results = run_experiment(settings, tmp_path / "run")
    shares = {
        readout.role: readout.probability.mean or 0.0
        for readout in results.conditions[0].readouts
    }
    assert shares["teacher"] > shares["base"] + 0.3 > 0.3
    kept = tmp_path / "run/bases/noise-0/seed-0/finetune-owl/teacher/training"
    assert (kept / "adapter_model.safetensors").is_file()
    trained = read_json(
        tmp_path / "run/stages/noise-0/seed-0/finetune-owl/teacher/training.json"
    )["payload"]
    # 50 questions in 4 spellings, 8 rows an update; read-outs ask two questions only.
    assert len(trained["updates"]) == 25


def test_a_teacher_s_usual_fine_tuning_makes_all_its_updates() -> None:
    fewest = 4  # one question, four spellings
    assert len(batch_order(fewest, settings=FINETUNING, seed=0)) == 24


def test_mode_and_positions_reach_the_teacher_and_its_rows(
    recipe: Make, tmp_path: Path
) -> None:
    steer = {"layer": 1, "dose": 0.5, "mode": "project_out", "positions": "completion"}
    settings = recipe(seeds=[0], teachers=[{"kind": "steer", "steer": steer}])
    run_experiment(settings, tmp_path / "run")
    rows = read_rows(tmp_path / "run/bases/noise-0/seed-0/steer-owl/rows.jsonl")
    facts = rows[0].provenance
    assert (facts["mode"], facts["positions"]) == ("project_out", "completion")


def test_what_cannot_be_swept_or_distilled_is_refused(recipe: Make) -> None:
    sweep = {"sweep": {"layers": [0], "doses": [0.1]}, "positions": "prompt"}
    with pytest.raises(ValueError, match="a sweep measures mode 'add' at all"):
        recipe(teachers=[{"kind": "steer", "steer": sweep}])
    with pytest.raises(ValueError, match="needs a teacher with the base's own"):
        recipe(
            teachers=[{"kind": "finetune", "finetune": {"kind": "full"}}],
            student={"kind": "soft"},
        )
