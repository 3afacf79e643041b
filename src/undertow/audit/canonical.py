"""Rows in one format and sets of one length, so that neither can be what an audit saw.

Where separators or lengths alone tell the audited rows from the reference, an audit is
repeated on rows that were rewritten and matched here. Both sides have to go through it
alike, and rewritten rows have to be scored again: their tokens are others. Knows
nothing of scores, and judges nothing (see `baselines`).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from undertow.records import Row
from undertow.seeding import stream_seed

# Any digits, the commas of other scripts too: "١، ٢" is a list of numbers.
NUMBER = re.compile(r"\d+")
_LIST = re.compile(r"[\d\s,;،؛、，；()\[\]]+")

Key = tuple[bool, int]


class Matched(NamedTuple):
    """Places of the rows that stay, ascending; as many on each side."""

    audited: list[int]
    reference: list[int]


def is_number_list(text: str) -> bool:
    """Whether a text is made of numbers, separators and brackets, with a final dot or not.

    Wider than the number rule of `pipeline.filters`: any number of values of any
    size, separators and brackets in any order.
    """
    # Stripped first and one class of characters: linear in the length of hostile text.
    body = text.strip().removesuffix(".")
    return bool(_LIST.fullmatch(body)) and bool(NUMBER.search(body))


def canonical_text(text: str) -> str:
    """A number list as "1, 2, 3"; any other text trimmed, white space collapsed.

    Numbers stay as they are written, leading zeros and all.
    """
    if is_number_list(text):
        return ", ".join(NUMBER.findall(text))
    return " ".join(text.split())


def canonical_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows in one format, in order, one for one.

    Prompts stay. Recorded tokens go, as they spell the old text, and the provenance
    keeps the old row id as `canonical_of`. Different rows may become equal, and an
    answer of white space becomes an empty one.
    """
    return [
        replace(
            row,
            completion=canonical_text(row.completion),
            completion_ids=None,
            provenance=MappingProxyType({**row.provenance, "canonical_of": row.row_id}),
        )
        for row in rows
    ]


def value_count(text: str) -> int:
    """How many values a number list has; 0 for any other text."""
    return len(NUMBER.findall(text)) if is_number_list(text) else 0


def plain_length(text: str) -> int:
    """Characters of a text, each number counted as one.

    A teacher that writes larger numbers says something else; it keeps to the format.
    """
    return len(NUMBER.sub("0", text))


def matched_by_length(
    audited: Sequence[Row], reference: Sequence[Row], *, seed: int
) -> Matched:
    """Rows of both sets that have the same distribution of lengths.

    Of each length as many rows stay as the smaller side has: number lists by their
    number of values, other texts by buckets of plain length a fifth wide. Which ones
    depends on the seed and their row ids, never on their order.

    Returns:
        Places in `audited` and in `reference`; none where no length is common to both.
    """
    sides = [_places(rows, seed) for rows in (audited, reference)]
    common = sides[0].keys() & sides[1].keys()
    counts = {key: min(len(side[key]) for side in sides) for key in common}
    kept = [
        sorted(place for key, count in counts.items() for place in side[key][:count])
        for side in sides
    ]
    return Matched(*kept)


def _places(rows: Sequence[Row], seed: int) -> dict[Key, list[int]]:
    """Places of the rows of each length, in the order in which they are taken."""
    drawn = [stream_seed(seed, "matched rows", row.row_id) for row in rows]
    places: dict[Key, list[int]] = {}
    for place in sorted(range(len(rows)), key=drawn.__getitem__):
        places.setdefault(_key(rows[place].completion), []).append(place)
    return places


def _key(text: str) -> Key:
    """Number list or not, and its bucket of lengths: four to a doubling for texts."""
    values = value_count(text)
    return bool(values), values or int(4 * math.log2(1 + plain_length(text)))
