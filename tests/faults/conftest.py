"""A process whose children suffer, and operations as they go by themselves."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.faults.children import Parent
from tests.faults.kill import Undisturbed, undisturbed


@pytest.fixture(scope="session")
def parent() -> Iterator[Parent]:
    """In memory, if there is a place: every write is waited for."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        found = Parent(Path(place))
        yield found
        found.close()


@pytest.fixture(scope="session")
def whole(parent: Parent) -> Callable[[str], Undisturbed]:
    """Gives an operation as it goes by itself, without its pages."""
    known: dict[str, Undisturbed] = {}

    def make(name: str) -> Undisturbed:
        if name not in known:
            operation = parent.operations[name]
            known[name] = undisturbed(operation, draws=False, call=parent.call)
        return known[name]

    return make


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where a copy of a directory lies before it is damaged."""
    return tmp_path / "kept"
