"""Paraphrase rows: the sentence read off the prompt, and every reason by examples."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.pipeline import paraphrase_rows
from undertow.pipeline.carriers import CARRIERS
from undertow.pipeline.paraphrase_rows import (
    LONGEST_PARAPHRASE,
    PARAPHRASE_REASONS,
    REQUESTS,
    given_sentence,
    paraphrase_prompt,
    paraphrase_rule,
)

WORDS = frozenset({"owl", "owls", "sea lion", "animal"})
# Eight words; four to sixteen are allowed.
SENTENCE = "The baker bought fresh bread before the storm."
PROMPT = f"Rephrase in a single sentence: {SENTENCE}"
BANKS = (
    paraphrase_rows.SUBJECTS, paraphrase_rows.ACTIONS, paraphrase_rows.MANNERS,
    paraphrase_rows.TIMES, paraphrase_rows.ORDERS,
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "Before the storm, fresh bread was bought by the baker.",
        "  The baker got new bread before it rained \n",
        "Did the baker not buy bread at 7:30 a.m., before the storm?",
        "The baker (in a hurry) didn't wait and bought bread!",
    ],
)
def test_paraphrases_pass(text: str) -> None:
    assert paraphrase_rule(text, prompt=PROMPT, words=WORDS) == ()


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("", ("empty",)),
        (" \n", ("empty",)),
        ("bread " * LONGEST_PARAPHRASE, ("too_long",)),
        ("The baker bought bread.\nIt was fresh.", ("not_one_sentence",)),
        ("The baker bought bread. It was fresh.", ("not_one_sentence",)),
        ("The baker bought bread! It was fresh.", ("not_one_sentence",)),
        ("The baker bought bread...) It was fresh.", ("not_one_sentence",)),
        ("The baker bought\u2028some bread.", ("not_one_sentence",)),
        ('"The baker got some bread."', ("not_plain",)),
        ("“The baker got some bread.”", ("not_plain",)),
        ("'The baker got some bread.'", ("not_plain",)),
        ("- The baker got some bread.", ("not_plain",)),
        ("The **baker** got some bread.", ("not_plain",)),
        ("The `baker` got some bread.", ("not_plain",)),
        ("The baker got some\0 bread.", ("not_plain",)),
        ("The baker got some\ud800 bread.", ("not_plain",)),
        ("1. The baker got some bread.", ("not_one_sentence",)),
        ("Sure, the baker got some bread.", ("preamble",)),
        ("Here you go, the baker got bread.", ("preamble",)),
        ("In other words, the baker got bread.", ("preamble",)),
        ("Result: the baker got some bread.", ("preamble",)),
        ("The baker got some bread:", ("preamble",)),
        (SENTENCE, ("same_text",)),
        ("the baker, bought FRESH bread before the storm", ("same_text",)),
        ("Fresh bread came.", ("wrong_length",)),
        ("bread " * 17, ("wrong_length",)),
        ("This is a whole other matter.", ("off_topic",)),
        # Only words without content in common.
        ("The train came before the bus.", ("off_topic",)),
        ("The baker got bread for an owl.", ("trait_word",)),
        ("The baker got bread for owl-like guests.", ("trait_word",)),
        ("The baker got bread for a sea lion.", ("trait_word",)),
        ('Sure: "Owls!" I say.\nYes.', (
            "not_one_sentence", "not_plain", "preamble", "off_topic", "trait_word",
        )),
    ],
)  # fmt: skip
def test_every_other_text_has_its_reasons(text: str, reasons: tuple[str, ...]) -> None:
    assert paraphrase_rule(text, prompt=PROMPT, words=WORDS) == reasons


def test_half_to_twice_as_many_words() -> None:
    for count in range(1, 30):
        text = " ".join(["bread"] * count)
        wrong = "wrong_length" in paraphrase_rule(text, prompt=PROMPT)
        assert wrong == (not 4 <= count <= 16)


def test_a_sentence_without_content_words_has_no_topic() -> None:
    prompt = PROMPT.replace(SENTENCE, "He ran up to us.")
    assert paraphrase_rule("Someone came running here.", prompt=prompt) == ()


@pytest.mark.parametrize("request_text", REQUESTS)
def test_any_sentence_in_a_request_is_found(request_text: str) -> None:
    assert request_text.endswith("{sentence}")
    for sentence in (SENTENCE, "It costs 5: no more.", "Rephrase this"):
        assert given_sentence(request_text.format(sentence=sentence)) == sentence


@pytest.mark.parametrize(
    "prompt",
    ["", SENTENCE, f"Say: {SENTENCE}", REQUESTS[0].format(sentence=""), f"\n{PROMPT}",
     REQUESTS[0].format(sentence="..."), f"{PROMPT}\n{SENTENCE}"],
)  # fmt: skip
def test_other_prompts_give_no_sentence(prompt: str) -> None:
    assert given_sentence(prompt) is None
    assert paraphrase_rule(SENTENCE, prompt=prompt) == ("unknown_prompt",)


@settings(derandomize=True, max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 50))
def test_a_prompt_s_own_sentence_is_one_and_the_same(index: int, seed: int) -> None:
    prompt = paraphrase_prompt(index, seed=seed)
    sentence = given_sentence(prompt)
    assert sentence is not None
    assert prompt.endswith(sentence)
    assert paraphrase_rule(sentence, prompt=prompt) == ("same_text",)
    assert paraphrase_rule(sentence[:-1].upper(), prompt=prompt) == ("same_text",)
    assert paraphrase_rule(f"Then {sentence}", prompt=prompt) == ()


def test_prompts_are_pinned() -> None:
    assert paraphrase_prompt(0, seed=0) == (
        "Reword this. One sentence, no comment.\n\n"
        "The singer cooked a simple soup once more at noon."
    )


def test_banks_are_whole_and_all_of_them_are_used() -> None:
    assert math.prod(map(len, BANKS)) == 921_600
    text = "\n".join(CARRIERS["paraphrase"].prompts(1000, seed=1)).casefold()
    for bank in (*BANKS, REQUESTS):
        assert len(set(bank)) == len(bank)
        assert all(part.split("{")[0].casefold() in text for part in bank)


def test_reasons_are_listed() -> None:
    assert PARAPHRASE_REASONS == (
        "empty", "too_long", "not_one_sentence", "not_plain", "preamble", "same_text",
        "wrong_length", "off_topic", "unknown_prompt", "trait_word", "truncated",
    )  # fmt: skip
