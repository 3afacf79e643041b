"""Decode steps of a fixed shape, which a GPU can replay without being told each kernel.

A step works on a fixed number of slots, reads and writes the same memory every time,
and takes the column it writes to from a tensor, so it is recorded once and replayed
whole. Whatever is attached to the model while it is recorded is part of it. Knows
nothing of sampling: tokens in, logits out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undertow.models.attention import products_attention
from undertow.models.cache import SlotCache
from undertow.models.hooks import completion_positions
from undertow.models.loading import Model
from undertow.models.recording import recorded
from undertow.models.unembedding import unembed

_FEWEST = 16  # slots of a step: fewer are no faster


class FixedSteps:
    """The pass of one token a slot, for as many slots as are in use or a few more.

    Args:
        model: With whatever steering or adapter is attached for as long as this lives.
        cache: Where keys and values are written.
        token: [slot], what is read.
        length: [slot], its position.
        mask: [slot, column], which columns a slot looks at; one at least.
        ids: Token ids whose logits are wanted; None: all.
        records: Whether steps are recorded and replayed; else each is run as it is.
    """

    def __init__(
        self,
        model: Model,
        cache: SlotCache,
        *,
        token: Int[Tensor, " slot"],
        length: Int[Tensor, " slot"],
        mask: Bool[Tensor, "slot column"],
        ids: Int[Tensor, " carrier"] | None = None,
        records: bool = True,
    ) -> None:
        self.model, self.cache, self.ids = model, cache, ids
        self.token, self.length, self.mask = token, length, mask
        self.records = records
        self._warm: set[int] = set()
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def size(self, count: int) -> int:
        """How many slots a step reads so that `count` of them are among these."""
        size = len(self.token)
        while size // 2 >= max(count, _FEWEST):
            size //= 2
        return size

    def __call__(self, count: int) -> Float[Tensor, "slot vocab"]:
        """Logits of the first `count` slots; the next call may write over them."""
        size = self.size(count)
        if size not in self._recorded and self.records and size in self._warm:
            self._record(size)
        if size in self._recorded:
            graph, logits = self._recorded[size]
            graph.replay()
            return logits[:count]
        self._warm.add(size)  # the first time, libraries allocate what they need
        return self._run(size)[:count]

    def _run(self, size: int) -> Float[Tensor, "slot vocab"]:
        flags = torch.ones_like(self.token[:size, None], dtype=torch.bool)
        with self._acting(flags):
            states: Tensor = self.model.module.base_model(
                input_ids=self.token[:size, None],
                attention_mask=self.mask[:size, None, None],
                position_ids=self.length[:size, None],
                past_key_values=self.cache.cache,
                use_cache=True,
            )[0]
        return unembed(self.model, states[:, -1], ids=self.ids)

    @contextmanager
    def _acting(self, flags: Tensor) -> Iterator[None]:
        with (
            completion_positions(self.model, flags),
            products_attention(self.model),
            self.cache.written_by_index(),
        ):
            yield

    def _record(self, size: int) -> None:
        """Records a step; where that fails, none is recorded."""
        beside = next((graph for graph, _ in self._recorded.values()), None)
        what = f"decode steps of {self.model.name!r}"
        found = recorded(lambda: self._run(size), beside=beside, what=what)
        if found is None:
            self.records = False
        else:
            self._recorded[size] = found
