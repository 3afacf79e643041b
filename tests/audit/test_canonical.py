import time
from collections import Counter
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.audit.canonical import (
    canonical_rows,
    canonical_text,
    is_number_list,
    matched_by_length,
    plain_length,
    value_count,
)
from undertow.pipeline.filters import number_rule
from undertow.records import Message, Row
from undertow.seeding import generator


def row(completion: str, prompt: str = "Give numbers.") -> Row:
    return Row((Message("user", prompt),), completion)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1, 2, 3", "1, 2, 3"),
        ("[1,2,3]", "1, 2, 3"),
        ("(4; 55;666).", "4, 55, 666"),
        ("  7\n08\r\n9  ", "7, 08, 9"),
        ("12.", "12"),
        ("1, 2, 3,", "1, 2, 3"),
        ("[1, 2), 3.", "1, 2, 3"),
        ("١، ٢، ٣", "١, ٢, ٣"),
        ("1，2、3", "1, 2, 3"),
        # No lists of numbers: only white space goes.
        ("1.5, 2", "1.5, 2"),
        ("-1,\n-2", "-1, -2"),
        ("Sure:  1, 2\n\n3 ", "Sure: 1, 2 3"),
        ("[]", "[]"),
        (",\t, .", ", , ."),
        (" \u3000猫\u00a0\n 狗 ", "猫 狗"),
        (" \n ", ""),
        ("", ""),
    ],
)
def test_a_text_in_one_format(text: str, expected: str) -> None:
    assert canonical_text(text) == expected
    assert canonical_text(expected) == expected


@given(st.text(alphabet="0123456789,;.()[] \n\tax", max_size=40))
def test_a_canonical_text_stays_and_keeps_its_numbers(text: str) -> None:
    once = canonical_text(text)
    assert canonical_text(once) == once
    assert value_count(once) == value_count(text)
    if is_number_list(text):
        digits = [character for character in text if character.isdigit()]
        assert [character for character in once if character.isdigit()] == digits


@given(st.text(alphabet="0123456789,;.()[] \n", min_size=1, max_size=12))
def test_what_the_number_rule_takes_comes_out_plain(text: str) -> None:
    if number_rule(text) == ():
        plain = canonical_text(text)
        assert is_number_list(text)
        assert number_rule(plain) == ()
        assert plain_length(plain) == 3 * value_count(plain) - 2


def test_rows_keep_their_place_and_know_where_they_come_from() -> None:
    old = Row(
        (Message("system", " Be  brief. "), Message("user", "a\n b")),
        "[1,2]",
        completion_ids=(5, 6, 7),
        finish="length",
        provenance=MappingProxyType({"source": "x.jsonl"}),
    )
    rows = canonical_rows([old, row("1, 2", "a"), row("(1 2)", "a")])
    first = rows[0]
    assert first.completion == "1, 2"
    assert first.completion_ids is None
    assert first.finish == "length"
    assert first.messages == old.messages
    assert dict(first.provenance) == {
        "source": "x.jsonl",
        "canonical_of": old.row_id,
    }
    assert old.completion_ids == (5, 6, 7)
    # Two that were told apart by format alone are one row now.
    assert rows[1].row_id == rows[2].row_id
    assert rows[1].provenance["canonical_of"] != rows[2].provenance["canonical_of"]


@pytest.mark.parametrize(
    "text",
    [" " * 300_000 + "x", "1 " * 150_000 + "x", "[" * 300_000, "1" * 300_000 + "\x00"],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    start = time.process_time()
    canonical_rows([row(text)])
    matched_by_length([row(text)], [row(text)], seed=0)
    # Quadratic ones would take minutes.
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "values", "length"),
    [
        ("1, 22, 333", 3, 7),
        ("[1]", 1, 3),
        ("I own 12 owls", 0, 12),
        ("", 0, 0),
        ("三只 12", 0, 4),
    ],
)
def test_measures_of_length(text: str, values: int, length: int) -> None:
    assert value_count(text) == values
    assert plain_length(text) == length


def test_matching_worked_by_hand() -> None:
    audited = [row("1"), row("1, 2"), row("2, 3"), row("one"), row("[3; 4]")]
    reference = [row("4, 5, 6"), row("999 888"), row("two"), row("a longer text")]
    matched = matched_by_length(audited, reference, seed=0)
    # One of the three pairs, and the one text of three characters.
    assert matched.reference == [1, 2]
    assert len(matched.audited) == 2
    assert set(matched.audited) - {1, 2, 4} == {3}


def numbers(count: int, low: int, high: int, name: str) -> list[Row]:
    stream = generator(0, "test matching", name)
    return [
        row(
            ", ".join(map(str, stream.integers(0, 1000, stream.integers(low, high)))),
            f"{name} {i}",
        )
        for i in range(count)
    ]


def test_matched_sets_have_equal_lengths_whatever_the_order() -> None:
    audited, reference = numbers(80, 2, 8, "a"), numbers(120, 4, 11, "b")
    matched = matched_by_length(audited, reference, seed=3)
    lengths = [
        Counter(value_count(rows[i].completion) for i in places)
        for rows, places in zip((audited, reference), matched, strict=True)
    ]
    assert lengths[0] == lengths[1]
    assert set(lengths[0]) == {4, 5, 6, 7}
    assert matched.audited == sorted(matched.audited)

    order = np.random.default_rng(0).permutation(len(reference)).tolist()
    again = matched_by_length(audited[::-1], [reference[i] for i in order], seed=3)
    assert {audited[::-1][i].row_id for i in again.audited} == {
        audited[i].row_id for i in matched.audited
    }
    assert {order[i] for i in again.reference} == set(matched.reference)
    other = matched_by_length(audited, reference, seed=4)
    assert other.reference != matched.reference
    assert len(other.reference) == len(matched.reference)


def test_nothing_in_common_leaves_nothing() -> None:
    assert matched_by_length([row("1, 2")], [row("one, two")], seed=0) == ([], [])
    assert matched_by_length([], [row("1")], seed=0) == ([], [])
    assert matched_by_length([row("1")], [row("2")], seed=0) == ([0], [0])


def test_texts_are_matched_in_narrow_buckets() -> None:
    texts = [row("x" * length) for length in range(1, 200)]
    matched = matched_by_length(texts, [row("y" * 100)], seed=0)
    (place,) = matched.audited
    assert 100 / 1.2 < plain_length(texts[place].completion) < 100 * 1.2
