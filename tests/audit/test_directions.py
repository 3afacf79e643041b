"""A shift's direction: found on one half of the rows, confirmed on the other."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from undertow.analysis.gradients import Moments
from undertow.audit import directions
from undertow.audit.audited import Audited
from undertow.audit.directions import alike, discover
from undertow.audit.judgement import Judgement
from undertow.audit.reference import Reference
from undertow.findings import Discovery, Findings
from undertow.stats import two_sample_max_t

if TYPE_CHECKING:
    from tests.audit.conftest import Place

Case = tuple[Findings, Audited]
Table = np.ndarray[Any, np.dtype[np.float64]]


def _discover(
    audited: Audited, judgement: Judgement | None = None, *, rows: int | None = None,
    reference: Reference | None = None,
) -> Discovery | None:  # fmt: skip
    return discover(
        audited.meter, audited.rows[:rows], reference or audited.reference,
        judgement or audited.judgement, family=audited.family,
        settings=audited.settings,
    )  # fmt: skip


def test_a_strong_shift_is_confirmed_and_described(steered: Case) -> None:
    found, audited = steered
    shift = found.discovery
    assert shift is not None
    chosen = [audited.rows[0::2], audited.reference.rows[0::2]]
    mine, theirs = (audited.meter.signals(half).scores for half in chosen)
    spread = mine.var(0, ddof=1) / len(mine) + theirs.var(0, ddof=1) / len(theirs)
    t = np.abs(mine.mean(0) - theirs.mean(0)) / np.sqrt(spread)
    largest = int(np.unravel_index(int(np.nanargmax(t)), t.shape)[0])
    assert shift.layer == audited.battery.layers[largest]
    assert shift.p_value is not None
    assert 0 < shift.p_value <= 0.05
    assert shift.cosine is not None
    assert shift.cosine > 0
    assert set(shift.battery) == {"owl", "cat", "dog"}
    assert shift.raised
    assert shift.behaviour
    cosines = [near.cosine for near in shift.alike]
    assert cosines == sorted(cosines, reverse=True)
    assert "owl" in {near.name for near in shift.alike}


def test_nothing_found_nothing_described(steered: Case, clean: Case) -> None:
    assert clean[0].discovery is None
    audited = steered[1]
    for verdict in ("none", "inconclusive"):
        judgement = replace(audited.judgement, verdict=verdict)
        assert _discover(audited, judgement) is None


def test_few_rows_have_no_halves(steered: Case) -> None:
    audited = steered[1]
    assert _discover(audited, rows=15) is None
    assert _discover(audited, reference=Reference(tier="C")) is None
    few = replace(audited.reference, rows=audited.reference.rows[:15])
    assert _discover(audited, reference=few) is None
    off = audited.settings.model_copy(update={"discover": False})
    assert _discover(replace(audited, settings=off)) is None


def test_scores_that_say_nothing_have_no_place(
    steered: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = np.full((1, 1), np.nan)
    monkeypatch.setattr(directions, "half_z", lambda *_: unknown)
    assert _discover(steered[1]) is None


def test_a_direction_of_nothing_is_confirmed_as_often_as_chance_has_it() -> None:
    """With as many numbers as rows; testing rows in the covariance gave 0.4 at 0.01."""
    stream = np.random.default_rng(0)
    hidden, rows, p_values = 64, 16, []
    for seed in range(300):
        halves = stream.normal(size=(2, 2, rows, hidden))  # [half, side]
        unit = directions._whitened(*map(_moments, halves[0])).unit.numpy()
        mine, theirs = halves[1] @ unit
        test = two_sample_max_t(
            mine[:, None],
            theirs[:, None],
            permutations=99,
            seed=seed,
            alternative="greater",
        )
        p_values.append(test.p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert np.mean(np.array(p_values) <= 0.5) == pytest.approx(0.5, abs=0.08)


def _moments(gradients: Table) -> Moments:
    found = Moments([0], gradients.shape[1])
    found.add(0, torch.tensor(gradients, dtype=torch.float32))
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_on_rows_of_the_base_nothing_is_confirmed(place: "Place", seed: int) -> None:
    """Whatever direction the first half has, the second does not share it."""
    rows = place.rows(count=40, seed=20 + seed)
    quiet = {
        "planted": 0,
        "forecast": 0,
        "naming_passes": 0,
        "screening": 4,
        "fresh": 8,
    }
    _, audited = place.audit(rows, settings=quiet)
    found = _discover(audited, replace(audited.judgement, verdict="shift"))
    assert found is not None
    assert found.p_value is not None
    assert found.p_value > 0.02
    assert all(torch.isfinite(torch.tensor(v)) for v in found.battery.values())


def test_a_vector_is_alike_to_what_it_does_to_the_gradients(steered: Case) -> None:
    """Steering along v moves the mean gradient by Σ·v, whatever Σ is."""
    battery = steered[1].battery
    hidden = battery.directions.shape[-1]
    stream = torch.Generator().manual_seed(3)
    root = torch.randn(hidden, hidden, generator=stream)
    covariance = root @ root.T + 0.1 * torch.eye(hidden)
    for own in (0, len(battery.names) - 1):
        change = 0.7 * covariance @ battery.directions[1, own]
        near = alike(battery, 1, change, covariance)
        assert near[0].name == battery.names[own]
        assert near[0].cosine == pytest.approx(1, abs=1e-4)
        assert near[0].cosine > near[1].cosine
    assert alike(battery, 1, torch.zeros(hidden), covariance) == []
