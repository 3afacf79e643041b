"""From sums to a verdict: calibration, planted shifts, tiers, what is never said."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from undertow.audit.census_plan import Plan
from undertow.audit.census_settings import CensusSettings
from undertow.audit.census_verdict import (
    CensusTest,
    directions_of,
    effective_rows,
    judge_sums,
    largest,
    stand_once,
)
from undertow.audit.reference import GREEDY, Passing
from undertow.audit.shard_sums import Measuring
from undertow.audit.sums import Compared, Grid, Side, Sums, Top, row_signs
from undertow.models.reloading import ModelFacts
from undertow.models.sampling import SamplerSettings
from undertow.seeding import generator
from undertow.stats import ks_uniform

LAYERS, DIRECTIONS, FLIPS = 2, 4, 199
SETTINGS = CensusSettings(flips=FLIPS)


def plan(tier: Any = "A") -> Plan:
    ones = np.ones((LAYERS, DIRECTIONS))
    grid = Grid(0 * ones, ones, ones / 128, ones / 128)
    measuring = Measuring(
        model=ModelFacts("m", "0", {}), tier=tier, layers=(3, 7),
        directions=np.zeros((LAYERS, DIRECTIONS, 2), np.float32), named=(0, 1),
        grid=grid, sampler=SamplerSettings(),
        passing=Passing("none", 9, cut=True, empty=True), system=None, seed=0,
        flips=FLIPS, top=1,
    )  # fmt: skip
    return Plan(
        measuring, ("owl", "cat", "oak", "random 1"),
        ("trait", "trait", "decoy", "random"), (10.0, 10.0), "given", (),
    )  # fmt: skip


def summed(
    scores: np.ndarray, *, names: str, partners: np.ndarray | None = None,
    counts: list[int] | None = None, tokens: int = 10, repeats: tuple[int, int] = (0, 0),
) -> Sums:  # fmt: skip
    """Sums of scores [row, layer, direction] with a spread of 1."""
    grid, rows = plan().measuring.grid, len(scores)
    ids = [f"{i:08x}{names:>08}" for i in range(rows)]
    counts = counts or [1] * rows
    own = grid.whole(scores)
    partner, compared = Side.nothing(LAYERS, DIRECTIONS), own
    if partners is not None:
        partner = Side.of(grid.whole(partners), counts, [10] * rows, repeats=repeats[1])
        compared = grid.whole_pairs(scores, partners)
    lengths = [
        tokens - (10 if partners is not None else 0) + i % 3 - 1 for i in range(rows)
    ]
    return Sums(
        Side.of(own, counts, [tokens] * rows, repeats=repeats[0]), partner,
        Compared.of(compared, counts, lengths, row_signs(ids, flips=FLIPS, seed=0)),
        Top.nothing(1), 0,
    )  # fmt: skip


def drawn(seed: int, rows: int, name: str = "rows", shift: float = 0.0) -> np.ndarray:
    scores = generator(seed, name).normal(size=(rows, LAYERS, DIRECTIONS))
    scores[:, 1, 0] += shift
    return scores.astype(np.float32)


def paired(seed: int, rows: int, shift: float = 0.0, **options: Any) -> CensusTest:
    sums = summed(
        drawn(seed, rows, shift=shift), names=str(seed),
        partners=drawn(seed, rows, "partners"), **options,
    )  # fmt: skip
    return judge_sums(plan(), sums, None, settings=SETTINGS)


def two_sets(seed: int, rows: int, shift: float = 0.0) -> CensusTest:
    sums = summed(drawn(seed, rows, shift=shift), names=f"{seed}a")
    trusted = summed(drawn(seed, 2 * rows, "trusted"), names=f"{seed}b")
    return judge_sums(plan("B"), sums, trusted, settings=SETTINGS)


@pytest.mark.parametrize("test", [paired, two_sets])
def test_p_values_of_clean_sums_are_uniform(test: Any) -> None:
    found = [test(seed, 120).p_value for seed in range(300)]
    assert ks_uniform(found).p_value > 0.01
    for level in (0.05, 0.1, 0.25):
        most = level + 2 * math.sqrt(level * (1 - level) / 300)
        assert np.mean(np.array(found) <= level) <= most


@pytest.mark.parametrize("test", [paired, two_sets])
def test_a_planted_shift_is_found_where_it_is(test: Any) -> None:
    found = test(0, 300, shift=1.0)
    assert found.verdict == "shift"
    assert found.p_value == 1 / (1 + FLIPS)
    assert largest(found) == (1, 0)
    assert found.adjusted[1, 0] == found.p_value
    first = directions_of(plan(), found)[0]
    assert (first.name, first.role, first.adjusted_p) == ("owl", "trait", found.p_value)
    assert first.z[1] == found.z[1, 0] > 4


def test_copies_leave_what_is_shown_as_it_is() -> None:
    """z, whitened z and that of lengths: evidence of 400 pairs, however often they stand."""
    once, often = (
        paired(0, 400, shift=0.4, counts=[m] * 400, tokens=11) for m in (1, 50)
    )
    np.testing.assert_allclose(often.z, once.z, rtol=0.1, atol=0.1)
    np.testing.assert_allclose(often.whitened, once.whitened, rtol=0.1, atol=0.1)
    assert once.length_z == pytest.approx(often.length_z, rel=0.1)
    assert once.length_z > 4


@pytest.mark.parametrize("tier", ["A", "B"])
def test_copies_find_no_smaller_share(tier: str) -> None:
    def taken(copies: int) -> CensusTest:
        counts = [copies] * 400
        if tier == "A":
            return paired(0, 400, counts=counts)
        sums = summed(drawn(0, 400), names="m", counts=counts)
        trusted = summed(drawn(0, 800, "trusted"), names="t", counts=counts * 2)
        return judge_sums(plan("B"), sums, trusted, settings=SETTINGS)

    once, *more = (taken(copies) for copies in (1, 4, 50))
    for found in more:
        assert found.detectable_fraction == pytest.approx(
            once.detectable_fraction, rel=0.05
        )
        assert found.detectable_shift == pytest.approx(once.detectable_shift, rel=0.05)


def answers(seed: int, *, without_copies: bool) -> CensusTest:
    """Answers of one sampler on one prompt, some of them likely and of high score."""
    scores = drawn(0, 200, "of answers")
    chances = np.exp(scores[:, 0, 0]) / np.exp(scores[:, 0, 0]).sum()
    stream = generator(seed, "answers")
    said, counts = np.unique(stream.choice(200, 120, p=chances), return_counts=True)
    if without_copies:
        counts = np.ones_like(counts)
    partners = stream.choice(200, len(said), p=chances)
    repeats = int(counts.sum()) - len(said), len(said) - len(np.unique(partners))
    sums = summed(
        scores[said], names=f"{seed}", partners=scores[partners],
        counts=counts.tolist(), repeats=repeats,
    )  # fmt: skip
    return judge_sums(plan(), sums, None, settings=SETTINGS.model_copy(
        update={"alpha": 0.05}
    ))  # fmt: skip


def test_rows_without_their_copies_are_no_shift() -> None:
    found = [answers(seed, without_copies=True) for seed in range(100)]
    small = [each for each in found if each.p_value <= 0.05]
    assert len(small) > 15  # which would have been called shifts
    assert all(each.verdict == "inconclusive" for each in small)
    assert "copies were taken out" in small[0].reasons[0]
    assert all("copies were taken out" in each.warnings[0] for each in found)


def test_rows_with_their_copies_are_compared_as_they_are() -> None:
    found = [answers(seed, without_copies=False) for seed in range(100)]
    assert all(each.warnings == () for each in found)
    assert sum(each.verdict == "shift" for each in found) <= 11  # 5 ± 2.5 σ


@pytest.mark.parametrize(
    ("rows", "partners", "once"),
    [(0, 0, False), (0, 2, True), (1, 2, False), (0, 1, False), (1, 10, False),
     (1, 11, True), (40, 100, False), (40, 170, True)],
)  # fmt: skip
def test_when_partners_repeat_and_rows_do_not(
    rows: int, partners: int, once: bool
) -> None:
    scores, others = drawn(0, 150), drawn(0, 150, "partners")
    sums = summed(scores, names="r", partners=others, repeats=(rows, partners))
    assert stand_once(sums) is once


@pytest.mark.parametrize("test", [paired, two_sets])
def test_clean_sums_have_no_shift_and_say_how_little_would_be_found(test: Any) -> None:
    few, many = test(1, 100), test(1, 1600)
    assert few.verdict == many.verdict == "none"
    assert few.effective == pytest.approx(100, rel=0.1)
    # Sixteen times the rows, a quarter of the shift.
    assert few.detectable_shift / many.detectable_shift == pytest.approx(4, rel=0.3)
    # Dose 0.3 of norm 10 moves a score of variance 1 by 3.
    assert many.detectable_fraction == pytest.approx(many.detectable_shift / 3, rel=0.2)


def test_a_shift_of_the_detectable_size_is_found_four_times_of_five() -> None:
    least = paired(0, 200).detectable_shift
    found = [paired(seed, 200, shift=least).p_value <= 0.01 for seed in range(1, 121)]
    assert 0.65 < np.mean(found) < 0.95


def test_copies_of_few_rows_are_no_evidence() -> None:
    one = paired(0, 1, shift=5.0, counts=[100_000])
    assert one.verdict == "inconclusive"
    assert one.effective == pytest.approx(1)
    assert one.p_value == 1.0
    copied = paired(3, 400, counts=[50] * 400)
    assert copied.verdict == "none"
    assert copied.effective == pytest.approx(400, rel=0.1)


def test_without_a_reference_nothing_is_claimed() -> None:
    sums = summed(drawn(0, 100, shift=9.0), names="c")
    found = judge_sums(plan("C"), sums, None, settings=SETTINGS)
    assert found.verdict == "inconclusive"
    assert "without a reference" in found.reasons[0]
    greedy = replace(plan("C").measuring, sampler=SamplerSettings(temperature=0.0))
    said = judge_sums(
        replace(plan("C"), measuring=greedy), sums, None, settings=SETTINGS
    )
    assert said.reasons == (GREEDY,)
    assert math.isnan(found.p_value)
    assert largest(found) is None
    assert np.isnan(found.whitened).all()


def test_no_rows_and_rows_that_do_not_vary_are_inconclusive() -> None:
    nothing = plan().measuring.nothing()
    found = judge_sums(plan(), nothing, None, settings=SETTINGS)
    assert (found.verdict, found.effective) == ("inconclusive", 0.0)
    flat = np.zeros((50, LAYERS, DIRECTIONS), np.float32)
    found = judge_sums(
        plan(), summed(flat, names="f", partners=flat), None, settings=SETTINGS
    )
    assert found.verdict == "inconclusive"
    assert "worth no different ones" in found.reasons[0]


def test_other_lengths_and_many_skipped_rows_are_mentioned() -> None:
    assert paired(0, 100).warnings == ()
    sums = summed(
        drawn(0, 100), names="l", partners=drawn(0, 100, "partners"), tokens=20
    )
    sums = Sums(sums.own, sums.partner, sums.compared, sums.top, 0, {"no prompt": 7})
    found = judge_sums(plan(), sums, None, settings=SETTINGS)
    assert found.length_z > 4
    assert "lengths differ too" in found.warnings[0]
    assert "7 rows are not in the sums" in found.warnings[1]


def test_whitening_finds_the_direction_behind_its_shadows() -> None:
    scores = drawn(0, 4000, shift=0.2)
    common = scores[:, 1, 0]
    scores[:, 1, 1] = common + 0.3 * scores[:, 1, 1]  # follows the first
    sums = summed(scores, names="w", partners=drawn(0, 4000, "partners") * 0)
    found = judge_sums(plan(), sums, None, settings=SETTINGS)
    assert found.z[1, 1] > 5
    assert found.whitened[1, 0] > 4
    assert abs(found.whitened[1, 1]) < 3


def test_effective_rows_count_copies_as_one_draw() -> None:
    scores = drawn(0, 200)
    once = summed(scores, names="e").compared
    four = summed(scores, names="e", counts=[4] * 200).compared
    assert effective_rows(once, centred=True) == pytest.approx(200, rel=0.1)
    assert effective_rows(four, centred=True) == pytest.approx(
        effective_rows(once, centred=True)
    )
