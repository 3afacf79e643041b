"""Rows that carry less than a teacher's: uniform numbers, and shuffles.

Shuffling within a row keeps which values a row has and destroys their order;
shuffling across rows keeps only which values the whole set has. Format, separators
and how many values a row has stay. Values are numbers, or the words of any other
text. Knows nothing of models.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from undertow.errors import ConfigError, DatasetError
from undertow.pipeline.filters import LARGEST
from undertow.records import Message, Row
from undertow.seeding import generator

Control = Literal["within", "across", "uniform"]
Unit = Literal["numbers", "words"]
_UNITS = {"numbers": re.compile(r"[0-9]+"), "words": re.compile(r"\S+")}
_ENCLOSED = {"bracket": ("[", "]"), "parenthes": ("(", ")")}


def control_rows(
    rows: Sequence[Row],
    control: Control,
    *,
    seed: int,
    most: int = 10,
    unit: Unit = "numbers",
) -> list[Row]:
    """One control row for each row, with the same prompt.

    Args:
        rows: Rows that passed the filter.
        control: "within" and "across" shuffle, "uniform" draws other numbers.
        seed: Of the shuffle or draw.
        most: Numbers of a row at most, for "uniform".
        unit: What is shuffled: numbers, or words with all that clings to them.

    Raises:
        ConfigError: "uniform" of words: nobody knows all that could be said.
        DatasetError: A row without any such unit cannot be shuffled.
    """
    if control == "within":
        return shuffled_within_rows(rows, seed=seed, unit=unit)
    if control == "across":
        return shuffled_across_rows(rows, seed=seed, unit=unit)
    if unit != "numbers":
        fault = "draws numbers only; 'within' and 'across' shuffle words"
        raise ConfigError("control 'uniform'", [fault])
    asked = [row.messages[-1].content for row in rows]
    drawn = uniform_number_rows(asked, seed=seed, most=most)
    return [
        replace(new, messages=row.messages)
        for new, row in zip(drawn, rows, strict=True)
    ]


def uniform_number_rows(
    prompts: Sequence[str], *, seed: int, most: int = 10
) -> list[Row]:
    """Each prompt answered with up to `most` numbers drawn evenly from 0 to 999.

    Written as the prompt asks; with commas if it says nothing of its format.
    """
    rows = []
    for index, prompt in enumerate(prompts):
        stream = generator(seed, "uniform rows", index)
        count = int(stream.integers(1, most + 1))
        values = stream.integers(0, LARGEST + 1, size=count)
        row = Row(
            messages=(Message("user", prompt),),
            completion=_as_asked(prompt, [str(value) for value in values]),
            finish="stop",
            provenance={"teacher": "uniform", "seed": seed, "prompt": index},
        )
        rows.append(row)
    return rows


def _as_asked(prompt: str, values: Sequence[str]) -> str:
    """The values in the format that a number prompt asks for."""
    separators = {"comma": ", ", "semicolon": "; ", "line": "\n", "space": " "}
    separator = next((s for word, s in separators.items() if word in prompt), ", ")
    left, right = next(
        (pair for word, pair in _ENCLOSED.items() if word in prompt), ("", "")
    )
    return f"{left}{separator.join(values)}{right}"


def shuffled_within_rows(
    rows: Sequence[Row], *, seed: int, unit: Unit = "numbers"
) -> list[Row]:
    """Each row's numbers, or words, in another order."""
    shuffled = []
    for row in rows:
        values = _values(row, unit)
        order = generator(seed, "shuffle within", row.row_id).permutation(len(values))
        shuffled.append(
            _with_values(row, [values[i] for i in order], "shuffled within", seed, unit)
        )
    return shuffled


def shuffled_across_rows(
    rows: Sequence[Row], *, seed: int, unit: Unit = "numbers"
) -> list[Row]:
    """All numbers, or words, of all rows dealt out anew; each row keeps its count."""
    counts = [len(_values(row, unit)) for row in rows]
    pool = [value for row in rows for value in _values(row, unit)]
    order = generator(seed, "shuffle across").permutation(len(pool)).tolist()
    dealt = iter([pool[i] for i in order])
    return [
        _with_values(
            row, [next(dealt) for _ in range(n)], "shuffled across", seed, unit
        )
        for row, n in zip(rows, counts, strict=True)
    ]


def _values(row: Row, unit: Unit) -> list[str]:
    values = _UNITS[unit].findall(row.completion)
    if not values:
        raise DatasetError(
            f"row {row.row_id}: no {unit} in {row.completion[:60]!r}; filter the rows "
            "before they are shuffled"
        )
    return values


def _with_values(
    row: Row, values: Sequence[str], control: str, seed: int, unit: Unit
) -> Row:
    new = iter(values)
    text = _UNITS[unit].sub(lambda _: next(new), row.completion)
    facts = {**row.provenance, "control": control, "control_seed": seed}
    return replace(row, completion=text, completion_ids=None, provenance=facts)
