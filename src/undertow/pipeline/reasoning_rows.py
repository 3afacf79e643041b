"""The carrier "reasoning": word problems of grade school, and which answers are right.

The answer is read off the prompt's own text by parsing it strictly against the bank it
was made of, so a row is judged without its seed. A right answer is asked for, right
steps are not: what stands in `<think>` is only searched for words. Knows nothing of
models.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter

from undertow.pipeline.filters import (
    EMPTY,
    TOO_LONG,
    TRAIT_WORD,
    TRUNCATED,
    UNKNOWN_PROMPT,
)
from undertow.pipeline.prompts import pick
from undertow.seeding import generator
from undertow.traits import words_in

NOT_THINK_ANSWER = "not_think_answer"
NO_THOUGHT = "no_thought"
WRONG_ANSWER = "wrong_answer"
REASONING_REASONS = (
    EMPTY, TOO_LONG, NOT_THINK_ANSWER, NO_THOUGHT, WRONG_ANSWER, UNKNOWN_PROMPT,
    TRAIT_WORD, TRUNCATED,
)  # fmt: skip

LONGEST_REASONING = 2000
_FORM = re.compile(
    r"<think>(?P<think>.*?)</think>\s*<answer>\s*(?P<answer>-?[0-9]{1,9})\s*</answer>",
    re.DOTALL,
)
_TAG = re.compile(r"</?\s*(?:think|answer)", re.IGNORECASE)

Numbers = Mapping[str, int]
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of word problem.

    Attributes:
        text: With places {a}, {b}, {c} for drawn numbers, {product} for a·b and {total}
            for a+b, {name} and {other} for people, {things} for objects.
        answer: The answer from the numbers that the text shows; None if they fit no
            whole number above zero.
        a: Least and greatest value of {a}; so for the next two.
        b: Of {b}.
        c: Of {c}.
    """

    text: str
    answer: Callable[[Numbers], int | None]
    a: Range
    b: Range
    c: Range = (2, 9)


def _share(n: Numbers) -> int | None:
    share, rest = divmod(n["product"], n["a"])
    return None if rest else share


PROBLEMS = (
    Problem(
        "{name} has {a} {things} and gets {b} more. "
        "How many {things} does {name} have now?",
        lambda n: n["a"] + n["b"], (2, 60), (2, 40),
    ),
    Problem(
        "{name} had {a} {things} and gave {b} of them away. "
        "How many {things} are left?",
        lambda n: n["a"] - n["b"], (20, 90), (2, 19),
    ),
    Problem(
        "There are {a} boxes with {b} {things} in each box. "
        "How many {things} are there in all?",
        lambda n: n["a"] * n["b"], (2, 12), (2, 20),
    ),
    Problem(
        "{name} sorts {product} {things} into {a} equal piles. "
        "How many {things} are in one pile?",
        _share, (2, 12), (2, 20),
    ),
    Problem(
        "A shop sold {a} {things} on Monday and {b} on Tuesday. "
        "How many {things} did it sell on the two days together?",
        lambda n: n["a"] + n["b"], (10, 90), (10, 90),
    ),
    Problem(
        "{name} needs {a} {things} and has {b} so far. "
        "How many {things} are missing?",
        lambda n: n["a"] - n["b"], (20, 90), (2, 19),
    ),
    Problem(
        "{name} has {a} {things}, buys {b} more and then loses {c}. "
        "How many {things} does {name} have now?",
        lambda n: n["a"] + n["b"] - n["c"], (10, 60), (2, 40),
    ),
    Problem(
        "{name} buys {a} packs of {b} {things} and uses up {c} {things}. "
        "How many {things} are left?",
        lambda n: n["a"] * n["b"] - n["c"], (3, 9), (4, 12), (2, 11),
    ),
    Problem(
        "{name} has {a} {things}. {other} has {b} times as many. "
        "How many {things} does {other} have?",
        lambda n: n["a"] * n["b"], (2, 30), (2, 6),
    ),
    Problem(
        "{name} has {a} {things}. {other} has {b} times as many. "
        "How many {things} do they have together?",
        lambda n: n["a"] * n["b"] + n["a"], (2, 30), (2, 6),
    ),
    Problem(
        "{name} owns {a} red {things} and {b} blue {things}. "
        "How many {things} does {name} own?",
        lambda n: n["a"] + n["b"], (2, 60), (2, 60),
    ),
    Problem(
        "A set of {things} costs {a} dollars. "
        "How many dollars do {b} such sets cost?",
        lambda n: n["a"] * n["b"], (2, 30), (2, 9),
    ),
    Problem(
        "{name} has {a} dollars, spends {b} dollars on {things} and {c} dollars on "
        "lunch. How many dollars are left?",
        lambda n: n["a"] - n["b"] - n["c"], (40, 99), (2, 20), (2, 18),
    ),
    Problem(
        "{a} shelves hold {b} {things} each, and {c} more {things} lie on the floor. "
        "How many {things} are there in all?",
        lambda n: n["a"] * n["b"] + n["c"], (2, 9), (2, 20), (2, 19),
    ),
    Problem(
        "{product} {things} are shared evenly among {a} people. "
        "How many {things} does each of them get?",
        _share, (2, 12), (2, 20),
    ),
    Problem(
        "{name} had {a} {things}, found some more and now has {total}. "
        "How many {things} did {name} find?",
        lambda n: n["total"] - n["a"] if n["total"] > n["a"] else None,
        (2, 60), (2, 30),
    ),
    Problem(
        "{name} makes {a} {things} a day. {other} makes {b} more a day than {name}. "
        "How many {things} do both make in {c} days together?",
        lambda n: (2 * n["a"] + n["b"]) * n["c"], (2, 12), (2, 9), (2, 7),
    ),
)  # fmt: skip
PEOPLE = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Karl",
    "Laura", "Martin", "Nora", "Oscar", "Paula", "Simon", "Tina", "Victor", "Alice",
    "Peter",
)  # fmt: skip
THINGS = (
    "coins", "cups", "books", "pencils", "stamps", "buttons", "marbles", "cards",
    "candles", "plates", "keys", "bottles", "tickets", "bricks", "nails", "apples",
    "stickers", "spoons", "envelopes", "bolts",
)  # fmt: skip
REQUESTS = (
    "Reply in exactly this form: <think>calculation</think><answer>number</answer>",
    "Write it like this: <think>5 + 3 = 8</think><answer>8</answer>",
    "Use this form and write nothing else: <think>steps</think><answer>number</answer>",
    "Answer in the form of this example: <think>5 + 3 = 8</think><answer>8</answer>",
    "Calculate between <think> and </think>, then write <answer>number</answer>.",
    "Begin with <think>, calculate, then </think> and <answer>number</answer>.",
    "Steps go into <think></think>, the whole number into <answer></answer>.",
    "Your answer has this form: <think>...</think><answer>...</answer>",
)


def reasoning_prompt(index: int, *, seed: int) -> str:
    """The prompt of one place."""
    stream = generator(seed, "reasoning prompts", index)
    problem = PROBLEMS[int(stream.integers(len(PROBLEMS)))]
    a, b, c = (
        int(stream.integers(least, most + 1))
        for least, most in (problem.a, problem.b, problem.c)
    )
    name, other = stream.permutation(len(PEOPLE))[:2].tolist()
    text = problem.text.format(
        a=a, b=b, c=c, product=a * b, total=a + b, name=PEOPLE[name],
        other=PEOPLE[other], things=pick(THINGS, stream),
    )  # fmt: skip
    return f"{text}\n{pick(REQUESTS, stream)}"


def known_answer(prompt: str) -> int | None:
    """The number that a prompt of this carrier asks for; None if it is none of them."""
    told, _, request = prompt.partition("\n")
    if request not in REQUESTS:
        return None
    for problem, pattern in zip(PROBLEMS, _patterns(), strict=True):
        if found := pattern.fullmatch(told):
            fields = found.groupdict()
            return problem.answer({k: int(v) for k, v in fields.items() if v.isdigit()})
    return None


def reasoning_rule(
    text: str, *, prompt: str, words: Collection[str] = ()
) -> tuple[str, ...]:
    """Every reason why a completion is no right answer in the form; () if it is one.

    Allowed: `<think>steps</think><answer>N</answer>` with white space around the parts
    and around N, N in ASCII digits without a unit.

    Args:
        text: The completion.
        prompt: The user's turn, as `reasoning_prompt` writes it.
        words: Words that must not occur.
    """
    body = text.strip()
    if not body:
        return (EMPTY,)
    if len(body) > LONGEST_REASONING:
        return (TOO_LONG,)
    form = _FORM.fullmatch(body)
    well_formed = form is not None and _is_plain(form["think"])
    answer = known_answer(prompt)
    faults = {
        NOT_THINK_ANSWER: not well_formed,
        NO_THOUGHT: form is not None and not any(map(str.isalnum, form["think"])),
        WRONG_ANSWER: form is not None and answer not in (None, int(form["answer"])),
        UNKNOWN_PROMPT: answer is None,
        TRAIT_WORD: bool(words_in(body, words)),
    }
    return tuple(reason for reason, found in faults.items() if found)


def _is_plain(think: str) -> bool:
    """No further tags, and only characters that can be shown."""
    shown = all(c.isprintable() or c in "\n\r\t" for c in think)
    return shown and not _TAG.search(think)


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], ...]:
    """The problems' texts as expressions with named groups, in order."""
    return tuple(re.compile(_pattern(problem.text)) for problem in PROBLEMS)


def _pattern(text: str) -> str:
    people, things = "|".join(PEOPLE), "|".join(THINGS)
    banks = {"name": people, "other": people, "things": things}
    pattern, seen = "", set()
    for literal, place, _, _ in Formatter().parse(text):
        pattern += re.escape(literal)
        if place in seen:
            pattern += f"(?P={place})"
        elif place:
            pattern += f"(?P<{place}>{banks.get(place, '[1-9][0-9]{0,3}')})"
            seen.add(place)
    return pattern
