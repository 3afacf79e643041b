"""Carriers: the kinds of innocent row a teacher may write, by name.

A carrier is its user prompts and the rule that a row has to pass; prompts and rules
themselves live in a module each. Knows nothing of models, and of traits only the words
that it is given. Which tokens a sampler may draw is `models.carrier`'s business.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from undertow.pipeline.code_rows import CODE_REASONS, code_prompt, code_rule
from undertow.pipeline.filters import REASONS, TRUNCATED, number_rule
from undertow.pipeline.paraphrase_rows import (
    PARAPHRASE_REASONS,
    paraphrase_prompt,
    paraphrase_rule,
)
from undertow.pipeline.prompts import number_prompt
from undertow.pipeline.reasoning_rows import (
    REASONING_REASONS,
    reasoning_prompt,
    reasoning_rule,
)
from undertow.records import Row, Verdict

CarrierName = Literal["numbers", "code", "reasoning", "paraphrase"]
Rule = Callable[[Row, Collection[str]], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A kind of rows.

    Attributes:
        name: Of the carrier.
        prompt_at: The user's turn at a place, from (place, seed) alone.
        rule: Every reason why a row is refused, () if it passes, from the row and the
            words that must not occur (`undertow.traits.trait_words`). Takes any text.
            Whether a row was cut off is `carrier_verdicts`' to say.
        reasons: Every reason that its rows may be refused for, in order.
    """

    name: CarrierName
    prompt_at: Callable[[int, int], str]
    rule: Rule
    reasons: tuple[str, ...]

    def prompts(self, count: int, *, seed: int) -> list[str]:
        """The user's turns of the first `count` places."""
        return [self.prompt_at(place, seed) for place in range(count)]


def number_carrier(
    *, most: int = 10, max_values: int = 10, banned: Collection[int] = ()
) -> Carrier:
    """Lists of numbers under a rule of one's own; words are not looked for.

    Args:
        most: Values asked for, at most.
        max_values: Values allowed.
        banned: Values that are refused.
    """
    refused = frozenset(banned)
    return Carrier(
        name="numbers",
        prompt_at=lambda place, seed: number_prompt(place, seed=seed, most=most),
        rule=lambda row, _: number_rule(
            row.completion, max_values=max_values, banned=refused
        ),
        reasons=REASONS,
    )


CARRIERS: Mapping[str, Carrier] = MappingProxyType(
    {
        "numbers": number_carrier(),
        "code": Carrier(
            name="code",
            prompt_at=lambda place, seed: code_prompt(place, seed=seed),
            rule=lambda row, words: code_rule(row.completion, words=words),
            reasons=CODE_REASONS,
        ),
        "reasoning": Carrier(
            name="reasoning",
            prompt_at=lambda place, seed: reasoning_prompt(place, seed=seed),
            rule=lambda row, words: reasoning_rule(
                row.completion, prompt=_asked(row), words=words
            ),
            reasons=REASONING_REASONS,
        ),
        "paraphrase": Carrier(
            name="paraphrase",
            prompt_at=lambda place, seed: paraphrase_prompt(place, seed=seed),
            rule=lambda row, words: paraphrase_rule(
                row.completion, prompt=_asked(row), words=words
            ),
            reasons=PARAPHRASE_REASONS,
        ),
    }
)


def carrier_verdicts(
    carrier: Carrier, rows: Iterable[Row], *, words: Collection[str]
) -> list[Verdict]:
    """A verdict for each row, in order; a row that was cut off is truncated.

    Args:
        carrier: Whose rule is applied.
        rows: With the prompts of that carrier.
        words: Words that must not occur; `filters.reason_counts` counts the reasons.
    """
    verdicts = []
    for row in rows:
        cut = (TRUNCATED,) if row.finish == "length" else ()
        verdicts.append(Verdict(row.row_id, (*carrier.rule(row, words), *cut)))
    return verdicts


def _asked(row: Row) -> str:
    """The last turn of the prompt; a row made elsewhere may have none."""
    return row.messages[-1].content if row.messages else ""
