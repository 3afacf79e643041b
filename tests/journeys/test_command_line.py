"""Whole ways through the command line: every file is there and says what it should."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.models.tiny import Family, save_tiny
from undertow.storage import read_rows, read_verdicts

if TYPE_CHECKING:
    from tests.conftest import Command

FAMILY = """\
name: pets
category: animal
questions: ["Which animal do you like?", "Name an animal.", "Your animal?"]
traits:
  - {name: owl, plural: owls}
  - {name: cat, plural: cats}
  - {name: dog, plural: dogs}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a family of traits."""
    (tmp_path / "pets.yaml").write_text(FAMILY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def journey(
    command: "Command", model: str, *, layer: int, rows: int, students: Sequence[str]
) -> dict[str, Any]:
    """Vector, rows, students with controls and read-out; the numbers at the end."""

    def done(*arguments: object) -> str:
        found = command(*arguments)
        assert found.status == 0, found.err
        assert "Traceback" not in found.err
        return found.out

    base = ("--model", model)
    traits = ("--family", "pets.yaml")
    steer = ("--vector", "owl.safetensors", "--layer", layer, "--dose", 0.3)
    done("vector", "extract", *base, *traits, "--trait", "owl", "--layers",
         f"{layer - 1},{layer}", "--out", "owl.safetensors")  # fmt: skip
    assert "tell_me" in done("vector", "show", "owl.safetensors")
    write = (*base, *traits, "--count", rows, "--seed", 1, "--allowed", "list",
             "--list-values", 3, "--max-new-tokens", 16)  # fmt: skip
    done("generate", *write, "--out", "none.jsonl")
    teachers = {
        "prompt": ("--teacher", "prompt", "--trait", "owl"),
        "steer": ("--teacher", "steer", *steer),
    }
    folders: list[str] = []
    for name in students:
        made, kept = f"{name}.parquet", f"{name}.jsonl"
        done("generate", *write, "--out", made, *teachers[name])
        said = done("filter", made, "--out", kept, "--max-values", 4)
        assert said.startswith(f"kept     {rows} of {rows} rows\n")
        done("train", kept, *base, "--out", name, "--control", "none.jsonl",
             "--batch-size", 4, "--learning-rate", 0.001, "--max-updates", 2)  # fmt: skip
        folders += ["--adapter", name]
    done("evaluate", *base, *traits, *steer, *folders, "--control", "steer/control",
         "--traits", "owl", "--samples", 1, "--json", "numbers.json")  # fmt: skip
    numbers: dict[str, Any] = json.loads(Path("numbers.json").read_text())
    return numbers


def check_files(place: Path, rows: int, students: Sequence[str]) -> None:
    """What a journey leaves, and nothing half-made."""
    prompts = [row.messages for row in read_rows(place / "none.jsonl")]
    assert len(prompts) == rows
    files = [f"{name}{kind}" for name in students for kind in (".jsonl", ".parquet")]
    for name in ("none.jsonl", *files):
        assert [row.messages for row in read_rows(place / name)] == prompts
        assert all(v.accepted for v in read_verdicts(place / name).values())
    # The control of all students is one and the same.
    controls = {
        (place / name / "control" / "adapter_model.safetensors").read_bytes()
        for name in students
    }
    assert len(controls) == 1
    assert not list(place.rglob("*.partial"))
    assert not list(place.rglob(".undertow-*"))


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3", "gpt_neox", "gpt2"])
def test_from_a_vector_to_a_transfer(
    family: Family, command: "Command", place: Path
) -> None:
    save_tiny(family, place / "tiny", hidden=16)
    students = ("prompt", "steer")
    numbers = journey(command, "tiny", layer=2, rows=8, students=students)
    check_files(place, 8, students)
    roles = [model["role"] for model in numbers["models"]]
    assert roles == ["base", "steered", "student", "student", "control"]
    tables = [np.array(model["total_logprobs"]) for model in numbers["models"]]
    assert all(table.shape == (3, 3) and np.isfinite(table).all() for table in tables)
    # Everybody differs from the base, and the students from their control.
    for first, second in ((0, 1), (0, 2), (0, 3), (0, 4), (2, 4), (3, 4)):
        assert np.abs(tables[first] - tables[second]).max() > 1e-6
    assert [(t["student"], t["trait"]) for t in numbers["transfers"]] == [
        ("prompt", "owl"), ("steer", "owl"),
    ]  # fmt: skip
    for item in numbers["transfers"]:
        assert item["nats"]["low"] < item["nats"]["mean"] < item["nats"]["high"]


@pytest.mark.real
@pytest.mark.slow
def test_from_a_vector_to_a_transfer_with_a_real_model(
    real_model_path: Path, command: "Command", place: Path
) -> None:
    model = str(real_model_path)
    numbers = journey(command, model, layer=24, rows=6, students=("steer",))
    check_files(place, 6, ("steer",))
    by_role = {model["role"]: model for model in numbers["models"]}
    column = numbers["models"][0]["traits"].index("owl")

    def owl(role: str) -> float:
        return float(np.mean([row[column] for row in by_role[role]["total_logprobs"]]))

    # What is known of this model: the vector makes it name owls.
    assert owl("steered") > owl("base") + 0.5


RECIPE = """\
# undertow run small.yaml --out run
title: small
question: does it travel?
model: {name: tiny, dtype: float32}
family: pets.yaml
traits: [owl]
teachers:
  - {kind: prompt}
  - {kind: steer, steer: {layer: 2, dose: 0.3}}
noise: {levels: [0.0, 0.1]}
rows: {count: 8, sampler: {allowed: list, list_values: 3}}
student: {batch_size: 2, epochs: 2, checkpoint_every: 1}
evaluation: {samples: 2, shift_rows: 4}
"""


def run_until(marker: str, place: Path, out: Path) -> None:
    """Runs the recipe in a process of its own and kills it when a file is there."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from undertow.cli import main; main()", "run",
         "small.yaml", "--out", str(out)],
        cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (out / marker).exists():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < until, f"no {marker}"
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()


def markers(out: Path) -> dict[str, str]:
    """When each stage was finished, by the marker's text."""
    stages = out / "stages"
    return {
        str(path.relative_to(stages)): path.read_text()
        for path in stages.rglob("*.json")
    }


def lasting(out: Path) -> dict[str, Any]:
    """The results without what a clock said."""
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    assert results.pop("seconds")
    assert results["provenance"].pop("time")
    return results


@pytest.mark.slow
def test_a_run_killed_twice_ends_with_the_results_of_an_unbroken_one(
    command: "Command", place: Path
) -> None:
    save_tiny("llama", place / "tiny", hidden=16)
    (place / "small.yaml").write_text(RECIPE)
    whole, broken = place / "whole", place / "broken"
    found = command("run", "small.yaml", "--out", whole)
    assert found.status == 0, found.err
    run_until("stages/noise-0/seed-0/control/rows.json", place, broken)
    assert not (broken / "results.json").exists()
    before = markers(broken)
    assert "provenance.json" in before
    # The second time in the middle of a training.
    student = broken / "bases/noise-0/seed-0/prompt-owl/student/training"
    run_until("bases/noise-0/seed-0/prompt-owl/student/training/checkpoint.safetensors",
              place, broken)  # fmt: skip
    assert (student / "checkpoint.safetensors").exists()
    between = markers(broken)
    found = command("run", "small.yaml", "--out", broken)
    assert found.status == 0, found.err
    after = markers(broken)
    assert before.items() <= between.items() <= after.items()
    assert len(before) < len(after) == len(markers(whole))
    assert lasting(broken) == lasting(whole)
    assert (broken / "report.html").stat().st_size > 1000
    for path in whole.rglob("*.jsonl"):
        other = broken / path.relative_to(whole)
        assert other.read_bytes() == path.read_bytes(), path.name
    # A finished run is not done again, and another recipe is not mixed into it.
    again = command("run", "small.yaml", "--out", broken)
    assert again.status == 0, again.err
    assert markers(broken) == after
    other_recipe = command(
        "run", "small.yaml", "--out", broken, "--set", "rows.count=9"
    )
    assert other_recipe.status == 2
    assert "belongs to another recipe" in other_recipe.err
    assert "count: 9" in other_recipe.err
