"""What a reader is, and how one input is fed to it under guard."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.faults import inputs
from tests.faults.guard import guarded, told

from undertow.errors import UndertowError

if TYPE_CHECKING:
    from undertow.models.loading import Model

Feed = Callable[[bytes, Path], str]


class Reader(NamedTuple):
    """What is fed, to whom, and how many examples a test takes.

    `sound` is an input without a fault, and `gives` what becomes of it. Whoever reads it
    first, unguarded, imports what later ones need: libraries make folders of their own.
    """

    source: inputs.Source
    feed: Feed
    sound: bytes
    gives: str
    examples: int = 200


def fed(reader: Reader, data: bytes, folder: Path) -> str:
    """Feeds one input under guard; the outcome's kind."""
    with guarded(folder):
        try:
            return reader.feed(data, folder)
        except UndertowError as error:
            return told(error)


@cache
def tiny(layers: int = 1) -> "Model":
    """The model that tensors are for."""
    from undertow.models.tiny import tiny_model

    return tiny_model("llama", layers=layers, hidden=16)
