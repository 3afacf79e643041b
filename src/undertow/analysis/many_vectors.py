"""How likely rows are under many vectors, in as few operations as that takes.

Up to the block that a vector acts after, a row's stream is the same for all of them:
it is read once, and batches go on from there with a vector in each of their rows.
Knows nothing of traits, nor of which vectors are worth asking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undertow.models.attention import fast_operations
from undertow.models.chat import Rendered
from undertow.models.hooks import Stream, going_on_from, recording_streams
from undertow.models.likelihood import completion_mask, padded, token_batches
from undertow.models.loading import Model
from undertow.models.memory import in_halves
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood, Drawn, by_row

# Tokens of a batch, and of rows that are read together before. A processor reads as many
# as make up a batch with their vectors: one, where vectors are many, which pads nothing.
_CPU, _ACCELERATED, _TOGETHER = 6144, 65536, 16384
LogProbs = np.ndarray[Any, np.dtype[np.float64]]


@torch.inference_mode()
def row_logprobs(
    model: Model,
    rows: Sequence[Rendered],
    vectors: Mapping[int, Float[Tensor, "vector hidden"]],
    *,
    sampler: SamplerSettings,
    token_budget: int | None = None,
) -> dict[int, LogProbs]:
    """Log-probability of completions under each vector, added to every token.

    Args:
        model: The base.
        rows: Prompts with completions.
        vectors: By the block that they act after; as long as they are added.
        sampler: What drew the rows.
        token_budget: Tokens of a batch, padding included; None: what suits the device.

    Returns:
        By block: [row, vector], nats, as `hypothesis_logprobs` gives for steering.

    Raises:
        VectorMismatchError: Unknown layer.
        DatasetError: The sampler cannot draw a row.
        ModelError: A row does not fit into memory under one vector.
    """
    on_cpu = model.device.type == "cpu"
    budget = token_budget or (_CPU if on_cpu else _ACCELERATED)
    likelihood = DrawLikelihood(model, sampler)
    counts = {layer: len(several) for layer, several in vectors.items()}
    together = budget // max(counts.values()) if on_cpu else _TOGETHER
    found = {layer: np.full((len(rows), n), np.nan) for layer, n in counts.items()}
    lengths = [len(row.ids) for row in rows]
    for places in token_batches(lengths, token_budget=together):
        part = _Part.of(model, [rows[place] for place in places], likelihood)
        with recording_streams(model, sorted(vectors)) as streams:
            _read(model, part.ids)
        for layer, several in vectors.items():
            pairs = [(i, v) for i in range(len(places)) for v in range(len(several))]
            count = max(1, budget // part.ids.shape[1])
            work = partial(_under, model, part, streams[layer], likelihood, several)
            nats = [
                each
                for start in range(0, len(pairs), count)
                for done in in_halves(pairs[start : start + count], work)
                for each in done
            ]
            found[layer][places] = np.reshape(nats, (len(places), len(several)))
    return found


@dataclass(frozen=True)
class _Part:
    """Rows that are read together: tokens, which of them count, and as draws."""

    ids: Int[Tensor, "row token"]
    counted: Bool[Tensor, "row token"]
    draws: list[Drawn]

    @classmethod
    def of(
        cls, model: Model, rows: Sequence[Rendered], likelihood: DrawLikelihood
    ) -> "_Part":
        ids = padded([row.ids for row in rows], device=model.device)
        counted = completion_mask(rows, ids.shape[1], device=model.device)
        return cls(ids, counted, [likelihood.drawn(row) for row in rows])


def _under(
    model: Model,
    part: _Part,
    stream: Stream,
    likelihood: DrawLikelihood,
    vectors: Float[Tensor, "vector hidden"],
    pairs: Sequence[tuple[int, int]],
) -> list[float]:
    """Of one batch: (row, vector) pairs."""
    rows, which = torch.tensor(pairs, device=model.device).unbind(1)
    added = vectors.to(stream.hidden)[which.to(stream.hidden.device), None]
    hidden = stream.hidden[rows.to(stream.hidden.device)] + added
    with going_on_from(model, stream, hidden):
        states = _read(model, part.ids[rows])
    draws = [part.draws[row] for row, _ in pairs]
    predicting = states[:, :-1][part.counted[rows][:, 1:]]
    nats = likelihood.token_logprobs(predicting, draws).double().cpu()
    return [float(each.sum()) for each in by_row(nats, draws)]


def _read(
    model: Model, ids: Int[Tensor, "row token"]
) -> Float[Tensor, "row token hidden"]:
    """Normed states; nothing looks at the padding behind a row."""
    with fast_operations(model):
        states: Tensor = model.module.base_model(input_ids=ids, use_cache=False)[0]
    return states
