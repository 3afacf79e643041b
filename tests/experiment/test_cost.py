"""What a recipe is said to take, against what runs left and what stored studies took."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from undertow.config import load_settings
from undertow.errors import ConfigError
from undertow.experiment import Recipe, run_experiment
from undertow.experiment.cost import (
    Cost,
    adapter_bytes,
    recipe_cost,
    recipe_sizes,
    training_counts,
)
from undertow.experiment.rates import (
    SIZES,
    Passes,
    known_size,
    one_h100,
    processor,
)
from undertow.packaged import packaged
from undertow.pipeline.training_settings import TrainingSettings, batch_order
from undertow.results import Condition, Results
from undertow.storage import read_json, read_rows

Make = Callable[..., Recipe]
ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent for path in (ROOT / "docs/studies").glob("*/recipe.yaml"))
SPEEDS = {"float32": 8e10, "bfloat16": 3e11}
"""Operations a second of a product on the machines of the studies: an AMD EPYC without
matrix units (LOG, the census), and a Xeon with them beside as much other work."""


def _cost(recipe: Recipe) -> Cost:
    return recipe_cost(recipe, sizes=recipe_sizes(recipe))


def _stored(study: Path) -> tuple[Cost, Recipe, Results]:
    recipe = load_settings(Recipe, study / "recipe.yaml")
    results = Results.model_validate(read_json(study / "results.json"))
    return _cost(recipe), recipe, results


def _updates(condition: Condition) -> tuple[int, int]:
    """Of the student, and of its control."""
    own, control = condition.training, condition.control_training
    assert own is not None
    assert control is not None
    return own.updates[-1], control.updates[-1]


# ── stored studies ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_counts_are_those_of_a_stored_study(study: Path) -> None:
    cost, recipe, results = _stored(study)
    stages = list(results.seconds)

    def left(end: str) -> int:
        return sum(stage.endswith(end) for stage in stages)

    # What a filter refuses is not known before: then counts are the most there may be.
    every = all(c.rows.kept == recipe.rows.count for c in results.conditions)
    assert every == (recipe.rows.carrier == "numbers")
    assert cost.students == left("/student/training")
    assert cost.tuned == left("/teacher/training")
    assert cost.cells == len(results.conditions) == left("/cell")
    assert cost.rows == left("/rows") * recipe.rows.count
    students = {
        (c.noise, c.seed, c.teacher, c.trait): _updates(c)[0]
        for c in results.conditions
    }
    controls = {
        (c.noise, c.seed, c.teacher): _updates(c)[1] for c in results.conditions
    }
    tuned = next((t.finetune for t in recipe.teachers if t.finetune), None)
    of_tuned = 0 if tuned is None else cost.tuned * (tuned.max_updates or 0)
    assert len(students) + len(controls) == cost.students
    done = sum([*students.values(), *controls.values(), of_tuned])
    assert cost.updates == done if every else done <= cost.updates <= 2 * done


def test_the_readouts_of_a_stored_study_are_counted() -> None:
    cost, _, results = _stored(ROOT / "docs/studies/emergence")
    read = sum(stage.endswith("/readout") for stage in results.seconds)
    # Of students on their way and of their controls; the base stands there as update 0.
    points = sum(
        2 * sum(update > 0 for update in c.emergence.updates)
        for c in results.conditions
        if c.emergence
    )
    assert cost.readouts == read + points


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_the_time_of_a_stored_study_is_right_within_a_factor_of_two(
    study: Path,
) -> None:
    cost, _, results = _stored(study)
    took = sum(results.seconds.values())
    told = cost.seconds(processor(SPEEDS[str(results.provenance["dtype"])]))
    assert told is not None
    assert 1 / 2 < told / took < 2


# ── a run ────────────────────────────────────────────────────────────────────────


def _everything(recipe: Make) -> Recipe:
    """A grid with every kind of job but an audit."""
    tuning = {"batch_size": 16, "epochs": 1, "max_updates": 2, "rank": 2}
    return recipe(
        noise={"levels": [0.0, 0.1], "keep": True},
        teachers=[
            {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}},
            {"kind": "finetune", "finetune": tuning},
        ],
        rows={
            "count": 5, "use": 4, "filter": False,
            "sampler": {"allowed": "list", "max_new_tokens": 24},
        },
        student={"batch_size": 3, "rank": 2, "epochs": 2, "kind": "soft"},
        evaluation={
            "questions": 2, "shift_rows": 3, "samples": 2, "every": 1, "cause_layer": 1,
            "gradient_rows": 2,
        },
    )  # fmt: skip


@pytest.fixture
def finished(recipe: Make, tmp_path: Path) -> tuple[Recipe, Path]:
    made = _everything(recipe)
    run_experiment(made, tmp_path / "run")
    return made, tmp_path / "run"


def _payloads(run: Path, end: str) -> list[dict[str, Any]]:
    paths = (run / "stages").rglob("*.json")
    return [
        json.loads(path.read_text())["payload"]
        for path in paths if str(path).endswith(f"{end}.json")
    ]  # fmt: skip


def test_counts_are_what_a_run_leaves(finished: tuple[Recipe, Path]) -> None:
    made, run = finished
    cost = _cost(made)
    rows, trained = _payloads(run, "/rows"), _payloads(run, "/training")
    assert cost.rows == sum(each["generated"] for each in rows)
    assert cost.students + cost.tuned == len(trained)
    assert cost.students == len(_payloads(run, "/student/training"))
    assert cost.updates == sum(len(each["updates"]) for each in trained)
    assert cost.cells == len(_payloads(run, "/cell")) == 8
    assert cost.bases == 3
    points = sum(len(each["points"]) for each in _payloads(run, "/emergence"))
    assert cost.readouts == len(_payloads(run, "/readout")) + points
    drawn = [
        len(row.completion_ids or ())
        for path in run.rglob("rows.jsonl") for row in read_rows(path)
    ]  # fmt: skip
    answers = len(_payloads(run, "/readout")) * 2 * 2 * 12
    assert sum(drawn) <= cost.drawn_tokens - answers == len(drawn) * 24
    kept = list(run.rglob("noise/checkpoint"))
    assert len(kept) == 2
    size = recipe_sizes(made)[made.model.name]
    assert cost.disk_bytes["noised bases"] == len(kept) * 4 * size.parameters


def test_nothing_is_left_of_a_finished_run(finished: tuple[Recipe, Path]) -> None:
    made, run = finished

    def left() -> Cost:
        return recipe_cost(
            made, sizes={}, is_done=lambda s: (run / "stages" / f"{s}.json").is_file()
        )

    assert not left().passes
    assert left().operations == left().seconds(one_h100()) == 0
    student = next((run / "stages").rglob("student/training.json"))
    student.unlink()
    assert (left().students, left().rows, left().cells) == (1, 0, 0)


# ── parts ────────────────────────────────────────────────────────────────────────


def test_updates_and_rows_are_those_of_the_order_of_batches() -> None:
    for rows, size, epochs, most in product((1, 7, 8), (1, 3, 8), (1, 3), (None, 1, 4)):
        settings = TrainingSettings(batch_size=size, epochs=epochs, max_updates=most)
        order = batch_order(rows, settings=settings, seed=0)
        assert training_counts(settings, rows) == (len(order), sum(map(len, order)))


def test_more_epochs_of_another_kind_take_more_passes(recipe: Make) -> None:
    def passes(kind: str, epochs: int) -> float:
        made = recipe(student={"kind": kind, "epochs": epochs}, control="none")
        (found,) = _cost(made).passes.values()
        return found.predicted

    row = 6 * 0.7 * 24 * 6  # rows of 24 tokens at most, and six students
    for kind, times in (("lora", 2), ("soft", 3), ("full", 3)):
        assert passes(kind, 2) - passes(kind, 1) == pytest.approx(times * row)


def test_another_models_rows_are_counted_with_that_model() -> None:
    recipe = load_settings(Recipe, packaged("recipes")["paper/cross"])
    cost = _cost(recipe)
    assert recipe.writer is not None
    assert cost.passes[recipe.writer.name].drawn > 0
    assert cost.passes[recipe.model.name].drawn == 0
    alone = recipe_cost(recipe, sizes={recipe.model.name: SIZES["smollm2-135m"]})
    assert alone.unsized == [recipe.writer.name]
    assert alone.operations is alone.seconds(one_h100()) is None


def test_sweeps_judges_and_audits_are_counted(recipe: Make) -> None:
    sweep = {"layers": [0, 1], "doses": [0.2, 0.4, 0.8]}
    steered = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}
    plain = recipe(teachers=[steered])
    swept = recipe(teachers=[{"kind": "steer", "steer": {"sweep": sweep}}])
    audited = recipe(teachers=[steered], audit={"rows": 16})
    judged = recipe(teachers=[steered], rows={"count": 6, "judge": {"name": "x"}})
    (less,), (more,), (blind,) = (
        _cost(each).passes.values() for each in (plain, swept, audited)
    )
    assert more.drawn - less.drawn == pytest.approx(6 * 48 * 0.7 * 24)
    assert blind.read > 10 * less.read
    assert _cost(audited).rows == _cost(plain).rows + 2 * 12, "two answers of the base"
    assert _cost(plain).judged == 0
    assert _cost(judged).judged == _cost(judged).rows == 4 * 6


def test_a_trait_that_is_not_there_is_refused(recipe: Make) -> None:
    with pytest.raises(ConfigError, match="no trait 'owls'"):
        _cost(recipe(traits=["owls"]))


def test_blocks_that_a_model_has_not_are_refused(recipe: Make) -> None:
    model = {"name": "smollm2-135m"}
    steered = {"kind": "steer", "steer": {"layer": 30, "dose": 0.3}}
    sweep = {"layers": [29, 31], "doses": [0.3]}
    swept = {"kind": "steer", "name": "swept", "steer": {"sweep": sweep}}
    asked = recipe(
        model=model, teachers=[steered, swept], evaluation={"cause_layer": 99},
        audit={"settings": {"layers": [20, 40]}},
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        _cost(asked)
    have = "smollm2-135m has 30 blocks, counted from 0 to 29"
    assert caught.value.faults == (
        f"teachers.0.steer.layer: got 30; {have}",
        f"teachers.1.steer.sweep.layers.1: got 31; {have}",
        f"evaluation.cause_layer: got 99; {have}",
        f"audit.settings.layers.1: got 40; {have}",
    )
    last = {"kind": "steer", "steer": {"layer": 29, "dose": 0.3}}
    assert _cost(recipe(model=model, teachers=[last])).students


def test_students_that_never_leave_their_warm_up_are_counted(recipe: Make) -> None:
    few = {"rows": {"count": 24}, "student": {"batch_size": 8}}
    cost = _cost(recipe(**few))
    assert (cost.updates_each, cost.cold) == ((3, 3), cost.students)
    few["student"]["warmup_updates"] = 2
    assert _cost(recipe(**few)).cold == 0


def test_without_a_trait_for_the_decoy_there_is_no_cost(
    recipe: Make, tmp_path: Path
) -> None:
    family = tmp_path / "pets.yaml"
    traits = [{"name": "cat", "plural": "cats"}, {"name": "dog", "plural": "dogs"}]
    questions = ["Which pet do you like?", "Name a pet."]
    family.write_text(json.dumps(
        {"name": "pets", "category": "pet", "traits": traits, "questions": questions}
    ))  # fmt: skip
    made = recipe(family=str(family), traits=["cat", "dog"], student={"kind": "soft"})
    with pytest.raises(ConfigError, match="every trait of the family"):
        _cost(made)


# ── sizes and rates ──────────────────────────────────────────────────────────────

CONFIGS: dict[str, PreTrainedConfig] = {
    "google/gemma-2b-it": GemmaConfig(
        vocab_size=256_000, hidden_size=2048, intermediate_size=16_384,
        num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=1, head_dim=256,
    ),
    "meta-llama/Llama-3.1-8B-Instruct": LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_and_adapters_are_those_of_the_published_shapes(name: str) -> None:
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(CONFIGS[name])  # type: ignore[no-untyped-call]
    size = SIZES[name]
    assert size.parameters == sum(p.numel() for p in module.parameters())
    assert size.embedding == module.get_input_embeddings().weight.numel()
    blocks = module.base_model.layers
    assert (size.layers, size.vocabulary) == (len(blocks), module.config.vocab_size)
    linear = [m for m in blocks.modules() if isinstance(m, nn.Linear)]
    sides = sum(m.in_features + m.out_features for m in linear)
    # Where the unembedding has weights of its own they are counted as a block's.
    assert adapter_bytes(size, 8) == pytest.approx(4 * 8 * sides, rel=0.06)


def test_the_size_of_a_packaged_model_is_that_of_its_folder(
    real_model_path: Path,
) -> None:
    assert known_size(str(real_model_path)) == SIZES["smollm2-135m"]


def test_a_size_that_is_not_here_is_not_asked_for_elsewhere(tmp_path: Path) -> None:
    broken = tmp_path / "model.gguf"
    broken.write_bytes(b"GGUF")
    for name in ("nobody/nothing", "not a name!", str(broken), str(tmp_path)):
        assert known_size(name) is None


def test_every_packaged_recipe_has_a_cost() -> None:
    for name, path in packaged("recipes").items():
        cost = _cost(load_settings(Recipe, path))
        assert not cost.unsized, name
        assert cost.operations
        assert cost.operations > 1e12


def test_operations_are_two_a_weight_and_token() -> None:
    size = SIZES["google/gemma-2b-it"]
    weights, head = size.parameters - size.embedding, size.vocabulary * size.hidden
    assert weights + head == size.parameters, "tied"
    assert Passes(read=3.0).operations(size) == (6 * weights, 0)
    assert Passes(predicted=1.0).operations(size) == (2 * size.parameters, 0)
    assert Passes(drawn=1.0).operations(size) == (0, 2 * size.parameters)


def test_an_h100_draws_and_scores_as_fast_as_was_measured() -> None:
    file = ROOT / "benchmarks/results/2026-11-26-smollm2-135m-h100.json"
    found = json.loads(file.read_text())["comparisons"]
    measured = {
        each["what"]: sorted(pair["ours"]["per_second"] for pair in each["pairs"])[1]
        for each in found
    }
    tokens = found[0]["pairs"][0]["ours"]["tokens"] / 512
    rate, size = one_h100(), SIZES["smollm2-135m"]
    drawn = rate.seconds(Passes(drawn=measured["generation"]), size)
    scored = Passes(read=(45 + 2 * (tokens - 90)) * measured["audit"])
    assert drawn == pytest.approx(1, rel=1e-3)
    assert rate.seconds(scored, size) == pytest.approx(1, rel=0.01)
    assert rate.token > 0
    assert rate.step > 0


@pytest.mark.parametrize("passes", [Passes(read=1e6), Passes(drawn=1e6)])
def test_products_count_for_more_in_a_larger_model(passes: Passes) -> None:
    names = ("smollm2-135m", "google/gemma-2b-it", "meta-llama/Llama-3.1-8B-Instruct")
    speeds = [
        sum(passes.operations(SIZES[name])) / one_h100().seconds(passes, SIZES[name])
        for name in names
    ]
    assert speeds == sorted(speeds)
    assert speeds[-1] < 7.904e14 * 0.7
