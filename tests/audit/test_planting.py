"""What is planted to measure power: the bias that was found, on the audited prompts."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.analysis.hypotheses import prompt_hypotheses
from undertow.audit import planting
from undertow.audit.audited import Audited
from undertow.audit.explanation import found_hypothesis
from undertow.audit.judgement import arm_share
from undertow.audit.planting import _columns, _critical, planted_power
from undertow.audit.power import Planted, Tested, audit_power
from undertow.audit.reference import Reference
from undertow.audit.settings import AuditSettings
from undertow.findings import Findings, Power

if TYPE_CHECKING:
    from tests.audit.conftest import Place

Case = tuple[Findings, Audited]


def _power(audited: Audited, **changes: object) -> Power | None:
    audited = replace(audited, **changes)  # type: ignore[arg-type]
    return planted_power(
        audited.meter, audited.rows, audited.reference, audited.judgement,
        family=audited.family, passed=audited.filter, settings=audited.settings,
    )  # fmt: skip


def test_what_was_found_is_planted(steered: Case) -> None:
    found, audited = steered
    assert found.power is not None
    assert found.power.source.startswith("16 rows that the base wrote under owl vector")
    power = [point.power for point in found.power.points]
    assert None not in power
    assert power == sorted(power, key=lambda p: p or 0)
    assert found.power.divergence_per_row is not None
    assert found.power.divergence_per_row > 0
    assert found.detectable_fraction == found.power.detectable_fraction
    assert _power(audited) == found.power  # nothing is drawn anew


def test_scores_are_looked_at_where_the_audited_rows_stood_out(
    steered: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strong vector shows less in its own scores than elsewhere, and is found there."""
    audited = steered[1]
    judgement, arms = audited.judgement, list[Tested]()

    def watched(tested: Sequence[Tested], **rest: Any) -> Power:
        arms.extend(tested)
        return audit_power(tested, **rest)

    monkeypatch.setattr(planting, "audit_power", watched)
    elsewhere = np.zeros_like(judgement.scores.z)
    elsewhere[0, -1] = -30.0
    scores = replace(judgement.scores, z=elsewhere)
    _power(audited, judgement=replace(judgement, scores=scores))
    own = (
        audited.battery.layers.index(judgement.layer or 0),
        audited.battery.names.index(judgement.direction or ""),
    )
    clean = audited.meter.signals(audited.reference.rows).scores.astype(np.float64)
    read = [arm.clean for arm in arms if isinstance(arm, Planted)]
    wanted = [clean[:, 0, -1], clean[:, own[0], own[1]]]
    assert [values.tolist() for values in read] == [each.tolist() for each in wanted]


def test_columns_of_scores_that_planted_rows_are_read_in(steered: Case) -> None:
    """The vector's own alone where no z is known or it is the largest; of a persona none."""
    audited = steered[1]
    judgement, battery = audited.judgement, audited.battery
    vector = found_hypothesis(judgement, audited.meter)
    own = (
        battery.layers.index(judgement.layer or 0),
        battery.names.index(judgement.direction or ""),
    )
    largest = np.zeros_like(judgement.scores.z)
    largest[own] = 9.0
    for table in (np.full_like(largest, np.nan), largest):
        told = replace(judgement, scores=replace(judgement.scores, z=table))
        assert _columns(battery, vector, told) == [own]
    persona = prompt_hypotheses(audited.family, ["owl"])[0]
    prompted = replace(judgement, kind="prompt")
    assert _columns(battery, persona, prompted) == []


def test_the_vector_is_planted_as_it_was_refined(steered: Case) -> None:
    audited = steered[1]
    judgement = replace(audited.judgement, dose=0.123)
    power = _power(audited, judgement=judgement)
    assert power is not None
    assert power.source.endswith("dose 0.123")
    assert f"block {judgement.layer}" in power.source


def test_on_clean_rows_a_persona_is_planted(clean: Case) -> None:
    found, audited = clean
    assert found.power is not None
    assert found.power.source == "16 rows that the base wrote under owl prompt"
    for point in found.power.points:
        assert point.bound is None or point.power is None or point.bound >= point.power
    assert not any(b._forward_hooks for b in audited.model.architecture.blocks)


@pytest.mark.parametrize("change", ["none asked", "no reference", "few", "no test"])
def test_what_cannot_be_measured_is_none(clean: Case, change: str) -> None:
    audited = clean[1]
    few = replace(
        audited.reference, rows=audited.reference.rows[:7], paired=tuple(range(7))
    )
    no_test = audited.judgement.scores.test._replace(p_value=np.nan)
    scores = replace(audited.judgement.scores, test=no_test)
    changes: dict[str, object] = {
        "none asked": {"settings": audited.settings.model_copy(update={"planted": 0})},
        "no reference": {"reference": Reference(tier="C")},
        "few": {"reference": few},
        "no test": {"judgement": replace(audited.judgement, scores=scores)},
    }[change]  # type: ignore[assignment]
    assert _power(audited, **changes) is None


def test_an_arm_that_cannot_reach_its_share_is_given_no_power(clean: Case) -> None:
    """A quantile beyond all draws would be about the largest of them."""
    judgement = clean[1].judgement
    draws = judgement.scores.test.draws
    share = arm_share(judgement.arms, "gradient")
    reached = AuditSettings.model_construct(alpha=2 / len(draws) / share)
    assert _critical(judgement, "gradient", reached) <= draws.max()
    beyond = AuditSettings.model_construct(alpha=0.5 / len(draws) / share)
    assert _critical(judgement, "gradient", beyond) == math.inf


def test_without_fresh_rows_the_other_arms_count(clean: Case) -> None:
    """Partners all among the screened rows leave a test without draws."""
    audited = clean[1]
    fresh = audited.judgement.race.fresh
    assert fresh is not None
    race = replace(audited.judgement.race, fresh=fresh._replace(draws=np.empty(0)))
    found = _power(audited, judgement=replace(audited.judgement, race=race))
    assert found is not None
    assert found.points[-1].power is not None


def test_planted_rows_are_no_rows_of_the_reference(clean: Case, place: "Place") -> None:
    """They have draws of their own: the same seed, another purpose."""
    from undertow.audit.reference import sampled_reference

    audited = clean[1]
    planted = sampled_reference(
        place.model, audited.rows[:16], sampler=audited.sampling.sampler,
        filter=audited.filter, seed=0, purpose="planted",
    ).rows  # fmt: skip
    same = {r.row_id for r in planted} & {r.row_id for r in audited.reference.rows}
    assert len(same) < 4  # by chance alone
