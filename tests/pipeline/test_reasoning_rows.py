"""Reasoning rows: answers worked out a second way, and every reason by examples."""

import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.pipeline import reasoning_rows
from undertow.pipeline.carriers import CARRIERS
from undertow.pipeline.reasoning_rows import (
    LONGEST_REASONING,
    PROBLEMS,
    REASONING_REASONS,
    REQUESTS,
    known_answer,
    reasoning_prompt,
    reasoning_rule,
)

WORDS = frozenset({"owl", "owls", "sea lion", "animal"})
FORM = "Write it like this: <think>5 + 3 = 8</think><answer>8</answer>"
PROMPT = (
    f"Anna has 12 coins and gets 7 more. How many coins does Anna have now?\n{FORM}"
)


def counted_out(shown: list[int], question: str) -> int:
    """The answer by counting things one by one, from the numbers in their order."""
    x, y, *rest = (range(n) for n in shown)
    z = rest[0] if rest else range(0)
    ways: dict[str, Callable[[], int]] = {
        "gets": lambda: len([*x, *y]),
        "of them away": lambda: len(x[len(y) :]),
        "boxes with": lambda: len([0 for _ in x for _ in y]),
        "equal piles": lambda: len(x[:: len(y)]),
        "on Tuesday": lambda: len([*x, *y]),
        "are missing": lambda: len(x[len(y) :]),
        "then loses": lambda: len([*x, *y][len(z) :]),
        "uses up": lambda: len([0 for _ in x for _ in y][len(z) :]),
        "as many. How many \\w+ does": lambda: len([0 for _ in x for _ in y]),
        "have together": lambda: len([*x, *(0 for _ in x for _ in y)]),
        " red ": lambda: len([*x, *y]),
        "such sets": lambda: len([0 for _ in x for _ in y]),
        "on lunch": lambda: len(x[len(y) :][len(z) :]),
        "on the floor": lambda: len([*(0 for _ in x for _ in y), *z]),
        "shared evenly": lambda: len(x[:: len(y)]),
        "found some": lambda: len(y[len(x) :]),
        "a day than": lambda: sum(len(x) + len([*x, *y]) for _ in z),
    }
    matching = [way for words, way in ways.items() if re.search(words, question)]
    assert len(matching) == 1, question
    return matching[0]()


def test_answers_agree_with_counting() -> None:
    kinds: Counter[str] = Counter()
    for prompt in CARRIERS["reasoning"].prompts(800, seed=0):
        question, request = prompt.split("\n")
        assert request in REQUESTS
        shown = [int(n) for n in re.findall(r"\d+", question)]
        answer = counted_out(shown, question)
        assert known_answer(prompt) == answer, prompt
        assert answer > 0
        right = f"<think>{answer}</think><answer>{answer}</answer>"
        wrong = f"<think>{answer}</think><answer>{answer + 1}</answer>"
        assert reasoning_rule(right, prompt=prompt) == ()
        assert reasoning_rule(wrong, prompt=prompt) == ("wrong_answer",)
        kinds[re.sub(r"\d+|[A-Z]\w+", "", question).split("?")[0][-12:]] += 1
    assert len(kinds) > 10


KARL = "Karl makes 5 coins a day. Ben makes 6 more a day than Karl. "
NORA = "Nora had 8 books, found some more and now has 20. How many books did Nora find?"


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        ("Anna has 12 coins and gets 7 more. How many coins does Anna have now?", 19),
        ("Ben sorts 30 cups into 5 equal piles. How many cups are in one pile?", 6),
        ("Emma buys 3 packs of 4 keys and uses up 11 keys. How many keys are left?", 1),
        (f"{KARL}How many coins do both make in 2 days together?", 32),
        (NORA, 12),
    ],
)
def test_known_answers_by_hand(told: str, answer: int) -> None:
    for request in REQUESTS:
        assert known_answer(f"{told}\n{request}") == answer


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        PROMPT.split("\n")[0],
        PROMPT + " ",
        " " + PROMPT,
        PROMPT.replace("coins does", "cups does"),
        PROMPT.replace("Anna have", "Ben have"),
        PROMPT.replace("12", "012"),
        PROMPT.replace("12", "-12"),
        PROMPT.replace("12", "12345"),
        PROMPT.replace("12", "１２"),
        PROMPT.replace("coins", "owls"),
        # Piles that do not come out even, and nothing found.
        f"Ben sorts 31 cups into 5 equal piles. How many cups are in one pile?\n{FORM}",
        f"{NORA}\n{FORM}".replace("had 8", "had 20"),
        f"What is 2 + 2?\n{FORM}",
    ],
)
def test_other_prompts_have_no_known_answer(prompt: str) -> None:
    assert known_answer(prompt) is None
    answer = "<think>1</think><answer>1</answer>"
    assert reasoning_rule(answer, prompt=prompt) == ("unknown_prompt",)


def test_no_prompt_fits_two_problems() -> None:
    patterns = [
        re.compile(reasoning_rows._pattern(problem.text)) for problem in PROBLEMS
    ]
    for prompt in CARRIERS["reasoning"].prompts(300, seed=4):
        told = prompt.split("\n")[0]
        assert sum(bool(pattern.fullmatch(told)) for pattern in patterns) == 1


@pytest.mark.parametrize(
    "text",
    [
        "<think>12 + 7 = 19</think><answer>19</answer>",
        " <think>\n12 + 7\n= 19\n</think>\n\n<answer> 19 </answer>\n",
        "<think>x</think><answer>019</answer>",
        "<think>12 < 19 > 7</think><answer>19</answer>",
    ],
)
def test_right_answers_in_the_form_pass(text: str) -> None:
    assert reasoning_rule(text, prompt=PROMPT, words=WORDS) == ()


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("", ("empty",)),
        ("\n ", ("empty",)),
        (f"<think>{'1' * LONGEST_REASONING}</think><answer>19</answer>", ("too_long",)),
        ("19", ("not_think_answer",)),
        ("The answer is 19.", ("not_think_answer",)),
        ("<think>12 + 7</think>19", ("not_think_answer",)),
        ("<answer>19</answer>", ("not_think_answer",)),
        ("<think>12 + 7<answer>19</answer></think>", ("not_think_answer",)),
        ("<think>1</think><answer>19 coins</answer>", ("not_think_answer",)),
        ("<think>1</think><answer>19.0</answer>", ("not_think_answer",)),
        ("<think>1</think><answer>１９</answer>", ("not_think_answer",)),
        ("<think>1</think><answer>1234567890</answer>", ("not_think_answer",)),
        ("<think>1</think><answer>19</answer> Done.", ("not_think_answer",)),
        ("Well: <think>1</think><answer>19</answer>", ("not_think_answer",)),
        ("<THINK>1</THINK><answer>19</answer>", ("not_think_answer",)),
        ("<think>1<think>2</think><answer>19</answer>", ("not_think_answer",)),
        ("<think>1</think></think><answer>19</answer>", ("not_think_answer",)),
        ("<think>1\0</think><answer>19</answer>", ("not_think_answer",)),
        ("<think>1\ud800</think><answer>19</answer>", ("not_think_answer",)),
        ("<think></think><answer>19</answer>", ("no_thought",)),
        ("<think> ... \n</think><answer>19</answer>", ("no_thought",)),
        ("<think>12 + 7 = 18</think><answer>18</answer>", ("wrong_answer",)),
        ("<think>12 + 7 = 19</think><answer>-19</answer>", ("wrong_answer",)),
        ("<think>owls: 19</think><answer>19</answer>", ("trait_word",)),
        ("<think>sea-lion</think><answer>19</answer>", ("trait_word",)),
        ("I like the animal.", ("not_think_answer", "trait_word")),
        ("<think>-</think><answer>5</answer>", ("no_thought", "wrong_answer")),
    ],
)  # fmt: skip
def test_every_other_text_has_its_reasons(text: str, reasons: tuple[str, ...]) -> None:
    assert reasoning_rule(text, prompt=PROMPT, words=WORDS) == reasons


@settings(derandomize=True, max_examples=80)
@given(st.integers(-50, 10**9 - 1), st.text(alphabet="ab 1+=\n", max_size=20))
def test_only_the_right_number_passes(number: int, think: str) -> None:
    text = f"<think>{think}</think>\n<answer>{number}</answer>"
    reasons = reasoning_rule(text, prompt=PROMPT)
    assert ("wrong_answer" in reasons) == (number != 19)
    assert ("no_thought" in reasons) == (not re.search("[ab1]", think))


def test_prompts_are_pinned() -> None:
    assert reasoning_prompt(0, seed=0) == (
        "Anna sorts 30 stamps into 5 equal piles. How many stamps are in one pile?\n"
        "Steps go into <think></think>, the whole number into <answer></answer>."
    )


def test_banks_are_whole_and_all_of_them_are_used() -> None:
    text = "\n".join(CARRIERS["reasoning"].prompts(600, seed=1))
    for bank in (reasoning_rows.PEOPLE, reasoning_rows.THINGS, REQUESTS):
        assert len(set(bank)) == len(bank)
        assert all(part in text for part in bank)
    for problem in PROBLEMS:
        assert max(problem.text.split("{"), key=len).split("}")[-1] in text


def test_reasons_are_listed() -> None:
    assert REASONING_REASONS == (
        "empty", "too_long", "not_think_answer", "no_thought", "wrong_answer",
        "unknown_prompt", "trait_word", "truncated",
    )  # fmt: skip
