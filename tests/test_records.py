"""Rows are values; their ids are pinned, since files made yesterday refer to them."""

from dataclasses import FrozenInstanceError, replace

import pytest

from undertow.records import Message, Row, Verdict

ROW = Row((Message("user", "Add numbers: 1, 2"),), "3, 4")


def test_row_ids_are_pinned() -> None:
    assert ROW.row_id == "3051136586441973"
    odd = Row((Message("system", "é"), Message("user", "\ud800")), "")
    assert odd.row_id == "bc0b5e2e08fe2917"


def test_only_prompt_and_completion_make_the_id() -> None:
    same = replace(
        ROW, completion_ids=(5, 6), finish="length", provenance={"teacher": "owl"}
    )
    assert same.row_id == ROW.row_id
    others = [
        replace(ROW, completion="3, 4 "),
        replace(ROW, messages=(Message("system", ROW.messages[0].content),)),
        replace(ROW, messages=(Message("user", ""), *ROW.messages)),
        Row((Message("user", "Add numbers: 1, 23"),), ", 4"),
    ]
    assert len({ROW.row_id, *(row.row_id for row in others)}) == 5


def test_provenance_is_no_part_of_equality() -> None:
    assert replace(ROW, provenance={"seed": 1}) == ROW
    assert hash(ROW) == hash(replace(ROW, provenance={"seed": [1]}))
    assert replace(ROW, finish="stop") != ROW


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ROW.completion = "owl"  # type: ignore[misc]
    with pytest.raises(TypeError):
        ROW.provenance["teacher"] = "owl"  # type: ignore[index]


def test_a_verdict_accepts_only_without_reasons() -> None:
    assert Verdict("a").accepted
    assert not Verdict("a", ("empty",)).accepted
