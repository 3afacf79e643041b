"""`channel`: a line for each base and other, numbers, clear refusals."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Command


def test_a_table_and_its_numbers(
    command: "Command", llama: Path, pets: Path, tmp_path: Path
) -> None:
    out = tmp_path / "channel.json"
    options = (
        "channel", "--model", llama, "--dtype", "float32", "--family", pets,
        "--trait", "owl", "--teacher", "steer", "--layer", 1, "--against", "cat",
        "--noise", "0,0.1", "--noise-seeds", "3", "--count", 4, "--list-values", 3,
        "--max-new-tokens", 16,
    )  # fmt: skip
    found = command(*options, "--json", out)
    assert found.status == 0, found.err
    title, head, *lines, last = found.out.splitlines()
    assert title == "KL(owl ‖ …), nats a token"
    assert head.split()[:3] == ["noise", "seed", "against"]
    assert [line.split()[:3] for line in lines] == [
        ["0", "—", "base"], ["0", "—", "cat"], ["0.1", "3", "base"],
        ["0.1", "3", "cat"],
    ]  # fmt: skip
    assert last == f"numbers  {out}"
    kept = json.loads(out.read_text())
    assert (kept["layer"], kept["dose"], kept["count"]) == (1, 0.5, 4)
    assert kept["sampler"]["allowed"] == "list"
    width = kept["points"][1]["widths"][0]
    assert f"{width['carrier']['mean']:.4f}" in lines[2]
    again = command(*options, "--json", out)
    assert again.status == 2
    assert "exists already" in again.err


def test_other_carriers_and_what_is_no_number(
    command: "Command", llama: Path, pets: Path
) -> None:
    options = ("channel", "--model", llama, "--family", pets, "--trait", "owl")
    found = command(*options, "--allowed", "all", "--count", 2, "--max-new-tokens", 5)
    assert found.status == 0, found.err
    wrong = command(*options, "--noise", "much")
    assert wrong.status == 2
    assert "--noise" in wrong.err
    unknown = command(*options, "--against", "emu", "--count", 2)
    assert unknown.status == 2
    assert "emu" in unknown.err
