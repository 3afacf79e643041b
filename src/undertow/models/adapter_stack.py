"""Several low-rank adapters over one base in one pass, each on rows of its own.

The rows of a batch are dealt out evenly, the first adapter's before the second's, and
so on. The frozen layer works on all of them at once; the adapters' products are one
batched product, on matrices that lie together in memory. What one adapter's rows give
and take never reaches another's. Knows nothing of rows' texts, losses or optimisers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.errors import ModelError
from undertow.models.adapters import LoraAdapter, replaced
from undertow.models.loading import Model


class _StackedLinear(nn.Module):
    """A frozen linear layer with a low-rank product of each row's own adapter."""

    def __init__(self, inner: nn.Module, a: Tensor, b: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.matrices = (a, b, scales)  # a tuple, so that the model does not own them

    def forward(
        self, x: Float[Tensor, "row *token in"]
    ) -> Float[Tensor, "row *token out"]:
        a, b, scales = self.matrices
        rows = x.reshape(len(a), -1, x.shape[-1])
        low = torch.bmm(rows, a.to(x).transpose(1, 2)) * scales.to(x)
        out: Tensor = self.inner(x)
        added = torch.baddbmm(
            out.reshape(len(b), -1, out.shape[-1]), low, b.to(x).transpose(1, 2)
        )
        return added.view_as(out)


class AdapterStack:
    """Adapters of one shape, whose matrices lie side by side while they are trained.

    Their parameters become views into the stack, so optimisers and checkpoints go on
    working with each adapter by itself.

    Raises:
        ModelError: The adapters change other layers, or differ in rank.
    """

    def __init__(self, adapters: Sequence[LoraAdapter]) -> None:
        first = adapters[0]
        for other in adapters[1:]:
            if other.rank != first.rank or other.pairs.keys() != first.pairs.keys():
                raise ModelError(
                    "adapters side by side need one rank and the same layers; got rank "
                    f"{first.rank} on {len(first.pairs)} layers and rank {other.rank} "
                    f"on {len(other.pairs)}; train them one after another"
                )
        self.adapters = tuple(adapters)
        self.pairs = {
            name: (self._stacked(name, 0), self._stacked(name, 1))
            for name in first.pairs
        }
        scales = [adapter.scale for adapter in adapters]
        device = first.parameters()[0].device
        self.scales = torch.tensor(scales, device=device)[:, None, None]

    @torch.no_grad()
    def _stacked(self, name: str, side: int) -> nn.Parameter:
        own = [adapter.pairs[name][side] for adapter in self.adapters]
        stacked = nn.Parameter(torch.stack([matrix.detach() for matrix in own]))
        for place, matrix in enumerate(own):
            matrix.data = stacked.data[place]
        return stacked

    def give_gradients(self) -> None:
        """Moves what the stack has gathered to the adapters' own parameters."""
        for name, pair in self.pairs.items():
            for side, stacked in enumerate(pair):
                if stacked.grad is None:
                    continue
                for place, adapter in enumerate(self.adapters):
                    adapter.pairs[name][side].grad = stacked.grad[place]
                stacked.grad = None

    @torch.no_grad()
    def release(self) -> None:
        """Gives every adapter memory of its own again."""
        for adapter in self.adapters:
            for matrix in adapter.parameters():
                matrix.data = matrix.data.clone()


@contextmanager
def attached_together(model: Model, stack: AdapterStack) -> Iterator[Model]:
    """The model with all adapters in place, each for its share of a batch's rows.

    A batch has to hold equally many rows of each, in the order of the adapters.
    """
    with replaced(
        model,
        stack.pairs,
        lambda inner, a, b: _StackedLinear(inner, a, b, stack.scales),
    ):
        yield model
