"""What a number row may be made of, token by token.

A carrier is a small automaton over a few token ids: "numbers" lets any digits,
separators and brackets follow each other; "list" writes well-formed lists of integers
0–999 with commas, as small models cannot by themselves. Both renormalise the model,
so rows that are compared must be drawn alike. Knows nothing of sampling.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from undertow.errors import ModelError
from undertow.models.loading import Model

# Texts that rows of the number carrier are made of: digits, separators, brackets.
_CARRIER_TEXT = re.compile(r"\d{1,3}|[ ,;\n]+|[\[\]().]")
_LIST_TEXT = re.compile(r"[0-9, ]{1,5}")


@dataclass(frozen=True)
class Carrier:
    """Token ids, which of them may come in each state, and the state after each.

    Attributes:
        ids: The token ids, the end tokens among them.
        allowed: Whether a token may come; every state lets one come at least.
        following: The state after it. The first state is 0.
    """

    ids: Int[Tensor, " carrier"]
    allowed: Bool[Tensor, "state carrier"]
    following: Int[Tensor, "state carrier"]

    def to(self, device: torch.device) -> "Carrier":
        """The same carrier on another device."""
        return Carrier(
            self.ids.to(device), self.allowed.to(device), self.following.to(device)
        )


@lru_cache(maxsize=8)
def _texts(tokenizer: Any) -> tuple[str, ...]:
    return tuple(tokenizer.batch_decode([[i] for i in range(len(tokenizer))]))


def _matching(model: Model, pattern: re.Pattern[str]) -> list[int]:
    texts = _texts(model.tokenizer)
    found = [i for i, text in enumerate(texts) if pattern.fullmatch(text)]
    if not any(text.strip().isdigit() for text in (texts[i] for i in found)):
        raise ModelError(
            f"{model.name!r}: no token of its vocabulary is a number; use "
            "sampler.allowed='all'"
        )
    return sorted(set(found) - set(model.end_ids))


def carrier_ids(model: Model) -> tuple[int, ...]:
    """Token ids that number rows are made of, the end tokens included.

    Raises:
        ModelError: The vocabulary has no such tokens.
    """
    return tuple(sorted({*_matching(model, _CARRIER_TEXT), *model.end_ids}))


def numbers_carrier(model: Model) -> Carrier:
    """Digits, separators, brackets and the end, in any order."""
    ids = torch.tensor(carrier_ids(model))
    return Carrier(
        ids,
        torch.ones((1, len(ids)), dtype=torch.bool),
        torch.zeros((1, len(ids)), dtype=torch.long),
    )


class _State(NamedTuple):
    """Values begun, and where in the list we are."""

    values: int
    place: str  # start, "1" "2" "3" digits of a number, "0" a zero, comma, space


def _after(state: _State, text: str, most: int) -> _State | None:
    """The state after a text, or None if it may not come."""
    for character in text:
        values, place = state
        if character == " ":
            if place == "comma":
                state = _State(values, "space")
            elif place == "start":
                state = _State(values, "begin")
            else:
                return None
        elif character == ",":
            if place not in "0123" or values == most:
                return None
            state = _State(values, "comma")
        elif place in ("start", "begin", "space"):
            state = _State(values + 1, "0" if character == "0" else "1")
        elif place in ("1", "2"):
            state = _State(values, str(int(place) + 1))
        else:
            return None
    return state


def list_carrier(model: Model, *, most: int) -> Carrier:
    """Lists such as "4, 873, 21": one to `most` integers 0–999, then the end.

    Raises:
        ModelError: The vocabulary has no tokens to write them with.
    """
    ids = [*_matching(model, _LIST_TEXT), *model.end_ids]
    texts = _texts(model.tokenizer)
    states, table = _explore([texts[i] for i in ids[: -len(model.end_ids)]], most)
    ends = len(model.end_ids)
    allowed = torch.zeros((len(states), len(ids)), dtype=torch.bool)
    following = torch.zeros((len(states), len(ids)), dtype=torch.long)
    for row, state in enumerate(states):
        for column, target in enumerate(table[row]):
            if target is not None:
                allowed[row, column] = True
                following[row, column] = target
        allowed[row, len(ids) - ends :] = state.place in "0123"
    stuck = ~allowed.any(dim=1)
    if bool(stuck.any()):
        raise ModelError(
            f"{model.name!r}: its vocabulary cannot write a list of numbers with "
            "commas and spaces; use sampler.allowed='numbers' or 'all'"
        )
    return Carrier(torch.tensor(ids), allowed, following)


def _explore(
    texts: Sequence[str], most: int
) -> tuple[list[_State], list[list[int | None]]]:
    """All states that texts lead to, and the state after each text."""
    states = [_State(0, "start")]
    places = {states[0]: 0}
    table: list[list[int | None]] = []
    while len(table) < len(states):
        row: list[int | None] = []
        for text in texts:
            target = _after(states[len(table)], text, most)
            if target is not None and target not in places:
                places[target] = len(states)
                states.append(target)
            row.append(None if target is None else places[target])
        table.append(row)
    return states, table
