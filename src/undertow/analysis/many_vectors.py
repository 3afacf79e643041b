"""How likely rows are under many vectors, in as few operations as that takes.

Up to the block that a vector acts after, a row's stream is the same for all of them:
it is read once, and batches go on from there with a vector in each of their rows. Rows
that are packed go on together. Knows nothing of traits, nor of which vectors are worth
asking.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undertow.models.attention import fast_operations, packed_operations
from undertow.models.chat import Rendered
from undertow.models.hooks import Stream, going_on_from, recording_streams
from undertow.models.likelihood import (
    completion_mask,
    packed_rows,
    packing_of,
    packs,
    padded,
    token_batches,
)
from undertow.models.loading import Model
from undertow.models.memory import in_halves
from undertow.models.packing import Packing
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood, Drawn, by_row

# Tokens of a batch, and of rows that an accelerator reads together before.
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
    read = read_streams(
        model, rows, sorted(vectors), sampler=sampler, token_budget=token_budget
    )
    return under_vectors(model, read, vectors, token_budget=token_budget)


@dataclass(frozen=True)
class RowStreams:
    """Rows that were read together up to some blocks, to go on from there.

    Attributes:
        places: Of the rows among those that were given.
        ids: Their tokens, padded; of packed rows one sequence.
        counted: Which tokens are a completion's.
        draws: Of each sequence its rows, as draws.
        streams: By block.
        packing: How rows lie; None: side by side.
        likelihood: Of what drew them.
    """

    places: list[int]
    ids: Int[Tensor, "sequence token"]
    counted: Bool[Tensor, "sequence token"]
    draws: list[list[Drawn]]
    streams: dict[int, Stream]
    packing: Packing | None
    likelihood: DrawLikelihood

    @property
    def size(self) -> int:
        """Tokens of a sequence as attention pads them: packed rows are side by side."""
        own = self.ids.shape[1]
        return own if self.packing is None else max(own, self.packing.spread)


@torch.inference_mode()
def read_streams(
    model: Model,
    rows: Sequence[Rendered],
    layers: Sequence[int],
    *,
    sampler: SamplerSettings,
    token_budget: int | None = None,
) -> Iterator[RowStreams]:
    """Rows as the base reads them up to some blocks, part by part.

    Args:
        model: The base.
        rows: Prompts with completions.
        layers: The blocks.
        sampler: What drew the rows.
        token_budget: As in `row_logprobs`.

    Raises:
        VectorMismatchError: Unknown layer.
        DatasetError: The sampler cannot draw a row.
    """
    budget, likelihood = _budget(model, token_budget), DrawLikelihood(model, sampler)
    lengths = [len(row.ids) for row in rows]
    is_packed = len(rows) > 1 and packs(model, longest=max(lengths))
    # A processor keeps as many tokens' streams as a batch has, over all blocks.
    together = budget // len(layers) if model.device.type == "cpu" else _TOGETHER
    for places in token_batches(lengths, token_budget=together):
        part = [rows[place] for place in places]
        draws = [likelihood.drawn(row) for row in part]
        if is_packed and len(part) > 1:
            packing = packing_of(part)
            ids, counted = packed_rows(part, packing)
            by_sequence = [draws]
        else:
            packing = None
            ids = padded([row.ids for row in part], device=model.device)
            counted = completion_mask(part, ids.shape[1], device=model.device)
            by_sequence = [[each] for each in draws]
        with recording_streams(model, layers) as streams:
            _read(model, ids, packing)
        yield RowStreams(
            places, ids, counted, by_sequence, streams, packing, likelihood
        )


@torch.inference_mode()
def under_vectors(
    model: Model,
    parts: Iterable[RowStreams],
    vectors: Mapping[int, Float[Tensor, "vector hidden"]],
    *,
    token_budget: int | None = None,
) -> dict[int, LogProbs]:
    """The same as `row_logprobs`, of rows that were read up to those blocks.

    Args:
        model: The base.
        parts: Rows, read up to all blocks of `vectors`.
        vectors: As in `row_logprobs`.
        token_budget: As in `row_logprobs`.

    Raises:
        ModelError: A row does not fit into memory under one vector.
    """
    budget = _budget(model, token_budget)
    found: dict[int, dict[int, LogProbs]] = {layer: {} for layer in vectors}
    for part in parts:
        count = max(1, budget // part.size)
        for layer, several in vectors.items():
            pairs = [(i, v) for i in range(len(part.ids)) for v in range(len(several))]
            work = partial(_under, model, part, part.streams[layer], several)
            nats = [
                each
                for start in range(0, len(pairs), count)
                for done in in_halves(pairs[start : start + count], work)
                for each in done
            ]
            # [sequence, vector, row of it]: sequences of one row, or a single one
            table = np.reshape(nats, (len(part.ids), len(several), -1))
            own = table.transpose(0, 2, 1).reshape(len(part.places), len(several))
            found[layer] |= dict(zip(part.places, own, strict=True))
    return {
        layer: np.array([own[i] for i in sorted(own)]).reshape(-1, len(vectors[layer]))
        for layer, own in found.items()
    }


def _budget(model: Model, asked: int | None) -> int:
    return asked or (_CPU if model.device.type == "cpu" else _ACCELERATED)


def _under(
    model: Model,
    part: RowStreams,
    stream: Stream,
    vectors: Float[Tensor, "vector hidden"],
    pairs: Sequence[tuple[int, int]],
) -> list[list[float]]:
    """Of one batch, (sequence, vector) pairs: of each the sequence's rows."""
    sequences, which = torch.tensor(pairs, device=model.device).unbind(1)
    added = vectors.to(stream.hidden)[which.to(stream.hidden.device), None]
    hidden = stream.hidden[sequences.to(stream.hidden.device)] + added
    with going_on_from(model, stream, hidden):
        states = _read(model, part.ids[sequences], part.packing)
    draws = [each for sequence, _ in pairs for each in part.draws[sequence]]
    predicting = states[:, :-1][part.counted[sequences][:, 1:]]
    nats = part.likelihood.token_logprobs(predicting, draws).double().cpu()
    sums = [float(each.sum()) for each in by_row(nats, draws)]
    size = len(part.draws[0])
    return [sums[start : start + size] for start in range(0, len(sums), size)]


def _read(
    model: Model, ids: Int[Tensor, "sequence token"], packing: Packing | None
) -> Float[Tensor, "sequence token hidden"]:
    """Normed states; nothing looks at the padding behind a row."""
    operations: AbstractContextManager[None] = fast_operations(model)
    options: dict[str, Any] = {}
    if packing is not None:
        operations = packed_operations(model, packing)
        options["position_ids"] = packing.positions()
    with operations:
        states: Tensor = model.module.base_model(
            input_ids=ids, use_cache=False, **options
        )[0]
    return states
