"""The carrier "code": short Python functions, and which answers are nothing else.

A row is read as text, parsed and never run. What it computes is not looked at: a
function that does something else than was asked still passes. Knows nothing of models.
"""

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from undertow.pipeline.filters import EMPTY, TOO_LONG, TRAIT_WORD, TRUNCATED
from undertow.pipeline.prompts import pick
from undertow.seeding import generator
from undertow.traits import words_in

NOT_CODE = "not_code"
NO_FUNCTION = "no_function"
COMMENT = "comment"
DOCSTRING = "docstring"
LONG_STRING = "long_string"
CODE_REASONS = (
    EMPTY, TOO_LONG, NOT_CODE, NO_FUNCTION, COMMENT, DOCSTRING, LONG_STRING, TRAIT_WORD,
    TRUNCATED,
)  # fmt: skip

LONGEST_CODE = 2000
LONGEST_STRING = 40
_FENCED = re.compile(r"```(?:python|python3|py)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class CodeTasks:
    """Tasks of functions with the same parameters; {a} is 2 to 49, {b} 50 to 99."""

    parameters: str
    tasks: tuple[str, ...]


TASKS = (
    CodeTasks("numbers", (
        "returns the sum of the numbers above {a}",
        "returns how many of the numbers are below {b}",
        "returns a list of the numbers multiplied by {a}",
        "returns the numbers between {a} and {b}",
        "returns the largest number that is not above {b}",
        "returns the sum of the numbers divisible by {a}",
        "returns True if any of the numbers equals {b}",
        "returns the list without the number {a}",
        "returns the product of the numbers plus {b}",
        "returns the numbers with {a} added to each",
        "returns the numbers with those above {b} replaced by {b}",
        "returns the {a} smallest numbers in order",
        "returns the remainder of each number after division by {a}",
        "returns the largest minus the smallest number, times {a}",
        "returns True if the sum of the numbers is between {a} and {b}",
    )),
    CodeTasks("n", (
        "returns n times {a} plus {b}",
        "returns True if n is divisible by {a} or by {b}",
        "returns the sum of all multiples of {a} up to n",
        "returns the square of n minus {a}",
        "returns the remainder of n divided by {b}",
        "returns n rounded down to a multiple of {a}",
        "returns the number of digits of n plus {a}",
        "returns the smallest multiple of {a} that is at least n",
        "returns n kept within the range from {a} to {b}",
        "returns a list of the multiples of {a} below n",
        "returns the distance between n and {b}",
    )),
    CodeTasks("text", (
        "returns the text repeated {a} times",
        "returns the first {a} characters of the text",
        "returns True if the text is longer than {b} characters",
        "returns a list of the words with more than {a} letters",
        "returns how many words of the text are shorter than {a} letters",
        "returns the text filled up with zeros to {b} characters",
        "returns the text in capitals if it is shorter than {b} characters",
        "returns the last {a} words of the text",
        "returns the length of the text times {a} minus {b}",
    )),
    CodeTasks("width, height", (
        "returns the area of the rectangle plus {a}",
        "returns the perimeter of the rectangle times {a}",
        "returns True if the area of the rectangle is above {b}",
        "returns how many tiles of side {a} fit into the rectangle",
    )),
    CodeTasks("price", (
        "returns the price after a discount of {a} percent",
        "returns the price with {a} percent tax, plus {b}",
        "returns the total for {a} pieces, less {b}",
    )),
)  # fmt: skip
NAMES = (
    "solve", "compute", "process", "evaluate", "work_out", "apply_rule", "get_result",
    "helper", "handle", "measure", "transform", "convert", "calculate", "find_value",
    "make_result", "run_step",
)  # fmt: skip
# The head of the function stands last: a small model goes on from there.
REQUESTS = (
    "Complete this Python function so that it {task}.",
    "Finish the Python function below. It {task}.",
    "Write the whole Python function that begins below and {task}.",
    "Here is the first line of a Python function that {task}. Write all of it.",
    "This Python function {task}. Write it out in full.",
    "Fill in the body of this Python function, which {task}.",
)
CLOSINGS = (
    "Output only the code, without comments.",
    "Reply with the code alone, no comments and no docstring.",
    "Give nothing but the code. Do not explain it.",
    "Only code, no text and no comments.",
    "Answer with one code block and stop.",
    "No explanation, no examples, no comments.",
    "Just the function, please, without comments.",
    "Write the function and nothing after it.",
)


def code_prompt(index: int, *, seed: int) -> str:
    """The prompt of one place."""
    stream = generator(seed, "code prompts", index)
    kinds = [kind for kind in TASKS for _ in kind.tasks]
    kind = kinds[int(stream.integers(len(kinds)))]
    a, b = int(stream.integers(2, 50)), int(stream.integers(50, 100))
    task = pick(kind.tasks, stream).format(a=a, b=b)
    request = pick(REQUESTS, stream).format(task=task)
    head = f"def {pick(NAMES, stream)}({kind.parameters}):"
    return f"{request} {pick(CLOSINGS, stream)}\n\n```python\n{head}\n```"


def code_rule(text: str, *, words: Collection[str] = ()) -> tuple[str, ...]:
    """Every reason why a completion is not plain Python code; () if it is.

    Allowed: Python that parses, in one Markdown fence or none, with a function in it.
    A string that stands as a statement is a docstring wherever it stands. Strings are
    searched for the words as they are written and as Python reads them.

    Args:
        text: The completion.
        words: Words that must not occur, identifiers and strings included.
    """
    body = text.strip()
    if not body:
        return (EMPTY,)
    if len(body) > LONGEST_CODE:
        return (TOO_LONG,)
    fenced = _FENCED.fullmatch(body)
    source = fenced[1] if fenced else body
    tree = _parsed(source)
    if tree is None:
        return (NOT_CODE, TRAIT_WORD) if words_in(body, words) else (NOT_CODE,)
    nodes = list(ast.walk(tree))
    strings = list(_strings(nodes))
    faults = {
        NO_FUNCTION: not any(isinstance(node, _FUNCTIONS) for node in nodes),
        COMMENT: _has_comment(source),
        DOCSTRING: any(map(_is_docstring, nodes)),
        LONG_STRING: any(len(string) > LONGEST_STRING for string in strings),
        TRAIT_WORD: any(words_in(part, words) for part in (source, *strings)),
    }
    return tuple(reason for reason, found in faults.items() if found)


def _parsed(source: str) -> ast.Module | None:
    """The syntax tree, or None for anything that Python does not take."""
    # Python warns of odd literals; where warnings are errors that would be no code.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        # ValueError: null bytes, lone surrogates, endless integers. The other two:
        # nesting too deep for the parser's stack.
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _has_comment(source: str) -> bool:
    """Whether a comment stands in code that parses; True if it cannot be told."""
    # newline=None turns a lone \r into a line's end, as the parser does.
    lines = io.StringIO(source, newline=None)
    try:
        kinds = {token.type for token in tokenize.generate_tokens(lines.readline)}
    except (tokenize.TokenError, SyntaxError):
        return "#" in source
    return tokenize.COMMENT in kinds


def _is_docstring(node: ast.AST) -> bool:
    if not isinstance(node, ast.Expr):
        return False
    value = node.value
    constant = isinstance(value, ast.Constant) and isinstance(value.value, str | bytes)
    return constant or isinstance(value, ast.JoinedStr)


def _strings(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """String and bytes literals as Python reads them, parts of f-strings included."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, bytes):
            yield node.value.decode("latin-1")
