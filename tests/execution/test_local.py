"""Calls made in this process."""

from collections.abc import Iterator

import pytest

from undertow.errors import DatasetError
from undertow.execution.executor import Executor, Later, Needs
from undertow.execution.local import Here


def _double(value: int) -> int:
    if value == 3:
        raise DatasetError("three is no row")
    return 2 * value


def test_answers_come_in_order_with_their_places() -> None:
    executor: Executor = Here()
    answers = executor.map(_double, [5, 7, 1], needs=Needs(cpus=4.0, gpus=1.0))
    assert list(answers) == [(0, 10), (1, 14), (2, 2)]


def test_values_are_taken_one_by_one() -> None:
    taken = []

    def values() -> Iterator[int]:
        for value in range(1_000_000):
            taken.append(value)
            yield value

    answers = Here().map(_double, values(), needs=Needs())
    assert next(answers) == (0, 0)
    assert taken == [0]


def test_a_value_that_never_comes_ends_the_calls() -> None:
    values: list[int | Later] = [1, Later.NOT_YET, 2]
    answers = Here().map(_double, values, needs=Needs())
    assert list(answers) == [(0, 2)]


def test_an_error_of_a_call_is_raised_where_answers_are_taken() -> None:
    answers = Here().map(_double, [1, 3, 4], needs=Needs())
    assert next(answers) == (0, 2)
    with pytest.raises(DatasetError, match="three is no row"):
        next(answers)


def test_there_is_one_slot_whatever_is_needed() -> None:
    assert Here().slots(Needs(cpus=64.0, gpus=8.0)) == 1
    assert Here().is_here
