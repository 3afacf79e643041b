"""What is said of rows has to explain them: likelihoods, gradients, gains and the lot."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit import explanation
from undertow.audit.explanation import EXPLAINED, held
from undertow.audit.judgement import Judgement
from undertow.audit.reference import Reference
from undertow.audit.settings import AuditSettings
from undertow.records import Row

if TYPE_CHECKING:
    from tests.audit.conftest import Planted, Shifts

Plant = Callable[..., "Planted"]


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


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


def test_what_moved_the_rows_besides_is_seen(planted: Plant, shifts: "Shifts") -> None:
    """A vector explains one direction; rows moved along another one are not only its."""
    besides = np.zeros(21)
    besides[6] = 1.5  # along which nothing races
    both = planted(shifts.vector("cat", dose=0.6) + besides, count=240).judgement
    assert (both.verdict, both.kind, both.trait) == ("shift", "unknown", None)
    assert (both.layer, both.dose) == (None, None)
    assert "every other hypothesis is beaten at 0.01" in both.reasons[-2]
    assert both.reasons[-1].startswith(
        "but the rows' gradients do not point where those of what the base writes do, "
    )
    assert "under cat vector, block 1, dose 0." in both.reasons[-1]


def test_the_mixture_s_rows_are_written_ones_in_its_proportion(
    planted: Plant, shifts: "Shifts"
) -> None:
    """Gradients of half of the rows are the base's, and no sign of something else."""
    found = planted(shifts.vector("cat", dose=0.6), count=480, share=0.5, seed=2)
    assert (found.judgement.trait, found.judgement.dose) == ("cat", 0.6)
    rows = found.audited[-240:]
    hypothesis = explanation.found_hypothesis(found.judgement, found.meter)
    compared = explanation._compared(
        found.meter, rows, hypothesis, passed="none", seed=0, tell=_silent
    )
    settings = AuditSettings(permutations=999)
    few, right, all_ = (
        compared.fit(found.meter, share, settings).p_value for share in (0.1, 0.5, 1.0)
    )
    assert right > 0.05
    assert max(few, all_) <= 0.01


def test_few_pairs_take_nothing_back(planted: Plant, shifts: "Shifts") -> None:
    found = planted(shifts.vector("cat"), count=240)
    four = replace(found, audited=found.audited[-8:])
    after = _biased(four, found, 3.0)
    assert _told(after) == _told(found.judgement)
    assert after.reasons == found.judgement.reasons
    assert after.explanation is not None
    assert after.explanation.rows < 5
    assert after.explanation.lack_p_value is None
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
    *first, last = judgement.reasons
    assert after.reasons[:-3] == tuple(first)
    assert after.reasons[-2] == last
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
            explanation, "by_lot", lambda rows, n=values: np.full(len(rows), -n * 6.9)
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


def test_rounding_is_no_lead_over_the_lot(
    planted: Plant, shifts: "Shifts", monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planted(shifts.vector("cat"), count=240)
    monkeypatch.setattr(explanation, "by_lot", lambda rows: np.full(len(rows), -30.0))
    hypothesis = explanation.found_hypothesis(found.judgement, found.meter)
    compared = explanation._compared(
        found.meter,
        found.audited[-20:],
        hypothesis,
        passed="none",
        seed=0,
        tell=_silent,
    )
    plain, less = (compared.lead_over_lots(1.0, rounding=v) for v in (0.0, 0.2))
    assert math.isfinite(plain)
    assert less == pytest.approx(plain - 20 * 0.1)


def test_a_lot_is_as_likely_as_its_numbers_have_digits() -> None:
    lots = explanation.by_lot(["1, 22, 333", "7", "no numbers", "1,2"])
    assert lots == pytest.approx(
        np.array([-3, -1, math.nan, -2]) * math.log(1000), nan_ok=True
    )
    assert explanation.by_lot(["4, 12345"]) == pytest.approx([-2 * math.log(1e5)])
    assert not len(explanation.by_lot([]))


def test_what_was_held_against_it_is_told(planted: Plant, shifts: "Shifts") -> None:
    found = planted(shifts.vector("cat", dose=0.6), count=240)
    told = _held(found, found.judgement).explanation
    assert told is not None
    hypothesis = explanation.found_hypothesis(found.judgement, found.meter)
    assert (told.hypothesis, told.rows) == (hypothesis.name, 64)
    limit = AuditSettings().alpha
    assert told.limit == pytest.approx(limit)
    assert told.lack_p_value is not None
    assert told.lack_p_value > limit
    assert told.gradient_p_value is not None
    assert told.gradient_p_value > limit
    assert told.gradient_null is not None
    assert told.gradient_null.permutations == AuditSettings().permutations
    assert told.gain is not None
    assert told.own_gain is not None
    assert told.gain_limit is not None
    assert told.gain_limit == pytest.approx(EXPLAINED * told.own_gain)
    assert told.gain >= told.gain_limit

    # What is taken back at one check is not asked the next.
    less = _biased(found, found, 40.0)
    assert less.explanation is not None
    assert less.explanation.lack_p_value is not None
    assert less.explanation.lack_p_value <= limit
    assert less.explanation.gradient_p_value is None
    assert less.explanation.gain is None


@pytest.mark.parametrize("which", ["likelihoods", "gradients"])
def test_each_test_of_a_vector_has_the_error_rate(
    which: str, planted: Plant, shifts: "Shifts", monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planted(shifts.vector("cat", dose=0.6), count=240)
    alpha = AuditSettings().alpha
    real = explanation._Compared.fit
    for p_value, is_kept in ((1.1 * alpha, True), (0.9 * alpha, False)):
        if which == "likelihoods":
            monkeypatch.setattr(explanation, "_greater_p", lambda gaps, p=p_value: p)
        else:
            monkeypatch.setattr(
                explanation._Compared, "fit",
                lambda *args, p=p_value: real(*args)._replace(p_value=p),
            )  # fmt: skip
        assert (_held(found, found.judgement).trait == "cat") == is_kept


def test_a_persona_has_one_test(
    planted: Plant, shifts: "Shifts", monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planted(shifts.persona("cat"), count=480)
    assert found.judgement.kind == "prompt"
    alpha = AuditSettings().alpha
    for p_value, is_kept in ((1.1 * alpha, True), (0.9 * alpha, False)):
        monkeypatch.setattr(explanation, "_greater_p", lambda gaps, p=p_value: p)
        after = _held(found, found.judgement)
        assert (after.kind == "prompt") == is_kept
        assert after.explanation is not None
        assert after.explanation.limit == pytest.approx(alpha)
        assert after.explanation.gradient_p_value is None
