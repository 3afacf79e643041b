"""Bounds of a benchmark: which rows are compared, the filter's share, who gets one."""

import math
from copy import copy
from dataclasses import replace

import pytest

from undertow.audit.bench_bounds import (
    _passing,
    _places,
    persona_naming,
    teacher_bounds,
)
from undertow.audit.bench_sets import CarrierPools, Pool, Source
from undertow.audit.bench_settings import BenchmarkSettings, CarrierSettings, Design
from undertow.audit.contest import Workbench
from undertow.audit.meter import Meter
from undertow.audit.signals import Battery
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.records import Message, Row
from undertow.traits import load_family

LIST = CarrierSettings(
    name="list", prompts=12, teacher_prompts=12,
    sampler=SamplerSettings(max_new_tokens=8),
)  # fmt: skip


def _rows(word: str, places: range) -> dict[int, Row]:
    return {
        place: Row((Message("user", f"numbers {place}"),), f"{place}, {word}")
        for place in places
    }


def _pools(*others: tuple[Source, Pool], accepted: float | None = None) -> CarrierPools:
    base = (
        Pool(_rows("1", range(12)), accepted),
        Pool(_rows("2", range(12)), accepted),
    )
    return CarrierPools(LIST, base, dict(others))


@pytest.fixture
def bench(four_layers: Model, battery: Battery) -> Workbench:
    settings = BenchmarkSettings(
        carriers=(LIST,), bound_rows=10, designs=(Design(rows=8, fraction=0.5),)
    )
    return Workbench(
        Meter(four_layers, battery, SamplerSettings(max_new_tokens=8)),
        load_family("animals"), load_family("trees"), LIST, None, settings,
    )  # fmt: skip


def test_only_prompts_with_rows_of_both_count_and_the_first_of_them() -> None:
    own = Pool(_rows("3", range(5, 20)))
    assert _places(own, _pools(), 4) == [5, 6, 7, 8]
    assert _places(own, _pools(), 99) == list(range(5, 12))


def test_a_filter_shifts_ratios_by_the_log_of_both_shares() -> None:
    own = Pool({}, accepted=0.5)
    assert _passing(own, _pools(accepted=0.8)) == pytest.approx(math.log(0.5 / 0.8))
    assert _passing(own, _pools()) == 0
    assert _passing(Pool({}), _pools(accepted=0.8)) == 0


def test_a_teacher_with_enough_rows_gets_a_bound_for_each_share(
    bench: Workbench,
) -> None:
    pools = _pools(
        (Source("prompt", "owl"), Pool(_rows("4", range(12)))),
        (Source("prompt", "wolf"), Pool(_rows("5", range(7)))),
        (Source("uniform"), Pool(_rows("6", range(12)))),
    )
    told: list[str] = []
    found = teacher_bounds(
        bench, pools, {}, tell=lambda stage, done, total, note: told.append(note)
    )
    assert [(b.source, b.fraction, b.rows) for b in found] == [("prompt owl", 0.5, 10)]
    assert told == ["prompt owl", "prompt wolf"]


def test_a_name_is_measured_against_the_whole_family(bench: Workbench) -> None:
    pools = _pools(
        (Source("prompt", "owl"), Pool(_rows("4", range(12)))),
        (Source("prompt", "wolf"), Pool(_rows("5", range(7)))),
        (Source("steer", "wolf", 1, 0.5), Pool(_rows("6", range(12)))),
    )
    told: list[str] = []
    (found,) = persona_naming(
        bench, pools, tell=lambda stage, done, total, note: told.append(note)
    )
    assert told == ["prompt owl", "prompt wolf"]
    assert (found.trait, found.rows) == ("owl", 10)
    assert found.rival != "owl"
    assert found.rival in bench.family.names
    assert found.nearest is not None
    assert found.mean is not None
    assert found.nearest <= found.mean
    if found.nearest > 0:
        kinds = len(bench.family.names)
        wanted = math.log((kinds - 1) / bench.settings.audit.alpha) / found.nearest
        assert found.rows_needed == pytest.approx(wanted)
    assert found.rounding is not None
    assert found.rounding < 1e-6  # in float32
    noisy, at = replace(bench, meter=copy(bench.meter)), 0.5
    noisy.meter.rounding = lambda *_, **__: at  # type: ignore[method-assign]
    (rounded,) = persona_naming(noisy, pools, tell=lambda *_: None)
    assert (rounded.rounding, rounded.nearest, rounded.rows_needed) == (at, 0.0, None)
