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
