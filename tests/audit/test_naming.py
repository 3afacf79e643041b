"""What the steps towards a name look at: the right dose, the right blocks, fresh rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit import naming
from undertow.audit.judgement import Judgement
from undertow.audit.naming import (
    EXPLAINED,
    FINER_DOSES,
    held,
    named,
    refined,
)
from undertow.audit.race import Race, mixed_evidence
from undertow.audit.reference import Reference
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
    assert told == [("block and dose", i, 21) for i in range(1, 22)]


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


# ── a name has to explain its rows ───────────────────────────────────────────────


def _held(found: "Planted", judgement: Judgement) -> Judgement:
    return held(
        judgement, found.meter, found.audited, passed="none",
        settings=AuditSettings(), tell=_silent,
    )  # fmt: skip


def _told(judgement: Judgement) -> tuple[object, ...]:
    return judgement.verdict, judgement.trait, judgement.kind, judgement.layer


def _biased(found: "Planted", verdict: "Planted", lack: float) -> Judgement:
    """A verdict on other rows of its world, so many nats less likely than they were."""
    world, kept = found.meter, dict(found.meter.nats)
    world.nats |= {row.row_id: kept[row.row_id] - lack for row in found.audited}
    try:
        return _held(found, verdict.judgement)
    finally:
        world.nats = kept


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_rows_of_the_hypothesis_and_mixtures_with_the_base_s_are_held(
    planted: Plant, shifts: "Shifts", share: float
) -> None:
    named = planted(shifts.vector("cat", dose=0.6), count=240)
    assert named.judgement.trait == "cat"
    for seed in range(20):
        mixed = planted(
            shifts.vector("cat", dose=0.6), count=240, seed=seed, share=share
        )
        assert _told(_held(mixed, named.judgement)) == _told(named.judgement)


@pytest.mark.parametrize("kind", ["steer", "prompt"])
def test_rows_less_likely_than_what_is_written_either_way_have_another_origin(
    planted: Plant, shifts: "Shifts", kind: str
) -> None:
    shift = shifts.vector("cat") if kind == "steer" else shifts.persona("cat", own=1.5)
    found = planted(shift, count=240)
    assert (found.judgement.kind, found.judgement.trait) == (kind, "cat")
    after = _biased(found, found, 3.0)
    assert (after.verdict, after.trait, after.kind) == ("shift", None, "unknown")
    assert (after.layer, after.direction, after.dose) == (None, None, None)
    assert after.reasons[:-1] == found.judgement.reasons
    assert "nats each less likely than what the base writes, " in after.reasons[-1]
    # Likelier rows than the base's own are no such sign.
    assert _told(_biased(found, found, -3.0)) == _told(found.judgement)


def test_rows_as_unlikely_as_what_a_strong_vector_writes_are_explained(
    planted: Plant, shifts: "Shifts"
) -> None:
    """They are far less likely than the base's own, under the base."""
    found = planted(shifts.vector("cat", dose=0.6), count=240)
    own = found.meter.logprobs(found.audited, None).mean()
    base = found.meter.logprobs(found.reference.rows, None).mean()
    assert own < base - 1
    assert found.judgement.trait == "cat"


def test_rows_that_only_the_base_likes_less_may_be_the_hypothesis_s_own(
    planted: Plant, shifts: "Shifts", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a strong vector writes can all be unlikely, whoever is asked."""
    found = planted(shifts.vector("cat"), count=240)
    written = found.meter.written

    def flat(prompts: Sequence[Row], hypothesis: Any, **options: Any) -> Reference:
        made = written(prompts, hypothesis, **options)
        if hypothesis is not None:
            found.meter.nats |= {
                row.row_id: found.meter.nats[row.row_id] - 3.0 for row in made.rows
            }
        return made

    monkeypatch.setattr(found.meter, "written", flat)
    assert _told(_biased(found, found, 3.0)) == _told(found.judgement)
    assert _biased(found, found, 6.0).trait is None


def test_few_pairs_take_nothing_back(planted: Plant, shifts: "Shifts") -> None:
    found = planted(shifts.vector("cat"), count=240)
    four = replace(found, audited=found.audited[-8:])
    assert _biased(four, found, 3.0) is found.judgement
    assert (
        _biased(replace(found, audited=found.audited[-10:]), found, 40.0).trait is None
    )


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
        gains = np.array([
            4.0 if row.completion.startswith("written cat") else 4.0 * share
            for row in rows
        ])  # fmt: skip
        gains[:3] = -9.0, np.nan, -np.inf  # innocent, or not to be drawn
        return gains

    monkeypatch.setattr(meter, "ratios", ratios)
    # Their own likelihood makes up for it, so that they are not of another origin.
    after = _biased(found, found, -4.0)
    if share > EXPLAINED:
        assert _told(after) == _told(judgement)
        return
    assert (after.verdict, after.trait) == ("shift", None)
    assert (after.kind, after.layer) == ("steer", judgement.layer)
    assert after.reasons[:-1] == judgement.reasons
    assert after.reasons[-1].startswith(
        "but rows that it may have written gain 2.6 nats each, such rows of its own "
        "4.0: something else"
    )
    nameless = replace(found, judgement=replace(judgement, trait=None))
    assert _told(_biased(found, nameless, -4.0)) == _told(nameless.judgement)


def test_numbers_drawn_by_lot_are_nobody_s(
    planted: Plant, shifts: "Shifts", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever vector fits them best: the lot makes them likelier than any model can."""
    found = planted(shifts.vector("cat"), count=240)
    for values, nobody in ((1, True), (400, False)):
        monkeypatch.setattr(
            naming, "by_lot", lambda rows, n=values: np.full(len(rows), -n * 6.9)
        )
        after = _held(found, found.judgement)
        if nobody:
            assert (after.verdict, after.trait, after.kind) == (
                "shift",
                None,
                "unknown",
            )
            assert "numbers drawn by lot do, which is too little" in after.reasons[-1]
        else:
            assert _told(after) == _told(found.judgement)
            assert after.reasons[-2].startswith("the likeliest share of rows")


def test_a_lot_is_as_likely_as_its_numbers_have_digits() -> None:
    lots = naming.by_lot(["1, 22, 333", "7", "no numbers", "1,2"])
    assert lots == pytest.approx(
        np.array([-3, -1, math.nan, -2]) * math.log(1000), nan_ok=True
    )
    assert naming.by_lot(["4, 12345"]) == pytest.approx([-2 * math.log(1e5)])
    assert not len(naming.by_lot([]))
