"""A device's speed is that of products which were done."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from undertow.models import speed
from undertow.models.speed import product_flops

CPU = torch.device("cpu")


def test_a_product_is_timed() -> None:
    found = product_flops(torch.float32, CPU, seconds=0.0)
    assert 1e6 < found < 1e16


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sides of all matrices that were multiplied; 2 to 8 is allowed."""
    found: list[int] = []
    monkeypatch.setattr(speed, "_LEAST", 2)
    monkeypatch.setattr(speed, "_MOST", 8)
    monkeypatch.setattr(speed, "_product", lambda matrix: found.append(len(matrix)))
    return found


def ticking(each: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is so much later than the one before."""
    clock = itertools.count(0.0, each)
    timing = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(speed, "time", timing)


def test_the_speed_is_operations_over_time(
    sides: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_LEAST", 8)
    ticking(0.5, monkeypatch)
    # Begun at 0; looked at after the first product, the second and the third: 0.5, 1.0,
    # 1.5, which is enough, and at the end: 2.0.
    found = product_flops(torch.float32, CPU, seconds=1.2)
    assert found == pytest.approx(2 * 8**3 * 3 / 2.0)
    assert sides == [8] * 4  # the first one warms up


def test_where_products_are_slow_small_ones_are_timed(
    sides: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking(0.5, monkeypatch)
    found = product_flops(torch.float32, CPU, seconds=1.2)
    assert found == pytest.approx(2 * 2**3 * 3 / 2.0)
    assert set(sides) == {2}
    sides.clear()
    ticking(0.5, monkeypatch)
    product_flops(torch.float32, CPU, seconds=8.5)  # 16 · 0.5 is less
    assert sides[:5] == [2, 2, 4, 4, 8]
    assert set(sides[4:]) == {8}
