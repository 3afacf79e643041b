"""`analyze entanglement`: its lines are its numbers, and what it refuses."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from undertow.analysis.entanglement import Choice, Comparison
from undertow.cli.analysis import _result
from undertow.experiment.entanglement import Entanglement, measure_entanglement
from undertow.models.loading import load_model
from undertow.stats import Interval, RankCorrelation
from undertow.traits import load_family

if TYPE_CHECKING:
    from tests.conftest import Command


def test_the_lines_are_the_numbers_of_the_file(
    command: "Command", llama: Path, pets: Path, number_rows: Path, tmp_path: Path
) -> None:
    file = tmp_path / "numbers.json"
    run = command(
        "analyze", "entanglement", "--model", llama, "--trait", "owl", "--family", pets,
        "--numbers", 30, "--top", 5, "--questions", 2, "--rows", number_rows,
        "--reference", number_rows, "--seed", 3, "--json", file,
    )  # fmt: skip
    assert run.status == 0, run.err
    assert "trait under a number 15/15" in run.err
    facts = json.loads(file.read_text())
    assert len(facts["numbers"]) == len(facts["changes"]) == 30
    assert len(facts["questions"]) == 2
    assert (facts["format"], facts["top"], facts["seed"]) == (1, 5, 3)
    lines = run.out.splitlines()
    assert lines[0].split() == [
        "raised", "change", "effect", "lowered", "change", "effect",
        "random", "change", "effect",
    ]  # fmt: skip
    for group in range(3):
        for place, line in enumerate(lines[1:6]):
            own = facts["told"][5 * group + place]
            number, change, effect = line.split()[3 * group : 3 * group + 3]
            assert int(number) == own["number"]
            assert float(change) == pytest.approx(own["change"], abs=5.1e-3)
            assert float(effect) == pytest.approx(own["effect"], abs=5.1e-4)
    assert f"{np.mean(facts['changes']):+.2f} on average" in lines[6]
    firsts = len({str(own["number"])[0] for own in facts["told"][:5]})
    assert facts["beginnings"] == firsts
    if firsts < 5:
        caution = lines.pop(9)
        assert f"the 5 raised numbers: only {firsts};" in caution
    assert "1.00 times as often" in lines[9]
    difference = facts["comparison"]["difference"]
    assert lines[10].startswith("result    told to love a number that owl raises")
    assert f"owl {difference['mean']:+.3f} [{difference['low']:+.3f}" in lines[10]
    assert f"(5 pairs, p {facts['comparison']['p_value']:.2g})" in lines[10]
    includes = difference["low"] <= 0 <= difference["high"]
    assert ("the interval includes zero" in lines[10]) == includes
    assert lines[11] == f"numbers   {file}"
    found = measure_entanglement(
        load_model(llama, dtype="float32"), load_family(pets), "owl",
        numbers=range(30), top=5, seed=3, questions=facts["questions"],
    )  # fmt: skip
    np.testing.assert_allclose(found.changes, facts["changes"], atol=1e-6)


def _found(low: float, high: float, p_value: float) -> Entanglement:
    whole = Interval((low + high) / 2, low, high, 9)
    return Entanglement(
        trait="owl", family="pets", questions=("?",), numbers=(1, 2),
        base=np.zeros(2), changes=np.zeros(2), choice=Choice((1,), (2,), (2,)),
        beginnings=1, base_preference=0.0, effects={1: 0.0, 2: 0.0},
        comparison=Comparison(
            whole, whole, whole, whole, p_value, RankCorrelation(whole, p_value, 9)
        ),
        occurrence=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "p_value", "end"),
    [
        ((0.1, 0.3), 0.0123, "owl +0.200 [+0.100, +0.300] nats (9 pairs, p 0.012)"),
        ((-0.3, -0.1), 0.02, "p 0.02); entanglement foretells the opposite"),
        ((-0.1, 0.1), 0.5, "p 0.5); the interval includes zero or is unknown"),
        (
            (float("nan"), float("nan")), float("nan"),
            "(9 pairs, p unknown); the interval includes zero or is unknown",
        ),
    ],
)  # fmt: skip
def test_the_result_says_no_more_than_its_interval(
    bounds: tuple[float, float], p_value: float, end: str
) -> None:
    assert _result(_found(*bounds, p_value)).endswith(end)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trait", "unicorn"], "no trait 'unicorn'"),
        (["--trait", "owl", "--numbers", 20], "numbers: 20; raised, lowered and"),
        (["--trait", "owl", "--rows", "x.jsonl"], "--rows and --reference go together"),
        (["--trait", "owl", "--numbers", 1001], "less than or equal to 1000"),
        (["--trait", "owl", "--top", 1], "'--top'"),
        ([], "Missing option '--trait'"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: list[object], words: str, command: "Command", llama: Path, pets: Path
) -> None:
    found = command(
        "analyze", "entanglement", "--model", llama, "--family", pets, *options
    )
    assert found.status == 2
    assert words in found.err


def test_a_file_that_is_there_is_left_alone(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    file = tmp_path / "numbers.json"
    file.write_text("mine")
    found = command(
        "analyze", "entanglement", "--model", llama, "--trait", "owl", "--json", file
    )
    assert found.status == 2
    assert "exists already" in found.err
    assert file.read_text() == "mine"
