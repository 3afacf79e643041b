"""Independent random streams, each named by (seed, purpose, index).

Every draw of the program comes from a stream made here, so batch size, order of work
and resuming change nothing: the name alone decides the numbers. Knows nothing of what
the numbers are for. Names are hashed, so streams with near names share nothing.
"""

import hashlib
import json
import operator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def generator(seed: int, purpose: str, *index: int | str) -> np.random.Generator:
    """A NumPy generator (Philox) for one named stream, at its beginning.

    Args:
        seed: The run's seed; any integer.
        purpose: What is drawn, such as "sampling".
        *index: Place within the purpose. 1 and "1" name different streams.
    """
    key = int.from_bytes(_digest(seed, purpose, index)[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def stream_seed(seed: int, purpose: str, *index: int | str) -> int:
    """A seed in [0, 2⁶³) for a library that makes its own stream."""
    return int.from_bytes(_digest(seed, purpose, index)[16:24], "little") >> 1


def torch_generator(seed: int, purpose: str, *index: int | str) -> "torch.Generator":
    """A torch generator on the CPU for one named stream, at its beginning.

    Draw on the CPU and move the result: devices have generators of their own that
    give other numbers. torch keeps 32 bits of the seed here, which is enough to tell
    thousands of streams apart; where there are millions, take `generator`.
    """
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, purpose, *index))


def _digest(seed: int, purpose: str, index: tuple[int | str, ...]) -> bytes:
    # JSON keeps names apart: ("a", 1) and ("a1",), 1 and "1".
    places = [i if isinstance(i, str) else operator.index(i) for i in index]
    name = json.dumps([operator.index(seed), purpose, *places])
    return hashlib.sha256(name.encode("ascii")).digest()
