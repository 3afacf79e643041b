"""Training passes of a few fixed shapes, which a GPU can replay without being told each kernel.

A part of a batch is padded to one of a few shapes, read from the same memory every
time, and its gradients come to lie in the same memory, so the pass is recorded once and
replayed whole. Padding counts nothing. Knows nothing of
optimisers or of whose rows these are.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undertow.models.attention import causal_attention
from undertow.models.chat import Rendered
from undertow.models.hooks import completion_positions
from undertow.models.loading import Model
from undertow.models.recording import recorded
from undertow.pipeline.losses import token_losses

_WIDTH, _COUNTED = 16, 256  # shapes are multiples of so many columns and tokens
Shape = tuple[int, int, int]  # rows, columns, tokens that count


@dataclass(frozen=True)
class _Inputs:
    """What a pass reads: tokens, and where and how much each that counts does."""

    ids: Int[Tensor, "row column"]
    completion: Bool[Tensor, "row column"]
    places: Int[Tensor, " counted"]
    targets: Int[Tensor, " counted"]
    shares: Float[Tensor, " counted"]

    @classmethod
    def of(cls, rows: Sequence[Rendered], shares: Sequence[float]) -> "_Inputs":
        """On the processor, padded to a shape."""
        width = _rounded(max(len(row.ids) for row in rows), _WIDTH)
        counted = _rounded(len(shares), _COUNTED)
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        completion = torch.zeros((len(rows), width), dtype=torch.bool)
        places = torch.zeros(counted, dtype=torch.long)
        targets, weights = torch.zeros_like(places), torch.zeros(counted)
        weights[: len(shares)] = torch.tensor(shares)
        done = 0
        for place, row in enumerate(rows):
            start, end = row.completion_start, len(row.ids)
            tokens = torch.tensor(row.ids)
            ids[place, :end], completion[place, start:end] = tokens, True
            own = slice(done, done + end - start)
            places[own] = torch.arange(start - 1, end - 1) + place * width
            targets[own] = tokens[start:]
            done += end - start
        return cls(ids, completion, places, targets, weights)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.ids, self.completion, self.places, self.targets, self.shares

    @property
    def shape(self) -> Shape:
        """What two of the same recording share."""
        rows, columns = self.ids.shape
        return rows, columns, len(self.places)


@dataclass(frozen=True)
class _Recording:
    """A recorded pass: what it reads, its weighted losses, its gradients."""

    graph: torch.cuda.CUDAGraph
    inputs: _Inputs
    losses: Float[Tensor, " counted"]
    gradients: list[Tensor | None]


class FixedPasses:
    """Losses of rows, and gradients added to those that parameters have.

    Args:
        model: The base.
        parameters: What is trained.
        attach: Opens a context in which they act.
        records: Whether passes are recorded and replayed; else each is run as it is.
    """

    def __init__(
        self,
        model: Model,
        parameters: Sequence[Tensor],
        attach: Callable[[], AbstractContextManager[object]],
        *,
        records: bool = True,
    ) -> None:
        self.model, self.parameters, self.attach = model, list(parameters), attach
        self.records = records
        self._warm: set[Shape] = set()
        self._recorded: dict[Shape, _Recording] = {}

    def __call__(
        self, rows: Sequence[Rendered], shares: Sequence[float]
    ) -> Float[Tensor, " token"]:
        """Each completion token's loss times its share, row after row, detached.

        Args:
            rows: Prompts with completions.
            shares: What each completion token counts.
        """
        inputs = _Inputs.of(rows, shares)
        shape, before = inputs.shape, self._taken()
        if shape not in self._recorded and self.records and shape in self._warm:
            self._record(inputs)
        if shape in self._recorded:
            losses, gradients = self._replayed(inputs)
        else:
            self._warm.add(shape)  # libraries allocate what they need
            losses = self._run(self._moved(inputs))
            gradients = self._taken()
        for place, parameter in enumerate(self.parameters):
            own, other = gradients[place], before[place]
            parameter.grad = own if other is None or own is None else other + own
        return losses[: len(shares)]

    def _taken(self) -> list[Tensor | None]:
        """The gradients that are there, taken away."""
        taken = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return taken

    def _moved(self, inputs: _Inputs) -> _Inputs:
        return _Inputs(*(each.to(self.model.device) for each in inputs.tensors))

    def _run(self, inputs: _Inputs) -> Float[Tensor, " counted"]:
        """One pass; gradients are left with the parameters."""
        with (
            torch.enable_grad(),
            self.attach(),
            completion_positions(self.model, inputs.completion),
            causal_attention(self.model),
        ):
            hidden = self.model.module.base_model(
                input_ids=inputs.ids, use_cache=False
            )[0]
            states = hidden.flatten(0, 1)[inputs.places]
            losses = token_losses(self.model, states, inputs.targets) * inputs.shares
            losses.sum().backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    def _replayed(self, inputs: _Inputs) -> tuple[Tensor, list[Tensor | None]]:
        known = self._recorded[inputs.shape]
        for target, source in zip(known.inputs.tensors, inputs.tensors, strict=True):
            target.copy_(source)
        known.graph.replay()
        # The next replay writes over them.
        return known.losses, [g if g is None else g.clone() for g in known.gradients]

    def _record(self, inputs: _Inputs) -> None:
        """Records a pass; where that fails, none is recorded."""
        kept = self._moved(inputs)
        beside = next((each.graph for each in self._recorded.values()), None)
        what = f"training passes of {self.model.name!r}"
        found = recorded(lambda: self._run(kept), beside=beside, what=what)
        gradients = self._taken()
        if found is None:
            self.records = False
        else:
            self._recorded[kept.shape] = _Recording(found[0], kept, found[1], gradients)


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
