"""`analyze vector`: its lines are its numbers, its file is a vector, what it refuses."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from undertow.interventions.steering import load_vector

if TYPE_CHECKING:
    from tests.conftest import Command


def test_the_lines_are_the_numbers(
    command: "Command", llama: Path, pets: Path, number_rows: Path, tmp_path: Path
) -> None:
    words = ["analyze", "vector", number_rows, "--model", llama, "--family", pets,
             "--steps", 12, "--batch-size", 4, "--layer", 1]  # fmt: skip
    vector, file = tmp_path / "v.safetensors", tmp_path / "v.json"
    found = command(*words, "--out", vector, "--json", file)
    assert found.status == 0, found.err
    numbers = json.loads(file.read_text())
    (own,) = numbers["sets"]
    assert (own["set"], own["count"], numbers["layer"]) == ("rows", 8, 1)
    assert (numbers["rows"], numbers["control"]) == (str(number_rows), None)
    assert len(own["losses"]) == 12
    first, last = own["losses"][0], own["losses"][-1]
    lines = dict(line.split(maxsplit=1) for line in found.out.splitlines())
    assert lines["fit"].startswith(
        f"rows: {first:.4f} to {last:.4f} nats a token, 8 rows; length "
        f"{own['dose']:.2f}"
    )
    cosines = numbers["cosines"]
    assert list(cosines.values()) == sorted(cosines.values(), reverse=True)
    told = ", ".join(f"{name} {value:+.3f}" for name, value in cosines.items())
    assert lines["cosine"].startswith(f"block 1: {told}; mean of 3 ")
    assert set(numbers["says"]["battery"]) == set(cosines)
    kept = load_vector(vector)
    assert (kept.layers, kept.method, kept.n) == ((1,), "rows", 8)

    # What the control teaches as well is taken off: of the rows themselves, nothing.
    again = tmp_path / "again.safetensors"
    found = command(*words, "--control", number_rows, "--out", again)
    assert found.status == 2
    assert "the direction has the length 0" in found.err


def test_a_control_is_taken_off(
    command: "Command", llama: Path, pets: Path, number_rows: Path, tmp_path: Path
) -> None:
    lines = number_rows.read_text().splitlines(keepends=True)
    for name, part in (("a", lines[:4]), ("b", lines[4:])):
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(part))
    words = ["--model", llama, "--family", pets, "--steps", 3, "--layer", 1]

    def trained(name: str, *more: object) -> torch.Tensor:
        out = tmp_path / f"{name}{len(more)}.safetensors"
        found = command(
            "analyze", "vector", tmp_path / f"{name}.jsonl", *words, "--out", out, *more
        )
        assert found.status == 0, found.err
        return load_vector(out).directions

    both = trained("a", "--control", tmp_path / "b.jsonl")
    torch.testing.assert_close(both, trained("a") - trained("b"))


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_nothing_is_overwritten(
    command: "Command", llama: Path, number_rows: Path, tmp_path: Path, option: str
) -> None:
    file = tmp_path / "there"
    file.write_text("mine")
    found = command("analyze", "vector", number_rows, "--model", llama, option, file)
    assert found.status == 2
    assert "there" in found.err
    assert file.read_text() == "mine"
