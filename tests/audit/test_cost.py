"""What an audit will cost: sizes without weights, and a price that rises with the work."""

import time
from pathlib import Path
from typing import Any

import pytest

from undertow.audit.cost import (
    Cost,
    Size,
    check_layers,
    expected_cost,
    model_size,
    timed_flops,
)
from undertow.audit.settings import AuditSettings
from undertow.errors import ConfigError, ModelError
from undertow.models import registry
from undertow.models.tiny import FAMILIES, Family, save_tiny, tiny_model
from undertow.records import Message, Row

SIZE = Size(parameters=135_000_000, embedding=28_000_000, hidden=576,
            vocabulary=49_152, layers=30)  # fmt: skip


def _rows(count: int, *, length: int = 25) -> list[Row]:
    return [Row((Message("user", f"ask {i:04}"),), "x" * length) for i in range(count)]


def _cost(
    count: int, *, reference: int | None = None, length: int = 25, **settings: Any
) -> Cost:
    return expected_cost(
        _rows(count, length=length), size=SIZE, settings=AuditSettings(**settings),
        reference=reference, flops=1e12,
    )  # fmt: skip


def test_more_of_anything_costs_more() -> None:
    base = _cost(200)
    assert base.rows == 200
    assert base.tokens == 200 * 11  # 2.5 characters a token, and an end token
    assert _cost(400).seconds > base.seconds
    assert _cost(400).memory_mib > base.memory_mib
    assert _cost(200, length=250).seconds > base.seconds
    assert base.found_seconds > base.seconds
    named = _cost(200, naming_passes=8000)
    assert named.seconds == base.seconds
    assert named.found_seconds > base.found_seconds
    assert _cost(200, layers=(20,)).found_seconds < base.found_seconds
    assert _cost(200, forecast=400).seconds > base.seconds
    assert _cost(200, screening=100).seconds > base.seconds
    half = expected_cost(
        _rows(200), size=SIZE, settings=AuditSettings(), reference=None, flops=5e11
    )
    assert half.seconds - 10 == pytest.approx(2 * (base.seconds - 10))


def test_tiers_and_their_price() -> None:
    sampled, given = _cost(200), _cost(200, reference=200)
    none = expected_cost(
        _rows(200), size=SIZE, settings=AuditSettings(reference="none"),
        reference=None, flops=1e12,
    )  # fmt: skip
    assert (sampled.tier, given.tier, none.tier) == ("A", "B", "C")
    assert none.seconds < given.seconds < sampled.seconds


def test_blocks_that_the_model_has_not_are_refused() -> None:
    check_layers(None, size=SIZE, model="m", where="audit")
    check_layers((0, 29), size=SIZE, model="m", where="audit")
    with pytest.raises(ConfigError, match="audit") as caught:
        check_layers((30, 2, -1), size=SIZE, model="m", where="audit")
    have = "m has 30 blocks, counted from 0 to 29"
    assert caught.value.faults == (
        f"layers.0: got 30; {have}",
        f"layers.2: got -1; {have}",
    )


def test_no_rows_cost_little_and_break_nothing() -> None:
    found = _cost(0)
    assert found.rows == found.tokens == 0
    assert found.seconds >= 10


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_weights(family: Family, tmp_path: Path) -> None:
    """Read from the configuration alone: the weights may be missing."""
    folder = save_tiny(family, tmp_path / family, layers=2, hidden=16)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    found = model_size(str(folder))
    module = tiny_model(family, layers=2, hidden=16).module
    assert found.parameters == sum(p.numel() for p in module.parameters())
    assert found.embedding == module.get_input_embeddings().weight.numel()
    assert (found.hidden, found.layers) == (16, 2)


def test_an_unknown_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(ModelError, match="its size is not known: "):
        model_size(str(tmp_path))


def test_products_are_timed() -> None:
    assert timed_flops(dtype="float32", device="cpu", seconds=0.01) > 1e6


def test_the_size_of_what_an_unreachable_hub_has_is_said_to_be_unknown_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "hub_answers", lambda: False)
    began = time.monotonic()
    with pytest.raises(ModelError, match="its size is not known: "):
        model_size("nobody/no-such-model")
    assert time.monotonic() - began < 5
