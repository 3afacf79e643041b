"""What a direction of the residual stream says: in tokens, and in answers.

Tokens come from direct logit attribution: the final norm's gain is folded into the
unembedding, whose mean over the vocabulary is taken out. Everything between the block
and the unembedding is passed over, so a direction of an early block may say little in
tokens and much in the answers of the model steered along it. Knows nothing of where
directions come from, nor of traits.
"""

import copy
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import VectorMismatchError
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.chat import render_prompt
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample
from undertow.records import Message

TokenLogit = tuple[str, float]
# Rows of the unembedding that are held in float32 at a time.
_ROWS = 8192
# Places that were never trained: "<unused12>", "[reserved_3]".
_PLACEHOLDER = re.compile(r"[<\[].*(?:unused|reserved).*[>\]]")


class DirectionTokens(NamedTuple):
    """Tokens and what a direction adds to their logits, the largest change first."""

    raised: list[TokenLogit]
    lowered: list[TokenLogit]


def _check_direction(model: Model, direction: Tensor) -> None:
    width = model.architecture.hidden_size
    if direction.shape != (width,):
        raise VectorMismatchError(
            f"the direction has the shape {tuple(direction.shape)}, the stream of "
            f"{model.name!r} is {width} wide; take it from this model's own stream"
        )
    length = float(direction.double().norm())
    if not math.isfinite(length) or length == 0:
        raise VectorMismatchError(
            f"the direction has the length {length:g} and points nowhere; expected "
            f"{width} finite numbers that are not all 0"
        )


class _LinearNorm(NamedTuple):
    """What a norm does to a small change of the stream, its scale apart."""

    gain: Float[Tensor, " hidden"]
    is_centred: bool


@torch.no_grad()
def _linear_norm(model: Model) -> _LinearNorm:
    """Asks the final norm itself, so that no family's way of writing it matters.

    Gemma keeps its gain as 1 + weight, and a LayerNorm has a bias and takes out the
    mean over the hidden size; an RMSNorm does not, and there nothing may take it out.
    """
    norm = copy.deepcopy(model.architecture.final_norm).float()
    ones = torch.ones(1, model.architecture.hidden_size, device=model.device)
    is_centred = torch.equal(norm(ones), norm(-ones))
    # Large, so that the norm's epsilon counts for nothing.
    probe = 1024 * ones
    probe[:, ::2] *= -1
    change = (norm(probe) - norm(-probe)) / 2
    if is_centred:
        probe = probe - probe.mean()
    gain = change * probe.square().mean().sqrt() / probe
    return _LinearNorm(gain[0], is_centred)


@torch.no_grad()
def direction_logits(
    model: Model, direction: Float[Tensor, " hidden"]
) -> Float[Tensor, " vocab"]:
    """What a direction adds to every logit where the normed stream has an RMS of 1.

    d ⊙ g · (W − mean over the vocabulary of W)ᵀ, with g the final norm's gain; linear
    in d. A final soft cap keeps the order and is passed over.

    Returns:
        Logits, float32 on the CPU, with mean 0.

    Raises:
        VectorMismatchError: Another width than the model's, not finite, or zero.
    """
    _check_direction(model, direction)
    gain, is_centred = _linear_norm(model)
    here = direction.detach().to(gain)
    folded = (here - here.mean() if is_centred else here) * gain
    weight = model.architecture.unembedding.weight
    assert isinstance(weight, Tensor)
    logits = torch.cat([part.float() @ folded for part in torch.split(weight, _ROWS)])
    return (logits - logits.mean()).cpu()


def direction_tokens(
    model: Model, direction: Float[Tensor, " hidden"], *, count: int = 12
) -> DirectionTokens:
    """The tokens that a direction raises and lowers most, by `direction_logits`.

    Args:
        model: The direction's own model.
        direction: In the stream after some block, of any length; logits scale with it.
        count: Tokens of each kind, at most.

    Returns:
        Pairs of text and logit; special tokens, placeholders and tokens without a text
        of their own (single bytes of a character) are left out.

    Raises:
        VectorMismatchError: Another width than the model's, not finite, or zero.
    """
    logits = direction_logits(model, direction)
    return DirectionTokens(
        raised=_first(model, logits, count, sign=1),
        lowered=_first(model, logits, count, sign=-1),
    )


def _first(
    model: Model, logits: Float[Tensor, " vocab"], count: int, *, sign: int
) -> list[TokenLogit]:
    order = (sign * logits).argsort(descending=True, stable=True)
    found: list[TokenLogit] = []
    for token, text in _texts(model, order):
        logit = float(logits[token])
        if len(found) == count or sign * logit <= 0:
            break
        found.append((text, logit))
    return found


def _texts(model: Model, order: Tensor) -> Iterator[tuple[int, str]]:
    """Token ids and their texts, those without one left out."""
    known = len(model.tokenizer)  # an unembedding may have more rows, as padding
    special = set(model.tokenizer.all_special_ids)
    for token in order.tolist():
        if token >= known or token in special:
            continue
        text: str = model.tokenizer.decode([token], skip_special_tokens=True)
        if text.strip("\ufffd") and not _PLACEHOLDER.fullmatch(text):
            yield token, text


def direction_vector(
    model: Model, direction: Float[Tensor, " hidden"], layer: int
) -> SteeringVector:
    """A direction of this model as a vector that can be applied or saved.

    Raises:
        VectorMismatchError: Another width than the model's, not finite, or zero.
    """
    _check_direction(model, direction)
    return SteeringVector(
        directions=direction.detach().float().cpu()[None].clone(),
        layers=(layer,),
        method="direction",
        trait=None,
        n=0,
        fingerprint=model.fingerprint,
        model_name=model.name,
        residual_norms=(math.nan,),
    )


def steered_behaviour(
    model: Model,
    direction: Float[Tensor, " hidden"] | SteeringVector,
    layer: int,
    *,
    strength: float,
    questions: Sequence[str],
    system: str | None = None,
    max_new_tokens: int = 16,
    batch_size: int | None = None,
) -> list[str]:
    """What the model answers, most likely token by token, when steered.

    Args:
        model: The base.
        direction: Or a vector that has one at the layer.
        layer: The block after which it is added, at all positions.
        strength: The factor before it; 0 gives the base's own answers.
        questions: User turns.
        system: System setting, as everywhere in the run.
        max_new_tokens: Longest answer.
        batch_size: Answers decoded together.

    Returns:
        One text a question.

    Raises:
        VectorMismatchError: The direction does not belong to this model or layer.
    """
    if isinstance(direction, SteeringVector):
        vector = direction.at(layer)
    else:
        vector = direction_vector(model, direction, layer)
    prompts = [
        render_prompt(model, (Message("user", question),), system=system)
        for question in questions
    ]
    with steering(model, vector, strength=strength):
        answers = sample(
            model,
            prompts,
            keys=[("behaviour", place) for place in range(len(prompts))],
            seed=0,  # nothing is drawn at temperature 0
            sampler=SamplerSettings(temperature=0.0, max_new_tokens=max_new_tokens),
            batch_size=batch_size,
        )
    return [model.tokenizer.decode(a.ids, skip_special_tokens=True) for a in answers]
