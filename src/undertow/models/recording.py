"""Records work of a fixed shape on a GPU, to be replayed without launching each kernel.

A pass of a small model is thousands of kernels that take longer to launch than to run.
Knows nothing of what is recorded.
"""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from undertow.models.loading import Model

Result = TypeVar("Result")


def is_recordable(model: Model, *, capacity: int) -> bool:
    """Whether passes may be recorded: on one CUDA device, seeing every column."""
    config = model.module.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = bool(window) and (kinds is None or "sliding_attention" in kinds)
    return (
        model.device.type == "cuda"
        and not model.is_split
        and config._attn_implementation == "sdpa"
        and not getattr(config, "attn_logit_softcapping", None)
        and not (slides and capacity > int(window or 0))
    )


def recorded(
    work: Callable[[], Result], *, beside: torch.cuda.CUDAGraph | None, what: str
) -> tuple[torch.cuda.CUDAGraph, Result] | None:
    """Records work without running it, or warns that it cannot be.

    Args:
        work: Asks the device nothing and has been run before, so that libraries have
            allocated what they need. What it gives is written anew by each replay.
        beside: Another recording that is not replayed at the same time, whose memory
            may be shared.
        what: For the warning.

    Raises:
        torch.OutOfMemoryError: There is no memory to record in.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=None if beside is None else beside.pool()):
            result = work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = str(error).strip().split("\n", 1)[0]
        warnings.warn(
            f"{what} cannot be recorded ({first}): they are launched one kernel at a "
            "time; results are the same, it takes longer",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return graph, result
