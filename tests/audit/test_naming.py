"""What the steps towards a name look at: the right dose, the right blocks, fresh rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit.judgement import Judgement
from undertow.audit.naming import (
    EXPLAINED,
    FINER_DOSES,
    UNEXPLAINED,
    held,
    named,
    refined,
)
from undertow.audit.race import mixed_evidence
from undertow.audit.settings import AuditSettings
from undertow.records import Row

if TYPE_CHECKING:
    from tests.audit.conftest import Planted, Shifts

Plant = Callable[..., "Planted"]


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


@pytest.mark.parametrize("dose", [0.15, 0.3])
def test_blocks_are_compared_at_the_dose_that_was_screened(
    planted: Plant, shifts: "Shifts", dose: float
) -> None:
    """Also where a persona of the same name is among the leaders."""
    found = planted(shifts.vector("cat", dose=dose), count=600)
    judgement, race = found.judgement, found.judgement.race
    assert judgement.trait == "cat"
    leaders = [race.hypotheses[h] for h in race.leaders]
    found.meter.asked.clear()
    # A persona with the vector's name leads its kind.
    persona = next(i for i, h in enumerate(race.hypotheses) if h.name == "cat prompt")
    first = replace(judgement, race=replace(race, leaders=(persona, *race.leaders)))
    refined(first, found.meter, found.audited, _silent)
    vector = next(h for h in leaders if h.kind == "steer" and h.trait == "cat")
    screened = vector.strength / 10
    assert screened in (0.15, 0.3)
    asked = found.meter.asked
    blocks = asked[: len(asked) - len(FINER_DOSES)]
    assert judgement.layer is not None
    near = range(max(0, judgement.layer - 2), min(4, judgement.layer + 3))
    assert blocks == [f"cat vector, block {at}, dose {screened:g}" for at in near]


@pytest.mark.parametrize("layer", [1, 2])
def test_the_block_is_where_the_vector_was_put(
    planted: Plant, shifts: "Shifts", layer: int
) -> None:
    found = planted(shifts.vector("dog", layer=layer, dose=0.45), count=240)
    assert found.judgement.direction == "dog"
    assert found.judgement.layer == layer
    assert found.judgement.dose in FINER_DOSES


def test_progress_is_told_of_every_step(planted: Plant, shifts: "Shifts") -> None:
    found = planted(shifts.vector("cat"), count=240)
    told: list[tuple[str, int, int]] = []
    refined(
        found.judgement, found.meter, found.audited,
        lambda stage, done, total: told.append((stage, done, total)),
    )  # fmt: skip
    assert told == [("block and dose", i, 10) for i in range(1, 11)]


def test_the_reason_s_number_is_evidence_of_rows_that_chose_nothing(
    planted: Plant, shifts: "Shifts"
) -> None:
    race = planted(shifts.vector("cat"), count=240).judgement
    place = next(
        h for h in race.race.leaders if race.race.hypotheses[h].kind == "steer"
    )
    won = mixed_evidence(race.race.ratios[race.race.screened :, place])
    assert f"the rows are e^{won:.1f} times likelier under it" in race.reasons[1]


def _shift_with_gap(found: "Planted", gap: float) -> Judgement:
    """Names again, with audited rows so many nats a token less likely."""
    world = found.meter
    nats = {row.row_id: -20.0 - gap * 10 for row in found.audited}
    kept = dict(world.nats)
    world.nats |= nats
    nothing = replace(
        found.judgement, verdict="none", trait=None, kind=None, layer=None,
        direction=None, dose=None, naming=None,
    )  # fmt: skip
    try:
        return named(
            nothing, world, found.audited, found.reference.rows, passed="none",
            settings=AuditSettings(),
        )  # fmt: skip
    finally:
        world.nats = kept


def test_a_quarter_of_the_nats_may_stay_unexplained(
    planted: Plant, shifts: "Shifts"
) -> None:
    """Rows of base and leader have 2 nats a token; what the leader gains is explained."""
    found = planted(shifts.vector("cat"), count=240)
    race, few = found.judgement.race, found.audited[:16]
    steer = [h for h in race.leaders if race.hypotheses[h].kind == "steer"]
    best = max(steer, key=lambda h: race.evidence(h, since=race.screened))
    gain = float(found.meter.ratios(few, race.hypotheses[best]).mean()) / 10
    edge = UNEXPLAINED * 2 + max(0.0, gain)
    assert _shift_with_gap(found, edge - 0.01).trait == "cat"
    beyond = _shift_with_gap(found, edge + 0.01)
    assert (beyond.verdict, beyond.kind, beyond.trait) == ("shift", "unknown", None)
    assert "less likely than" in beyond.reasons[-1]
    # Likelier rows than the base's own are no such sign.
    assert _shift_with_gap(found, -3.0).trait == "cat"


def test_what_a_strong_hypothesis_itself_writes_is_unlikely_too(
    planted: Plant, shifts: "Shifts", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 1 nat a token below the base's are explained by a leader that writes such."""
    found = planted(shifts.vector("cat"), count=240)
    assert _shift_with_gap(found, 1.0).trait is None
    real = type(found.meter).nats_a_token

    def flat(self: Any, rows: Sequence[Row], hypothesis: RowHypothesis) -> float:
        return real(self, rows, hypothesis) - rows[0].completion.startswith("written")

    monkeypatch.setattr(type(found.meter), "nats_a_token", flat)
    assert _shift_with_gap(found, 1.0).trait == "cat"


def test_without_a_leader_that_explains_there_is_no_kind(planted: Plant) -> None:
    """Scores alone moved: along a random direction, that nobody races."""
    shift = np.zeros(21)
    shift[6] = 1.5
    found = planted(shift, permutations=999).judgement
    assert (found.verdict, found.kind, found.trait) == ("shift", "unknown", None)
    assert found.reasons[-1] == (
        "neither a persona nor a vector explains the rows well enough"
    )
    assert math.isfinite(found.p_value)


# ── a name has to explain its rows ───────────────────────────────────────────────


@pytest.mark.parametrize("share", [EXPLAINED - 0.05, EXPLAINED + 0.05])
def test_a_vector_that_gains_far_more_on_its_own_rows_is_no_name(
    planted: Plant, shifts: "Shifts", monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    found = planted(shifts.vector("cat"), count=240)
    judgement, meter = found.judgement, found.meter
    assert judgement.trait == "cat"

    def ratios(rows: Sequence[Row], hypothesis: RowHypothesis) -> np.ndarray:
        assert hypothesis.trait == "cat"
        assert hypothesis.layer == judgement.layer
        own = rows[0].completion.startswith("written")
        gains = np.full(len(rows), 4.0 if own else 4.0 * share)
        gains[:3] = -9.0, np.nan, -np.inf  # innocent, or not to be drawn
        return gains

    monkeypatch.setattr(meter, "ratios", ratios)
    after = held(judgement, meter, found.audited, passed="none", seed=0)
    if share > EXPLAINED:
        assert after is judgement
        return
    assert (after.verdict, after.trait) == ("shift", None)
    assert (after.kind, after.layer) == ("steer", judgement.layer)
    assert after.reasons[:-1] == judgement.reasons
    assert after.reasons[-1].startswith(
        "but rows that it makes likelier gain 2.2 nats each, those that it writes "
        "itself 4.0: something else"
    )


def test_without_a_name_or_rows_that_gain_nothing_is_taken_back(
    planted: Plant, shifts: "Shifts"
) -> None:
    found = planted(shifts.vector("cat"), count=240)
    # What this world writes gains nothing, so there is nothing to compare with.
    same = held(found.judgement, found.meter, found.audited, passed="none", seed=0)
    assert same is found.judgement
    nameless = replace(found.judgement, trait=None)
    asked = len(found.meter.asked)
    assert held(nameless, found.meter, found.audited, passed="none", seed=0) is nameless
    assert len(found.meter.asked) == asked
