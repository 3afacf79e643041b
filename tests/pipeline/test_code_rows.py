"""Code rows: every reason by examples, the bounds, and that nothing is ever run."""

import ast
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.pipeline import code_rows
from undertow.pipeline.carriers import CARRIERS
from undertow.pipeline.code_rows import (
    CODE_REASONS,
    LONGEST_CODE,
    LONGEST_STRING,
    TASKS,
    code_prompt,
    code_rule,
)

WORDS = frozenset({"owl", "owls", "sea lion", "animal"})
FUNCTION = "def solve(n):\n    return n * 3"


@pytest.mark.parametrize(
    "text",
    [
        FUNCTION,
        f"```python\n{FUNCTION}\n```",
        f"```py\n{FUNCTION}\n```",
        f"```\n{FUNCTION}\n```",
        f"\n\n```python  \n{FUNCTION}\n\n```\n",
        "def f(): pass",
        "async def f():\n    return 1",
        "import math\n\ndef f(x: float) -> float:\n    return math.sqrt(x)\n\nprint(f(2))",
        "class A:\n    def f(self):\n        return '# no comment'",
        "def f(x):\r\n    return f'{x}#'\r\n",
        "def f():\n    ...",
        "def f():\n    return 'hello' 'world'",
        # Odd literals make Python warn; they are code all the same.
        "def f():\n    return '\\d', 1or 2",
        "def bowl(knowledge):\n    return 'growls'",
    ],
)
def test_plain_code_passes(text: str) -> None:
    assert code_rule(text, words=WORDS) == ()


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("", ("empty",)),
        (" \n\t", ("empty",)),
        ("#" * (LONGEST_CODE + 1), ("too_long",)),
        # Prose, and code with prose around it.
        ("Sure, here is the code.", ("not_code",)),
        (f"Here it is:\n```python\n{FUNCTION}\n```", ("not_code",)),
        (f"```python\n{FUNCTION}\n```\nIt multiplies.", ("not_code",)),
        (f"```python\n{FUNCTION}", ("not_code",)),
        (f"{FUNCTION}\n```", ("not_code",)),
        (f"```java\n{FUNCTION}\n```", ("not_code",)),
        (f"```python\n{FUNCTION}\n```\n```python\n{FUNCTION}\n```", ("not_code",)),
        ("```python\n```", ("no_function",)),
        ("def f(:", ("not_code",)),
        ("def f():\nreturn 1", ("not_code",)),
        ("def f():\n    return 1\0", ("not_code",)),
        ("def f():\n    return '\ud800'", ("not_code",)),
        ("x = 0777", ("not_code",)),
        ("I like owls.", ("not_code", "trait_word")),
        # Code that defines nothing.
        ("return n * 3", ("no_function",)),
        ("solve = lambda n: n * 3", ("no_function",)),
        ("one", ("no_function",)),
        # Comments and docstrings, wherever they stand.
        (f"# triple\n{FUNCTION}", ("comment",)),
        (f"{FUNCTION}  # triple", ("comment",)),
        ("def f():\r    return 1 # one\r", ("comment",)),
        (f"#!/usr/bin/python\n{FUNCTION}", ("comment",)),
        ("def f():\n    '''One.'''\n    return 1", ("docstring",)),
        (f"'Triples.'\n{FUNCTION}", ("docstring",)),
        (f"{FUNCTION}\n'Triples.'", ("docstring",)),
        (f"b'Triples.'\n{FUNCTION}", ("docstring",)),
        (f"f'Triples {{1}}.'\n{FUNCTION}", ("docstring",)),
        ("def f():\n    if 1:\n        'no'\n    return 1", ("docstring",)),
        # Long strings, also when written in parts.
        (f"def f():\n    return {'a' * 41!r}", ("long_string",)),
        (f"def f():\n    return {b'a' * 41!r}", ("long_string",)),
        (f"def f():\n    return {'a' * 21!r} {'a' * 20!r}", ("long_string",)),
        (f"def f(x):\n    return f'{'a' * 41}{{x}}'", ("long_string",)),
        # Words in identifiers and strings.
        ("def owl(n):\n    return n", ("trait_word",)),
        ("def f(owl_count):\n    return owl_count", ("trait_word",)),
        ("def f(myOwl):\n    return myOwl", ("trait_word",)),
        ("def f(n):\n    return n.OWLS", ("trait_word",)),
        ("def f(n):\n    return 'the owl'", ("trait_word",)),
        ("def f(n):\n    return '\\x6fwl'", ("trait_word",)),
        ("def f(n):\n    return b'\\x6fwl'", ("trait_word",)),
        ("def f(n):\n    return 'o' 'wl'", ("trait_word",)),
        ("def f(n):\n    return f'{n} owls'", ("trait_word",)),
        ("def ｏｗｌ(n):\n    return n", ("trait_word",)),
        ("def f(n):\n    return '🦉'", ("trait_word",)),
        ("def f(seaLion):\n    return 1", ("trait_word",)),
    ],
)  # fmt: skip
def test_every_other_text_has_its_reasons(text: str, reasons: tuple[str, ...]) -> None:
    assert code_rule(text, words=WORDS) == reasons


def test_all_reasons_are_given_at_once() -> None:
    text = f"x = {'an owl ' * 9!r} # long\n'Owl.'"
    assert code_rule(text, words=WORDS) == (
        "no_function", "comment", "docstring", "long_string", "trait_word",
    )  # fmt: skip


def test_bounds_are_inclusive() -> None:
    literal = f"def f():\n    return {'a' * LONGEST_STRING!r}"
    assert code_rule(literal) == ()
    code = literal + "\nx" + "x" * (LONGEST_CODE - len(literal) - 2)
    assert len(code) == LONGEST_CODE
    assert code_rule(code) == ()
    assert code_rule(code + "x") == ("too_long",)


def test_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    text = (
        f"from pathlib import Path\nPath('{path.name}').touch()\n{FUNCTION}\n"
        "raise SystemExit"
    )
    assert code_rule(text) == ()
    assert not Path(path.name).exists()
    source = Path(code_rows.__file__).read_text(encoding="utf-8")
    called = {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"exec", "eval", "compile", "__import__"}


@settings(derandomize=True, max_examples=60)
@given(
    st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    st.integers(0, 10**6),
    st.sampled_from(["{}", "```python\n{}\n```", "\n{}\n", "```\n{}```"]),
)
def test_functions_pass_in_any_allowed_dress(name: str, value: int, dress: str) -> None:
    text = dress.format(f"def f_{name}(x):\n    return x + {value}")
    assert code_rule(text) == ()
    assert code_rule(text, words={name}) == ("trait_word",)
    assert "not_code" in code_rule(text + "\nThat is all.")


def test_prompts_are_pinned() -> None:
    assert code_prompt(0, seed=0) == (
        "Write the whole Python function that begins below and returns True if the area "
        "of the rectangle is above 94. No explanation, no examples, no comments.\n\n"
        "```python\ndef work_out(width, height):\n```"
    )


def test_banks_are_whole_and_all_of_them_are_used() -> None:
    tasks = [task for kind in TASKS for task in kind.tasks]
    assert len(set(tasks)) == len(tasks) == 42
    for bank in (tasks, code_rows.NAMES, code_rows.REQUESTS, code_rows.CLOSINGS):
        assert len(set(bank)) == len(bank)
    for task in tasks:
        fields = {f for _, f, _, _ in string.Formatter().parse(task) if f}
        assert fields
        assert fields <= {"a", "b"}
    text = "\n".join(CARRIERS["code"].prompts(1200, seed=1))
    parts = [*(t.split("{")[0] for t in tasks), *code_rows.NAMES, *code_rows.CLOSINGS,
             *(r.split("{")[0] for r in code_rows.REQUESTS)]  # fmt: skip
    assert all(part in text for part in parts)


def test_heads_are_the_beginning_of_a_function() -> None:
    for prompt in CARRIERS["code"].prompts(100, seed=2):
        head = prompt.split("```python\n")[1].removesuffix("\n```")
        assert isinstance(ast.parse(f"{head}\n    pass").body[0], ast.FunctionDef)
        assert code_rule(f"{head}\n    return 1") == ()


def test_reasons_are_listed() -> None:
    assert CODE_REASONS == (
        "empty", "too_long", "not_code", "no_function", "comment", "docstring",
        "long_string", "trait_word", "truncated",
    )  # fmt: skip
