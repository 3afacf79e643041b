"""What can be asked of those who make calls."""

from dataclasses import FrozenInstanceError

import pytest

from undertow.execution.executor import Needs


def test_a_call_takes_one_core_and_no_accelerator_if_nothing_is_said() -> None:
    assert Needs() == Needs(cpus=1.0, gpus=0.0, memory_bytes=None)


def test_needs_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Needs().cpus = 2.0  # type: ignore[misc]
