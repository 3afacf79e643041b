"""What the steps towards a name look at: the right dose, the right blocks, fresh rows."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit import naming
from undertow.audit.naming import (
    FINER_DOSES,
    named,
    pointed,
    refined,
)
from undertow.audit.race import Race, mixed_evidence
from undertow.audit.settings import AuditSettings

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
    assert judgement.layer is not None
    near = range(max(0, judgement.layer - 2), min(4, judgement.layer + 3))
    blocks = [f"cat vector, block {at}, dose {screened:g}" for at in near]
    assert found.meter.asked[: len(blocks)] == blocks


@pytest.mark.parametrize("layer", [1, 2])
def test_the_block_is_where_the_vector_was_put(
    planted: Plant, shifts: "Shifts", layer: int
) -> None:
    found = planted(shifts.vector("dog", layer=layer, dose=0.45), count=240)
    assert found.judgement.direction == "dog"
    assert found.judgement.layer == layer
    assert found.judgement.dose == pytest.approx(0.45, rel=0.1)


@pytest.mark.parametrize("dose", [0.25, 0.52, 0.7])
def test_many_rows_tell_the_dose_between_those_of_the_grid(
    planted: Plant, shifts: "Shifts", monkeypatch: pytest.MonkeyPatch, dose: float
) -> None:
    found = planted(shifts.vector("cat", dose=dose), count=4000)
    monkeypatch.setattr(naming, "_REFINED", 2000)
    after = refined(found.judgement, found.meter, found.audited, _silent)
    nearest = min(abs(each - dose) for each in FINER_DOSES)
    assert abs((after.dose or 0) - dose) < nearest / 2


def test_few_weak_rows_leave_the_dose_on_the_grid(
    planted: Plant, shifts: "Shifts"
) -> None:
    for seed in range(5):
        found = planted(shifts.vector("cat", dose=0.5), count=240, seed=seed)
        assert found.judgement.direction == "cat"
        assert found.judgement.dose in FINER_DOSES


def test_progress_is_told_of_every_step(planted: Plant, shifts: "Shifts") -> None:
    found = planted(shifts.vector("cat"), count=240)
    told: list[tuple[str, int, int]] = []
    refined(
        found.judgement, found.meter, found.audited,
        lambda stage, done, total: told.append((stage, done, total)),
    )  # fmt: skip
    # Four blocks, six doses, and three times two doses that are ever closer.
    assert told == [("block and dose", i, 16) for i in (4, 10, 12, 14, 16)]


def test_the_reason_s_number_is_evidence_of_rows_that_chose_nothing(
    planted: Plant, shifts: "Shifts"
) -> None:
    race = planted(shifts.vector("cat"), count=240).judgement
    place = next(
        h for h in race.race.leaders if race.race.hypotheses[h].kind == "steer"
    )
    won = mixed_evidence(race.race.ratios[race.race.screened :, place])
    assert f"they are e^{won:.1f} times likelier under it" in race.reasons[1]


@pytest.mark.parametrize(
    ("lead", "rounding", "kind"),
    [(7.0, 0.0, "steer"), (6.0, 0.0, "unknown"), (-6.0, 0.0, "unknown"),
     (-7.0, 0.0, "prompt"), (7.0, 1.0, "unknown"), (-7.0, 1.0, "unknown"),
     (8.0, 1.0, "steer")],
)  # fmt: skip
def test_a_kind_has_to_lead_at_every_share(
    planted: Plant, lead: float, rounding: float, kind: str
) -> None:
    """By ln(4 · 2/0.01) = 6.7 nats: two leaders, four shares, and what rounding adds."""
    two = (
        RowHypothesis("cat vector", "steer", "cat"),
        RowHypothesis("cat prompt", "prompt", "cat"),
    )
    race = Race(
        hypotheses=two, ratios=np.array([[40.0, 40.0 - lead]]), leaders=(0, 1),
        reference=np.zeros((0, 2)), screened=0, tried=(0,), beaten=(False, False),
        fresh=None, rounding=rounding,
    )  # fmt: skip
    nothing = replace(planted(np.zeros(21), count=40).judgement, race=race)
    assert named(nothing, settings=AuditSettings(alpha=0.01)).kind == kind


def test_a_persona_that_rounding_hides_is_told_of(
    planted: Plant, shifts: "Shifts", monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = shifts.persona("dog", own=0.0)
    plain = planted(alike, naming_passes=200)
    assert "rounding" not in " ".join(plain.judgement.reasons)
    monkeypatch.setattr(type(plain.meter), "rounding", lambda *_, **__: 0.1225)
    noisy = planted(alike, naming_passes=200).judgement
    assert noisy.race.rounding == 0.1225
    assert noisy.reasons[-1] == (
        "two readings of one row differ by up to 0.35 nats (standard deviation) by rounding "
        "alone, which is held against nobody: in float32 (--dtype float32) fewer rows tell "
        "personas apart"
    )


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


def test_what_gradients_point_along_is_told_where_nothing_is_named(
    planted: Plant,
) -> None:
    """Of directions that have a name, if it stands out, upwards."""
    found = planted(np.zeros(21), count=40)
    battery, scores = found.meter.battery, found.judgement.scores
    cat = battery.names.index("cat")
    random = battery.of_role("random")[0]

    def told(place: tuple[int, int], p_value: float, z: float = 5.0) -> str:
        adjusted, table = np.ones_like(scores.adjusted), np.zeros_like(scores.z)
        adjusted[place], table[place] = p_value, z
        changed = replace(scores, adjusted=adjusted, z=table)
        shift = replace(
            found.judgement, kind="unknown", scores=changed, reasons=("so",)
        )
        *_, last = pointed(shift, battery, 0.01).reasons
        return last

    assert told((2, cat), 0.0005) == (
        "their gradients point furthest along cat at block 2 (max-T p = 0.0005), which by "
        "itself names nothing: more rows may tell"
    )
    both = np.ones_like(scores.adjusted)
    both[0, battery.names.index("dog")] = both[2, cat] = 0.0005
    tied = np.where(both < 1, 5.0, 0.0)
    tied[2, cat] = 20.0
    shift = replace(
        found.judgement, kind="unknown", reasons=("so",),
        scores=replace(scores, adjusted=both, z=tied),
    )  # fmt: skip
    assert "along cat at block 2" in pointed(shift, battery, 0.01).reasons[-1]
    assert told((2, cat), 0.02) == "so"
    assert told((2, cat), 0.0005, z=-5.0) == "so"
    assert told((2, random), 0.0005) == "so"
    unknown = replace(scores, adjusted=np.full_like(scores.adjusted, np.nan))
    shift = replace(found.judgement, kind="unknown", scores=unknown, reasons=("so",))
    assert pointed(shift, battery, 0.01).reasons == ("so",)
    steered = replace(shift, kind="steer")
    assert pointed(steered, battery, 0.01) is steered
