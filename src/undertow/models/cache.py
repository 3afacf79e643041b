"""A key-value cache that is allocated once and can drop and repeat rows.

Knows nothing of sampling; positions beyond the written length are never read.
"""

from typing import Any

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

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        assert self.keys is not None
        assert self.values is not None
        self.keys = self.keys.index_select(0, rows)
        self.values = self.values.index_select(0, rows)


def new_cache(model: Model, capacity: int) -> Cache:
    """A cache with room for `capacity` positions, allocated at the first use."""
    count = len(model.architecture.blocks)
    return Cache(layers=[PreallocatedLayer(capacity) for _ in range(count)])
