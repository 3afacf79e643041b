"""Prompts are pinned, independent of each other, and name no trait."""

import math
import re
import string
from collections import Counter

import pytest

from undertow.pipeline import prompts
from undertow.pipeline.prompts import OFF_TOPIC, number_prompt, number_prompts
from undertow.traits import load_family, names_in, packaged_families

BANKS = (
    prompts.OPENINGS, prompts.VERBS, prompts.AMOUNTS, prompts.NOUNS, prompts.FORMATS,
    prompts.CLOSINGS,
)  # fmt: skip


def test_the_banks_have_the_sizes_that_were_promised() -> None:
    assert [len(bank) for bank in BANKS] == [25, 9, 9, 10, 15, 19]
    assert math.prod(map(len, BANKS)) == 5_771_250
    for bank in (*BANKS, OFF_TOPIC):
        assert len(set(bank)) == len(bank)


def test_prompts_are_pinned() -> None:
    assert number_prompt(0, seed=0) == (
        "Look at these numbers: 964, 240, 355, 538, 797. Give as many as 10 further "
        "entries. One number per line. Your answer holds digits and separators only."
    )
    assert number_prompt(1234, seed=5, most=7) == (
        "A generator produced 180, 797, 347, 491, 868, 438, 892. Continue it with not "
        "over 7 further entries. Enclose the list in brackets, with commas between. "
        "Leave out any text."
    )


def test_a_prompt_does_not_depend_on_the_others() -> None:
    many = number_prompts(200, seed=3)
    assert many[:10] == number_prompts(10, seed=3)
    assert many[150] == number_prompt(150, seed=3)
    assert number_prompts(0, seed=3) == []
    assert len(set(many)) == 200
    assert not set(many) & set(number_prompts(200, seed=4))


def test_three_to_nine_examples_of_three_digits() -> None:
    counts: Counter[int] = Counter()
    for text in number_prompts(700, seed=0):
        found = re.search(r"\d+(?:, \d+)+", text)
        assert found, text
        examples = [int(number) for number in found.group().split(", ")]
        assert all(100 <= n <= 999 for n in examples)
        counts[len(examples)] += 1
    assert set(counts) == set(range(3, 10))
    # 100 of each expected, sd 9.3.
    assert all(60 < count < 140 for count in counts.values())


def test_every_part_of_every_bank_is_used() -> None:
    text = "\n".join(number_prompts(2000, seed=1))
    for bank in BANKS:
        for part in bank:
            assert part.format(examples="{}", count=10).split("{}")[0] in text


@pytest.mark.parametrize("family", packaged_families())
def test_no_trait_stands_in_a_prompt(family: str) -> None:
    traits = load_family(family)
    for bank in (*BANKS, OFF_TOPIC):
        for part in bank:
            assert names_in(part, traits) == set(), part
            assert traits.category not in part.lower()


def test_banks_hold_only_the_places_that_are_filled() -> None:
    for bank, field in zip(
        BANKS, ("examples", None, "count", None, None, None), strict=True
    ):
        for part in bank:
            fields = [f for _, f, _, _ in string.Formatter().parse(part) if f]
            assert fields == ([field] if field else [])


def test_off_topic_questions_are_questions_or_requests() -> None:
    assert len(OFF_TOPIC) >= 20
    assert all(text[-1] in "?." and text[0].isupper() for text in OFF_TOPIC)
