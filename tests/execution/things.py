"""Functions at the top of a module, as calls need them."""

import os
import signal
import time
from pathlib import Path

from undertow.errors import ConfigError


def double(value: int) -> int:
    """Twice a value."""
    return 2 * value


def refuse(value: int) -> int:
    """Raises what the user can mend, for three."""
    if value == 3:
        raise ConfigError("values", ["three is no value", "nor is it here"])
    return value


def stumble(value: int) -> float:
    """Raises what is a bug, for zero."""
    return 1 / value


def slow(seconds: float) -> int:
    """Waits; returns the process that waited."""
    time.sleep(seconds)
    return os.getpid()


def die_once(place: str) -> str:
    """Kills its own process at its first call; the file says that there was one."""
    path = Path(place)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def die(value: int) -> int:
    """Kills its own process, always."""
    os.kill(os.getpid(), signal.SIGKILL)
    return value


def who(seconds: float) -> tuple[int, int]:
    """Waits; returns the process that waited, and how many threads torch has there."""
    import torch

    time.sleep(seconds)
    return os.getpid(), torch.get_num_threads()


def same(value: object) -> object:
    """The value."""
    return value


def die_for_the_first(value: str) -> str:
    """Kills its own process for a path, and leaves a letter there; numbers come back."""
    if not value.isdigit():
        with Path(value).open("a", encoding="utf-8") as file:
            file.write("x")
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def count_beside_a_death(place: str) -> str:
    """Notes its call in a file; for a file named `kills`, waits, and dies the first time."""
    path = Path(place)
    with path.open("a", encoding="utf-8") as file:
        file.write("x")
    if path.name == "kills":
        time.sleep(0.5)
        if path.read_text(encoding="utf-8") == "x":
            os.kill(os.getpid(), signal.SIGKILL)
    return path.name


class Odd(Exception):
    """An error that pickle takes and cannot make again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def raise_odd(value: int) -> int:
    """Raises such an error."""
    raise Odd("one", "two")
