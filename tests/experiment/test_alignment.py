"""The stage of gradients: every teacher's rows and the base's, once, resumable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undertow.analysis.alignment import mean_alignment
from undertow.experiment import Recipe, alignment, run_experiment
from undertow.experiment.alignment import UNTOUCHED, stage_of
from undertow.interventions.steering import load_vector
from undertow.models.chat import render_row
from undertow.models.loading import load_model
from undertow.models.sampling import SamplerSettings
from undertow.runs import open_run
from undertow.storage import read_json, read_rows

Make = Callable[..., Recipe]
EVALUATION = {"questions": 2, "shift_rows": 0, "channel_rows": 0, "gradient_rows": 4}


def test_every_set_of_rows_is_held_against_every_trait(
    recipe: Make, tmp_path: Path
) -> None:
    results = run_experiment(
        recipe(evaluation=EVALUATION, traits=["owl", "cat"], seeds=[1]),
        tmp_path / "run",
    )
    assert [(a.teacher, a.kind, a.trait) for a in results.alignments] == [
        ("steer", "steer", "owl"), ("steer", "steer", "cat"),
        ("prompt", "prompt", "owl"), ("prompt", "prompt", "cat"),
        (None, "none", None),
    ]  # fmt: skip
    first, base = results.alignments[0], results.alignments[-1]
    assert first.vectors == ["owl", "cat"]
    assert (first.rows, first.vector_layer, first.seed) == (4, 1, 1)
    assert first.dose == pytest.approx(0.5)
    assert (base.dose, base.vector_layer) == (0.0, None)
    assert len(first.cosines) == len(first.layers) == 4
    assert all(c is not None and -1 <= c <= 1 for row in first.cosines for c in row)
    (fit,) = results.alignment_fits
    assert (fit.layer, fit.slope.n) == (1, 2)
    assert results.conditions[0].channel is None


def test_none_are_taken_unless_the_recipe_asks(recipe: Make, tmp_path: Path) -> None:
    results = run_experiment(recipe(seeds=[0]), tmp_path / "run")
    assert results.alignments == []
    assert not (tmp_path / "run" / "bases" / "noise-0" / "seed-0" / UNTOUCHED).exists()


def test_an_interrupted_stage_goes_on_where_it_was(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, done: int, total: int, note: str) -> None:
        if stage.endswith("prompt-owl/gradients"):
            raise KeyboardInterrupt

    asked = recipe(evaluation=EVALUATION, seeds=[0])
    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked, tmp_path / "run", progress=interrupt)
    read: list[int] = []
    original = mean_alignment

    def counted(*args: Any, **options: Any) -> Any:
        read.append(len(args[1]))
        return original(*args, **options)

    monkeypatch.setattr(alignment, "mean_alignment", counted)
    resumed = run_experiment(asked, tmp_path / "run")
    assert len(read) == 2, (
        "the persona's rows and the base's; the steered ones are done"
    )
    whole = run_experiment(asked, tmp_path / "whole")
    assert resumed.alignments == whole.alignments
    with open_run(tmp_path / "run", recipe_text=_text(tmp_path)) as run:
        assert run.is_done(stage_of("noise-0/seed-0", UNTOUCHED))


def _text(folder: Path) -> str:
    return (folder / "run" / "recipe.yaml").read_text(encoding="utf-8")


def test_nats_are_by_dose(recipe: Make, tmp_path: Path) -> None:
    """Mean slope along v̂, times the stream's norm: where the teacher's vector is made."""
    run_experiment(recipe(evaluation=EVALUATION, seeds=[0]), tmp_path / "run")
    bases, stages = (tmp_path / "run" / d / "noise-0" for d in ("bases", "stages"))
    facts = read_json(stages / "seed-0" / "steer-owl" / "gradients.json")["payload"]
    vector = load_vector(bases / "vectors" / "steer-owl.safetensors")
    model = load_model(read_json(stages.parent / "provenance.json")["payload"]["model"],
                       dtype="float32")  # fmt: skip
    kept = read_rows(bases / "seed-0/steer-owl/rows.jsonl", accepted_only=True)
    rows = [render_row(model, row) for row in kept[:4]]
    plain = mean_alignment(
        model, rows, {1: vector.directions},
        sampler=SamplerSettings(allowed="list", max_new_tokens=24),
    )  # fmt: skip
    assert facts["nats"][1][0] == pytest.approx(
        plain.mean[0, 0] * vector.residual_norms[0], rel=1e-3
    )
    assert facts["nats_sd"][1][0] == pytest.approx(
        plain.sd[0, 0] * vector.residual_norms[0], rel=1e-3
    )


def test_a_direction_that_is_taken_away_has_no_dose(
    recipe: Make, tmp_path: Path
) -> None:
    steer = {"layer": 1, "dose": 0.5, "mode": "project_out"}
    asked = recipe(
        evaluation=EVALUATION, seeds=[0], teachers=[{"kind": "steer", "steer": steer}]
    )
    results = run_experiment(asked, tmp_path / "run")
    assert (results.alignments[0].dose, results.alignments[0].vector_layer) == (
        None, None
    )  # fmt: skip
    assert results.alignment_fits == []
