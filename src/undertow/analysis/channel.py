"""The channel: how much of a teacher its rows can carry, by forward passes alone.

KL(teacher ‖ other) before every token of a completion, summed over the row. On rows
that the teacher wrote, the sum's mean is the divergence of the two distributions of
rows: what a student is offered, and what bounds every audit. Over the whole vocabulary
it is what soft distillation sees; over what the sampler may draw, what sampled rows can
carry. Knows nothing of traits, nor of what makes a teacher.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import DatasetError
from undertow.models.carrier import Carrier
from undertow.models.chat import Rendered
from undertow.models.likelihood import (
    Prefix,
    predicting_states,
    read_prefix,
    token_batches,
)
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, truncated_logprobs
from undertow.models.scoring import DrawLikelihood, Drawn, by_row
from undertow.models.unembedding import unembed

Nats = np.ndarray[Any, np.dtype[np.float64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]

# Log-probabilities of this many numbers are held at a time, of two speakers.
_HELD = 1 << 24


@dataclass(frozen=True)
class Speaker:
    """Somebody who may have written the rows.

    Attributes:
        rows: The completions, each behind this speaker's own prompt.
        acting: Opens a context in which the model is the speaker.
    """

    rows: Sequence[Rendered]
    acting: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Divergence:
    """KL(teacher ‖ other) of each row, summed over its tokens.

    Attributes:
        vocabulary: [row], nats, over the whole vocabulary at temperature 1.
        carrier: [row], nats, over what the sampler may draw, as it draws it; infinite
            where the teacher may draw what the other cannot.
        tokens: [row], tokens of the completion, the end token too.
    """

    vocabulary: Nats
    carrier: Nats
    tokens: Counts


def divergences(
    model: Model,
    teacher: Speaker,
    others: Mapping[str, Speaker],
    *,
    sampler: SamplerSettings,
    on_rows: Callable[[int, int], None] | None = None,
) -> dict[str, Divergence]:
    """How far each of the others is from the teacher on its rows.

    Args:
        model: The base of all speakers.
        teacher: Whose distribution is averaged over; best the writer of the rows.
        others: By name, with the same completions.
        sampler: How the rows were drawn.
        on_rows: Called with (rows done, rows in all).

    Raises:
        DatasetError: No rows, other completions, or a row that the sampler cannot draw.
    """
    likelihood = DrawLikelihood(model, sampler)
    draws = drawn_alike(likelihood, teacher, others)
    heads = {name: shared_head(model, who) for name, who in others.items()}
    own_head = shared_head(model, teacher)
    lengths = [len(draw.columns) for draw in draws]
    found = {name: np.zeros((2, len(draws))) for name in others}
    budget = max(1, _HELD // model.architecture.vocab_size)
    done = 0
    for places in token_batches(lengths, token_budget=budget):
        few = [draws[i] for i in places]
        own = token_logprobs(model, teacher, own_head, places, likelihood, few)
        for name, other in others.items():
            theirs = token_logprobs(model, other, heads[name], places, likelihood, few)
            for scope in (0, 1):
                nats = by_row(_kl(own[scope], theirs[scope]), few)
                found[name][scope, places] = [float(row.sum()) for row in nats]
        done += len(places)
        if on_rows is not None:
            on_rows(done, len(draws))
    tokens = np.array(lengths, dtype=np.int64)
    return {name: Divergence(both[0], both[1], tokens) for name, both in found.items()}


def drawn_alike(
    likelihood: DrawLikelihood, speaker: Speaker, others: Mapping[str, Speaker]
) -> list[Drawn]:
    """A speaker's rows as the sampler drew them; the others have to have the same.

    Raises:
        DatasetError: No rows, other completions, or a row that cannot be drawn.
    """
    answers = [row.ids[row.completion_start :] for row in speaker.rows]
    if not answers:
        raise DatasetError("no rows to read; write some first")
    for name, other in others.items():
        if [row.ids[row.completion_start :] for row in other.rows] != answers:
            raise DatasetError(
                f"{name}: its completions are not the same as the first's"
            )
    draws = [likelihood.drawn(row) for row in speaker.rows]
    if not all(draw.is_possible for draw in draws):
        allowed = likelihood.sampler.allowed
        raise DatasetError(
            "a row holds a token that this sampler cannot draw "
            f"(allowed={allowed!r}); give the sampler that wrote the rows"
        )
    return draws


@torch.inference_mode()
def shared_head(model: Model, speaker: Speaker) -> Prefix | None:
    """What all rows of a speaker begin with, read once."""
    with speaker.acting():
        return read_prefix(model, speaker.rows)


@torch.inference_mode()
def token_logprobs(
    model: Model,
    speaker: Speaker,
    head: Prefix | None,
    places: Sequence[int],
    likelihood: DrawLikelihood,
    draws: Sequence[Drawn],
) -> tuple[Float[Tensor, "token vocab"], Float[Tensor, "token column"]]:
    """Of every completion token: over the vocabulary, and over what may be drawn."""
    with speaker.acting():
        rows = [speaker.rows[i] for i in places]
        hidden, _ = predicting_states(model, rows, prefix=head)
        logits = unembed(model, hidden).float()
    carrier: Carrier | None = likelihood.carrier
    few = logits
    if carrier is not None:
        on_device = carrier.to(model.device)
        states = [state for draw in draws for state in draw.states]
        few = logits[:, on_device.ids].masked_fill(
            ~on_device.allowed[states], -torch.inf
        )
    return logits.log_softmax(-1), truncated_logprobs(few, likelihood.sampler)


def _kl(
    own: Float[Tensor, "token column"], other: Float[Tensor, "token column"]
) -> Float[Tensor, " token"]:
    """Σ p (log p − log q), in float64; what p never draws adds nothing."""
    drawn = torch.isfinite(own)
    gap = torch.where(drawn, own - other, 0.0).double()
    return (own.double().exp() * gap).sum(-1)
