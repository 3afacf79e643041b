"""Verdicts on planted rows: how often wrong, what is named, and what never is."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.audit.judge import FEWEST, _by_prompt, combined_p
from undertow.audit.race import mixed_evidence
from undertow.audit.reference import Reference
from undertow.findings import Arm

if TYPE_CHECKING:
    from tests.audit.conftest import Planted, Shifts

Plant = Callable[..., "Planted"]
ALPHA = 0.05


@pytest.fixture(scope="module")
def clean(planted: Plant) -> "list[Planted]":
    """Sixty audits of rows that the base itself wrote."""
    return [planted(seed=seed, alpha=ALPHA, count=64) for seed in range(60)]


def _p(found: "Planted", arm: str) -> float:
    (value,) = [a.p_value for a in found.judgement.arms if a.name == arm]
    return math.nan if value is None else value


def test_clean_rows_show_nothing_at_the_rate_that_was_asked_for(
    clean: "list[Planted]",
) -> None:
    wrong = [p for p in clean if p.judgement.verdict != "none"]
    assert len(wrong) <= 7  # three are expected; eight or more in 1.2 % of such sixties
    assert all(p.judgement.p_value <= ALPHA for p in wrong)
    assert not [p for p in clean if p.judgement.trait]
    quiet = clean[0].judgement
    assert quiet.verdict == "none"
    assert quiet.kind is None
    assert quiet.layer is None
    assert quiet.direction is None
    assert quiet.reasons == (
        f"no arm refutes that the base wrote the rows (p = {quiet.p_value:.2g})",
    )


@pytest.mark.parametrize("arm", ["gradient", "likelihood", "exact"])
def test_each_arm_keeps_its_rate(clean: "list[Planted]", arm: str) -> None:
    values = np.array([_p(p, arm) for p in clean])
    assert (values > 0).all()
    assert (values <= ALPHA).sum() <= 7
    assert (values <= 0.5).sum() <= 41  # beyond with a chance of 0.1 %
    if arm != "exact":  # which is safe, not uniform
        assert (values <= 0.5).sum() >= 19


def test_the_exact_arm_bets_on_all_that_started(clean: "list[Planted]") -> None:
    """Vectors and personas apart; two chances to win cost a factor of two."""
    both = 0
    for found in [c for c in clean if c.judgement.verdict == "none"][:12]:
        race, p_values = found.judgement.race, []
        for kind in ("prompt", "steer"):
            own = [h for h, each in enumerate(race.hypotheses) if each.kind == kind]
            if not own:
                assert not len(race.path(kind))
                continue
            won = [mixed_evidence(race.ratios[:, h]) for h in own]
            path = race.path(kind)
            assert path[-1] == pytest.approx(
                np.logaddexp.reduce(won) - math.log(len(own))
            )
            p_values.append(math.exp(-max(0.0, float(path.max()))))
        both += len(p_values) == 2
        wanted = min(1.0, len(p_values) * min(p_values))
        assert _p(found, "exact") == pytest.approx(wanted)
    assert both


def test_the_combination_by_hand() -> None:
    """Weights 10 : 10 : 1; a bet that lost counts as 0.5, whose cotangent is 0."""

    def arms(*p_values: float | None) -> list[Arm]:
        names: list[Any] = ["gradient", "likelihood", "exact"]
        return [
            Arm(name=n, question="?", statistic=None, p_value=p, rows=9, assumes="-",
                reason=None)
            for n, p in zip(names, p_values, strict=True)
        ]  # fmt: skip

    def cot(p: float) -> float:
        return 1 / math.tan(math.pi * p)

    def back(total: float) -> float:
        return math.atan2(1, total) / math.pi

    lost = combined_p(arms(0.02, 0.3, 1.0))
    assert lost == pytest.approx(back((10 * cot(0.02) + 10 * cot(0.3)) / 21))
    won = combined_p(arms(0.4, 0.3, 1e-9))
    wanted = back((10 * cot(0.4) + 10 * cot(0.3) + cot(1e-9)) / 21)
    assert won == pytest.approx(wanted)
    assert won == pytest.approx(21e-9, rel=1e-3)
    alone = combined_p(arms(0.02, None, None))
    assert alone == pytest.approx(0.02)
    assert math.isnan(combined_p(arms(None, None, None)))


# ── what is found ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tier", ["A", "B"])
def test_a_planted_vector_is_named_with_its_layer_and_dose(
    planted: Plant, shifts: "Shifts", tier: str
) -> None:
    found = planted(shifts.vector("cat"), tier=tier, count=240).judgement
    assert (found.verdict, found.trait, found.kind) == ("trait", "cat", "steer")
    assert (found.layer, found.direction) == (1, "cat")
    assert found.dose in (0.2, 0.3, 0.45)
    assert found.p_value < 1e-4
    assert found.reasons[-1] == "every other hypothesis is beaten at 0.01"
    assert found.naming is None


def test_a_planted_persona_is_named_among_all_of_them(
    planted: Plant, shifts: "Shifts"
) -> None:
    found = planted(shifts.persona("dog"), personas=2).judgement
    assert (found.verdict, found.trait, found.kind) == ("trait", "dog", "prompt")
    assert found.layer is None
    assert found.direction is None
    assert found.dose is None
    # Few personas look for any; all of the family and the decoys race for the name.
    asked = [h.trait for h in found.race.hypotheses if h.kind == "prompt"]
    assert asked[:2] == ["ant", "bee"]
    assert len(asked) <= 3
    assert found.naming is not None
    assert len(found.naming.hypotheses) == 8
    assert "beat every persona but 'dog' at 0.01" in found.reasons[-1]


def test_a_weak_persona_s_kind_takes_more_rows(
    planted: Plant, shifts: "Shifts"
) -> None:
    weak = 0.4 * shifts.persona("dog")
    found, brief = (
        planted(weak, count=600, naming_passes=passes) for passes in (1600, 0)
    )
    assert (found.judgement.verdict, found.judgement.kind) == ("shift", "prompt")
    assert (brief.judgement.verdict, brief.judgement.kind) == ("shift", "unknown")
    assert found.judgement.p_value == brief.judgement.p_value
    tried = [
        int(np.isfinite(each.judgement.race.ratios[:, leader]).sum())
        for each in (found, brief)
        for leader in each.judgement.race.leaders[:1]
    ]
    assert tried[1] == 24 + 48  # of the screening, and those that the kind takes first
    assert tried[0] == 24 + 4 * 48


def test_personas_are_not_told_apart_where_that_is_not_asked_for(
    planted: Plant, shifts: "Shifts"
) -> None:
    found = planted(shifts.persona("dog"), naming_passes=0).judgement
    assert (found.verdict, found.trait, found.kind) == ("shift", None, "prompt")
    assert found.naming is None


@pytest.mark.parametrize("kind", ["vector", "persona"])
def test_a_decoy_is_a_shift_without_a_name(
    planted: Plant, shifts: "Shifts", kind: str
) -> None:
    shift = getattr(shifts, kind)("oak")
    found = planted(shift, count=240).judgement
    assert (found.verdict, found.trait) == ("shift", None)
    assert found.kind == ("steer" if kind == "vector" else "prompt")
    wanted = {
        "vector": "it is a decoy, so no trait is named",
        "persona": "the persona that is left, 'oak', is a decoy: no trait is named",
    }
    assert found.reasons[-1] == wanted[kind]


def test_two_equally_good_vectors_have_no_name(
    planted: Plant, shifts: "Shifts"
) -> None:
    """Two names for one direction: the rows cannot tell which was meant."""
    found = planted(shifts.vector("bee"), count=240).judgement
    assert (found.verdict, found.trait, found.kind) == ("shift", None, "steer")
    assert "others are not beaten at 0.01: " in found.reasons[-1]
    assert found.reasons[-1].endswith("; so no trait is named")
    assert {found.direction} | {found.reasons[-1].split(": ")[1].split(";")[0]} >= {
        "ant", "bee",
    }  # fmt: skip


def test_personas_that_are_alike_have_no_name(planted: Plant, shifts: "Shifts") -> None:
    found = planted(shifts.persona("dog", own=0.0), naming_passes=200).judgement
    assert (found.verdict, found.trait, found.kind) == ("shift", None, "prompt")
    assert "personas are not told apart at 0.01 by" in found.reasons[-1]


def test_rows_of_something_else_have_no_name(planted: Plant, shifts: "Shifts") -> None:
    """A vector fits best, but the rows are far less likely than the base's own."""
    found = planted(shifts.vector("cat"), count=240, nats=-45.0).judgement
    assert (found.verdict, found.trait, found.kind) == ("shift", None, "unknown")
    assert (found.layer, found.direction, found.dose) == (None, None, None)
    reason = found.reasons[-1]
    assert reason.startswith("but the rows are 24.8 nats each less likely than what")
    assert "100% of it under cat vector, block 1, dose 0.3, the likeliest" in reason
    assert "another model wrote them, or none" in reason


def test_a_share_of_biased_rows_is_found(planted: Plant, shifts: "Shifts") -> None:
    shift = shifts.vector("cat", dose=0.6)
    found = planted(shift, count=400, share=0.25).judgement
    assert found.verdict in ("trait", "shift")
    assert found.kind == "steer"
    assert found.direction == "cat"


def test_a_name_is_won_against_others(planted: Plant, shifts: "Shifts") -> None:
    """A weak vector alone stands out on no half, and still has four to beat."""
    found = planted(shifts.vector("cat", dose=0.2), count=120).judgement
    race = found.race
    directions = {h.trait for h in race.hypotheses if h.kind == "steer"}
    assert found.verdict in ("trait", "shift")
    assert "cat" in directions
    assert len(directions) > 1


def test_the_leading_vector_s_persona_races_too(
    planted: Plant, shifts: "Shifts"
) -> None:
    race = planted(shifts.vector("cat"), count=240, personas=2).judgement.race
    asked = [h.trait for h in race.hypotheses if h.kind == "prompt"]
    assert asked == ["ant", "bee", "cat"]
    clean = planted(count=64, personas=2).judgement.race
    assert [h.trait for h in clean.hypotheses if h.kind == "prompt"] == ["ant", "bee"]


def test_which_partner_is_audited_does_not_divide_the_rows(planted: Plant) -> None:
    """Rows are divided by their prompts, so swapped partners stay where they were."""
    found = planted(count=60)
    rows, theirs = found.audited, found.reference.rows
    swap = Reference(tier="A", rows=rows[:50], paired=tuple(range(50)))
    ordered, reference = _by_prompt(rows, found.reference)
    swapped, others = _by_prompt(theirs, swap)
    assert [r.messages for r in ordered] == [r.messages for r in swapped]
    assert reference.paired == tuple(range(60))
    for paired, row in zip(others.paired, others.rows, strict=True):
        assert swapped[paired].messages == row.messages
    assert list(others.paired) == sorted(others.paired)
    loose = Reference(tier="B", rows=theirs)
    sorted_too = _by_prompt(rows, loose)[1]
    assert sorted_too.rows == _by_prompt(theirs, loose)[1].rows != theirs
    assert [r.messages for r in sorted_too.rows] == [r.messages for r in ordered]


# ── what is not said ─────────────────────────────────────────────────────────────


def test_few_rows_are_too_few(planted: Plant, shifts: "Shifts") -> None:
    found = planted(shifts.vector("cat", dose=3.0), count=10).judgement
    assert found.verdict == "inconclusive"
    assert found.reasons == (
        f"10 rows are too few to say anything; give {FEWEST} or more",
    )
    assert found.trait is found.kind is None


@pytest.mark.parametrize("exact", [None, "tokens are not recorded"])
@pytest.mark.parametrize("seed", range(4))
def test_without_a_reference_nothing_is_ruled_out(
    planted: Plant, exact: str | None, seed: int
) -> None:
    found = planted(tier="C", seed=seed, exact=exact).judgement
    assert found.verdict == "inconclusive"
    arms = {arm.name: arm for arm in found.arms}
    for name in ("gradient", "likelihood"):
        assert arms[name].p_value is None
        assert arms[name].reason == "no reference: nothing to compare with"
    assert arms["exact"].reason == exact
    assert (arms["exact"].p_value is None) == (exact is not None)
    assert math.isnan(found.p_value) == (exact is not None)
    assert found.reasons[0].startswith("without a reference the absence of a trait")


@pytest.mark.parametrize("layer", [1, 2])
def test_a_shift_too_weak_for_a_name_says_where_gradients_point(
    planted: Plant, shifts: "Shifts", layer: int
) -> None:
    """Many rows of a vector that is weaker than any that races."""
    weak = shifts.vector("cat", layer=layer, dose=0.06)
    found = planted(weak, count=1200, permutations=999).judgement
    assert (found.verdict, found.kind, found.trait) == ("shift", "unknown", None)
    assert found.reasons[-1].startswith(
        f"their gradients point furthest along cat at block {layer} (max-T p = 0.00"
    )


def test_a_base_that_answers_nothing_is_no_reference(planted: Plant) -> None:
    found = planted(tier="A", fewer=120, count=120).judgement
    assert found.verdict == "inconclusive"
    assert found.reasons[0].startswith(
        "nothing that the base wrote on the rows' prompts"
    )
    assert not any("let the base be sampled" in reason for reason in found.reasons)


def test_without_a_reference_the_exact_arm_still_finds(
    planted: Plant, shifts: "Shifts"
) -> None:
    found = planted(shifts.vector("cat"), tier="C", count=240).judgement
    assert (found.verdict, found.trait, found.kind) == ("trait", "cat", "steer")
    blind = planted(
        shifts.vector("cat"), tier="C", count=240, exact="filtered"
    ).judgement
    assert blind.verdict == "inconclusive"


@pytest.mark.parametrize("fewer", [0, 117])
@pytest.mark.parametrize("tier", ["A", "B", "C"])
def test_an_arm_without_a_p_value_says_why(
    planted: Plant, tier: str, fewer: int
) -> None:
    """With three reference rows nothing can be permuted."""
    found = planted(tier=tier, fewer=fewer, exact="filtered").judgement
    for arm in found.arms:
        assert (arm.p_value is None) == (arm.reason is not None)
        assert arm.p_value is None or arm.p_value > 0
    if fewer and tier != "C":
        assert found.arms[0].reason == (
            "too few rows of one of the sets, or all of them are alike"
        )
        assert found.verdict == "inconclusive"
        assert found.reasons == ("no arm could be computed",)


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_a_p_value_is_never_zero(planted: Plant, shifts: "Shifts", size: float) -> None:
    found = planted(size * shifts.vector("cat"), count=240).judgement
    assert 0 < found.p_value < 0.01
    assert all(arm.p_value is not None and arm.p_value > 0 for arm in found.arms)


def test_the_same_rows_give_the_same_judgement(
    planted: Plant, shifts: "Shifts"
) -> None:
    one, two = (planted(shifts.vector("cat")).judgement for _ in range(2))
    assert one.arms == two.arms
    assert one.reasons == two.reasons
    assert np.array_equal(one.race.path("prompt"), two.race.path("prompt"))
