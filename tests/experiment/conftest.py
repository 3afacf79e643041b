"""A tiny model and a small grid for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undertow.experiment import Recipe
from undertow.models.tiny import save_tiny


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny Llama."""
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def way() -> Callable[..., dict[str, Any]]:
    """Makes a steered teacher like all others, with a student of its own."""

    def make(name: str, **student: Any) -> dict[str, Any]:
        usual = {"batch_size": 2, "rank": 2, "learning_rate": 0.01}
        steer = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}
        return {**steer, "name": name, "student": {**usual, **student}}

    return make


@pytest.fixture(scope="session")
def stages() -> Callable[[Path], set[str]]:
    """Gives the names of a run's finished stages."""

    def found(directory: Path) -> set[str]:
        folder = directory / "stages"
        files = folder.rglob("*.json")
        return {str(path.relative_to(folder).with_suffix("")) for path in files}

    return found


@pytest.fixture
def recipe(tiny_llama: Path) -> Callable[..., Recipe]:
    """Makes a small grid; changes replace whole settings."""
    data: dict[str, Any] = {
        "title": "tiny",
        "question": "does it run?",
        "model": {"name": str(tiny_llama), "dtype": "float32"},
        "traits": ["owl"],
        "teachers": [
            {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}},
            {"kind": "prompt"},
        ],
        "seeds": [0, 1],
        "rows": {
            "count": 6,
            "batch_size": 4,
            "sampler": {"allowed": "list", "max_new_tokens": 24},
        },
        "student": {"batch_size": 2, "rank": 2, "learning_rate": 0.01},
        "evaluation": {"questions": 2, "shift_rows": 3},
    }

    def make(**changes: Any) -> Recipe:
        return Recipe.model_validate(data | changes)

    return make
