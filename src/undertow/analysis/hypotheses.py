"""How likely rows are if they were made in a certain way: a persona, or a vector.

Λ = log p(y|x; H) − log p(y|x), nats a row, under the distribution of the sampler that
wrote the rows. Forward passes only; what all rows of a hypothesis begin with is read
once. Knows nothing of tests or verdicts (see `audit`).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from undertow.analysis.batches import OnHalved
from undertow.analysis.gradients import drawn_logprobs
from undertow.interventions.prompting import trait_prompt
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.chat import render_row
from undertow.models.completions import Prompts
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.records import Row
from undertow.traits import TraitFamily

LogProbs = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class RowHypothesis:
    """One way that rows may have been made.

    Attributes:
        name: For tables: "owl prompt", "owl vector".
        kind: "prompt" or "steer".
        trait: The trait; None for a decoy without one.
        role: "trait" or "decoy".
        persona: Text in front, for "prompt".
        vector: With one layer, for "steer".
        strength: Its factor.
    """

    name: str
    kind: Literal["prompt", "steer"]
    trait: str | None
    role: Literal["trait", "decoy"] = "trait"
    persona: str | None = None
    vector: SteeringVector | None = None
    strength: float = 1.0

    @property
    def layer(self) -> int | None:
        """The vector's block."""
        return None if self.vector is None else self.vector.layers[0]

    def acting(self, model: Model) -> AbstractContextManager[object]:
        """The model as this hypothesis has it, but for the persona's text."""
        if self.vector is None:
            return nullcontext()
        return steering(model, self.vector, strength=self.strength)


def prompt_hypotheses(
    family: TraitFamily, traits: Sequence[str]
) -> list[RowHypothesis]:
    """The family's persona for each trait."""
    return [
        RowHypothesis(
            f"{name} prompt", "prompt", name, persona=trait_prompt(family, name)
        )
        for name in traits
    ]


def hypothesis_logprobs(
    model: Model,
    rows: Sequence[Row],
    hypothesis: RowHypothesis | None,
    *,
    sampler: SamplerSettings,
    system: str | None = None,
    prompts: Prompts | None = None,
    token_budget: int | None = None,
    on_rows: Callable[[int, int], None] | None = None,
    on_halved: OnHalved | None = None,
) -> LogProbs:
    """[row]: log-probability of each completion, nats; None means the base.

    With `prompts`, kept as the untouched model reads them, the base does not read them
    again. A persona changes every prompt and a vector acts on it, as a teacher's does,
    so hypotheses read their own.

    Raises:
        DatasetError: A row is longer than the context, or cannot be drawn.
        VectorMismatchError: The vector is another model's.
    """
    persona = None if hypothesis is None else hypothesis.persona
    rendered = [
        render_row(model, row, system=system, trait_prompt=persona) for row in rows
    ]
    context = nullcontext() if hypothesis is None else hypothesis.acting(model)
    with context:
        return drawn_logprobs(
            model, rendered, sampler=sampler, prompts=None if hypothesis else prompts,
            token_budget=token_budget, on_rows=on_rows, on_halved=on_halved,
        )  # fmt: skip
