"""How much goes through a model at once, and what to do when memory ran out after all.

Knows nothing of the work.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from undertow.errors import ModelError

Item = TypeVar("Item")
Result = TypeVar("Result")

# What torch says on a processor, where it has no error of its own for this.
_SHORT = ("not enough memory", "can't allocate memory")


# Tokens of a pass with a backward pass, for a stream so wide, and the least and the most.
_TOKENS, _HIDDEN, _LEAST, _MOST = 1536, 576, 384, 8192


def processor_tokens(hidden: int) -> int:
    """Tokens that a processor reads at once where a backward pass follows.

    Products of a narrow stream reach their speed from about 1,350 tokens on; those of a
    wider one do with fewer, which leave as much in memory.

    Args:
        hidden: Width of the stream.
    """
    return max(_LEAST, min(_MOST, _TOKENS * _HIDDEN // hidden))


@dataclass(frozen=True)
class OutOfMemory:
    """What was said when memory ran out; the error itself would hold on to it."""

    fault: str


def attempted(work: Callable[[], Result]) -> Result | OutOfMemory:
    """What the work gives, or that memory ran out; what it held is given back."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fault = str(error).strip().split("\n", 1)[0]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return OutOfMemory(fault)


def in_halves(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Result]
) -> list[Result]:
    """Works on all items at once or, as long as memory is short, on halves of them.

    Args:
        items: One or more, in the order that they are worked on.
        work: May keep what it finds only when all of it is there.

    Returns:
        What the work gave for each part, in order.

    Raises:
        ModelError: One item by itself does not fit into memory.
    """
    found = attempted(partial(work, items))
    if not isinstance(found, OutOfMemory):
        return [found]
    if len(items) == 1:
        raise ModelError(
            f"memory ran out on one item by itself ({found.fault}); free memory, leave "
            "long rows out, or take a smaller model or dtype"
        )
    half = (len(items) + 1) // 2
    said = f"memory ran out: goes on with {half} at a time; results are the same"
    warnings.warn(said, RuntimeWarning, stacklevel=2)
    return [*in_halves(items[:half], work), *in_halves(items[half:], work)]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(part in text for part in _SHORT)


def halved(budget: int) -> str:
    """What is to be said of a smaller budget."""
    return (
        f"memory ran out: batches hold {budget} tokens from there on; results are the "
        "same, it takes longer"
    )
