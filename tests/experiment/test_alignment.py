"""The stage of gradients: every teacher's rows and the base's, once, resumable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undertow.analysis.alignment import mean_alignment
from undertow.experiment import Recipe, alignment, run_experiment
from undertow.experiment.alignment import UNTOUCHED, stage_of
from undertow.runs import open_run
from undertow.storage import read_json

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
    assert all(-1 <= (c or 0) <= 1 for row in first.cosines for c in row)
    (fit,) = results.alignment_fits
    assert (fit.layer, fit.slope.n) == (1, 4)
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
    """cos · ‖mean g‖ = mean ⟨g, v̂⟩, and nats are that times the stream's norm."""
    run_experiment(recipe(evaluation=EVALUATION, seeds=[0]), tmp_path / "run")
    stages = tmp_path / "run" / "stages" / "noise-0" / "seed-0"
    facts = read_json(stages / "steer-owl" / "gradients.json")["payload"]
    ratios = [n[0] / c[0] for n, c in zip(facts["nats"], facts["cosines"], strict=True)]
    assert all(ratio > 0 for ratio in ratios)
    assert len(set(ratios)) == len(ratios), "norms differ from block to block"
