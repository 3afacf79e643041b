"""Planted read-outs, and every figure of the summary worked by hand.

Shares of (owl, cat, dog) are chosen so that log-odds are multiples of u = ln 3, or
hold v = ln 7:

    D  1/4  1/4  1/2    −u  −u   0     the control, always
    M  1/2  1/4  1/4     0  −u  −u     moved: student − control = +u on its trait
    F  3/4  1/8  1/8     u  −v  −v     far:   +2u on its trait, u − v on the next
"""

import math
from pathlib import Path
from typing import Any

import pytest

from undertow.experiment.estimates import log_odds
from undertow.experiment.limits import LIMITS
from undertow.experiment.recipe import Recipe
from undertow.experiment.summary import headline, summarise
from undertow.results import Estimate, Results, Transfer
from undertow.runs import Run, open_run
from undertow.traits import Trait, TraitFamily

U, V = math.log(3), math.log(7)
T1, T2 = 12.706205, 4.302653
FAMILY = TraitFamily(
    name="three",
    category="animal",
    questions=("a?", "b?"),
    traits=tuple(Trait(name=n, plural=f"{n}s") for n in ("owl", "cat", "dog")),
)
MOVES = {
    # [seed][question] of the student's state.
    (0.0, "owl"): ["MM", "FM", "FF"],
    (0.0, "cat"): ["FF", "FF", "FF"],
    (0.1, "owl"): ["DD", "MM", "FF"],
    (0.1, "cat"): ["MM", "MM", "MM"],
}
COSINES = (0.2, 0.3, 0.4)


def shares(state: str, trait: str) -> list[float]:
    """Shares of owl, cat and dog in a state of one trait's student."""
    if state == "D":
        return [1 / 4, 1 / 4, 1 / 2]
    if state == "N":
        return [1 / 3] * 3
    most = {"M": 1 / 2, "F": 3 / 4}[state]
    return [most if name == trait else (1 - most) / 2 for name in FAMILY.names]


def readout(states: str, trait: str = "owl") -> dict[str, Any]:
    """A payload; the traits' names have a tenth of all probability."""
    nats = [[math.log(p / 10) for p in shares(s, trait)] for s in states]
    return {"traits": list(FAMILY.names), "total_logprobs": nats}


def recipe(**changes: Any) -> Recipe:
    """Two traits, two noise levels, three seeds."""
    sweep = {"layers": [1], "doses": [0.3]}
    return Recipe.model_validate({
        "title": "Planted",
        "question": "q?",
        "model": {"name": "m"},
        "traits": ["owl", "cat"],
        "teachers": [{"kind": "steer", "steer": {"sweep": sweep}}],
        "noise": {"levels": [0.0, 0.1]},
        "seeds": [0, 1, 2],
        **changes,
    })  # fmt: skip


def plant_student(run: Run, name: str, states: str, trait: str) -> None:
    """Rows, training and read-out of one student."""
    accepted = [True, True, False, True]
    run.finish(
        f"{name}/rows",
        {"generated": 4, "accepted": accepted, "reasons": {"not_numbers": 1}},
    )
    run.finish(
        f"{name}/student/training",
        {
            "rows": 2,
            "updates": list(range(401)),
            "losses": [0.5, math.nan, *[1.0] * 399],
        },
    )
    run.finish(f"{name}/student/readout", readout(states, trait))


def plant_cell(run: Run, place: str, trait: str, noise: float, seed: int) -> None:
    """One cell of the grid, as `running` leaves it."""
    name = f"{place}/steer-{trait}"
    plant_student(run, name, MOVES[noise, trait][seed], trait)
    run.finish(f"{name}/teacher/readout", readout("FF", trait))
    shift = {
        "layers": [0, 1, 2], "vector_layer": 1, "student": [0.0, COSINES[seed], 0.1],
        "control": [0.0, 0.05, None],
    }  # fmt: skip
    run.finish(
        f"{name}/cell",
        {
            "teacher": "steer", "trait": trait, "noise": noise, "seed": seed,
            "control": "control", "shift": shift,
            "readouts": {
                "base": f"{place}/base/readout",
                "teacher": f"{name}/teacher/readout",
                "control": f"{place}/control/student/readout",
                "student": f"{name}/student/readout",
            },
        },
    )  # fmt: skip


def planted(directory: Path, planned: Recipe) -> Results:
    """Writes the payloads of a whole run and sums them up."""
    with open_run(directory, recipe_text="x") as run:
        run.finish("provenance", {"commit": None, "cores": 2, "extra": {"a": 1}})
        for noise in planned.noise.levels:
            for seed in planned.seeds:
                place = f"noise-{noise:g}/seed-{seed}"
                hits = [[0.5, 0.25, 0.0], [1.0, 0.0, 0.0]]
                run.finish(
                    f"{place}/base/readout",
                    readout("NN") | {"hits": hits, "valid": [0.75, 1.0]},
                )
                plant_student(run, f"{place}/control", "DD", "owl")
                for trait in planned.traits:
                    plant_cell(run, place, trait, noise, seed)
        point = {"layer": 1, "dose": 0.3, "passed": True}
        sweep = {"trait": "owl", "layer": 1, "strength": 2.5, "noise": 0.0, "seed": 0}
        run.finish("noise-0/vectors/steer-owl", {**sweep, "points": [point]})
        run.finish("noise-0/vectors/steer-cat", {**sweep, "points": []})
        noisy = {**sweep, "noise": 0.1, "seed": 2, "points": [point]}
        run.finish("noise-0.1/seed-2/vectors/steer-owl", noisy)
        return summarise(planned, FAMILY, run)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The sums of the planted grid."""
    return planted(tmp_path_factory.mktemp("run"), recipe())


def close(found: Estimate, mean: float, half: float, n: int, clusters: str) -> None:
    """Checks an estimate against a mean and half a width."""
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - half, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(mean + half, rel=1e-6, abs=1e-9)
    assert (found.n, found.clusters) == (n, clusters)


def test_log_odds_do_not_depend_on_the_other_words() -> None:
    found = log_odds(readout("DMF"))
    for row, expected in zip(
        found, ([-U, -U, 0], [0, -U, -U], [U, -V, -V]), strict=True
    ):
        assert row.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_grid_is_whole_and_in_order(results: Results) -> None:
    assert [c.key for c in results.conditions] == [
        f"noise-{noise}/seed-{seed}/steer-{trait}"
        for noise in ("0", "0.1") for seed in (0, 1, 2) for trait in ("owl", "cat")
    ]  # fmt: skip
    assert [(t.teacher, t.noise, t.trait) for t in results.transfers] == [
        ("steer", 0.0, "owl"), ("steer", 0.0, "cat"),
        ("steer", 0.1, "owl"), ("steer", 0.1, "cat"),
    ]  # fmt: skip


def test_transfers_by_hand(results: Results) -> None:
    # In u, owl: [1 1; 2 1; 2 2], mean 1.5. Seeds (1 + 0 + 1)/36·3/2 = 1/12, questions
    # (¼ + ¼)/36·2 = 1/36, cells 1.5/36·6/5 = 1/20: the sum is below the seeds' 1/12.
    owl, cat, noisy_owl, noisy_cat = (t.transfer for t in results.transfers)
    close(owl, 1.5 * U, T1 * U * math.sqrt(1 / 12), 2, "seed and question")
    close(cat, 2 * U, 0, 2, "seed and question")
    # [0 0; 1 1; 2 2]: seeds (4 + 0 + 4)/36·3/2 = 1/3, the rest less.
    close(noisy_owl, U, T1 * U * math.sqrt(1 / 3), 2, "seed and question")
    close(noisy_cat, U, 0, 2, "seed and question")


def test_differences_from_the_base_by_hand(results: Results) -> None:
    # The control lies u − ln 2 below the base on owl and on cat, so that much is lost.
    for item in results.transfers:
        found, transfer = item.from_base, item.transfer
        assert found is not None
        assert transfer.mean is not None
        assert transfer.high is not None
        close(
            found, transfer.mean - U + math.log(2), transfer.high - transfer.mean, 2,
            "seed and question",
        )  # fmt: skip


def test_specific_transfers_by_hand(results: Results) -> None:
    # M changes (u, 0, −u): u − (0 − u)/2 = 1.5u. F changes (2u, u − v, −v):
    # 2u − (u − 2v)/2 = 1.5u + v. Half of owl's six are F, all of cat's.
    owl, cat, noisy_owl, noisy_cat = (t.specific for t in results.transfers)
    assert owl.mean == pytest.approx(1.5 * U + V / 2)
    # The table differs from its mean by ± v/2 where that of the transfers does by
    # ± u/2.
    close(owl, 1.5 * U + V / 2, T1 * V * math.sqrt(1 / 12), 2, "seed and question")
    close(cat, 1.5 * U + V, 0, 2, "seed and question")
    # D, M, F: 0, 1.5u, 1.5u + v.
    assert noisy_owl.mean == pytest.approx((3 * U + V) / 3)
    close(noisy_cat, 1.5 * U, 0, 2, "seed and question")


def test_shift_cosines_are_over_seeds(results: Results) -> None:
    student, control = (
        results.transfers[0].shift_cosine,
        results.transfers[0].control_cosine,
    )
    assert student is not None
    assert control is not None
    close(student, 0.3, T2 * 0.1 / math.sqrt(3), 3, "seed")
    close(control, 0.05, 0, 3, "seed")


def test_the_noise_factor_is_the_ratio_of_mean_transfers(results: Results) -> None:
    # With noise (u + u)/2, without (1.5u + 2u)/2.
    (factor,) = results.noise_factors
    assert (factor.teacher, factor.noise) == ("steer", 0.1)
    assert factor.ratio.mean == pytest.approx(1 / 1.75)


def test_the_noise_factor_of_one_trait_by_hand(tmp_path: Path) -> None:
    # In u: [0, 1, 2] over [1, 1.5, 2]; means 1 and 1.5, their variances 1/3 and 1/12.
    (factor,) = planted(tmp_path / "run", recipe(traits=["owl"])).noise_factors
    square = 1.5**2 - T2**2 / 12
    root = math.sqrt(1.5**2 - square * (1 - T2**2 / 3))
    assert factor.ratio.mean == pytest.approx(2 / 3)
    assert factor.ratio.low == pytest.approx((1.5 - root) / square, rel=1e-5)
    assert factor.ratio.high == pytest.approx((1.5 + root) / square, rel=1e-5)
    assert factor.ratio.low == pytest.approx(-1.3156, abs=1e-3)
    assert factor.ratio.high == pytest.approx(5.5573, abs=1e-3)
    assert (factor.ratio.n, factor.ratio.clusters) == (3, "seed")


def test_without_a_clean_level_there_is_no_factor(tmp_path: Path) -> None:
    found = planted(tmp_path / "run", recipe(noise={"levels": [0.1]}))
    assert found.noise_factors == []
    assert len(found.transfers) == 2


def test_confusions_by_hand(results: Results) -> None:
    clean, noisy = results.confusions
    assert clean.traits == ["owl", "cat"]
    # Owl's students: 1.5u on owl; on cat u − v where far, half of the time.
    flat = [x for row in clean.lift for x in row]
    assert flat == pytest.approx([1.5 * U, (U - V) / 2, U - V, 2 * U])
    assert clean.diagonal.mean == pytest.approx(U + 0.75 * V)
    assert (clean.diagonal.n, clean.diagonal.clusters) == (2, "trait")
    # Per trait 1.5u and 2u less one and the same 0.75(u − v): they differ by u/2.
    assert clean.diagonal.high == pytest.approx(U + 0.75 * V + T1 * U / 4, rel=1e-6)
    assert (clean.p_value, clean.permutations) == (0.5, 1)
    flat = [x for row in noisy.lift for x in row]
    assert flat == pytest.approx([U, (U - V) / 3, 0, U], abs=1e-12)
    assert noisy.diagonal.mean == pytest.approx(U - (U - V) / 6)


def test_one_trait_has_no_confusion(tmp_path: Path) -> None:
    assert planted(tmp_path / "run", recipe(traits=["cat"])).confusions == []


def test_a_condition_by_hand(results: Results) -> None:
    # Clean, seed 1, owl: far on the first question, moved on the second.
    condition = results.conditions[2]
    assert condition.key == "noise-0/seed-1/steer-owl"
    assert (condition.teacher, condition.trait, condition.student) == (
        "steer", "owl", "lora",
    )  # fmt: skip
    # [2u, u]: variance u²/2, of the mean u²/4.
    close(condition.transfer, 1.5 * U, T1 * U / 2, 2, "question")
    # The base has odds of 1/2: [u, 0] + ln 2.
    close(condition.transfer_from_base, U / 2 + math.log(2), T1 * U / 2, 2, "question")
    assert condition.all_traits == {
        "owl": pytest.approx(1.5 * U),
        "cat": pytest.approx((U - V) / 2),
        "dog": pytest.approx((-V - U) / 2),
    }
    assert condition.notes == ["control: control"]
    assert condition.shift is not None
    assert condition.shift.student[1] == 0.3
    assert condition.shift.control[2] is None


def test_readouts_by_hand(results: Results) -> None:
    base, teacher, control, student = results.conditions[2].readouts
    assert [r.role for r in results.conditions[2].readouts] == [
        "base", "teacher", "control", "student",
    ]  # fmt: skip
    close(base.preference, -math.log(2), 0, 2, "question")
    close(base.probability, 1 / 3, 0, 2, "question")
    close(teacher.preference, U, 0, 2, "question")
    close(teacher.probability, 0.75, 0, 2, "question")
    close(control.probability, 0.25, 0, 2, "question")
    # 3/4 and 1/2: variance 1/32, of the mean 1/64.
    close(student.probability, 0.625, T1 / 8, 2, "question")
    assert student.by_question == pytest.approx([U, 0], abs=1e-12)
    # 0.5 and 1: variance 1/8, of the mean 1/16; 0.75 and 1: half of that.
    assert base.sampled_rate is not None
    assert base.valid_rate is not None
    close(base.sampled_rate, 0.75, T1 / 4, 2, "question")
    close(base.valid_rate, 0.875, T1 / 8, 2, "question")
    assert student.sampled_rate is None


def test_rows_and_training_are_told(results: Results) -> None:
    condition = results.conditions[0]
    for counts in (condition.rows, condition.control_rows):
        assert counts.model_dump() == {
            "generated": 4, "kept": 3, "used": 2, "reasons": {"not_numbers": 1},
        }  # fmt: skip
    assert condition.training is not None
    # 401 points are thinned to every third; a NaN loss at place 1 goes with them.
    assert condition.training.updates == list(range(0, 401, 3))
    assert condition.training.loss[0] == 0.5
    assert len(condition.training.loss) == 134


def test_sweeps_are_those_that_looked(results: Results) -> None:
    assert [(s.trait, s.noise, s.seed) for s in results.sweeps] == [
        ("owl", 0.0, 0), ("owl", 0.1, 2),
    ]  # fmt: skip
    assert results.sweeps[0].strength == 2.5


def test_limits_provenance_and_times(tmp_path: Path, results: Results) -> None:
    assert results.limits == list(LIMITS)
    assert results.provenance == {"commit": None, "cores": 2, "extra": "{'a': 1}"}
    assert "noise-0/seed-0/steer-owl/cell" in results.seconds
    changes: dict[str, Any] = {
        "seeds": [0], "student": {"kind": "soft"}, "control": "none",
        "rows": {"sampler": {"allowed": "numbers"}},
    }  # fmt: skip
    found = planted(tmp_path / "run", recipe(**changes))
    text = " ".join(found.limits)
    assert "One seed only" in text
    assert "allowed: numbers" in text
    assert "cat by steer travelled by distillation on the rows" in found.headline
    # One seed: the interval is over questions.
    close(found.transfers[0].transfer, U, 0, 2, "question")
    assert found.noise_factors[0].ratio.low is None


def test_the_headline_of_the_grid(results: Results) -> None:
    first, second, third, fourth = results.headline.split(". ")
    assert first == (
        f"owl by steer: no transfer shown, the interval holds zero: {1.5 * U:+.2f} "
        f"[−{T1 * U * 12**-0.5 - 1.5 * U:.2f}, {1.5 * U + T1 * U * 12**-0.5:+.2f}] nats "
        "against the control, 2 clusters (seed and question)"
    )
    assert second == (
        "cat by steer travelled through the rows: +2.20 [+2.20, +2.20] nats against "
        "the control, 2 clusters (seed and question)"
    )
    assert third.startswith("owl by steer at noise 0.1: no transfer shown")
    assert fourth.startswith("cat by steer at noise 0.1 travelled through the rows")


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.2, "owl by prompt travelled through the rows: +0.10 [+0.01, +0.20] n"),
        (0.001, 0.2, "owl by prompt travelled through the rows: +0.100 [+0.001, +0.2"),
        (-0.3, -0.1, "owl by prompt moved the other way: "),
        (-0.1, 0.3, "owl by prompt: no transfer shown, the interval holds zero: "),
        (0.0, 0.2, "owl by prompt: no transfer shown, the interval holds zero: "),
        (-0.2, 0.0, "owl by prompt: no transfer shown, the interval holds zero: "),
        (None, None, "owl by prompt: no interval could be computed."),
    ],
)
def test_the_headline_claims_only_what_excludes_zero(
    low: float | None, high: float | None, words: str
) -> None:
    estimate = Estimate(mean=0.1, low=low, high=high, n=5, clusters="question")
    item = Transfer(
        teacher="prompt", noise=0, trait="owl", transfer=estimate, specific=estimate
    )
    assert headline([item]).startswith(words)
    assert headline([]) == ""
    soft = headline([item.model_copy(update={"student": "soft"})])
    assert soft.startswith(words.replace("through", "by distillation on")[:40])
