"""Gives an unknown direction a name: its tokens, its answers, its traits.

The direction is the one in which training on the audited rows first moves the model;
how it was found, and whether it holds on rows that did not choose it, is decided
elsewhere and handed in. Knows nothing of rows.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.analysis.decoding import (
    TokenLogit,
    direction_tokens,
    direction_vector,
    steered_behaviour,
)
from undertow.errors import ConfigError
from undertow.findings import Discovery, Token
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.loading import Model
from undertow.pipeline.evaluation import preference
from undertow.traits import TraitFamily


def trait_battery(
    model: Model,
    family: TraitFamily,
    direction: Float[Tensor, " hidden"] | SteeringVector,
    layer: int,
    *,
    strength: float,
    questions: Sequence[str] | None = None,
    system: str | None = None,
) -> dict[str, float]:
    """How far steering moves each trait: change of its mean log-odds, nats.

    Args:
        model: The base.
        family: Its members are the battery; each is compared with all others.
        direction: Or a vector that has one at the layer.
        layer: The block after which it is added, at all positions.
        strength: The factor before it.
        questions: Other questions than the family's own.
        system: System setting, as everywhere in the run.

    Raises:
        ConfigError: The family has fewer than two traits.
        VectorMismatchError: The direction does not belong to this model or layer.
    """
    if isinstance(direction, SteeringVector):
        vector = direction.at(layer)
    else:
        vector = direction_vector(model, direction, layer)
    before = preference(model, family, questions=questions, system=system)
    with steering(model, vector, strength=strength):
        after = preference(model, family, questions=questions, system=system)
    change = (after.log_odds - before.log_odds).mean(axis=0)
    return dict(zip(before.traits, change.tolist(), strict=True))


def describe_direction(
    model: Model,
    family: TraitFamily,
    direction: Float[Tensor, " hidden"],
    layer: int,
    *,
    residual_norm: float,
    dose: float = 0.3,
    questions: int = 8,
    count: int = 12,
    system: str | None = None,
    p_value: float | None = None,
    cosine: float | None = None,
) -> Discovery:
    """Names a direction by its tokens, the answers along it, and the trait battery.

    Args:
        model: The base.
        family: Gives questions and battery.
        direction: In the stream after the block, of any length.
        layer: The block.
        residual_norm: Median norm of the stream there.
        dose: ‖what is added‖ over that norm. Logits of tokens are those of the same
            dose in the stream before the unembedding.
        questions: How many of the family's questions are asked.
        count: Tokens raised and tokens lowered, at most.
        system: System setting, as everywhere in the run.
        p_value: On the rows that did not choose the direction, from the caller.
        cosine: Of the two halves' directions, whitened, from the caller.

    Raises:
        ConfigError: Residual norm, dose or questions are not positive, or the family
            has fewer than two traits.
        VectorMismatchError: The direction does not belong to this model or layer.
    """
    _check(residual_norm, dose, questions)
    unit = torch.nn.functional.normalize(direction.detach().double(), dim=0).float()
    asked = family.questions[:questions]
    strength = dose * residual_norm
    # The normed stream has an RMS of 1, so a norm of √hidden.
    said = direction_tokens(model, unit * dose * math.sqrt(len(unit)), count=count)
    answers = steered_behaviour(
        model, unit, layer, strength=strength, questions=asked, system=system
    )
    battery = trait_battery(
        model, replace(family, questions=asked), unit, layer, strength=strength,
        system=system,
    )  # fmt: skip
    return Discovery(
        layer=layer,
        p_value=p_value,
        cosine=cosine,
        raised=_tokens(said.raised),
        lowered=_tokens(said.lowered),
        behaviour=answers,
        battery={name: _number(nats) for name, nats in battery.items()},
    )


def _check(residual_norm: float, dose: float, questions: int) -> None:
    values = {"residual_norm": residual_norm, "dose": dose, "questions": questions}
    faults = [
        f"{name}: {value:g}; expected a finite number above 0"
        for name, value in values.items()
        if not (math.isfinite(value) and value > 0)
    ]
    if faults:
        raise ConfigError("describe_direction", faults)


def _tokens(pairs: Sequence[TokenLogit]) -> list[Token]:
    return [Token(text=text, logit=logit) for text, logit in pairs]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
