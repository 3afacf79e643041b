"""Tables: averages worked by hand, and a reason beside every dash."""

import math

import pytest

from undertow.report import run_tables, tables
from undertow.results import Estimate, Readout, Results


def readout(odds: list[float | None], rate: float | None = None) -> Readout:
    there = [v for v in odds if v is not None]
    mean = sum(there) / len(there) if len(there) == len(odds) else None
    whole = Estimate(mean=mean, low=-9.0, high=9.0, n=len(odds), clusters="question")
    share = Estimate(mean=rate, low=None, high=None, n=2, clusters="question")
    return Readout(
        role="student", preference=whole, probability=whole, by_question=odds,
        sampled_rate=None if rate is None else share,
    )  # fmt: skip


def test_one_seed_keeps_its_own_interval() -> None:
    found = tables.mean_of_seeds([readout([1.0, 3.0])], "preference", confidence=0.95)
    assert found is not None
    assert (found.mean, found.low, found.high, found.clusters) == (
        2.0, -9.0, 9.0, "question",
    )  # fmt: skip


def test_preferences_of_seeds_are_taken_over_seeds_and_questions() -> None:
    # Seeds agree, questions are 0 and 2: all variance is the questions'. Two of them
    # with variance of the mean 1 and Student's 12.706 at one degree of freedom.
    seeds = [readout([0.0, 2.0]), readout([0.0, 2.0])]
    found = tables.mean_of_seeds(seeds, "preference", confidence=0.95)
    assert found is not None
    assert found.mean == 1.0
    assert found.high == pytest.approx(1 + 12.7062, abs=1e-3)
    assert (found.n, found.clusters) == (2, "seed and question")


def test_probabilities_of_seeds_come_from_their_log_odds() -> None:
    seeds = [readout([0.0, math.log(3)]), readout([0.0, math.log(3)])]
    found = tables.mean_of_seeds(seeds, "probability", confidence=0.95)
    assert found is not None
    assert found.mean == pytest.approx((0.5 + 0.75) / 2)


def test_rates_are_taken_over_seeds() -> None:
    # Means 0.1 and 0.3: sd of the mean 0.1, Student's 12.706.
    seeds = [readout([0.0, 1.0], 0.1), readout([0.0, 1.0], 0.3)]
    found = tables.mean_of_seeds(seeds, "sampled_rate", confidence=0.95)
    assert found is not None
    assert found.mean == pytest.approx(0.2)
    assert found.high == pytest.approx(0.2 + 1.27062, abs=1e-4)
    assert found.clusters == "seed"


def test_a_missing_answer_makes_the_mean_unknown() -> None:
    seeds = [readout([0.0, None]), readout([0.0, 1.0])]
    found = tables.mean_of_seeds(seeds, "preference", confidence=0.95)
    assert found is not None
    assert (found.mean, found.low, found.high) == (None, None, None)


def test_a_measure_that_no_seed_has_is_none() -> None:
    seeds = [readout([0.0, 1.0])]
    assert tables.mean_of_seeds(seeds, "valid_rate", confidence=0.95) is None


def every_table(results: Results) -> list[tables.Table]:
    return [
        tables.transfer_table(results),
        tables.readout_table(results),
        tables.seed_table(results),
        tables.confusion_table(results),
        tables.factor_table(results),
        *(tables.sweep_table(sweep) for sweep in results.sweeps),
        run_tables.row_table(results),
        run_tables.seconds_table(results),
        run_tables.stage_table(results),
        run_tables.provenance_table(results),
    ]


def test_every_dash_has_its_reason(empty: Results, realistic: Results) -> None:
    dashes = 0
    for results in (empty, realistic):
        for table in every_table(results):
            for cell in (cell for row in table.rows for cell in row):
                is_dash = "—" in (cell.text, cell.below)
                dashes += is_dash
                assert bool(cell.why) == is_dash, (table.title, cell)
            if any(cell.why for row in table.rows for cell in row):
                assert table.all_notes[-1].startswith("— means: ")
    assert dashes > 10


def test_rows_are_as_wide_as_their_tables(empty: Results, realistic: Results) -> None:
    for results in (empty, realistic):
        for table in every_table(results):
            assert {len(row) for row in table.rows} <= {1, len(table.columns)}


def test_an_unbounded_factor_is_said_to_be(empty: Results) -> None:
    table = tables.factor_table(empty)
    assert [cell.text for cell in table.rows[1]] == ["prompt", "3.25", "4"]
    assert table.rows[1][1].below == "unbounded"
    assert any(note.startswith("Unbounded: ") for note in table.notes)


def test_a_factor_that_may_be_one_shows_nothing(realistic: Results) -> None:
    factor = realistic.noise_factors[0]
    wide = factor.ratio.model_copy(update={"low": 0.75})
    changed = realistic.model_copy(
        update={"noise_factors": [factor.model_copy(update={"ratio": wide})]}
    )
    said = "the interval includes 1, so no effect of noise was shown"
    assert said in " ".join(tables.factor_table(changed).notes)
    assert said not in " ".join(tables.factor_table(realistic).notes)


def test_specificity_that_may_be_zero_shows_nothing(realistic: Results) -> None:
    first = realistic.confusions[0]
    wide = first.diagonal.model_copy(update={"low": -0.1})
    changed = realistic.model_copy(
        update={"confusions": [first.model_copy(update={"diagonal": wide})]}
    )
    said = "includes zero, so no specificity was shown"
    assert said in " ".join(tables.confusion_table(changed).notes)
    assert said not in " ".join(tables.confusion_table(realistic).notes)


def test_the_chosen_point_of_a_sweep_is_marked(realistic: Results) -> None:
    table = tables.sweep_table(realistic.sweeps[2])
    assert table.title == "owl, noise 0.05, seed 0"
    chosen = [row for row in table.rows if row[-1].text == "chosen"]
    assert [[cell.text for cell in row] for row in chosen] == [
        ["24", "0.50", "5.00", "0.69", "0.00", "0.70", "chosen"]
    ]
    assert sum(row[-1].text == "refused" for row in table.rows) == 2


def test_shares_end_at_0_and_1(realistic: Results) -> None:
    first = realistic.conditions[0]
    wide = Estimate(mean=0.5, low=-0.25, high=1.25, n=2, clusters="question")
    student = first.readouts[3].model_copy(
        update={"probability": wide, "preference": wide}
    )
    changed = realistic.model_copy(
        update={"conditions": [first.model_copy(update={"readouts": [student]})]}
    )
    row = tables.readout_table(changed).rows[1]
    assert (row[1].text, row[1].below) == ("+0.50", "[−0.25, +1.25]")
    assert (row[2].text, row[2].below) == ("0.500", "[0.000, 1.000]")


def test_rates_that_nobody_sampled_have_no_columns(
    empty: Results, realistic: Results
) -> None:
    table = tables.readout_table(empty)
    assert table.columns == ("who", "#preference, nats", "#probability")
    assert "Answers were not sampled." in table.notes
    whole = tables.readout_table(realistic)
    assert whole.columns[3:] == ("#sampled rate", "#valid rate")
    assert "Answers were not sampled." not in whole.notes
