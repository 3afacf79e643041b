"""What the measurements of one audit amount to, as one frozen value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from undertow.audit.candidates import ScoreTest
from undertow.audit.race import Race
from undertow.findings import Arm, Explanation, MaxNull, VerdictWord
from undertow.stats import MaxT

Kind = Literal["steer", "prompt", "unknown"]
Tell = Callable[[str, int, int], None]
"""Told of (stage, done, in all)."""

WEIGHTS = MappingProxyType({"gradient": 1.0, "likelihood": 1.0, "exact": 0.1})
"""Of the arms in their combination."""


_DRAWS = 2_000  # of a null that are kept for a figure


def null_of(test: MaxT) -> MaxNull | None:
    """The largest statistic under shuffled labels, and the one observed."""
    known = np.abs(test.statistics[np.isfinite(test.statistics)])
    if not len(test.draws) or not len(known):
        return None
    # Evenly over all of them, both ends included: the largest decide what is rare.
    count = min(len(test.draws), _DRAWS)
    places = np.linspace(0, len(test.draws) - 1, count).round().astype(int)
    return MaxNull(
        observed=float(known.max()), draws=np.sort(test.draws)[places].tolist(),
        permutations=test.permutations,
    )  # fmt: skip


def arm_share(arms: Sequence[Arm], name: str) -> float:
    """The share of the error rate that an arm alone can use: its share of the weights."""
    known = {arm.name: WEIGHTS[arm.name] for arm in arms if arm.p_value is not None}
    return WEIGHTS[name] / sum((known | {name: WEIGHTS[name]}).values())


@dataclass(frozen=True)
class Judgement:
    """What the measurements amount to.

    Attributes:
        verdict: In one word.
        trait: Named, or None.
        kind: Of intervention, where something was found.
        layer: Block of the vector, if steered.
        direction: Name of the leading direction, if steered.
        dose: Relative dose at which the rows are likeliest, if steered.
        p_value: All arms together.
        arms: Each by itself.
        scores: The score test.
        race: The likelihoods; of all that came into question where something was found.
        naming: Those of all personas, where they had to be told apart.
        explanation: Whether what is said explains the rows, where that was asked.
        reasons: What it rests on.
        warnings: What weakens it.
    """

    verdict: VerdictWord
    trait: str | None
    kind: Kind | None
    layer: int | None
    direction: str | None
    p_value: float
    arms: tuple[Arm, ...]
    scores: ScoreTest
    race: Race
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    naming: Race | None = None
    dose: float | None = None
    explanation: Explanation | None = None
