"""`channel`: a line for each base and other, numbers, clear refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from undertow.experiment import channel as channel_module

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
    assert head.split()[:6] == ["rows", "block", "dose", "noise", "seed", "against"]
    assert [line.split()[:7] for line in lines] == [
        ["numbers", "4/4", "1", "0.5", noise, seed, other]
        for noise, seed in (("0", "—"), ("0.1", "3"))
        for other in ("base", "cat")
    ]
    assert last == f"numbers  {out}"
    kept = json.loads(out.read_text())
    assert (kept["measurement"], kept["count"]) == ("channel", 4)
    assert [(p["layer"], p["dose"]) for p in kept["points"]] == [(1, 0.5), (1, 0.5)]
    assert not list(tmp_path.glob("*.partial"))
    assert kept["sampler"]["allowed"] == "list"
    width = kept["points"][1]["widths"][0]
    assert f"{width['carrier']['mean']:.4f}" in lines[2]
    again = command(*options, "--json", out)
    assert again.status == 2
    assert "exists already" in again.err


def test_a_grid_that_was_broken_off_is_continued(
    command: "Command", llama: Path, pets: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.json", tmp_path / "channel.json"
    options = (
        "channel", "--model", llama, "--dtype", "float32", "--family", pets,
        "--trait", "owl", "--teacher", "steer", "--layers", "1,0", "--doses", "0.2,0.5",
        "--carriers", "numbers,paraphrase", "--count", 3, "--questions", 1,
        "--list-values", 3, "--max-new-tokens", 6, "--json",
    )  # fmt: skip
    assert command(*options, whole).status == 0
    real, calls = channel_module.measure_channel, []

    def broken(*args: object, **kwargs: object) -> Iterator[object]:
        calls.append(len(list(kwargs["known"])))  # type: ignore[call-overload]
        for number, point in enumerate(real(*args, **kwargs)):  # type: ignore[arg-type]
            if len(calls) == 1 and number == 3:
                raise KeyboardInterrupt
            yield point

    with mock.patch.object(channel_module, "measure_channel", broken):
        assert command(*options, out).status == 130
        assert not out.exists()
        for more, words in (
            (("--seed", 1), "seed: there 0, given 1"),
            (("--dtype", "bfloat16"), "dtype: there 'float32', given 'bfloat16'"),
            (("--doses", "0.2"), "places: there"),
        ):
            other = command(*options, out, *more)
            assert other.status == 2
            assert words in other.err
        # A line in the middle is gone: it alone is made again, and stands in its place.
        kept = tmp_path / "channel.json.partial" / "points.jsonl"
        first, _, third = kept.read_text().splitlines(keepends=True)
        kept.write_text(first + third)
        found = command(*options, out)
    assert found.status == 0, found.err
    assert calls == [0, 2]
    assert out.read_bytes() == whole.read_bytes()
    few = "too few rows pass their filter to measure anything"
    assert found.out.count(few) == 4
    assert len(found.out.splitlines()) == 2 + 8 + 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--layers", "1"), "layers: a prompted teacher has none"),
        (("--carriers", ""), "carriers: empty"),
        (("--carriers", "code", "--allowed", "list"), "rows are to be 'code'"),
        (("--noise", "0,nan"), "noise: expected numbers of 0 or more, got nan"),
        (("--against", "owl"), "against: 'owl' is the teacher's own trait"),
    ],
)
def test_what_does_not_go_together_is_refused(
    command: "Command", llama: Path, pets: Path, options: tuple[str, ...], words: str
) -> None:
    found = command(
        "channel", "--model", llama, "--family", pets, "--trait", "owl", *options
    )
    assert found.status == 2
    assert words in found.err


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
