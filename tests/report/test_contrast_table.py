"""Teachers against each other: the same questions, subtracted, over what both have."""

import numpy as np
import pytest

from undertow.report.contrast_table import contrast_table
from undertow.report.html import render_report
from undertow.results import Condition, Estimate, Readout, Results
from undertow.stats import mean_interval, two_way_interval

RNG = np.random.default_rng(0)
CONTROL = RNG.normal(size=(2, 5))
STEERED, PROMPTED = CONTROL + 1.5 + 0.1 * RNG.normal(size=(2, 2, 5))
NONE = Estimate(mean=None, low=None, high=None, n=0, clusters="question")


def _condition(
    like: Condition, teacher: str, seed: int, student: list[float | None]
) -> Condition:
    def read(role: str, values: list[float | None]) -> Readout:
        return Readout.model_validate(
            {"role": role, "preference": NONE, "probability": NONE,
             "by_question": values}
        )  # fmt: skip

    readouts = [read("control", CONTROL[seed].tolist()), read("student", student)]
    return like.model_copy(
        update={"teacher": teacher, "trait": "owl", "noise": 0.0, "seed": seed,
                "student": "soft", "readouts": readouts}
    )  # fmt: skip


def _results(realistic: Results, *conditions: Condition) -> Results:
    return realistic.model_copy(update={"conditions": list(conditions)})


def _made(realistic: Results, seeds: int) -> Results:
    like = realistic.conditions[0]
    made = [
        _condition(like, teacher, seed, values[seed].tolist())
        for teacher, values in (("prompt", PROMPTED), ("steer", STEERED))
        for seed in range(seeds)
    ]
    return _results(realistic, *made)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_difference_is_taken_question_by_question(
    realistic: Results, seeds: int
) -> None:
    (row,) = contrast_table(_made(realistic, seeds)).rows
    change = STEERED[:seeds] - PROMPTED[:seeds]
    wanted = mean_interval(change[0]) if seeds == 1 else two_way_interval(change)
    assert [cell.text for cell in row[:2]] == ["owl", "steer − prompt"]
    shown = row[2].text.replace("\N{MINUS SIGN}", "-")
    assert float(shown) == pytest.approx(wanted.mean, abs=5.1e-3)
    low, high = row[2].below.strip("[]").replace("\N{MINUS SIGN}", "-").split(", ")
    assert (float(low), float(high)) == pytest.approx(
        (wanted.low, wanted.high), abs=5.1e-3
    )
    over = "question" if seeds == 1 else "seed and question"
    assert (row[3].text, row[3].below) == (str(wanted.n), over)


def test_what_cannot_be_compared_is_left_out(realistic: Results) -> None:
    like = realistic.conditions[0]
    ours = _condition(like, "steer", 0, STEERED[0].tolist())
    assert contrast_table(_results(realistic, ours)).rows == ()
    for other in (
        _condition(like, "prompt", 1, PROMPTED[1].tolist()),
        _condition(like, "prompt", 0, [None, *PROMPTED[0, 1:].tolist()]),
        _condition(like, "prompt", 0, []),
        _condition(like, "prompt", 0, PROMPTED[0].tolist()).model_copy(
            update={"trait": "cat"}
        ),
    ):
        table = contrast_table(_results(realistic, other, ours))
        assert (table.rows, table.notes) == ((), ())


def test_the_page_says_that_strengths_are_not_matched(realistic: Results) -> None:
    page = render_report(_made(realistic, 2))
    assert "Teachers compared" in page
    assert "not matched in strength" in page
    alone = _results(realistic, *realistic.conditions[:1])
    assert "Teachers compared" not in render_report(alone)
