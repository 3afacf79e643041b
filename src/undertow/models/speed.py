"""How fast a device computes: a matrix product of the size that models have, timed.

Measured, not looked up. Knows nothing of what is forecast from it.
"""

import time

import torch

_LEAST, _MOST = 128, 1024  # of a matrix's side


def product_flops(
    dtype: torch.dtype, device: torch.device, *, seconds: float = 0.3
) -> float:
    """Operations a second of a matrix product.

    Args:
        dtype: Of its numbers.
        device: Where it is computed.
        seconds: How long it is done again and again. Where few products of the largest
            size could be done in it, smaller ones are.
    """
    width = _LEAST
    # The next size is eight times the work, and done twice before it is timed.
    while width < _MOST and 16 * _once(dtype, device, width) < seconds:
        width *= 2
    matrix = _warm(dtype, device, width)
    count, began = 0, time.perf_counter()
    while not count or time.perf_counter() - began < seconds:
        _product(matrix)
        count += 1
    return 2 * width**3 * count / (time.perf_counter() - began)


def _once(dtype: torch.dtype, device: torch.device, width: int) -> float:
    """Seconds of one product."""
    matrix = _warm(dtype, device, width)
    began = time.perf_counter()
    _product(matrix)
    return time.perf_counter() - began


def _warm(dtype: torch.dtype, device: torch.device, width: int) -> torch.Tensor:
    """A matrix of which one product was done, that what is loaded for it is there."""
    matrix = torch.ones(width, width, dtype=dtype, device=device)
    _product(matrix)
    return matrix


def _product(matrix: torch.Tensor) -> None:
    float((matrix @ matrix)[0, 0])  # an accelerator is waited for
