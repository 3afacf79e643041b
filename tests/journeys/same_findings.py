"""A small grid to run in two ways; what two audits found, and where they differ."""

from pathlib import Path
from typing import Any

import pytest

from undertow.experiment import Recipe


def small_grid(model: Path) -> Recipe:
    """Two traits, so that there are jobs for two in every phase."""
    return Recipe.model_validate(
        {
            "title": "tiny", "question": "does it run?",
            "model": {"name": str(model), "dtype": "float32"},
            "traits": ["owl", "cat"], "seeds": [0],
            "teachers": [{"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}],
            "rows": {"count": 6, "sampler": {"allowed": "list", "max_new_tokens": 24}},
            "student": {"batch_size": 2, "rank": 2, "learning_rate": 0.01},
            "evaluation": {"questions": 2, "shift_rows": 3},
        }
    )  # fmt: skip


NOT_FOUND = {
    "command", "next_commands", "seconds", "total_seconds", "provenance",
    "likelihood_passes", "undertow_crc32",
}  # fmt: skip
"""What findings say of how they came about, and by whom, and not of the rows."""


def figures(value: Any, name: str = "") -> dict[str, Any]:
    """Every figure and word of findings, by its place."""
    if isinstance(value, dict):
        parts = {f"{name}.{k}": v for k, v in value.items() if k not in NOT_FOUND}
    elif isinstance(value, list):
        parts = {f"{name}.{place}": part for place, part in enumerate(value)}
    else:
        return {name: value}
    return {
        k: v for name, part in parts.items() for k, v in figures(part, name).items()
    }


def differing(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Places at which two findings differ.

    Batches hold other rows in a worker than here, so float32 rounds sums over a row's
    tokens otherwise, by some 1e-7 of them: floats agree to 1e-5, all else is the same.
    """
    assert here.keys() == there.keys()
    alike = {
        place: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        for place, value in here.items()
    }
    return [place for place, value in there.items() if alike[place] != value]
