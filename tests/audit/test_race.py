"""Races over planted likelihood ratios: who is named, how often wrongly, at what cost."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit import race
from undertow.audit.meter import Meter
from undertow.audit.race import Race, RaceSettings, mixed_evidence, run_race
from undertow.records import Message, Row
from undertow.seeding import generator
from undertow.stats import log_evalue_path

ALPHA = 0.01
PERSONAS = [RowHypothesis(f"{n} prompt", "prompt", n) for n in "abcdef"]


class Table(Meter):
    """Ratios that are known beforehand, by hypothesis and row."""

    def __init__(self, ratios: dict[str, dict[str, float]]) -> None:
        self.known, self.passes = ratios, 0
        self.asked: list[tuple[str, int]] = []
        self.scanned: list[tuple[int, list[str]]] = []

    def scan(
        self,
        rows: Sequence[Row],
        hypotheses: Sequence[RowHypothesis],
        *,
        on_rows: Any = None,
    ) -> None:
        self.scanned.append((len(rows), [h.name for h in hypotheses]))

    def ratios(
        self, rows: Sequence[Row], hypothesis: RowHypothesis, *, on_rows: Any = None
    ) -> np.ndarray:
        self.passes += len(rows)
        self.asked.append((hypothesis.name, len(rows)))
        own = self.known[hypothesis.name]
        return np.array([own[row.row_id] for row in rows], dtype=np.float64)


def test_what_a_persona_cannot_have_drawn_tells_and_drops_nothing() -> None:
    """With a cut sampler some rows are impossible under it: more of the reference's."""
    stream = generator(3, "test")
    mine, theirs = stream.normal(size=(2, 40, 2))
    theirs[:20, 0] = -np.inf
    mine[0, 0] = np.nan  # the base could not draw it
    for is_paired in (True, False):
        found = race._trial(mine, theirs, is_paired=is_paired, permutations=999, seed=0)
        assert found is not None
        assert np.isfinite(found.statistics).all()
        assert found.adjusted[0] < 0.01 < found.adjusted[1]
    gone = np.full((40, 2), -np.inf)
    assert all(np.isfinite(side).all() for side in race._finite(gone, gone))


def _rows(count: int, side: str) -> list[Row]:
    return [Row((Message("user", f"{i}"),), side) for i in range(count)]


def _normal_ratios(
    stream: np.random.Generator,
    rows: Sequence[Row],
    effects: np.ndarray,
    truth: int | None,
) -> np.ndarray:
    """[row, hypothesis]: of N(effect, I) against N(0, I), on rows of one of them.

    Hypotheses share all of their effect but what is their own, as personas do.
    """
    width = effects.shape[1]
    values = stream.normal(size=(len(rows), width))
    if truth is not None:
        values += effects[truth]
    found: np.ndarray = values @ effects.T - (effects**2).sum(1) / 2
    return found


def _effects(count: int, *, shared: float, own: float) -> np.ndarray:
    return np.hstack([np.full((count, 1), shared), own * np.eye(count)])


def _race(
    hypotheses: Sequence[RowHypothesis],
    effects: np.ndarray,
    *,
    truth: int | None,
    seed: int = 0,
    count: int = 400,
    is_paired: bool = True,
    reference: int | None = None,
    noise: float = 0.0,
    **options: Any,
) -> tuple[Race, Table]:
    """`noise` is the variance that rounding gives to the difference of two ratios."""
    stream = generator(seed, "race test")
    audited = _rows(count, "audited")
    against = _rows(count if reference is None else reference, "reference")
    own = _normal_ratios(stream, audited, effects, truth)
    own += math.sqrt(noise / 2) * stream.normal(size=own.shape)
    other = _normal_ratios(stream, against, effects, None)
    known = {
        h.name: {
            row.row_id: float(value)
            for row, value in zip(
                [*audited, *against], [*own[:, k], *other[:, k]], strict=True
            )
        }
        for k, h in enumerate(hypotheses)
    }
    meter = Table(known)
    settings = {"alpha": ALPHA, "seed": seed, "permutations": 199} | options
    race = run_race(
        meter, audited, against, pairs=range(len(against)) if is_paired else (),
        hypotheses=hypotheses, **settings,
    )  # fmt: skip
    return race, meter


@pytest.mark.parametrize("is_paired", [True, False])
def test_the_planted_persona_is_named(is_paired: bool) -> None:
    effects = _effects(6, shared=0.4, own=0.5)
    race, meter = _race(PERSONAS, effects, truth=3, is_paired=is_paired)
    assert race.left("prompt") == [3]
    assert race.leaders[0] == 3
    assert race.fresh is not None
    assert race.fresh.p_value == 1 / 200
    assert race.evidence(3) > 10
    assert race.evidence(3, since=race.screened) > 10
    assert race.path("prompt")[-1] > math.log(1 / ALPHA)
    assert race.screened == 24
    # All on the screening rows; then fewer and fewer.
    scored = (~np.isnan(race.ratios)).sum(0)
    assert scored.min() >= 24
    assert scored[3] == scored.max()
    assert meter.passes < 6 * 400


def test_what_is_alike_is_not_told_apart() -> None:
    """Something was found; which one it is stays open within the budget."""
    effects = _effects(6, shared=0.6, own=0.02)
    race, _ = _race(PERSONAS, effects, truth=3, settings=RaceSettings(passes=600))
    assert len(race.left("prompt")) == 6
    assert race.fresh is not None
    assert race.fresh.p_value == 1 / 200


def test_rows_of_the_base_show_nothing() -> None:
    race, _ = _race(PERSONAS, _effects(6, shared=0.4, own=0.5), truth=None)
    assert race.fresh is not None
    assert race.fresh.p_value > 0.05
    assert max(race.evidence(h) for h in range(6)) < math.log(1 / ALPHA)
    assert race.path("prompt").max() < math.log(1 / ALPHA)


def test_the_truth_is_beaten_no_more_often_than_said() -> None:
    effects = _effects(6, shared=0.4, own=0.4)
    races = [
        _race(PERSONAS, effects, truth=seed % 6, seed=seed, count=200, permutations=9)[
            0
        ]
        for seed in range(60)
    ]
    wrong = sum(race.beaten[seed % 6] for seed, race in enumerate(races))
    assert wrong <= 2  # of 60; at the rate of 1 % three or more have a chance of 2 %
    named = sum(race.left("prompt") == [seed % 6] for seed, race in enumerate(races))
    assert named > 50


@pytest.mark.parametrize("known", [False, True])
def test_rounding_beats_nobody_that_wrote_the_rows(known: bool) -> None:
    """Personas that differ by 0.16 nats a row, read twice with 0.35 nats between."""
    effects, noise = _effects(6, shared=0.6, own=0.16 / math.sqrt(2)), 0.125
    found = []
    for seed in range(30):
        race, _ = _race(
            PERSONAS, effects, truth=seed % 6, seed=seed, count=900, noise=noise,
            reference=0, settings=RaceSettings(passes=6000),
            rounding=1.2 * noise if known else 0.0,
        )  # fmt: skip
        found.append(bool(race.beaten[seed % 6]))
    assert sum(found) == 0 if known else sum(found) > 10


def test_a_lead_is_what_is_left_after_rounding() -> None:
    effects = _effects(6, shared=0.4, own=0.5)
    plain, _ = _race(PERSONAS, effects, truth=3, count=100)
    noisy, _ = _race(PERSONAS, effects, truth=3, count=100, rounding=0.02)
    both = ~np.isnan(plain.ratios[24:, 3]) & ~np.isnan(plain.ratios[24:, 1])
    rows = plain.ratios[24:][both]
    won = mixed_evidence(rows[:, 3]) - mixed_evidence(rows[:, 1])
    assert plain.lead(3, 1, since=24) == pytest.approx(won)
    assert plain.lead(1, 3, since=24) == pytest.approx(-won)
    taken = mixed_evidence(rows[:, 3] - 0.01) - mixed_evidence(rows[:, 1])
    assert noisy.lead(3, 1, since=24) == pytest.approx(taken)
    assert noisy.evidence(3) == pytest.approx(mixed_evidence(plain.ratios[:, 3] - 0.01))


def test_the_exact_path_rarely_crosses_on_clean_rows() -> None:
    """At 5 %, whatever the race chose to score, and whenever one looks."""
    effects = _effects(6, shared=0.5, own=0.5)
    crossed = fresh = 0
    for seed in range(70):
        race, _ = _race(
            PERSONAS,
            effects,
            truth=None,
            seed=seed,
            count=120,
            permutations=99,
            alpha=0.05,
        )
        assert race.fresh is not None
        crossed += bool(race.path("prompt").max() >= math.log(1 / 0.05))
        fresh += bool(race.fresh.p_value <= 0.05)
    assert crossed <= 8  # expected at most 3.5; beyond 8 with a chance of 1 %
    assert fresh <= 8


def test_one_dose_of_each_vector_goes_on() -> None:
    hypotheses = [
        *PERSONAS[:2],
        *(RowHypothesis(f"v {d}", "steer", "a", strength=d) for d in (1.0, 2.0, 4.0)),
        RowHypothesis("w", "steer", "b"),
    ]
    effects = np.zeros((6, 3))
    effects[0, 0] = effects[1, 1] = 0.3
    effects[2:5, 2] = 0.3, 0.8, 3.0  # the second is what was planted
    effects[5, 0] = -0.3
    race, _ = _race(hypotheses, effects, truth=3, settings=RaceSettings(screening=60))
    assert race.beaten[2]
    assert race.beaten[4]
    assert race.left("steer") == [3]
    assert 3 in race.leaders
    scored = (~np.isnan(race.ratios)).sum(0)
    assert scored[2] == scored[4] == 60
    kinds = [hypotheses[h].kind for h in race.leaders]
    assert kinds.count("prompt") == 2
    assert kinds.count("steer") == 2


@pytest.mark.parametrize("losers", [False, True])
def test_a_vector_that_lost_its_bets_is_given_up(losers: bool) -> None:
    hypotheses = [*PERSONAS[:2], RowHypothesis("v", "steer", "a")]
    effects = np.zeros((3, 3))
    effects[0, 0], effects[1, 1], effects[2, 2] = 0.5, 0.5, 3.0
    settings = RaceSettings(losers=losers, named=("steer",))
    race, _ = _race(hypotheses, effects, truth=0, settings=settings)
    assert (2 in race.leaders) == losers
    scored = (~np.isnan(race.ratios)).sum(0)
    assert (scored[2] > race.screened) == losers


def test_vectors_are_scored_only_on_rows_that_did_not_choose_them() -> None:
    hypotheses = [*PERSONAS[:2], RowHypothesis("v", "steer", "a")]
    race, _ = _race(
        hypotheses, _effects(3, shared=0.2, own=0.2), truth=2, count=100, steer_rows=50
    )
    assert np.isnan(race.ratios[50:, 2]).all()
    assert not np.isnan(race.ratios[50:, :2]).all()


def test_vectors_are_read_together_and_personas_are_not() -> None:
    vectors = [RowHypothesis(n, "steer", n) for n in ("v", "w")]
    effects = _effects(4, shared=0.2, own=0.2)
    _, meter = _race(
        [*PERSONAS[:2], *vectors], effects, truth=2, count=90, steer_rows=45
    )
    assert meter.scanned[0] == (24, ["v", "w"])
    assert meter.asked[:4] == [(n, 24) for n in ("a prompt", "b prompt", "v", "w")]
    read = sum(rows * len(names) for rows, names in meter.scanned)
    own = sum(rows for name, rows in meter.asked if name in ("v", "w"))
    assert read == own


def test_only_rows_with_a_partner_are_tried_against_the_reference() -> None:
    effects = _effects(6, shared=0.4, own=0.5)
    race, _ = _race(PERSONAS, effects, truth=1, reference=80)
    assert race.fresh is not None
    tried = ~np.isnan(race.reference[:, race.leaders[0]])
    assert tried.tolist() == [i >= race.screened for i in range(80)]
    unpaired, _ = _race(PERSONAS, effects, truth=1, reference=30, is_paired=False)
    assert unpaired.fresh is not None
    assert (~np.isnan(unpaired.reference[:, unpaired.leaders[0]])).all()


def test_personas_that_were_not_chosen_are_tried_on_every_row() -> None:
    """Two of two lead whatever the screening says, so its rows are fresh as well."""
    race, _ = _race(PERSONAS[:2], _effects(2, shared=0.4, own=0.5), truth=1, count=60)
    assert race.screened == 20
    assert race.tried == tuple(range(60))
    three, _ = _race(PERSONAS[:3], _effects(3, shared=0.4, own=0.5), truth=1, count=60)
    assert three.tried == tuple(range(20, 60))
    few = RaceSettings(fresh=12)
    cut, _ = _race(PERSONAS[:2], np.zeros((2, 2)), truth=None, count=60, settings=few)
    assert cut.tried == tuple(range(12))


def test_without_a_reference_there_is_no_trial() -> None:
    effects = _effects(6, shared=0.4, own=0.5)
    race, _ = _race(PERSONAS, effects, truth=1, reference=0)
    assert race.fresh is None
    assert race.left("prompt") == [1]
    assert race.reference.shape == (0, 6)


def test_the_budget_of_passes_is_kept() -> None:
    effects = _effects(6, shared=0.1, own=0.05)
    told: list[tuple[int, int]] = []
    settings = RaceSettings(screening=20, passes=130, fresh=30, leaders=1)
    race, meter = _race(
        PERSONAS, effects, truth=None, settings=settings,
        on_passes=lambda done, count: told.append((done, count)),
    )  # fmt: skip
    # 120 of the screening, one more step of 6 × 20, then 30 fresh rows of each side.
    assert race.screened == 20
    assert (~np.isnan(race.ratios)).sum() <= 120 + 130 + 30
    assert meter.passes <= 120 + 130 + 2 * 30
    assert all(0 < done <= count for done, count in told)


def test_few_rows_race_as_well() -> None:
    effects = _effects(6, shared=0.4, own=0.5)
    race, _ = _race(PERSONAS, effects, truth=None, count=4)
    assert race.screened == 1
    assert race.fresh is None or math.isnan(race.fresh.p_value)


def test_mixed_evidence_by_hand() -> None:
    ratios = np.array([0.5, np.nan, -2.0])
    shares = (1.0, 0.3, 0.1, 0.03)
    products = [
        (1 - f + f * math.exp(0.5)) * (1 - f + f * math.exp(-2.0)) for f in shares
    ]
    assert mixed_evidence(ratios) == pytest.approx(math.log(np.mean(products)))
    path = log_evalue_path(np.array([[0.5], [-2.0]]))
    assert mixed_evidence(ratios) == pytest.approx(path[-1])
    assert math.isnan(mixed_evidence(np.array([np.nan])))
    # A row that a hypothesis forbids ends a pure one, not one for a share.
    assert math.isfinite(mixed_evidence(np.array([-np.inf])))
