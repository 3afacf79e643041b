"""The number rule: which rows keep to the carrier's format, with reasons by name.

A filter deletes nothing; it answers with a verdict for each row. Knows nothing of
traits: a row that passes says nothing but numbers.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable

from undertow.records import Row, Verdict

EMPTY = "empty"
NOT_NUMBERS = "not_numbers"
MIXED_SEPARATORS = "mixed_separators"
TOO_MANY_VALUES = "too_many_values"
OUT_OF_RANGE = "out_of_range"
BANNED_NUMBER = "banned_number"
TRUNCATED = "truncated"
REASONS = (
    EMPTY, NOT_NUMBERS, MIXED_SEPARATORS, TOO_MANY_VALUES, OUT_OF_RANGE,
    BANNED_NUMBER, TRUNCATED,
)  # fmt: skip
# Shared by the rules of other carriers.
TOO_LONG = "too_long"
TRAIT_WORD = "trait_word"
UNKNOWN_PROMPT = "unknown_prompt"

LARGEST = 999
_BRACKETS = {"[": "]", "(": ")"}
_DIGITS = re.compile(r"[0-9]+")
_SEPARATED = re.compile(r"[0-9]+(?:[ \t\r\n]*[,;][ \t\r\n]*[0-9]+|[ \t\r\n]+[0-9]+)*")


def number_rule(
    text: str, *, max_values: int = 10, banned: Collection[int] = ()
) -> tuple[str, ...]:
    """Every reason why a completion is no plain list of numbers; () if it is one.

    Allowed: one pair of brackets around everything, a final dot, one kind of
    separator (commas, semicolons or white space), ASCII digits, values 0 to 999.

    Args:
        text: The completion.
        max_values: Values allowed.
        banned: Values that are refused (those with a meaning, 666 for instance).
    """
    body = text.strip()
    if not body:
        return (EMPTY,)
    body = body.removesuffix(".").rstrip()
    if len(body) > 1 and _BRACKETS.get(body[0]) == body[-1]:
        body = body[1:-1].strip()
    if not _SEPARATED.fullmatch(body):
        return (NOT_NUMBERS,)
    digits = _DIGITS.findall(body)
    reasons = []
    if len(_separators(body)) > 1:
        reasons.append(MIXED_SEPARATORS)
    if len(digits) > max_values:
        reasons.append(TOO_MANY_VALUES)
    if any(len(d) > 3 for d in digits):
        reasons.append(OUT_OF_RANGE)
    if any(len(d) <= 3 and int(d) in banned for d in digits):
        reasons.append(BANNED_NUMBER)
    return tuple(reasons)


def _separators(body: str) -> set[str]:
    """Kinds of separator in use; white space beside a comma belongs to the comma."""
    between = _DIGITS.split(body)[1:-1]
    return {gap.strip() or "white space" for gap in between}


def filter_rows(
    rows: Iterable[Row], *, max_values: int = 10, banned: Collection[int] = ()
) -> list[Verdict]:
    """A verdict for each row, in order; a row that was cut off is truncated."""
    verdicts = []
    for row in rows:
        reasons = number_rule(row.completion, max_values=max_values, banned=banned)
        if row.finish == "length":
            reasons = (*reasons, TRUNCATED)
        verdicts.append(Verdict(row.row_id, reasons))
    return verdicts


def reason_counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many rows each reason refused: `REASONS` in order, then others by name."""
    counts = Counter(reason for verdict in verdicts for reason in verdict.reasons)
    order = (*REASONS, *sorted(set(counts) - set(REASONS)))
    return {reason: counts[reason] for reason in order if counts[reason]}
