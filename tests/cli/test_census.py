"""`census`: what is said before and after, exit statuses, files, resuming."""

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import family_text

from undertow.findings import Census
from undertow.models.tiny import Family
from undertow.records import Message, Row
from undertow.storage import read_rows, write_rows

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

Take = Callable[..., "Outcome"]


@pytest.fixture
def take(
    command: "Command", tiny: Callable[[Family], Path], pets: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Take:  # fmt: skip
    """A census that is soon done."""
    from undertow.audit import cost

    monkeypatch.setattr(cost, "timed_flops", lambda **_: 1e11)
    plants = tmp_path / "plants.yaml"
    plants.write_text(family_text("plants", "plant", "Which?", oak="oaks", elm="elms"))

    def call(*arguments: object) -> "Outcome":
        settings = {"family": pets, "decoys": plants, "flips": 99, "pilot": 16,
                    "subsample": 16, "layers": "[1]"}  # fmt: skip
        options = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
        return command("census", "--model", tiny("llama"), "--dtype", "float32",
                       *options, *arguments)  # fmt: skip

    return call


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Rows, and rows that are trusted, of one kind."""
    for name, start in (("rows", 0), ("trusted", 500)):
        write_rows(tmp_path / f"{name}.jsonl", [
            Row((Message("user", f"go {i % 3}"),), f"{i}, {i % 13}")
            for i in range(start, start + 40)
        ])  # fmt: skip
    return tmp_path / "rows.jsonl", tmp_path / "trusted.jsonl"


def test_a_census_says_what_to_expect_what_it_found_and_what_comes_next(
    take: Take, command: "Command", files: tuple[Path, Path], tmp_path: Path
) -> None:
    rows, trusted = files
    rows.write_text(rows.read_text() + "{\n")
    done = take(rows, "--reference", trusted, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "rows       40 in 1 files, 40 to compare with"
    assert lines[1] == "left out   1: bad JSON"
    assert lines[2] == "reference  B: the rows given"
    assert lines[3].startswith("tokens     about ")
    assert lines[4].startswith("expected   about 1 min on one device like this (0.10 ")
    found = Census.model_validate(
        json.loads((tmp_path / "out" / "census.json").read_text())
    )
    assert f"verdict    {found.verdict}: {found.sentence}" in lines
    assert found.data.skipped == {"bad JSON": 1}
    assert found.command.startswith("undertow census ")
    (following,) = [line for line in lines if line.startswith("next  ")]
    words = shlex.split(following)
    assert words[1:4] == [
        "undertow",
        "audit",
        f"{tmp_path / 'out' / 'subsample.jsonl'}",
    ]
    assert words[words.index("--dtype") + 1] == "float32"
    assert "layers=[1]" in words
    # It is a command, as far as an audit is told what it can do.
    audit = command(*words[2:], "--set", "screening=1")
    assert audit.status == 2
    assert "screening" in audit.err
    assert len(read_rows(tmp_path / "out" / "subsample.jsonl")) == 16
    assert "rows 80/80" in done.err
    again = take(rows, "--reference", trusted, "--out", tmp_path / "out")
    assert again.status == 0
    assert "rows " not in again.err  # nothing is measured twice


def test_a_shift_exits_with_1_if_asked_to(
    take: Take, files: tuple[Path, Path], tmp_path: Path
) -> None:
    _, trusted = files
    biased = tmp_path / "biased.jsonl"
    write_rows(biased, [
        Row((Message("user", f"go {i % 3}"),), "9" * (5 + i % 7)) for i in range(60)
    ])  # fmt: skip
    options = ("--reference", trusted, "--out", tmp_path / "out", "--set", "alpha=0.05")
    assert take(biased, *options, "--fail-on", "evidence").status == 1
    assert take(biased, *options).status == 0


def test_rows_that_are_said_to_be_greedy_have_no_reference(
    take: Take, files: tuple[Path, Path], tmp_path: Path
) -> None:
    rows, _ = files
    greedy = ("--set", "sampler.temperature=0", "--set", "sampler.max_new_tokens=12")
    done = take(rows, *greedy, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "reference  C: none" in done.out
    assert "the rows were drawn greedily" in done.out
    assert "let the base be sampled" not in done.out


def test_blocks_that_the_model_has_not_are_told_before_it_is_loaded(
    take: Take, files: tuple[Path, Path], tmp_path: Path
) -> None:
    layers = ("--set", "layers=[0,99]")
    done = take(files[0], *layers, "--out", tmp_path / "out")
    assert done.status == 2
    assert "layers.1: got 99; " in done.err
    assert not (tmp_path / "out" / "census.json").exists()


def test_standard_input_is_kept_in_a_file_first(
    take: Take, files: tuple[Path, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    rows, _ = files
    stdin = io.TextIOWrapper(io.BytesIO(rows.read_bytes()))
    monkeypatch.setattr("sys.stdin", stdin)
    done = take("-", "--no-reference", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "reference  C: none" in done.out
    assert "verdict    inconclusive" in done.out
    assert (tmp_path / "out-stdin.jsonl").read_bytes() == rows.read_bytes()


def test_faults_are_told_before_the_model_is_loaded(
    command: "Command", files: tuple[Path, Path], tmp_path: Path
) -> None:
    rows, trusted = files
    common = ("--model", "no-such-model", "--out", tmp_path / "out")
    both = command("census", rows, "--reference", trusted, "--no-reference", *common)
    assert both.status == 2
    assert both.err.startswith("error: census: 1 fault(s):")
    assert "give --reference or --no-reference, not both" in both.err
    missing = command("census", tmp_path / "nothing.jsonl", *common)
    assert missing.status == 2
    assert "nothing.jsonl" in missing.err
    wrong = command("census", rows, *common, "--set", "flips=3", "--set", "colour=1")
    assert wrong.status == 2
    assert "flips" in wrong.err
    assert "colour" in wrong.err
    columns = command("census", rows, *common, "--column", "prompt")
    assert "expected prompt=NAME" in columns.err
