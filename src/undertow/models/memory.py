"""Tells that memory ran out, and makes room for another try. Knows nothing of the work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

Result = TypeVar("Result")

# What torch says on a processor, where it has no error of its own for this.
_SHORT = ("not enough memory", "can't allocate memory")


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
