"""Memory that ran out is told apart from other faults, and what fits is given."""

import pytest
import torch

from undertow.models.memory import OutOfMemory, attempted, halved, is_out_of_memory

CPU = RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"
)
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore")


def _raise(error: Exception) -> None:
    raise error


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
