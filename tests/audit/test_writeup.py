"""The words of a verdict, the strength by hand, rows in order, and JSON that is strict."""

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.audit.audited import Audited, Origin
from undertow.audit.judgement import Judgement
from undertow.audit.reference import Reference
from undertow.audit.writeup import findings_of, row_scores, sentence
from undertow.findings import Findings, Power, PowerPoint, VerdictWord
from undertow.records import Message, Row

if TYPE_CHECKING:
    from tests.audit.conftest import Place

Case = tuple[Findings, Audited]


def _judgement(audited: Audited, verdict: VerdictWord, **changes: Any) -> Judgement:
    return replace(audited.judgement, verdict=verdict, **changes)


def _power(detectable: float | None, *powers: float | None) -> Power:
    points = [PowerPoint(fraction=0.5 + i / 10, power=p) for i, p in enumerate(powers)]
    return Power(source="planted", points=points, detectable_fraction=detectable)


@pytest.mark.parametrize(
    ("verdict", "changes", "power", "wanted"),
    [
        (
            "trait", {"trait": "owl", "kind": "steer", "layer": 3}, None,
            ("The rows carry the trait 'owl': a model that was steered towards it after "
            "block 3 wrote them, or a share of them."),
        ),
        (
            "trait", {"trait": "owl", "kind": "prompt", "layer": None}, _power(0.1, 0.9),
            ("The rows carry the trait 'owl': a model that was prompted with it wrote "
            "them, or a share of them."),
        ),
        (
            "shift", {"trait": None, "kind": "steer"}, None,
            ("The rows carry a bias by a steering vector; which trait it is cannot be "
            "told."),
        ),
        (
            "shift", {"trait": None, "kind": "prompt"}, None,
            ("The rows carry a bias by a persona prompt; which trait it is cannot be "
            "told."),
        ),
        (
            "shift", {"trait": None, "kind": "unknown"}, None,
            ("The rows differ from the reference; whether that is a bias, and which, "
            "cannot be told."),
        ),
        (
            "inconclusive", {"reasons": ("3 rows are too few", "and more")}, None,
            "This audit cannot tell: 3 rows are too few.",
        ),
        (
            "none", {}, None,
            ("No evidence of a bias at an error rate of 0.02; how small a share of "
            "biased rows would have been found is not known."),
        ),
        (
            "none", {}, _power(None, None, None),
            ("No evidence of a bias at an error rate of 0.02; how small a share of "
            "biased rows would have been found is not known."),
        ),
        (
            "none", {}, _power(None, None, 0.79),
            ("No evidence of a bias at an error rate of 0.02. Even if all of the rows "
            "had been written under the planted bias, this audit would have found it in "
            "fewer than four of five cases."),
        ),
        (
            "none", {}, _power(0.236, 0.95),
            ("No evidence of a bias at an error rate of 0.02. If 24% of the rows had "
            "been written under the planted bias, this audit would have found it in "
            "four of five cases."),
        ),
    ],
)  # fmt: skip
def test_a_verdict_in_words(
    steered: Case, verdict: VerdictWord, changes: dict[str, Any],
    power: Power | None, wanted: str,
) -> None:  # fmt: skip
    judgement = _judgement(steered[1], verdict, **changes)
    found = sentence(judgement, alpha=0.02, power=power)
    assert found == wanted
    assert "clean" not in found.lower()
    assert "safe" not in found.lower()


def test_strength_is_the_one_step_estimate(steered: Case) -> None:
    """α̂ = Σ(s − s̄₀) / (n Var₀ s), along the named direction at the named block."""
    found, audited = steered
    layer = audited.battery.layers.index(found.layer or 0)
    place = audited.battery.names.index("owl")
    own = audited.meter.signals(audited.rows).scores[:, layer, place].astype(float)
    base = audited.meter.signals(audited.reference.rows).scores[:, layer, place]
    base = base.astype(float)
    alpha = (own - base.mean()).sum() / (len(own) * base.var())
    # Scores are along a unit vector, strengths are in units of the vector itself.
    length = audited.battery.vectors["owl"].norm(found.layer or 0)
    assert found.strength == pytest.approx(alpha / length, rel=1e-4)
    interval = found.strength_interval
    assert interval is not None
    assert found.strength is not None
    assert interval.low is not None
    assert interval.high is not None
    assert interval.mean == found.strength
    half = 2.01 * (own / base.var()).std(ddof=1) / math.sqrt(len(own)) / length
    assert interval.high - found.strength == pytest.approx(half, rel=0.02)
    assert interval.low > 0
    # The dose is that of the likelihoods; without one, the estimate over the norm.
    assert found.dose == audited.judgement.dose
    unrefined = replace(audited, judgement=replace(audited.judgement, dose=None))
    dose = findings_of(unrefined).dose
    assert dose == pytest.approx(alpha / audited.battery.norms[layer], rel=1e-4)


def test_without_steering_there_is_no_strength(steered: Case) -> None:
    audited = steered[1]
    for changes in ({"kind": "prompt"}, {"direction": None}, {"layer": 99}):
        judgement = replace(audited.judgement, **changes)
        found = findings_of(replace(audited, judgement=judgement))
        assert found.strength is None
        assert found.strength_interval is None


def test_one_reference_row_has_no_information(steered: Case) -> None:
    audited = steered[1]
    one = replace(audited.reference, rows=audited.reference.rows[:1], paired=(0,))
    found = findings_of(replace(audited, reference=one))
    assert found.strength is None
    assert found.strength_interval is None


def test_rows_to_look_at_come_by_score(steered: Case) -> None:
    found, audited = steered
    scores = [row.score for row in found.triage]
    assert len(scores) == audited.settings.triage == 5
    assert None not in scores
    assert scores == sorted(scores, key=lambda s: -(s or 0))
    columns = row_scores(audited)
    assert max(columns["score"]) == scores[0]
    by_id = dict(zip(columns["row_id"], columns["p_value"], strict=True))
    for row in found.triage:
        assert row.p_value == by_id[row.row_id]
        assert row.p_value is not None
        assert 1 / 97 <= row.p_value <= 1
    assert columns["row_id"] == [row.row_id for row in audited.rows]
    assert set(columns) >= {"score_owl", "score_cat", "score_dog", "total_logprob"}
    assert np.array_equal(columns["score_owl"], columns["score"].astype(np.float32))


def test_conformal_p_values_by_hand(steered: Case) -> None:
    """(1 + reference rows that score as high) / (1 + all of them)."""
    audited = steered[1]
    columns = row_scores(audited)
    layer = audited.battery.layers.index(audited.judgement.layer or 0)
    place = audited.battery.names.index("owl")
    base = audited.meter.signals(audited.reference.rows).scores[:, layer, place]
    for score, p in zip(columns["score"], columns["p_value"], strict=True):
        assert p == (1 + (base >= np.float32(score)).sum()) / (1 + len(base))


def test_findings_are_strict_json_that_validates(steered: Case, clean: Case) -> None:
    for found, _ in (steered, clean):
        text = json.dumps(found.model_dump(mode="json"), allow_nan=False)
        assert Findings.model_validate_json(text) == found


def test_what_is_unknown_is_null(clean: Case) -> None:
    """NaN and infinities of any measurement end as null, with a reason."""
    audited = clean[1]
    judgement, race = audited.judgement, audited.judgement.race
    ratios = race.ratios.copy()
    ratios[:, 0] = -np.inf
    scores = judgement.scores
    z = np.full_like(scores.z, np.nan)
    broken = replace(
        judgement, p_value=math.nan, race=replace(race, ratios=ratios),
        scores=replace(scores, z=z, adjusted=z,
                       test=scores.test._replace(statistics=z.ravel(),
                                                 draws=np.empty(0), p_value=math.nan)),
    )  # fmt: skip
    found = findings_of(replace(audited, judgement=broken))
    json.dumps(found.model_dump(mode="json"), allow_nan=False)
    assert found.p_value is None
    assert found.max_null is None
    assert {d.adjusted_p for d in found.directions} == {None}
    assert found.hypotheses[0].nats_per_row is None
    assert found.hypotheses[0].behind is None
    assert set(found.trait_p_values.values()) == {None}
    assert found.triage  # rows are still shown


def test_every_trait_has_its_p_value(steered: Case, clean: Case) -> None:
    for found, audited in (steered, clean):
        assert list(found.trait_p_values) == ["owl", "cat", "dog"]
        for place, name in enumerate(found.trait_p_values):
            smallest = np.nanmin(audited.judgement.scores.adjusted[:, place])
            value = found.trait_p_values[name]
            assert value is not None
            assert smallest <= value + 1e-12 <= 1 + 1e-9
        assert found.max_null is not None
        assert found.max_null.draws == sorted(found.max_null.draws)
        assert found.max_null.permutations == 249


def test_hypotheses_tell_how_far_they_are_behind(steered: Case) -> None:
    found = steered[0]
    vectors = [h for h in found.hypotheses if h.kind == "steer" and not h.dropped]
    leader = max(vectors, key=lambda h: h.log_evalue or 0)
    assert leader.trait == "owl"
    assert leader.behind is None
    assert leader.nats_per_row is not None
    assert leader.nats_per_row > 0
    others = [h for h in found.hypotheses if h.kind == "steer" and h is not leader]
    assert all(h.behind is not None for h in others)


def test_facts_of_the_data_are_the_origin_s(clean: Case) -> None:
    audited = clean[1]
    name = audited.rows[0].row_id
    origin = Origin(
        sources=("rows.csv",), layout="prompt, completion", read=61, unique=50,
        counts={name: 4}, skipped={"no completion": 2}, subsample="48 of 50 rows",
        command="undertow audit rows.csv",
    )  # fmt: skip
    found = findings_of(replace(audited, origin=origin, skipped={"no completion": 1}))
    assert (found.data.rows, found.data.unique, found.data.used) == (61, 50, 48)
    assert found.data.skipped == {"no completion": 3}
    assert found.data.subsample == "48 of 50 rows"
    assert found.command == "undertow audit rows.csv"
    assert "rows outside the subsample: 48 of 50 rows" in found.not_tested
    counts = row_scores(replace(audited, origin=origin))["count"]
    assert counts[0] == 4
    assert set(counts[1:]) == {1}


def test_memory_that_ran_out_is_said(clean: Case) -> None:
    audited = clean[1]
    audited.meter._halved("scores", 512)
    audited.meter._halved("scores", 256)
    try:
        (said,) = findings_of(audited).warnings
    finally:
        audited.meter.warnings.clear()
        audited.meter._budgets["scores"].clear()
    assert said.startswith("scores: memory ran out: batches hold 256 tokens")


def test_long_and_empty_prompts_are_shown_short(clean: Case, place: "Place") -> None:
    audited = clean[1]
    long = Row((Message("user", "x" * 900),), ", ".join(["7"] * 3), provenance={})
    bare = Row((Message("user", ""),), "1, 2, 3")
    some = replace(
        audited, rows=(long, bare), reference=Reference(tier="C"), power=None,
        settings=audited.settings.model_copy(update={"triage": 2}),
    )  # fmt: skip
    found = findings_of(some)
    assert sorted(len(row.prompt) for row in found.triage) == [0, 300]
    assert {row.p_value for row in found.triage} == {None}
    assert found.reference_tier == "C"
