"""Reads or edits the residual stream between decoder blocks.

`residual[layer]` is the stream after block `layer`, counted from 0. Hooks are put
on the blocks and always taken off again, also after an exception. Knows nothing of
vectors or traits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from undertow.errors import VectorMismatchError
from undertow.models.loading import Model

Edit = Callable[
    [Float[Tensor, "batch token hidden"]], Float[Tensor, "batch token hidden"]
]

_completion: ContextVar[Tensor | None] = ContextVar("completion", default=None)


@contextmanager
def completion_positions(
    model: Model,  # noqa: ARG001  (which model the mask belongs to; kept for clarity)
    mask: Bool[Tensor, "batch token"],
) -> Iterator[None]:
    """Says which tokens of the next forward pass belong to a completion.

    The engines of sampling, scoring and training open this around each pass, so that
    an edit can tell the prompt from the completion under any padding and cache.
    """
    token = _completion.set(mask)
    try:
        yield
    finally:
        _completion.reset(token)


def current_completion_positions() -> Bool[Tensor, "batch token"] | None:
    """The mask of the pass that is running, or None if nobody told."""
    return _completion.get()


def check_layers(model: Model, layers: Sequence[int]) -> None:
    """Refuses layers that the model has not.

    Raises:
        VectorMismatchError: A layer is negative or past the last block.
    """
    count = len(model.architecture.blocks)
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong:
        raise VectorMismatchError(
            f"unknown layer {wrong[0]} of {model.name!r}: its {count} blocks are "
            f"counted from 0 to {count - 1}"
        )


def _hidden(output: Any) -> Tensor:
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, Tensor)
    return first


@contextmanager
def editing_residuals(model: Model, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Passes the stream after each named block through a function.

    Args:
        model: The model.
        edits: Function by layer; it gets and returns [batch, token, hidden].

    Raises:
        VectorMismatchError: Unknown layer.
    """
    check_layers(model, list(edits))

    def hook_of(edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
            edited = edit(_hidden(output))
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return hook

    handles: list[Any] = []
    try:
        for layer, edit in edits.items():
            block = model.architecture.blocks[layer]
            handles.append(block.register_forward_hook(hook_of(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recording_residuals(
    model: Model, layers: Sequence[int]
) -> Iterator[dict[int, Tensor]]:
    """Keeps the stream after the named blocks of the last pass.

    Yields:
        A dictionary that each forward pass fills: layer → [batch, token, hidden], in
        the model's dtype and device, not detached.

    Raises:
        VectorMismatchError: Unknown layer.
    """
    kept: dict[int, Tensor] = {}

    def keeper(layer: int) -> Edit:
        def keep(hidden: Tensor) -> Tensor:
            kept[layer] = hidden.to(model.device)
            return hidden

        return keep

    with editing_residuals(model, {layer: keeper(layer) for layer in layers}):
        yield kept


@dataclass(frozen=True)
class Stream:
    """What some block gave for rows, to go on from.

    Attributes:
        layer: The block.
        hidden: [row, token, hidden], after it.
        is_alone: Whether blocks of this model return nothing else.
    """

    layer: int
    hidden: Tensor
    is_alone: bool

    def as_output(self, hidden: Tensor) -> Any:
        """A stream in the form in which blocks of this model return theirs."""
        return hidden if self.is_alone else (hidden,)


@contextmanager
def recording_streams(
    model: Model, layers: Sequence[int]
) -> Iterator[dict[int, Stream]]:
    """Keeps the stream of rows after the named blocks, to go on from there.

    Blocks past the last of them cost nothing while this is open: what a pass gives in
    the end means nothing.

    Raises:
        VectorMismatchError: Unknown layer.
    """
    check_layers(model, layers)
    kept: dict[int, Stream] = {}
    last = max(layers)

    def keeper(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
            alone = not isinstance(output, tuple)
            kept[layer] = Stream(layer, _hidden(output).to(model.device), alone)

        return keep

    handles = [
        model.architecture.blocks[layer].register_forward_hook(keeper(layer))
        for layer in layers
    ]
    try:
        after = list(model.architecture.blocks)[last + 1 :]
        with _standing_in(after, lambda: kept[last].as_output(kept[last].hidden)):
            yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def going_on_from(model: Model, stream: Stream, hidden: Tensor) -> Iterator[None]:
    """Passes begin after a block: those up to it cost nothing while this is open.

    Args:
        model: The model; its embedding still reads the tokens, in vain.
        stream: As recorded of rows like those that are read.
        hidden: [row, token, hidden], what stands in for the stream.
    """
    skipped = list(model.architecture.blocks)[: stream.layer + 1]
    with _standing_in(skipped, lambda: stream.as_output(hidden)):
        yield


@contextmanager
def _standing_in(
    blocks: Sequence[nn.Module], output: Callable[[], Any]
) -> Iterator[None]:
    """Blocks that only give what they are told, whatever they are given."""

    def forward(*_: Any, **__: Any) -> Any:
        return output()

    # Blocks of a model on several devices have a pass of their own already.
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = forward
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before
