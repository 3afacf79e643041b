"""Other weights in a model for a while: swapped in whole, and back on the way out.

Nothing is copied or computed: parameters point elsewhere. Knows nothing of who made
the weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from undertow.models.loading import Model, fingerprint
from undertow.models.placement import check_in_memory


@contextmanager
def swapped(model: Model, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters by name take these values while it is open.

    Raises:
        ModelError: Weights are kept on the processor or on disk between passes.
    """
    if weights:
        check_in_memory(model.module, "taking on other weights")
    named = dict(model.module.named_parameters())
    kept = {name: named[name].data for name in weights}
    try:
        for name, weight in weights.items():
            named[name].data = weight.to(named[name].device, named[name].dtype)
        yield
    finally:
        for name, weight in kept.items():
            named[name].data = weight


@dataclass(frozen=True)
class OtherWeights:
    """A base of the same shape, as what sets it apart.

    Attributes:
        weights: Parameters that differ, by name.
        name: The base's.
        fingerprint: The base's.
    """

    weights: Mapping[str, Tensor]
    name: str
    fingerprint: str

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """The model as that base."""
        with swapped(model, self.weights):
            yield replace(model, name=self.name, fingerprint=self.fingerprint)


@torch.no_grad()
def put_back(model: Model, other: OtherWeights) -> None:
    """Turns a model into that base for good."""
    named = dict(model.module.named_parameters())
    for name, weight in other.weights.items():
        named[name].copy_(weight)


def copied_weights(model: Model, names: Sequence[str]) -> OtherWeights:
    """The model as it is, to come back to when those parameters were changed.

    Raises:
        ModelError: Weights are kept on the processor or on disk between passes.
    """
    if names:
        check_in_memory(model.module, "a copy to come back to: what follows")
    named = dict(model.module.named_parameters())
    copies = {name: named[name].detach().clone() for name in names}
    return OtherWeights(copies, model.name, fingerprint(model.module))
