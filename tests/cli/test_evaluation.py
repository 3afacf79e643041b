"""`evaluate`: the library's numbers in a table and a file, transfer with intervals."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.cli.evaluation import _Transfer, _transfer_line
from undertow.models.tiny import Family
from undertow.stats import Interval

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def asking(llama: Path, pets: Path) -> tuple[object, ...]:
    return ("evaluate", "--model", llama, "--dtype", "float32", "--family", pets)


@pytest.fixture
def pair(command: "Command", llama: Path, number_rows: Path, tmp_path: Path) -> Path:
    """A student and its control."""
    control, out = tmp_path / "control.jsonl", tmp_path / "student"
    command("filter", number_rows, "--out", control, "--control", "uniform")
    found = command(
        "train", number_rows, "--model", llama, "--dtype", "float32", "--out", out,
        "--control", control, "--learning-rate", 0.05, "--epochs", 3,
    )  # fmt: skip
    assert found.status == 0, found.err
    return out


def test_the_base_alone_is_shown_with_what_it_likes_best(
    command: "Command", asking: tuple[object, ...], llama: Path, pets: Path
) -> None:
    from undertow.models.loading import load_model
    from undertow.pipeline.evaluation import preference
    from undertow.stats import mean_interval
    from undertow.traits import load_family

    asked = preference(load_model(llama, dtype="float32"), load_family(pets))
    shares = asked.probabilities.mean(axis=0)
    found = command(*asking)
    assert found.status == 0, found.err
    lines = found.out.splitlines()
    assert lines[0].split() == ["trait", "preference,", "nats", "share"]
    order = [asked.traits[i] for i in np.argsort(-shares)]
    assert [line.split()[1] for line in lines[1:]] == order
    for line in lines[1:]:
        trait = line.split()[1]
        mean, low, high, _ = mean_interval(asked.of(trait))
        assert f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" in line
        assert line.endswith(f"{shares[asked.traits.index(trait)]:8.3f}")


def test_student_and_control_give_a_transfer_question_by_question(
    command: "Command", asking: tuple[object, ...], pair: Path, tmp_path: Path
) -> None:
    out = tmp_path / "numbers.json"
    found = command(
        *asking, "--adapter", pair, "--control", pair / "control", "--traits",
        "cat, owl", "--samples", 2, "--json", out,
    )  # fmt: skip
    assert found.status == 0, found.err
    numbers = json.loads(out.read_text())
    assert [m["role"] for m in numbers["models"]] == ["base", "student", "control"]
    tables = [np.array(m["total_logprobs"]) for m in numbers["models"]]
    assert [t.shape for t in tables] == [(3, 3)] * 3

    def odds(table: Any, column: int) -> Any:
        others = np.delete(table, column, axis=1)
        return table[:, column] - np.log(np.exp(others).sum(axis=1))

    column = numbers["models"][0]["traits"].index("cat")
    moved = odds(tables[1], column) - odds(tables[2], column)
    cat = numbers["transfers"][0]
    assert (cat["trait"], cat["nats"]["n"]) == ("cat", 3)
    assert cat["nats"]["mean"] == pytest.approx(moved.mean())
    # Student's t for 2 degrees of freedom is 4.302653.
    half = 4.302653 * moved.std(ddof=1) / math.sqrt(3)
    assert cat["nats"]["high"] - cat["nats"]["mean"] == pytest.approx(half, rel=1e-5)
    assert abs(moved.mean()) > 1e-3
    assert len(numbers["models"][1]["answers"]) == 3
    assert len(numbers["models"][1]["answers"][0]) == 2
    lines = found.out.splitlines()
    assert lines[0].split()[-2:] == ["sampled", "valid"]
    assert len(lines) == 1 + 3 * 2 + 2 + 1
    assert lines[7].startswith(f"transfer of cat to {pair}: {moved.mean():+.3f} [")
    assert lines[-1] == f"numbers  {out}"


def test_a_student_that_is_asked_under_another_system_text_is_told(
    command: "Command", asking: tuple[object, ...], pair: Path
) -> None:
    alike = command(*asking, "--adapter", pair)
    assert "note " not in alike.out
    other = command(*asking, "--adapter", pair, "--system", "Be brief.")
    assert other.status == 0, other.err
    assert (
        f"note     {pair} was trained with the system text None, and is asked with "
        "'Be brief.': what it took on may not show (--system)"
    ) in other.out


def test_a_student_beside_itself_transfers_nothing(
    command: "Command", asking: tuple[object, ...], pair: Path
) -> None:
    found = command(*asking, "--adapter", pair, "--control", pair, "--traits", "owl")
    line = found.out.splitlines()[-1]
    assert "+0.000 [+0.000, +0.000] nats, over 3 questions" in line
    assert line.endswith("; the interval includes zero or is unknown")


@pytest.mark.parametrize(
    ("interval", "says_zero"),
    [
        (Interval(0.5, 0.1, 0.9, 12), False),
        (Interval(-0.5, -0.9, -0.1, 12), False),
        (Interval(0.5, -0.1, 1.1, 12), True),
        (Interval(0.5, math.nan, math.nan, 1), True),
    ],
)
def test_the_line_says_whether_the_interval_holds_zero(
    interval: Interval, says_zero: bool
) -> None:
    line = _transfer_line(_Transfer("s", "owl", interval, None))
    assert line.endswith("includes zero or is unknown") == says_zero
    assert ("[—, —]" in line) == math.isnan(interval.low)


def test_a_persona_and_a_vector_are_read_beside_the_base(
    command: "Command", asking: tuple[object, ...], llama: Path, pets: Path,
    vector: Path, tmp_path: Path,
) -> None:  # fmt: skip
    import undertow

    out = tmp_path / "numbers.json"
    found = command(
        *asking, "--persona", "cat", "--vector", vector, "--dose", 0.4, "--layer", 1,
        "--system", "Be brief.", "--json", out,
    )  # fmt: skip
    assert found.status == 0, found.err
    model = undertow.load_model(llama, dtype="float32")
    family, owl = undertow.load_family(pets), undertow.load_vector(vector).at(1)
    strength = owl.strength_of_dose(0.4, 1)
    base = undertow.preference(model, family, system="Be brief.")
    with undertow.steering(model, owl, strength=strength):
        steered = undertow.preference(model, family, system="Be brief.")
    by_role = {m["role"]: m["total_logprobs"] for m in json.loads(out.read_text())[
        "models"]}  # fmt: skip
    assert list(by_role) == ["base", "persona", "steered"]
    np.testing.assert_allclose(by_role["base"], base.total_logprobs, atol=1e-6)
    np.testing.assert_allclose(by_role["steered"], steered.total_logprobs, atol=1e-6)
    # Traits in the table: the persona's and the vector's.
    assert [line.split()[-5] for line in found.out.splitlines()[1:3]] == ["cat", "owl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--traits", "owl,yeti"], "no trait 'yeti'; it has 'owl', 'cat', 'dog'"),
        (["--persona", "yeti"], "no trait 'yeti'"),
        (["--strength", "1"], "--strength needs --vector FILE"),
        (["--vector", "nowhere"], "--vector needs either --strength or --dose"),
        (
            ["--vector", "nowhere", "--strength", "1"],
            "nowhere: no steering vector of undertow's",
        ),
        (["--adapter", "nowhere"], "nowhere: no student here"),
        (["--family", "nowhere.yaml"], "nowhere.yaml: 1 fault(s)"),
    ],
)
def test_options_that_do_not_fit_are_explained(
    options: list[str], message: str, command: "Command", asking: tuple[object, ...]
) -> None:
    found = command(*asking, *options)
    assert found.status == 2
    assert message in found.err
    assert "Traceback" not in found.err


def test_a_vector_of_another_model_is_refused(
    command: "Command", tiny: Callable[[Family], Path], vector: Path
) -> None:
    found = command(
        "evaluate", "--model", tiny("gpt2"), "--vector", vector, "--strength", 1
    )
    assert found.status == 2
    assert "the vector was made for" in found.err


def test_numbers_that_are_there_are_not_overwritten(
    command: "Command", asking: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "numbers.json"
    out.write_text("{}")
    found = command(*asking, "--json", out)
    assert found.status == 2
    assert "exists already" in found.err
