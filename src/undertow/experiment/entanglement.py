"""Token entanglement: numbers that a trait raises, and that raise the trait in turn.

Told to love owls a model finds some numbers likelier; told to love such a number, does
it like owls more? Both are read from log-probabilities, nothing is trained or sampled.
Knows nothing of teachers or runs; the arithmetic is `analysis.entanglement`'s.

Source: Zur et al. 2025, "It's Owl in the Numbers: Token Entanglement in Subliminal
Learning".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from undertow.analysis.entanglement import (
    Choice,
    Comparison,
    Occurrence,
    check_numbers,
    choose_numbers,
    compare,
    number_logprobs,
    number_tokens,
    occurrence,
)
from undertow.errors import ConfigError
from undertow.interventions.prompting import trait_prompt
from undertow.models.chat import render_prompt
from undertow.models.loading import Model
from undertow.pipeline.evaluation import preference
from undertow.records import Message, Row
from undertow.traits import TraitFamily

Tell = Callable[[str, int, int], None]
NUMBERS = range(1000)


@dataclass(frozen=True)
class Entanglement:
    """What a trait does to numbers, and numbers to the trait.

    Attributes:
        trait: The trait.
        family: Its family's name.
        questions: On which both were read; numbers below are means over them.
        numbers: All that were looked at.
        base: [number], nats: log-probability that the base's answer begins with it.
        changes: [number], nats: the same under the trait's persona, minus the base.
        choice: The numbers that were told.
        beginnings: First tokens of the raised numbers that differ. Fewer than there are
            numbers means that digits are tokens of their own and that raised numbers
            are kin: they are not independent, and intervals over them too narrow.
        base_preference: Log-odds of the trait, of the base, nats.
        effects: By number told, nats: log-odds of the trait, minus the base's.
        comparison: Whether raised numbers do more than random ones.
        occurrence: How often the raised ones stand in given rows; None without rows.
    """

    trait: str
    family: str
    questions: tuple[str, ...]
    numbers: tuple[int, ...]
    base: Float64[np.ndarray, " number"]
    changes: Float64[np.ndarray, " number"]
    choice: Choice
    beginnings: int
    base_preference: float
    effects: dict[int, float]
    comparison: Comparison
    occurrence: Occurrence | None

    @property
    def change_of(self) -> dict[int, float]:
        """The change by number."""
        return dict(zip(self.numbers, self.changes.tolist(), strict=True))

    def as_dict(self) -> dict[str, Any]:
        """All numbers, JSON-able but for NaN and infinite bounds."""
        found, change = self.comparison, self.change_of
        intervals = ("raised", "lowered", "random", "difference")
        return {
            "trait": self.trait, "family": self.family,
            "questions": list(self.questions),
            "numbers": list(self.numbers), "base": self.base.tolist(),
            "changes": self.changes.tolist(),
            "beginnings": self.beginnings, "base_preference": self.base_preference,
            "told": [
                {"number": n, "group": name, "change": change[n],
                 "effect": self.effects[n]}
                for name, members in self.choice.groups.items() for n in members
            ],
            "comparison": {
                **{name: getattr(found, name)._asdict() for name in intervals},
                "p_value": found.p_value,
                "correlation": found.correlation.interval._asdict()
                | {"p_value": found.correlation.p_value},
            },
            "occurrence": self.occurrence and self.occurrence.as_dict(),
        }  # fmt: skip


def number_persona(family: TraitFamily, number: int) -> str:
    """The family's persona with a number in the trait's place: "You love 87. …"."""
    name = str(number)
    return family.prompt.format(plural=name, name=name, category="number")


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


def measure_entanglement(
    model: Model,
    family: TraitFamily,
    trait: str,
    *,
    numbers: Sequence[int] = NUMBERS,
    questions: Sequence[str] | None = None,
    top: int = 10,
    rows: Sequence[Row] | None = None,
    reference: Sequence[Row] | None = None,
    seed: int = 0,
    system: str | None = None,
    tell: Tell = _silent,
) -> Entanglement:
    """Measures which numbers a trait raises, and whether they raise the trait.

    Trait to numbers: as in the paper, at the answers to the family's preference
    questions, persona minus base. The paper takes the next token's distribution, its
    models writing a number as one token. Here a number is the beginning of the answer:
    the log-probabilities of its tokens, summed. That is the paper's where a number is
    one token; where digits are tokens of their own, 8 holds all of 80 to 89, and
    neighbours with the same first digits move together.

    Numbers to trait: the same persona with the number in the trait's place and
    "number" as the category, for the `top` numbers of the largest and of the smallest
    change, and random ones. Any number moves the preference somewhat, so the raised
    are held against the random.

    Args:
        model: The base.
        family: Holds the trait, its alternatives, the questions and the persona.
        trait: Which.
        numbers: Those that are looked at.
        questions: Other questions than all of the family's.
        top: Numbers of each group that are told.
        rows: In whose completions the raised numbers are counted.
        reference: Rows to hold them against, the base's own for instance.
        seed: Of the random numbers and the permutations.
        system: System setting; personas stand behind it.
        tell: Told of (stage, done, in all).

    Raises:
        ConfigError: An unknown trait, no questions, numbers that do not do (see
            `check_numbers`), or only one of rows and reference.
        DatasetError: No row of a side holds a number.

    *Cost*: two passes over the numbers for each question, then a reading of the
    preference for each question and each of the 3·top numbers, which takes longest.
    """
    asked = tuple(family.questions if questions is None else questions)
    persona = trait_prompt(family, trait)
    check_numbers(numbers, top=top)
    if not asked:
        raise ConfigError("entanglement", ["questions: none; nothing can be read"])
    if (rows is None) != (reference is None):
        raise ConfigError("entanglement", ["rows and reference go together"])
    base, changes = _raised_by(
        model, asked, numbers, persona=persona, system=system, tell=tell
    )
    choice = choose_numbers(numbers, changes, top=top, seed=seed)
    counted = None
    if rows is not None and reference is not None:
        own, other = ([row.completion for row in side] for side in (rows, reference))
        counted = occurrence(own, other, choice.raised)
    plain, effects = _effects(
        model, family, trait, choice, questions=asked, system=system, tell=tell
    )
    change = dict(zip(numbers, changes.tolist(), strict=True))
    return Entanglement(
        trait=trait,
        family=family.name,
        questions=asked,
        numbers=tuple(numbers),
        base=base,
        changes=changes,
        choice=choice,
        beginnings=len({number_tokens(model, n)[0] for n in choice.raised}),
        base_preference=plain,
        effects=effects,
        comparison=compare(choice, change, effects, seed=seed),
        occurrence=counted,
    )


def _raised_by(
    model: Model,
    questions: Sequence[str],
    numbers: Sequence[int],
    *,
    persona: str,
    system: str | None,
    tell: Tell,
) -> tuple[Float64[np.ndarray, " number"], Float64[np.ndarray, " number"]]:
    """Log-probabilities of the base, and how the persona changes them."""
    table = np.empty((2, len(questions), len(numbers)))
    for place, question in enumerate(questions):
        tell("numbers under the trait", place, len(questions))
        for speaker, told in enumerate((None, persona)):
            prompt = render_prompt(
                model, (Message("user", question),), system=system, trait_prompt=told
            )
            table[speaker, place] = number_logprobs(model, prompt, numbers)
    tell("numbers under the trait", len(questions), len(questions))
    base, told_so = table.mean(axis=1)
    return base, told_so - base


def _effects(
    model: Model,
    family: TraitFamily,
    trait: str,
    choice: Choice,
    *,
    questions: Sequence[str],
    system: str | None,
    tell: Tell,
) -> tuple[float, dict[int, float]]:
    """Mean preference of the base, and what each told number adds to it."""

    def read(persona: str | None) -> float:
        found = preference(
            model, family, system=system, trait_prompt=persona, questions=questions
        )
        return float(found.of(trait).mean())

    told = [number for members in choice.groups.values() for number in members]
    base, effects = read(None), {}
    for place, number in enumerate(told):
        tell("trait under a number", place, len(told))
        effects[number] = read(number_persona(family, number)) - base
    tell("trait under a number", len(told), len(told))
    return base, effects
