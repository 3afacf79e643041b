"""Key-value caches that are allocated once: one for whole batches, one with slots.

The first kind is filled from the left and can repeat a prefix for many rows. In the
second kind every row has a slot, all rows write to the same column, and a row may
come or go at any step. Knows nothing of sampling; positions that were never written
are never attended to.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from undertow.models.loading import Model


class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer that writes into one buffer instead of concatenating."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes new positions and returns views of all that are there."""
        end = self.length + key_states.shape[2]
        if not self.is_initialized:
            rows, heads = key_states.shape[:2]
            room = (rows, heads, self.capacity)
            self.keys = key_states.new_zeros((*room, key_states.shape[3]))
            self.values = value_states.new_zeros((*room, value_states.shape[3]))
            self.is_initialized = True
        assert self.keys is not None
        assert self.values is not None
        if self.keys.shape[0] != key_states.shape[0]:  # a prefix computed once
            self.keys = self.keys.repeat(key_states.shape[0], 1, 1, 1)
            self.values = self.values.repeat(key_states.shape[0], 1, 1, 1)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Positions written so far."""
        return self.length

    def resized(self, capacity: int) -> "PreallocatedLayer":
        """The positions that are there, copied into a layer with another capacity."""
        layer = PreallocatedLayer(capacity)
        layer.update(*self.written())
        return layer

    def written(self) -> tuple[Tensor, Tensor]:
        """Keys and values [row, head, position, width] of what is there."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


def new_cache(model: Model, capacity: int) -> Cache:
    """A cache with room for `capacity` positions, allocated at the first use."""
    count = len(model.architecture.blocks)
    return Cache(layers=[PreallocatedLayer(capacity) for _ in range(count)])


def bytes_a_token(model: Model) -> int:
    """What keys and values of one token take in all blocks together."""
    config = model.module.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None)
    width = width or config.hidden_size // config.num_attention_heads
    blocks = len(model.architecture.blocks)
    return int(2 * blocks * heads * width * model.dtype.itemsize)


def resized(cache: Cache, capacity: int) -> Cache:
    """A copy of a cache of `new_cache` with another capacity."""
    return Cache(layers=[layer.resized(capacity) for layer in _written(cache)])


def _written(cache: Cache) -> list[PreallocatedLayer]:
    layers = [x for x in cache.layers if isinstance(x, PreallocatedLayer)]
    return [layer for layer in layers if layer.length]


class _Column:
    """Where all rows write next.

    Layers share this and not the cache: no cycle keeps a cache's memory.

    Attributes:
        at: The column.
        index: The same as a tensor [1] on the cache's device.
        is_indexed: Whether layers write by the tensor, as recorded steps have to.
    """

    def __init__(self, device: torch.device) -> None:
        self.at = 0
        self.index = torch.zeros(1, dtype=torch.long, device=device)
        self.is_indexed = False


class _SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer [slot, head, column, width] that takes one position a pass.

    It returns whole slots, unwritten columns included: only then is the memory of all
    rows contiguous, and batched products need no copy of it.
    """

    def __init__(self, column: _Column, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.column, self.buffers = column, (keys, values)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes one position a row; returns the slots of these rows."""
        keys, values = (buffer[: len(key_states)] for buffer in self.buffers)
        if self.column.is_indexed:
            keys.index_copy_(2, self.column.index, key_states)
            values.index_copy_(2, self.column.index, value_states)
        else:
            keys[:, :, self.column.at] = key_states[:, :, 0]
            values[:, :, self.column.at] = value_states[:, :, 0]
        return keys, values

    def get_seq_length(self) -> int:
        """The column of the next position."""
        return self.column.at

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """Columns that the mask has to cover, and where they begin."""
        return self.buffers[0].shape[2], 0


class SlotCache:
    """One slot a row in every layer; the first slots are in use.

    A row's positions lie just before `column`.

    Attributes:
        cache: What the model's forward pass takes, for one position of each row.
    """

    def __init__(self, like: Cache, *, rows: int, capacity: int) -> None:
        states, _ = _written(like)[0].written()
        self._column = _Column(states.device)
        self.layers = []
        for layer in _written(like):
            keys, values = (
                states.new_zeros((rows, states.shape[1], capacity, states.shape[3]))
                for states in layer.written()
            )
            self.layers.append(_SlotLayer(self._column, keys, values))
        self.cache = Cache(layers=list(self.layers))

    @property
    def column(self) -> int:
        """Where all rows write next."""
        return self._column.at

    @column.setter
    def column(self, at: int) -> None:
        self._column.at = at
        self._column.index.fill_(at)

    @contextmanager
    def written_by_index(self) -> Iterator[None]:
        """While open, layers take the column from memory, not from the program."""
        self._column.is_indexed = True
        try:
            yield
        finally:
            self._column.is_indexed = False

    def join(self, prompts: Cache, lengths: Sequence[int], *, first: int) -> None:
        """Takes rows into slots from `first` on, `lengths[i]` positions of row i.

        Columns before a shorter row's own hold copies of its first position.
        """
        width = max(lengths)
        slots = slice(first, first + len(lengths))
        columns = slice(self.column - width, self.column)
        device = self._column.index.device
        missing = width - torch.tensor(lengths, device=device)[:, None]
        index = (torch.arange(width, device=device) - missing).clamp(min=0)
        for layer, source in zip(self.layers, _written(prompts), strict=True):
            for buffer, states in zip(layer.buffers, source.written(), strict=True):
                shape = *states.shape[:2], width, states.shape[3]
                chosen = index[:, None, :, None].to(states.device).expand(shape)
                buffer[slots, :, columns] = states.gather(2, chosen)

    def move(self, target: Int[Tensor, " row"], source: Int[Tensor, " row"]) -> None:
        """Copies slots over others."""
        for layer in self.layers:
            for buffer in layer.buffers:
                here = buffer.device
                buffer[target.to(here)] = buffer[source.to(here)]

    def shift(self, columns: int, *, rows: int) -> None:
        """Drops the first columns of the first `rows` slots."""
        left = self.column - columns
        for layer in self.layers:
            for buffer in layer.buffers:
                moved = buffer[:rows, :, columns : self.column].clone()  # they overlap
                buffer[:rows, :, :left] = moved
        self.column = left
