"""Carriers by name: prompts, verdicts, and that no text whatever upsets a rule."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.errors import DatasetError
from undertow.pipeline.carriers import (
    CARRIERS,
    Carrier,
    carrier_verdicts,
    number_carrier,
)
from undertow.pipeline.controls import shuffled_within_rows
from undertow.pipeline.filters import filter_rows, number_rule, reason_counts
from undertow.pipeline.prompts import number_prompts
from undertow.records import Finish, Message, Row
from undertow.traits import load_family, packaged_families, trait_words, words_in

WORDS = frozenset[str]().union(
    *(trait_words(load_family(name)) for name in packaged_families())
)
OTHERS = tuple(name for name in CARRIERS if name != "numbers")
FUNCTION = "def solve(n):\n    return n * 3"
PROBLEM = (
    "Anna has 12 coins and gets 7 more. How many coins does Anna have now?\n"
    "Write it like this: <think>5 + 3 = 8</think><answer>8</answer>"
)
SENTENCE = "Rephrase in a single sentence: The baker bought fresh bread before lunch."
GOOD = {
    "numbers": ("more", "1, 2, 3"),
    "code": ("code", FUNCTION),
    "reasoning": (PROBLEM, "<think>12 + 7 = 19</think><answer>19</answer>"),
    "paraphrase": (SENTENCE, "Before lunch, fresh bread was bought by the baker."),
}
HOSTILE = (
    "(" * 10_000, "[" * 199, "-" * 1999 + "1", "not " * 499 + "1", "a." * 999 + "a",
    "f'{" * 600, "lambda:" * 280 + "1", "{a:" * 600, "\0", "def f(): pass\0",
    "\ud800", "x = '\udfff'", "a" * 1_000_000, "owl " * 250_000, "\n" * 1_000_000,
    "<think>" * 280, "<think>" + "</think>" * 240, "<think>" + "</think> " * 200,
    "<think>1</think><answer>" + "9" * 1900 + "</answer>", "." * 390, ". " * 190,
    "\ufdfa" * 390, "```python\n" * 190, "```" * 600, "9" * 1999, "1e9999 if 1else 2",
    "\r", "\x0c\u2028", "#" * 1999, "'" * 1999, "def f():\n" + " " * 1980,
)  # fmt: skip


def row(prompt: str, completion: str, finish: Finish = "stop") -> Row:
    """A row as a teacher writes it."""
    return Row((Message("user", prompt),), completion, finish=finish)


def test_the_registry_has_the_carriers_under_their_own_names() -> None:
    assert list(CARRIERS) == ["numbers", "code", "reasoning", "paraphrase"]
    for name, carrier in CARRIERS.items():
        assert carrier.name == name
        assert len(set(carrier.reasons)) == len(carrier.reasons)
        assert carrier.reasons[0] == "empty"
        assert carrier.reasons[-1] == "truncated"


@pytest.mark.parametrize("name", CARRIERS)
def test_a_prompt_depends_on_seed_and_place_alone(name: str) -> None:
    carrier = CARRIERS[name]
    many = carrier.prompts(300, seed=3)
    assert many == carrier.prompts(300, seed=3)
    assert many[:10] == carrier.prompts(10, seed=3)
    assert many[250] == carrier.prompt_at(250, 3)
    assert carrier.prompts(0, seed=3) == []
    assert len(set(many)) >= 299
    assert len(set(many) & set(carrier.prompts(300, seed=4))) <= 2


@pytest.mark.parametrize("name", CARRIERS)
def test_thousands_of_prompts_differ(name: str) -> None:
    assert len(set(CARRIERS[name].prompts(2000, seed=0))) > 1980


@pytest.mark.parametrize("name", CARRIERS)
def test_no_prompt_holds_a_word_of_a_packaged_family(name: str) -> None:
    text = "\n".join(CARRIERS[name].prompts(1500, seed=1))
    assert words_in(text, WORDS) == set()


@pytest.mark.parametrize("name", CARRIERS)
def test_good_rows_pass_and_trait_words_do_not(name: str) -> None:
    prompt, completion = GOOD[name]
    carrier = CARRIERS[name]
    assert carrier.rule(row(prompt, completion), WORDS) == ()
    assert carrier.rule(row(prompt, f" {completion} \n"), WORDS) == ()
    assert carrier.rule(row(prompt, " \n"), WORDS) == ("empty",)
    if name in OTHERS:
        for part in ("bread", "solve", "12"):
            spoiled = completion.replace(part, "owl")
            if spoiled != completion:
                assert "trait_word" in carrier.rule(row(prompt, spoiled), WORDS)
                assert "trait_word" not in carrier.rule(row(prompt, spoiled), ())


def test_numbers_are_judged_as_they_always_were() -> None:
    texts = ["1, 2", "", "owl", "1000", "1, 2; 3", "1 2 3 4 5 6 7 8 9 10 11", "666"]
    rows = [row("more", text) for text in texts]
    rows += [row("more", text, "length") for text in texts]
    carrier = CARRIERS["numbers"]
    assert carrier_verdicts(carrier, rows, words=WORDS) == filter_rows(rows)
    assert carrier.prompts(40, seed=2) == number_prompts(40, seed=2)


def test_numbers_under_another_rule() -> None:
    carrier = number_carrier(most=4, max_values=2, banned=[666])
    verdicts = carrier_verdicts(
        carrier, [row("more", "1, 2, 3"), row("more", "666")], words=()
    )
    assert [v.reasons for v in verdicts] == [("too_many_values",), ("banned_number",)]
    assert carrier.prompts(9, seed=2) == number_prompts(9, seed=2, most=4)


@settings(derandomize=True, max_examples=80)
@given(st.text(st.characters(), max_size=60))
def test_the_number_rule_is_the_one_of_the_filter(text: str) -> None:
    made = Row((), text)
    assert CARRIERS["numbers"].rule(made, WORDS) == number_rule(text)


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
@settings(derandomize=True, max_examples=120, deadline=None)
@given(
    text=st.one_of(
        st.text(st.characters(), max_size=60),
        st.text(alphabet="<>/thinkanswer 0123456789\n", max_size=60),
        st.text(alphabet="defx():\n \t#'\"\\=+[]{}`f", max_size=60),
        st.text(alphabet="The bakr.!?\"':,-\n", max_size=60),
    ),
    prompt=st.sampled_from([PROBLEM, SENTENCE, "", "\ud800\n"]),
)
def test_any_text_has_known_reasons_or_none(
    carrier: Carrier, text: str, prompt: str
) -> None:
    for completion in (text, f"<think>{text}</think><answer>19</answer>"):
        reasons = carrier.rule(row(prompt, completion), WORDS)
        assert set(reasons) <= set(carrier.reasons)
        # In the carrier's order, each once.
        assert list(reasons) == [r for r in carrier.reasons if r in reasons]
        if not completion.strip():
            assert reasons == ("empty",)


@pytest.mark.parametrize("name", CARRIERS)
def test_hostile_text_takes_no_time(name: str) -> None:
    begin = time.process_time()
    for text in HOSTILE:
        for prompt in (GOOD[name][0], text):
            reasons = CARRIERS[name].rule(row(prompt, text), WORDS)
            assert set(reasons) <= set(CARRIERS[name].reasons), text[:20]
    assert time.process_time() - begin < 8


def test_verdicts_refer_to_rows_in_order_and_say_what_was_cut_off() -> None:
    prompt, completion = GOOD["code"]
    rows = [
        row(prompt, completion),
        row(prompt, completion, "length"),
        row(prompt, "Sure!", "length"),
        row(prompt, "x = 1"),
        row(prompt, "x = 1  # owl"),
    ]
    verdicts = carrier_verdicts(CARRIERS["code"], rows, words=WORDS)
    assert [v.row_id for v in verdicts] == [r.row_id for r in rows]
    assert [v.reasons for v in verdicts] == [
        (), ("truncated",), ("not_code", "truncated"), ("no_function",),
        ("no_function", "comment", "trait_word"),
    ]  # fmt: skip
    counts = reason_counts(verdicts)
    assert counts == {
        "truncated": 2, "comment": 1, "no_function": 2, "not_code": 1, "trait_word": 1,
    }  # fmt: skip
    assert list(counts) == list(reason_counts(reversed(verdicts)))


@pytest.mark.parametrize("name", OTHERS)
def test_rows_without_a_prompt_are_judged_too(name: str) -> None:
    reasons = CARRIERS[name].rule(Row((), GOOD[name][1]), WORDS)
    assert reasons == (() if name == "code" else ("unknown_prompt",))


def test_rows_without_numbers_cannot_be_shuffled() -> None:
    with pytest.raises(DatasetError, match="no numbers"):
        shuffled_within_rows([row(*GOOD["paraphrase"])], seed=0)


@pytest.mark.parametrize("name", OTHERS)
def test_prompts_are_plain_text(name: str) -> None:
    for prompt in CARRIERS[name].prompts(500, seed=6):
        assert prompt == prompt.strip()
        assert not re.search(r"\{[a-z]+\}|  \S+ {2}", prompt.replace("    ", ""))
        assert prompt.isascii()
