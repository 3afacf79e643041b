"""Numbers that come and go with a trait: their likelihood, their choice, their effect.

How likely an answer begins with a number, which numbers a change singles out and which
serve as their control, whether telling the first does more than telling the second, and
how often they stand in rows. Knows nothing of personas or questions, nor of how an
effect is read (see `experiment.entanglement`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float64

from undertow.errors import ConfigError, DatasetError, shown
from undertow.models.answers import answer_logprobs
from undertow.models.cache import bytes_a_token
from undertow.models.loading import Model
from undertow.seeding import generator
from undertow.stats import (
    Interval,
    RankCorrelation,
    mean_interval,
    paired_max_t,
    rank_correlation,
    ratio_interval,
)

# The prompt's cache is repeated for every beginning that answers share, and each of
# their tokens has logits: about so many bytes of both are held at a time.
_HELD_BYTES = 1 << 29
_DIGITS = re.compile(r"[0-9]+")


def number_tokens(model: Model, number: int) -> list[int]:
    """Tokens of a number as it begins an answer, behind what the template puts there."""
    text = f"{model.template.answer_prefix}{number}"
    return list(model.tokenizer.encode(text, add_special_tokens=False))


def number_logprobs(
    model: Model, prompt: Sequence[int], numbers: Sequence[int]
) -> Float64[np.ndarray, " number"]:
    """Log-probability that the answer begins with each number, nats.

    That of the number's tokens, summed. Where digits are tokens of their own, an answer
    that begins with 87 begins with 8 as well.

    Args:
        model: The model.
        prompt: Token ids, ending where the answer begins.
        numbers: Not negative, one at least.

    *Cost*: the prompt, and a token or two for each beginning that numbers share; 1,000
    numbers of single digits are 90 rows of two tokens.
    """
    answers = [number_tokens(model, number) for number in numbers]
    found = np.empty(len(answers))
    for part in np.array_split(np.arange(len(answers)), _parts(model, prompt, answers)):
        found[part] = answer_logprobs(model, prompt, [answers[i] for i in part]).numpy()
    return found


def _parts(model: Model, prompt: Sequence[int], answers: Sequence[list[int]]) -> int:
    """Parts in which answers are read, so that caches and logits fit."""
    heads = {tuple(ids[:end]) for ids in answers for end in range(1, len(ids))}
    cached = (len(prompt) + max(map(len, answers))) * bytes_a_token(model)
    # Logits as they come, in float32, and normalised.
    logits = 3 * 4 * model.architecture.vocab_size
    wanted = ceil(len(heads) * (cached + logits) / _HELD_BYTES)
    return min(max(1, wanted), len(answers))


@dataclass(frozen=True)
class Choice:
    """Numbers that a change singles out, and others.

    Attributes:
        raised: Those with the largest change, the largest first. Of numbers that all
            fell they are those that fell least.
        lowered: Those with the smallest, the smallest first.
        random: Drawn from the rest; each belongs to the raised number at its place and
            has as many digits as that, if there is still such a one.
    """

    raised: tuple[int, ...]
    lowered: tuple[int, ...]
    random: tuple[int, ...]

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """The three, by name."""
        return {"raised": self.raised, "lowered": self.lowered, "random": self.random}


def choose_numbers(
    numbers: Sequence[int],
    changes: Float64[np.ndarray, " number"],
    *,
    top: int,
    seed: int,
) -> Choice:
    """The numbers to be tried; where changes are equal, those that stand first.

    Args:
        numbers: All that there are.
        changes: Of each.
        top: Numbers of each of the three groups.
        seed: Of the draw.

    Raises:
        ConfigError: As `check_numbers`.
    """
    check_numbers(numbers, top=top)
    order = np.argsort(-changes, kind="stable")
    ranked = [numbers[place] for place in order]
    raised, lowered = ranked[:top], ranked[::-1][:top]
    rest = sorted(set(numbers) - {*raised, *lowered})
    stream = generator(seed, "entanglement controls")
    drawn: list[int] = []
    for number in raised:
        left = [n for n in rest if n not in drawn]
        alike = [n for n in left if len(str(n)) == len(str(number))] or left
        drawn.append(alike[int(stream.integers(len(alike)))])
    return Choice(tuple(raised), tuple(lowered), tuple(drawn))


def check_numbers(numbers: Sequence[int], *, top: int) -> None:
    """Whether three groups can be taken of the numbers.

    Raises:
        ConfigError: They are negative, stand twice or are too few, or a group would
            have no interval; every fault at once.
    """
    faults = []
    if top < 2:
        faults.append(f"top: {top}; an interval needs 2 numbers of each group")
    if negative := [n for n in numbers if n < 0]:
        faults.append(f"numbers: {shown(negative)}; expected 0 or more")
    if len(set(numbers)) < len(numbers):
        twice = sorted({n for n in numbers if numbers.count(n) > 1})
        faults.append(f"numbers: {shown(twice)} stand twice")
    if len(numbers) < 3 * top:
        faults.append(
            f"numbers: {len(numbers)}; raised, lowered and random ones take "
            f"{3 * top}: give more, or a smaller top than {top}"
        )
    if faults:
        raise ConfigError("entanglement", faults)


@dataclass(frozen=True)
class Comparison:
    """What telling raised numbers does, against lowered and random ones.

    Attributes:
        raised: Mean effect, over numbers.
        lowered: The same of the lowered.
        random: The same of the random.
        difference: Raised minus random, over pairs of one each.
        p_value: Of pairs whose two could be swapped, two-sided; NaN for fewer than 5.
        correlation: Of the change of all numbers tried with their effect.
    """

    raised: Interval
    lowered: Interval
    random: Interval
    difference: Interval
    p_value: float
    correlation: RankCorrelation


def compare(
    choice: Choice,
    changes: Mapping[int, float],
    effects: Mapping[int, float],
    *,
    seed: int,
) -> Comparison:
    """Whether the effects of raised numbers differ from those of random ones.

    Numbers count as independent draws. Where digits are tokens of their own, raised
    numbers often share their first ones, and intervals are then too narrow.

    Args:
        choice: Who was tried.
        changes: By number; what they were chosen by.
        effects: By number; what telling it did.
        seed: Of the permutations.
    """
    values = {
        name: np.array([effects[number] for number in members])
        for name, members in choice.groups.items()
    }
    pairs = values["raised"] - values["random"]
    tried = [number for members in choice.groups.values() for number in members]
    return Comparison(
        **{name: mean_interval(found) for name, found in values.items()},
        difference=mean_interval(pairs),
        p_value=paired_max_t(pairs[:, None], seed=seed, winsorise=0.0).p_value,
        correlation=rank_correlation(
            [changes[n] for n in tried], [effects[n] for n in tried], seed=seed
        ),
    )


@dataclass(frozen=True)
class Occurrence:
    """How often some numbers stand in rows, and in others for comparison.

    Attributes:
        found: Times that one of them stands in the rows.
        numbers: Numbers of the rows in all.
        reference_found: The same of the reference.
        reference_numbers: The same of the reference.
        ratio: Of their share in a row, rows over reference, each a mean over rows that
            hold a number; bounds are infinite where the reference's could be zero.
    """

    found: int
    numbers: int
    reference_found: int
    reference_numbers: int
    ratio: Interval

    def as_dict(self) -> dict[str, Any]:
        """All numbers, JSON-able but for NaN and infinite bounds."""
        return vars(self) | {"ratio": self.ratio._asdict()}


def occurrence(
    texts: Sequence[str], reference: Sequence[str], numbers: Sequence[int]
) -> Occurrence:
    """Counts numbers in texts, as they are written: "087" is no 87.

    Args:
        texts: One a row.
        reference: Those of other rows.
        numbers: Which are counted.

    Raises:
        DatasetError: No text of a side holds any number.
    """
    own, other = _counts(texts, numbers), _counts(reference, numbers)
    for name, side in (("rows", own), ("reference", other)):
        if not len(side):
            raise DatasetError(f"{name}: not one row holds a number; nothing to count")
    return Occurrence(
        found=int(own[:, 0].sum()),
        numbers=int(own[:, 1].sum()),
        reference_found=int(other[:, 0].sum()),
        reference_numbers=int(other[:, 1].sum()),
        ratio=ratio_interval(own[:, 0] / own[:, 1], other[:, 0] / other[:, 1]),
    )


def _counts(
    texts: Sequence[str], numbers: Sequence[int]
) -> Float64[np.ndarray, "row 2"]:
    """Of every text that holds a number: how many of these, and how many in all."""
    wanted = {str(number) for number in numbers}
    written = [_DIGITS.findall(text) for text in texts]
    pairs = [(sum(w in wanted for w in row), len(row)) for row in written if row]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)
