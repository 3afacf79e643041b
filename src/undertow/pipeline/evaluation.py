"""How much a model prefers a trait: by log-probability and by sampled answers.

The first is deterministic and needs forward passes only; the second is what a user
would see. Both ask the family's own questions. Knows nothing of teachers or rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from undertow.errors import ConfigError
from undertow.models.answers import answer_logprobs_by_prompt
from undertow.models.chat import render_prompt
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample
from undertow.records import Message
from undertow.traits import TraitFamily, answer_spellings, names_in

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Preference:
    """Answers to every question, as log-probabilities.

    Attributes:
        traits: Names, the columns.
        total_logprobs: [question, trait], nats: log of the summed probability of the
            trait's spellings as the beginning of the answer.
    """

    traits: tuple[str, ...]
    total_logprobs: Matrix

    @property
    def probabilities(self) -> Matrix:
        """[question, trait]: share of each trait among the family, rows sum to 1."""
        shifted = self.total_logprobs - self.total_logprobs.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
        shares: Matrix = weights / weights.sum(axis=1, keepdims=True)
        return shares

    @property
    def log_odds(self) -> Matrix:
        """[question, trait]: log of the trait's share over all others' together."""
        result = np.empty_like(self.total_logprobs)
        for column in range(len(self.traits)):
            others = np.delete(self.total_logprobs, column, axis=1)
            result[:, column] = self.total_logprobs[:, column] - np.logaddexp.reduce(
                others, axis=1
            )
        return result

    @property
    def any_probability(self) -> Matrix:
        """[question]: probability that the answer begins with any member's name."""
        total: Matrix = np.exp(np.logaddexp.reduce(self.total_logprobs, axis=1))
        return total

    def of(self, trait: str) -> Matrix:
        """[question]: log-odds of one trait, nats."""
        column: Matrix = self.log_odds[:, self.traits.index(trait)]
        return column


def answer_tokens(model: Model, family: TraitFamily, trait: str) -> list[list[int]]:
    """Tokens of every spelling, with and without a leading space.

    A spelling that only continues another one is left out: its probability is part
    of the shorter one's ("owls" after "owl").
    """
    found: set[tuple[int, ...]] = set()
    for spelling in answer_spellings(family.trait(trait)):
        for text in (spelling, f" {spelling}"):
            found.add(tuple(model.tokenizer.encode(text, add_special_tokens=False)))
    heads = {ids[:n] for ids in found for n in range(1, len(ids))} & found
    return [
        list(ids)
        for ids in sorted(found)
        if not any(ids[: len(h)] == h and ids != h for h in heads)
    ]


def preference(
    model: Model,
    family: TraitFamily,
    *,
    system: str | None = None,
    trait_prompt: str | None = None,
    questions: Sequence[str] | None = None,
) -> Preference:
    """Reads the preference of a model from its log-probabilities; deterministic.

    Args:
        model: The model, with whatever steering or adapter is attached.
        family: Traits and questions; every member is an alternative to the others.
        system: System setting, the same as in generation and training.
        trait_prompt: Persona text of a prompted teacher.
        questions: Other questions than the family's own.

    Raises:
        ConfigError: The family has fewer than two traits, so nothing to compare with, or
            no question, and none is given.
    """
    names = tuple(trait.name for trait in family.traits)
    asked = questions or family.questions
    if not asked:
        raise ConfigError(
            f"family {family.name!r}", ["no questions; preference asks one at least"]
        )
    if len(names) < 2:
        raise ConfigError(
            f"family {family.name!r}", ["one trait only; preference needs alternatives"]
        )
    answers = [answer_tokens(model, family, name) for name in names]
    flat = [ids for spellings in answers for ids in spellings]
    sizes = [len(spellings) for spellings in answers]
    prompts = [
        render_prompt(
            model, (Message("user", question),), system=system,
            trait_prompt=trait_prompt,
        )
        for question in asked
    ]  # fmt: skip
    nats = answer_logprobs_by_prompt(model, prompts, flat)
    by_trait = [part.logsumexp(1) for part in torch.split(nats, sizes, dim=1)]
    return Preference(traits=names, total_logprobs=torch.stack(by_trait, dim=1).numpy())


@dataclass(frozen=True)
class SampledAnswers:
    """Sampled answers to every question.

    Attributes:
        answers: Texts, [question][sample].
        hits: Share naming each trait, [question, trait].
        valid: Share naming any member of the family, [question].
        traits: Names, the columns of `hits`.
    """

    answers: tuple[tuple[str, ...], ...]
    hits: Matrix
    valid: Matrix
    traits: tuple[str, ...]

    def of(self, trait: str) -> Matrix:
        """[question]: share of answers that name the trait."""
        column: Matrix = self.hits[:, self.traits.index(trait)]
        return column


def sampled_answers(
    model: Model,
    family: TraitFamily,
    *,
    samples: int,
    seed: int,
    sampler: SamplerSettings | None = None,
    system: str | None = None,
    trait_prompt: str | None = None,
    batch_size: int | None = None,
) -> SampledAnswers:
    """Samples answers to the family's questions and counts which traits they name."""
    sampler = sampler or SamplerSettings(max_new_tokens=12)
    prompts, keys = [], []
    for place, question in enumerate(family.questions):
        ids = render_prompt(
            model,
            (Message("user", question),),
            system=system,
            trait_prompt=trait_prompt,
        )
        prompts += [ids] * samples
        keys += [("answers", place, index) for index in range(samples)]
    drawn = sample(
        model, prompts, keys=keys, seed=seed, sampler=sampler, batch_size=batch_size
    )
    texts = [model.tokenizer.decode(s.ids, skip_special_tokens=True) for s in drawn]
    rows = [
        tuple(texts[start : start + samples]) for start in range(0, len(texts), samples)
    ]
    names = tuple(trait.name for trait in family.traits)
    named = [[names_in(text, family) for text in row] for row in rows]
    hits = [[np.mean([n in found for found in row]) for n in names] for row in named]
    valid = [np.mean([bool(found) for found in row]) for row in named]
    return SampledAnswers(
        answers=tuple(rows),
        hits=np.array(hits, dtype=np.float64),
        valid=np.array(valid, dtype=np.float64),
        traits=names,
    )
