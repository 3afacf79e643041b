"""Score tests by hand; which directions become hypotheses, where and at what dose."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t
from tests.audit.conftest import World, vector_shift

from undertow.audit import candidates
from undertow.audit.candidates import (
    CANDIDATES,
    DOSES,
    LARGEST,
    LIKELIEST,
    NAMING_DOSES,
    ROUNDS,
    STANDS_OUT,
    candidate_hypotheses,
    contending_hypotheses,
    half_z,
    score_test,
    vector_hypothesis,
)
from undertow.audit.signals import Battery, RowSignals
from undertow.models.loading import Model
from undertow.records import Row
from undertow.seeding import generator

Array = np.ndarray[Any, np.dtype[np.float64]]


def _signals(scores: np.ndarray) -> RowSignals:
    count = len(scores)
    ids = tuple(f"{i:016x}" for i in range(count))
    return RowSignals(
        ids, scores.astype(np.float32), np.zeros(count), np.ones(count, dtype=np.int64)
    )


def _drawn(name: str, count: int, shift: float = 0.0) -> RowSignals:
    stream = generator(0, "scores", name)
    scores = stream.normal(size=(count, 3, 4))
    scores[:, 1, 2] += shift
    return _signals(scores)


def _z_of(value: float, degrees: int) -> float:
    """Student's t as a number of standard deviations: the same tail of the normal."""
    return float(norm.isf(t.sf(value, degrees)))


def test_paired_z_by_hand() -> None:
    """Differences of partners 3, 1, 2 of the choosing half: mean 2, s = 1."""
    mine = np.zeros((6, 1, 1))
    mine[:, 0, 0] = 10, 20, 30, 40, 50, 60
    theirs = np.zeros((4, 1, 1))
    theirs[:, 0, 0] = 7, 29, 38, -900  # partners of rows 0, 2, 3 and 5
    found = half_z(_signals(mine), _signals(theirs), (0, 2, 3, 5), (0, 1, 2, 3))
    assert found[0, 0] == pytest.approx(_z_of(2 / (1 / math.sqrt(3)), 2))


def test_unpaired_z_by_hand() -> None:
    """Welch's: means 2 and 1, variances 1 and 4, 3 and 3 rows."""
    mine = np.array([1, 2, 3, 99]).reshape(4, 1, 1)
    theirs = np.array([-1, 1, 3]).reshape(3, 1, 1)
    found = half_z(_signals(mine), _signals(theirs), (), (0, 1, 2))
    assert found[0, 0] == pytest.approx(_z_of(1 / math.sqrt(1 / 3 + 4 / 3), 2))


def test_without_a_reference_z_is_against_zero() -> None:
    mine = np.array([1, 2, 3, 99]).reshape(4, 1, 1)
    none = _signals(np.zeros((0, 1, 1)))
    found = half_z(_signals(mine), none, (), (0, 1, 2))
    assert found[0, 0] == pytest.approx(_z_of(2 * math.sqrt(3), 2))


def test_signs_and_sizes_beyond_floats_keep_their_order() -> None:
    """A t whose tail no float holds is larger than any whose tail one does."""
    mine = np.ones((300, 1, 4)) + 1e-3 * generator(0, "z").normal(size=(300, 1, 4))
    mine *= np.array([1.0, -1.0, 1.0, 0.03])
    mine[:, 0, 2] *= 1 + 1e-2 * generator(1, "z").normal(size=300)
    mine[:, 0, 3] += 0.3 * generator(2, "z").normal(size=300)
    found = half_z(_signals(mine), _signals(np.zeros((0, 1, 4))), (), range(300))[0]
    assert found[0] > found[2] > found[3]
    assert found[1] < -35
    assert np.isfinite(found).all()


def test_one_row_has_no_z() -> None:
    one = _signals(np.ones((1, 2, 3)))
    found = half_z(one, _signals(np.zeros((0, 2, 3))), (), (0,))
    assert found.shape == (2, 3)
    assert np.isnan(found).all()


@pytest.mark.parametrize("is_paired", [True, False])
def test_the_moved_column_is_found_where_it_is(is_paired: bool) -> None:
    mine, theirs = _drawn("a", 60, 1.5), _drawn("b", 60)
    pairs = range(60) if is_paired else ()
    found = score_test(mine, theirs, pairs=pairs, permutations=199, seed=0)
    assert found.z.shape == (3, 4)
    assert found.adjusted.shape == (3, 4)
    assert found.z.argmax() == 6  # block 1, direction 2
    assert found.test.p_value == found.adjusted[1, 2] == 1 / 200
    assert (np.delete(found.adjusted.ravel(), 6) > 0.01).all()


def test_pairs_are_taken_off_each_other() -> None:
    """What partners share, a prompt's own level, is no evidence and no noise."""
    level = 50 * generator(0, "levels").normal(size=(60, 1, 1))
    mine = _signals(_drawn("a", 60, 1.5).scores + level)
    theirs = _signals(_drawn("b", 60).scores + level)
    paired = score_test(mine, theirs, pairs=range(60), permutations=199, seed=0)
    assert paired.test.p_value == 1 / 200
    # Partners in another order are found by their places.
    backwards = _signals(theirs.scores[::-1])
    turned = score_test(
        mine, backwards, pairs=range(59, -1, -1), permutations=199, seed=0
    )
    assert turned.z == pytest.approx(paired.z, abs=1e-4)
    loose = score_test(mine, theirs, pairs=(), permutations=199, seed=0)
    assert loose.test.p_value > 0.05


def test_without_a_reference_there_is_no_test() -> None:
    found = score_test(
        _drawn("a", 60), _drawn("b", 0), pairs=(), permutations=199, seed=0
    )
    assert found.z.shape == (3, 4)
    assert np.isnan(found.z).all()
    assert math.isnan(found.test.p_value)


# ── hypotheses ───────────────────────────────────────────────────────────────────


def _z(battery: Battery, **of: Sequence[float]) -> np.ndarray:
    """[layer, direction], 0 but for the named ones."""
    found = np.zeros((len(battery.layers), len(battery.names)))
    for name, values in of.items():
        found[:, battery.names.index(name)] = values
    return found


def test_what_stands_out_races_at_its_layers_and_doses(
    four_layers: Model, battery: Battery
) -> None:
    z = _z(battery, ant=(1.0, 8.0, 10.0, 7.2), oak=(6.0, 0.0, 0.0, 0.0))
    found = candidate_hypotheses(four_layers, battery, z)
    # 0.7 × 10 = 7: blocks 1 to 3 come into question, the lowest, best and last.
    assert [(h.trait, h.layer) for h in found] == [
        ("ant", 1), ("ant", 1), ("ant", 2), ("ant", 2), ("ant", 3), ("ant", 3),
        ("oak", 0), ("oak", 0),
    ]  # fmt: skip
    assert [h.strength for h in found[:2]] == [dose * 10 for dose in DOSES]
    assert [h.role for h in found] == ["trait"] * 6 + ["decoy"] * 2
    assert {h.kind for h in found} == {"steer"}


@pytest.mark.parametrize(
    ("near", "layers"),
    [
        ((9, 0, 0, 0), {0}),
        ((9, 7, 0, 0), {0, 1}),
        ((9, 7, 7, 7), {0, 3}),
        ((7, 7, 9, 7), {0, 2, 3}),
        ((7, 0, 0, 9), {0, 3}),
    ],
)
def test_lowest_best_and_highest_layer(
    four_layers: Model, battery: Battery, near: Sequence[float], layers: set[int]
) -> None:
    found = candidate_hypotheses(four_layers, battery, _z(battery, bee=near))
    assert {h.layer for h in found} == layers


def test_only_the_first_races_where_nothing_stands_out(
    four_layers: Model, battery: Battery
) -> None:
    edge = _z(battery, ant=(3.0, STANDS_OUT, 3.0, 3.0), bee=(3.9, 3.9, 3.9, 3.9))
    found = candidate_hypotheses(four_layers, battery, edge)
    assert [(h.trait, h.layer) for h in found] == [("ant", 1)] * len(DOSES)
    above = _z(battery, ant=(3.0, STANDS_OUT + 0.01, 3.0, 3.0))
    assert {h.layer for h in candidate_hypotheses(four_layers, battery, above)} == {
        0, 1, 3,
    }  # fmt: skip
    low = np.full((4, len(battery.names)), -9.0)  # away from a trait is no trait
    assert candidate_hypotheses(four_layers, battery, low) == []


def test_random_directions_never_race_and_two_do_at_most(
    four_layers: Model, battery: Battery
) -> None:
    z = np.full((4, len(battery.names)), 9.0)
    z[:, battery.names.index("dog")] = 5.0  # the least of all
    z[:, battery.names.index("cat")] = 6.0
    z[:, battery.of_role("random")] = 99.0
    found = candidate_hypotheses(four_layers, battery, z)
    assert {h.trait for h in found} == {"ant", "bee"}
    assert len({h.trait for h in found}) == CANDIDATES


# ── for a name ───────────────────────────────────────────────────────────────────


def _steered(
    model: Model, battery: Battery, trait: str
) -> tuple[World, Sequence[Row], Array]:
    """A world, rows steered in it, and their scores."""
    world = World(model, battery)
    rows = world.write(range(30), "steered", vector_shift(trait, dose=0.6), seed=0)
    return world, rows, world.signals(rows).scores.astype(np.float64)


def test_likelihoods_propose_whom_scores_pass_over(
    four_layers: Model, battery: Battery
) -> None:
    """The largest scores may be wrong ones'; a few rows are likeliest under the truth."""
    world, rows, scores = _steered(four_layers, battery, "cat")
    z = _z(
        battery, ant=(0, 9.0, 5.0, 0), bee=(0, 0, 8.0, 0), oak=(7.0, 0, 0, 0),
        elm=(0, 0, 0, 6.5), cat=(0, 3.0, 0, 0), dog=(-2.0,) * 4,
    )  # fmt: skip
    told: list[tuple[int, int]] = []
    found = contending_hypotheses(
        world, rows, z, scores, tell=lambda _, done, total: told.append((done, total))
    )
    own = [(h.trait, h.layer) for h in found[:: len(NAMING_DOSES)]]
    assert own[0] == ("cat", 1)  # where it was, whatever its score
    assert {"ant", "bee"} <= {name for name, _ in own}
    assert len({name for name, _ in own}) == len(own) <= LARGEST + LIKELIEST
    assert [h.strength for h in found[:4]] == [dose * 10 for dose in NAMING_DOSES]
    # All at all layers, and where their score is positive at a weak dose too, on the
    # rows farthest along the leading one.
    far = np.argsort(-scores[:, 1, 0])[: ROUNDS[-1][0]]
    names = [name for name, _ in world.scanned]
    assert names == 2 * [rows[i].row_id for i in far]
    assert [count for _, count in world.scanned[:8]] == [30] * 8
    # Then those that race, at all doses; the largest scores beside their layers too.
    (near,) = {count for _, count in world.scanned[8:]}
    assert 0 < near <= (4 + 2 * 3) * len(NAMING_DOSES)
    assert told[7] == (240, 240)
    assert told[-1] == (8 * near, 8 * near)
    least = contending_hypotheses(
        world, rows, np.full_like(z, np.nan), scores, tell=lambda *_: None
    )
    assert least == []


def test_a_strong_vector_is_found_where_its_score_is_negative(
    four_layers: Model, battery: Battery
) -> None:
    world, rows, scores = _steered(four_layers, battery, "cat")
    z = _z(battery, ant=(0, 9.0, 5.0, 0), bee=(0, 0, 8.0, 0), cat=(-6.0,) * 4)
    found = contending_hypotheses(world, rows, z, scores, tell=lambda *_: None)
    assert (found[0].trait, found[0].layer) == ("cat", 1)
    # Two doses of one direction take no other's place.
    assert len({h.trait for h in found}) >= LIKELIEST


def test_fewer_go_on_after_each_row(
    four_layers: Model, battery: Battery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "ROUNDS", ((1, 12), (3, 6), (4, 3)))
    world, rows, scores = _steered(four_layers, battery, "dog")
    z = _z(
        battery, **dict.fromkeys(("ant", "bee", "cat", "dog", "oak", "elm"), (1.0,) * 4)
    )
    z[2, 0] = 9.0
    told: list[tuple[int, int]] = []
    contending_hypotheses(
        world, rows, z, scores,
        tell=lambda _, done, total: told.append((done, total)),
    )  # fmt: skip
    # Six named directions at four layers, at two doses.
    assert [count for _, count in world.scanned[:4]] == [48, 24, 24, 12]
    assert told[:4] == [(48, 108), (72, 108), (96, 108), (108, 108)]


def test_unknown_scores_are_passed_over(four_layers: Model, battery: Battery) -> None:
    nowhere = np.full((4, len(battery.names)), np.nan)
    assert candidate_hypotheses(four_layers, battery, nowhere) == []
    z = _z(battery, ant=(math.nan, 8.0, math.nan, 0.0))
    assert {h.layer for h in candidate_hypotheses(four_layers, battery, z)} == {1}


def test_a_hypothesis_is_a_unit_vector_at_a_dose(
    four_layers: Model, battery: Battery
) -> None:
    found = vector_hypothesis(four_layers, battery, 4, 2, 0.45)
    assert found.name == "oak vector, block 2, dose 0.45"
    assert found.role == "decoy"
    assert found.strength == 4.5
    assert found.vector is not None
    assert found.vector.norm(2) == pytest.approx(1, abs=1e-6)
    assert found.vector.dose_of_strength(4.5, 2) == pytest.approx(0.45, abs=1e-6)
    assert found.vector.fingerprint == four_layers.fingerprint
