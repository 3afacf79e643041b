"""Memory that ran out is told apart from other faults, and what fits is given."""

from collections.abc import Sequence

import pytest
import torch

from undertow.errors import ModelError
from undertow.models.memory import (
    OutOfMemory,
    attempted,
    halved,
    in_halves,
    is_out_of_memory,
    processor_tokens,
)

CPU = RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"
)
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore")


def _raise(error: Exception) -> None:
    raise error


def test_wide_streams_are_read_fewer_tokens_at_once() -> None:
    assert processor_tokens(576) == 1536
    assert processor_tokens(1152) == 768
    assert processor_tokens(8192) == 384
    assert processor_tokens(32) == 8192


@pytest.mark.parametrize("error", [CPU, CUDA], ids=["cpu", "cuda"])
def test_a_fault_of_memory_is_given_back_in_one_line(error: RuntimeError) -> None:
    assert is_out_of_memory(error)
    found = attempted(lambda: _raise(error))
    assert found == OutOfMemory(str(error).split("\n", 1)[0])


def test_what_is_found_is_given_and_other_faults_are_left_alone() -> None:
    assert attempted(lambda: [1.5]) == [1.5]
    assert attempted(lambda: None) is None
    other = RuntimeError("shapes do not match")
    assert not is_out_of_memory(other)
    with pytest.raises(RuntimeError, match="shapes"):
        attempted(lambda: _raise(other))


def test_a_smaller_budget_is_said() -> None:
    assert "batches hold 320 tokens" in halved(320)


@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_halves_keep_the_order_and_do_nothing_twice(room: int) -> None:
    done: list[int] = []

    def work(items: Sequence[int]) -> int:
        if len(items) > room:
            raise CUDA
        done.extend(items)
        return sum(items)

    if room < 7:
        with pytest.warns(
            RuntimeWarning, match=r"memory ran out: goes on with \d at a"
        ):
            found = in_halves(range(7), work)
    else:
        found = in_halves(range(7), work)
    assert done == list(range(7))
    assert sum(found) == 21
    assert len(found) == {1: 7, 2: 4, 3: 3, 7: 1}[room]


def test_what_does_not_fit_by_itself_is_an_error() -> None:
    with pytest.raises(ModelError, match="on one item by itself"):
        in_halves([0], lambda _: _raise(CPU))
