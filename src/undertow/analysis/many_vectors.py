"""How likely one row is under many vectors, in as few operations as that takes.

Up to the block that a vector acts after, the row's stream is the same for all of them:
it is read once, and one batch goes on from there with a vector in each of its rows.
Knows nothing of traits, nor of which vectors are worth asking.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.models.attention import fast_attention
from undertow.models.chat import Rendered
from undertow.models.hooks import Stream, going_on_from, recording_streams
from undertow.models.loading import Model
from undertow.models.memory import in_halves
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood, Drawn, by_row

LogProbs = np.ndarray[Any, np.dtype[np.float64]]


@torch.inference_mode()
def row_logprobs(
    model: Model,
    row: Rendered,
    vectors: Mapping[int, Float[Tensor, "vector hidden"]],
    *,
    sampler: SamplerSettings,
    token_budget: int = 6144,
) -> dict[int, LogProbs]:
    """Log-probability of a completion under each vector, added to every token.

    Args:
        model: The base.
        row: A prompt with a completion.
        vectors: By the block that they act after; as long as they are added.
        sampler: What drew the row.
        token_budget: Tokens of a batch.

    Returns:
        By block: [vector], nats, as `hypothesis_logprobs` gives for steering.

    Raises:
        VectorMismatchError: Unknown layer.
        DatasetError: The sampler cannot draw the row.
        ModelError: The row does not fit into memory under one vector.
    """
    likelihood = DrawLikelihood(model, sampler)
    draw, count = likelihood.drawn(row), max(1, token_budget // len(row.ids))
    with recording_streams(model, sorted(vectors)) as streams:
        _read(model, row, 1)
    found = {}
    for layer, several in vectors.items():
        work = partial(_under, model, row, streams[layer], likelihood, draw)
        found[layer] = np.concatenate(
            [
                nats
                for part in torch.split(several, count)
                for nats in in_halves(part.unbind(), work)
            ]
        )
    return found


def _under(
    model: Model,
    row: Rendered,
    stream: Stream,
    likelihood: DrawLikelihood,
    draw: Drawn,
    vectors: Sequence[Float[Tensor, " hidden"]],
) -> LogProbs:
    """Of one batch: the row as often as there are vectors."""
    hidden = stream.hidden + torch.stack(list(vectors))[:, None].to(stream.hidden)
    with going_on_from(model, stream, hidden):
        states = _read(model, row, len(vectors))
    predicting = states[:, row.completion_start - 1 : -1].flatten(0, 1)
    draws = [draw] * len(vectors)
    nats = by_row(likelihood.token_logprobs(predicting, draws), draws)
    return np.array([float(part.double().sum()) for part in nats])


def _read(model: Model, row: Rendered, times: int) -> Float[Tensor, "row token hidden"]:
    """Normed states of a row that is read several times over."""
    ids = torch.tensor([row.ids], device=model.device).expand(times, -1)
    with fast_attention(model):
        states: Tensor = model.module.base_model(input_ids=ids, use_cache=False)[0]
    return states
