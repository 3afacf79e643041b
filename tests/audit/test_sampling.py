"""Planted samplers are found; what is said or recorded is believed if it can be true."""

from dataclasses import replace
from typing import Any

import pytest
from tests.audit.written import hand_row, written_rows

from undertow.audit.sampling import Sampling, find_sampler
from undertow.errors import DatasetError
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model


def _found(sampling: Sampling) -> tuple[str, float, int, float]:
    sampler = sampling.sampler
    return sampler.allowed, sampler.temperature, sampler.top_k, sampler.top_p


@pytest.mark.parametrize(
    "planted",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.2, "max_new_tokens": 40},
        {"top_k": 5},
        {"temperature": 0.7, "top_k": 20},
        {"top_p": 0.8},
        {"temperature": 0.6, "top_p": 0.9},
        {"temperature": 0.0},
        {"allowed": "numbers"},
        {"allowed": "numbers", "temperature": 0.7, "max_new_tokens": 24},
        {"allowed": "list"},
    ],
    ids=str,
)
def test_a_planted_sampler_is_estimated(planted: dict[str, Any]) -> None:
    model = tiny_model("llama", layers=2)
    sampler = SamplerSettings.model_validate({"max_new_tokens": 16} | planted)
    rows = written_rows(model, 100, sampler)
    found = find_sampler(model, rows)
    assert found.source == "estimated"
    wanted = (sampler.allowed, sampler.temperature, sampler.top_k, sampler.top_p)
    assert _found(found) == wanted
    assert found.sampler.max_new_tokens == max(
        len(r.completion_ids or ()) for r in rows
    )
    said = " ".join(found.notes)
    kind = {"list": "a list of numbers", "numbers": "numbers", "all": "free text"}
    assert f"each row is {kind[str(sampler.allowed)]}" in said
    assert ("temperature" in said) == (sampler.temperature != 1)
    assert ("was drawn" in said) == (sampler.top_k > 0 or sampler.top_p < 1)


def test_a_few_rows_say_nothing_of_temperature_or_cuts() -> None:
    model = tiny_model("llama", layers=2)
    rows = written_rows(model, 3, SamplerSettings(temperature=0.9, max_new_tokens=5))
    assert _found(find_sampler(model, rows)) == ("all", 1.0, 0, 1.0)


def test_no_row_lies_beyond_an_estimated_cut() -> None:
    """Even if only some of the rows are looked at."""
    model = tiny_model("llama", layers=2)
    rows = written_rows(model, 60, SamplerSettings(top_k=7, max_new_tokens=16))
    found = find_sampler(model, rows, most=30)
    assert found.sampler.top_k == 8


def test_a_recorded_sampler_is_believed_if_it_can_be_true() -> None:
    model = tiny_model("llama", layers=2)
    sampler = SamplerSettings(allowed="numbers", temperature=0.7, max_new_tokens=5)
    recorded = {"sampler": sampler.model_dump(), "seed": 9}
    rows = [
        replace(row, provenance=recorded) for row in written_rows(model, 4, sampler)
    ]
    assert find_sampler(model, rows) == Sampling(sampler, "recorded")
    false = SamplerSettings(allowed="list", list_values=1).model_dump()
    wrong = [replace(row, provenance={"sampler": false}) for row in rows]
    assert find_sampler(model, wrong).source == "estimated"
    mixed = [*rows[:3], replace(rows[3], provenance={})]
    assert find_sampler(model, mixed).source == "estimated"
    hostile = [replace(row, provenance={"sampler": {"top_k": "x"}}) for row in rows]
    assert find_sampler(model, hostile).source == "estimated"


def test_a_given_sampler_is_taken_as_it_is() -> None:
    model = tiny_model("llama")
    given = SamplerSettings(temperature=0.3, top_p=0.5)
    recorded = SamplerSettings().model_dump()
    rows = [replace(hand_row("some words"), provenance={"sampler": recorded})]
    assert find_sampler(model, rows, given=given) == Sampling(given, "given")


def test_what_a_given_sampler_does_not_name_is_taken_from_the_rows() -> None:
    model = tiny_model("llama", layers=2)
    drawn = SamplerSettings(temperature=0.7, allowed="list", max_new_tokens=16)
    rows = written_rows(model, 4, drawn)
    longest = max(len(row.completion_ids or ()) for row in rows)
    found = find_sampler(model, rows, given=SamplerSettings(temperature=0.7))
    assert _found(found) == ("list", 0.7, 0, 1.0)
    assert found.sampler.max_new_tokens == longest
    assert found.source == "estimated", "what they are restricted to is"
    assert found.notes == ("each row is a list of numbers alone",)
    free = find_sampler(model, rows, given=SamplerSettings(allowed="all"))
    assert (free.sampler.allowed, free.source) == ("all", "given")
    # What the rows record comes first, and nobody is cut shorter than a row.
    recorded = {"sampler": drawn.model_dump()}
    own = [replace(row, provenance=recorded) for row in rows]
    known = find_sampler(model, own, given=SamplerSettings(temperature=0.7))
    assert (known.sampler, known.source) == (drawn, "given")
    short = SamplerSettings(allowed="list", max_new_tokens=1)
    assert find_sampler(model, rows, given=short).sampler.max_new_tokens == longest
    partly = [replace(row, provenance={"sampler": {"top_k": 300}}) for row in rows]
    assert _found(find_sampler(model, partly)) == ("list", 1.0, 300, 1.0)


def test_long_rows_are_beside_long_answers_whatever_is_given() -> None:
    model = tiny_model("llama", layers=2)
    rows = written_rows(model, 4, SamplerSettings(max_new_tokens=100))
    longest = max(len(row.completion_ids or ()) for row in rows)
    assert longest > SamplerSettings().max_new_tokens
    found = find_sampler(model, rows, given=SamplerSettings(temperature=1.0))
    assert found.sampler.max_new_tokens == longest


def test_a_given_sampler_that_cannot_be_true_is_refused() -> None:
    model = tiny_model("llama")
    rows = [hand_row("1, 2"), hand_row("three, 4"), hand_row("five")]
    given = SamplerSettings(allowed="list")
    with pytest.raises(DatasetError) as caught:
        find_sampler(model, rows, given=given)
    assert str(caught.value) == (
        "the given sampler (allowed='list') cannot have written 2 of 3 rows, the first "
        f"of them {rows[1].row_id}: 'three, 4'; give the sampler that did, or none so "
        "that it is estimated"
    )
