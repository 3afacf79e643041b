"""What two audits found, and where they differ."""

from typing import Any

import pytest

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
