"""How likely rows are under the base, a vector or a persona, for whoever asks in Python.

The distribution is that of the sampler that wrote the rows: where it may only draw digits,
say, likelihoods without that limit are others, and may even order two hypotheses the wrong
way. Knows nothing of verdicts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis, hypothesis_logprobs
from undertow.audit.sampling import find_sampler
from undertow.errors import DatasetError
from undertow.interventions.steering import SteeringVector
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.records import Row


def row_logprobs(
    model: Model,
    rows: Sequence[Row],
    *,
    vector: SteeringVector | None = None,
    strength: float = 1.0,
    persona: str | None = None,
    sampler: SamplerSettings | None = None,
    system: str | None = None,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[row]: log-probability of each completion given its prompt, nats.

    With a vector or a persona minus without: how much likelier that makes the rows, the
    likelihood ratio that audits bet on.

    Args:
        model: The base.
        rows: Their completions are read as sampled where their tokens are recorded.
        vector: Added to the stream, as `steering` does; None: the untouched base.
        strength: Its factor; see `SteeringVector.strength_of_dose`.
        persona: Text of a system prompt in front, as a prompted teacher has it.
        sampler: What wrote the rows; None takes what they record, else an estimate.
        system: System text of rows that have none of their own.

    Raises:
        DatasetError: No rows; a row is longer than the context, or the given sampler
            cannot have drawn it.
        VectorMismatchError: The vector is another model's.
    """
    if not rows:
        raise DatasetError("no rows; give one or more")
    whole = None if sampler is None else SamplerSettings(**sampler.model_dump())
    chosen = find_sampler(model, rows, system=system, given=whole).sampler
    own = RowHypothesis(
        "rows", "prompt" if vector is None else "steer", None,
        persona=persona, vector=vector, strength=strength,
    )  # fmt: skip
    is_base = vector is None and persona is None
    return hypothesis_logprobs(
        model, rows, None if is_base else own, sampler=chosen, system=system
    )
