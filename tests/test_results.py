"""The schema of results.json: strict, and the same after a trip through a file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from undertow.results import SCHEMA_VERSION, Condition, Estimate, Results, RowCounts
from undertow.storage import read_json, write_json

UNKNOWN = Estimate(mean=0.5, low=None, high=None, n=1, clusters="seed")
RESULTS = Results(
    title="t",
    question="q?",
    model="m",
    headline="h",
    conditions=[],
    transfers=[],
    provenance={"commit": None, "cores": 2, "dirty": False, "list": ["a"]},
    seconds={"rows": 1.5},
)


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, RESULTS.model_dump(mode="json"))
    assert Results.model_validate(read_json(path)) == RESULTS
    assert read_json(path)["schema_version"] == SCHEMA_VERSION == 1
    assert read_json(path)["confidence"] == 0.95


def test_what_could_not_be_computed_is_null() -> None:
    assert json.loads(UNKNOWN.model_dump_json()) == {
        "mean": 0.5, "low": None, "high": None, "n": 1, "clusters": "seed",
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Estimate, Results, Condition, RowCounts])
def test_unknown_fields_are_refused(kind: Any) -> None:
    schema = kind.model_json_schema()
    assert schema["additionalProperties"] is False
    with pytest.raises(ValidationError, match="surprise"):
        kind.model_validate({"surprise": 1})


def test_results_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RESULTS.title = "other"


def test_nan_never_reaches_the_file(tmp_path: Path) -> None:
    estimate = Estimate(mean=math.nan, low=-math.inf, high=1, n=0, clusters="seed")
    write_json(tmp_path / "e.json", estimate.model_dump(mode="json"))
    found = Estimate.model_validate(read_json(tmp_path / "e.json"))
    assert (found.mean, found.low, found.high) == (None, None, 1)


def test_results_of_one_kind_of_student_say_which_when_read_again() -> None:
    """Files of earlier versions named the kind in conditions alone."""
    path = Path(__file__).parents[1] / "docs/studies/channel/results.json"
    data = read_json(path)
    for name in ("transfers", "predictions"):
        for each in data[name]:
            del each["student"], each["way"]
    assert {c["student"] for c in data["conditions"]} == {"soft"}
    found = Results.model_validate(data)
    assert {each.student for each in found.transfers} == {"soft"}
    assert {each.student for each in found.predictions} == {"soft"}
    assert found == Results.model_validate(read_json(path))


@pytest.mark.parametrize("conditions", [1e308, True, "text", {}, [], [3], None])
def test_conditions_that_are_none_are_a_fault_and_no_crash(conditions: object) -> None:
    with pytest.raises(ValidationError):
        Results.model_validate({"conditions": conditions, "title": "t"})
