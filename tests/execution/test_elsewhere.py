"""What every executor promises that makes its calls in other processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.execution import things

from undertow.errors import ConfigError
from undertow.execution.executor import Executor, Later, Needs

pytestmark = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=["pool", pytest.param("cluster", marks=pytest.mark.ray)],
    ids=["processes", "ray"],
)
def elsewhere(request: pytest.FixtureRequest) -> Executor:
    """One with two slots."""
    found: Executor = request.getfixturevalue(request.param)
    return found


def test_answers_come_with_their_places(elsewhere: Executor) -> None:
    answers = elsewhere.map(things.double, range(9), needs=Needs())
    assert sorted(answers) == [(place, 2 * place) for place in range(9)]
    assert not elsewhere.is_here
    assert list(elsewhere.map(things.double, [], needs=Needs())) == []


def test_values_are_taken_as_they_are_needed(elsewhere: Executor) -> None:
    taken = []

    def values() -> Iterator[int]:
        for value in range(100):
            taken.append(value)
            yield value

    answers = elsewhere.map(things.double, values(), needs=Needs())
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert len(taken) == 4, "two for each slot"


def test_a_value_may_wait_for_an_answer(elsewhere: Executor) -> None:
    found: list[tuple[int, int]] = []

    def values() -> Iterator[int | Later]:
        yield 1
        while not found:
            yield Later.NOT_YET
        yield 1 + found[0][1]

    for place, value in elsewhere.map(things.double, values(), needs=Needs()):
        found.append((place, value))
    assert found == [(0, 2), (1, 6)]
    waits: list[int | Later] = [Later.NOT_YET, 1]
    never = elsewhere.map(things.double, waits, needs=Needs())
    assert list(never) == [], "no answer can come that would change it"


def test_an_error_of_the_user_s_comes_back_as_it_was(elsewhere: Executor) -> None:
    with pytest.raises(ConfigError, match="three is no value") as caught:
        list(elsewhere.map(things.refuse, range(8), needs=Needs()))
    assert caught.value.faults == ("three is no value", "nor is it here")


def test_the_call_of_a_killed_process_is_made_again(
    elsewhere: Executor, tmp_path: Path
) -> None:
    places = [str(tmp_path / "first"), str(tmp_path / "second")]
    answers = dict(elsewhere.map(things.die_once, places, needs=Needs()))
    assert answers == {0: "first", 1: "second"}
