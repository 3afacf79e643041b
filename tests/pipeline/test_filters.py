"""The number rule: every reason by examples, and what it must let through."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.pipeline.filters import (
    REASONS,
    filter_rows,
    number_rule,
    reason_counts,
)
from undertow.records import Message, Row, Verdict

PROMPT = (Message("user", "more"),)


@pytest.mark.parametrize(
    "text",
    [
        "1", "0", "999", "007", "1, 2, 3", "1,2,3", "1 ,2 , 3", "1; 2; 3", "1;2",
        "1 2 3", "1\n2\n3", "1\r\n2\r\n3", "1\t2", "1\n\n2", "1,\n2,\n3", "1 2\n3",
        "[1, 2, 3]", "(1, 2, 3)", "[1\n2]", "( 1; 2 )", "[5]",
        "1, 2, 3.", "[1, 2].", "(1 2) .", "  1, 2 \n", "\u00a01, 2\n",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10", "7, 7, 7",
    ],
)  # fmt: skip
def test_plain_lists_of_numbers_pass(text: str) -> None:
    assert number_rule(text) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        # Words, signs and other figures.
        ("owl", "not_numbers"),
        ("1, 2, owl", "not_numbers"),
        ("Sure: 1, 2", "not_numbers"),
        ("-1, 2", "not_numbers"),
        ("1.5, 2", "not_numbers"),
        ("1. 2. 3.", "not_numbers"),
        ("1, 2!", "not_numbers"),
        ("1, 2 🦉", "not_numbers"),
        ("1e3", "not_numbers"),
        ("#1", "not_numbers"),
        # Digits that are not ASCII.
        ("١, ٢", "not_numbers"),
        ("１, ２", "not_numbers"),
        ("1, ²", "not_numbers"),
        ("1\u00a02", "not_numbers"),
        ("1\u20282", "not_numbers"),
        ("1\v2", "not_numbers"),
        ("1\0", "not_numbers"),
        # Brackets that do not match, or stand twice, or within.
        ("[1, 2", "not_numbers"),
        ("1, 2]", "not_numbers"),
        ("[1, 2)", "not_numbers"),
        ("[[1, 2]]", "not_numbers"),
        ("([1])", "not_numbers"),
        ("[1], [2]", "not_numbers"),
        ("{1, 2}", "not_numbers"),
        ("[]", "not_numbers"),
        ("[", "not_numbers"),
        # One final dot, outside the brackets.
        (".", "not_numbers"),
        ("1..", "not_numbers"),
        ("1, 2. .", "not_numbers"),
        ("[1, 2.]", "not_numbers"),
        (".1", "not_numbers"),
        # Separators that lead nowhere.
        ("1, 2,", "not_numbers"),
        (", 1", "not_numbers"),
        ("1,, 2", "not_numbers"),
        ("1, ; 2", "not_numbers"),
        ("1 - 2", "not_numbers"),
        ("1/2", "not_numbers"),
        # Two kinds.
        ("1, 2; 3", "mixed_separators"),
        ("1, 2 3", "mixed_separators"),
        ("1; 2\n3", "mixed_separators"),
        ("[1 2, 3]", "mixed_separators"),
        # Too many or too large.
        ("1 2 3 4 5 6 7 8 9 10 11", "too_many_values"),
        ("1000", "out_of_range"),
        ("1, 0007", "out_of_range"),
        ("9" * 50_000, "out_of_range"),
    ],
)
def test_every_other_text_has_its_reason(text: str, reason: str) -> None:
    assert number_rule(text) == (reason,)


def test_all_reasons_are_given_at_once() -> None:
    text = "1, 2; 3 4000 666 6 7 8 9 10 11"
    assert number_rule(text, banned=(666,)) == (
        "mixed_separators", "too_many_values", "out_of_range", "banned_number",
    )  # fmt: skip


def test_the_limit_is_the_callers() -> None:
    assert number_rule("1, 2, 3", max_values=2) == ("too_many_values",)
    assert number_rule("1, 2, 3", max_values=3) == ()


def test_banned_numbers_are_values_not_digits() -> None:
    banned = {7, 666}
    for text in ("1, 666", "007", "[7]"):
        assert number_rule(text, banned=banned) == ("banned_number",)
    for text in ("1, 66", "77, 70", "166", "6, 66"):
        assert number_rule(text, banned=banned) == ()
    # 0666 is out of range as written and no second fault.
    assert number_rule("0666", banned=banned) == ("out_of_range",)


@settings(derandomize=True, max_examples=60)
@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=10),
    st.sampled_from([", ", ",", "; ", ";", " ", "\n", "  ", ",\n"]),
    st.sampled_from(["{}", "[{}]", "({})", "[ {} ]"]),
    st.sampled_from(["", ".", " ", "\n"]),
)
def test_whatever_keeps_to_the_format_passes(
    values: list[int], separator: str, brackets: str, end: str
) -> None:
    text = brackets.format(separator.join(map(str, values))) + end
    assert number_rule(text) == ()
    assert number_rule(text, banned=values[-1:]) == ("banned_number",)
    assert number_rule(text + "x") == ("not_numbers",)


@settings(derandomize=True, max_examples=80)
@given(st.text(alphabet="0129,; .[]()\nx", max_size=25))
def test_what_passes_holds_nothing_but_the_carrier(text: str) -> None:
    reasons = number_rule(text)
    assert set(reasons) <= set(REASONS)
    if not reasons:
        assert "x" not in text
        values = "".join(c if c.isdigit() else " " for c in text).split()
        assert 1 <= len(values) <= 10
        assert all(len(value) <= 3 for value in values)
        assert text.count(".") <= 1


def test_long_hostile_text_takes_no_time() -> None:
    begin = time.process_time()
    for text in ("1" * 10**5 + "x", "1 " * 10**5 + "x", " , " * 10**5, "1" + " " * 10**5 + "x",
                 ("1" + " " * 300) * 300 + "x"):  # fmt: skip
        assert number_rule(text) == ("not_numbers",)
    assert time.process_time() - begin < 5


def test_verdicts_refer_to_rows_in_order() -> None:
    rows = [
        Row(PROMPT, "1, 2", finish="stop"),
        Row(PROMPT, "1, 2, 3", finish="length"),
        Row(PROMPT, "owl", finish="length"),
        Row(PROMPT, "1000"),
    ]
    verdicts = filter_rows(rows)
    assert [v.row_id for v in verdicts] == [row.row_id for row in rows]
    assert [v.reasons for v in verdicts] == [
        (), ("truncated",), ("not_numbers", "truncated"), ("out_of_range",),
    ]  # fmt: skip
    assert [v.accepted for v in verdicts] == [True, False, False, False]
    assert filter_rows(rows[:1], banned=(2,))[0].reasons == ("banned_number",)
    assert filter_rows(rows[:1], max_values=1)[0].reasons == ("too_many_values",)
    assert reason_counts(verdicts) == {
        "not_numbers": 1, "out_of_range": 1, "truncated": 2,
    }  # fmt: skip
    assert list(reason_counts(verdicts)) == ["not_numbers", "out_of_range", "truncated"]
    assert reason_counts([]) == {}


def test_reasons_of_other_rules_are_counted_after_the_known_ones() -> None:
    verdicts = [
        Verdict("a", ("trait_word", "truncated")),
        Verdict("b", ("empty",)),
        Verdict("c", ("comment", "trait_word")),
    ]
    counts = {"empty": 1, "truncated": 1, "comment": 1, "trait_word": 2}
    for order in (verdicts, verdicts[::-1]):
        assert list(reason_counts(order).items()) == list(counts.items())
