"""What may be said of an interval, and that it is said."""

import math

import pytest

from undertow.report.verdicts import plain_words, verdict
from undertow.results import Estimate, Results, Transfer


def estimate(mean: float | None, low: float | None, high: float | None) -> Estimate:
    return Estimate(mean=mean, low=low, high=high, n=3, clusters="seed")


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.1, 0.3, "travelled"),
        (-0.1, 0.3, "no transfer shown"),
        (0.0, 0.4, "no transfer shown"),
        (-0.4, 0.0, "no transfer shown"),
        (-0.4, -0.1, "moved the other way"),
        (None, None, "no interval"),
        (0.1, None, "no interval"),
        (math.nan, math.nan, "no interval"),
        (-math.inf, math.inf, "no transfer shown"),
    ],
)
def test_the_interval_decides(
    low: float | None, high: float | None, outcome: str
) -> None:
    assert verdict(estimate(0.2, low, high)) == outcome


def test_without_a_mean_nothing_is_said() -> None:
    assert verdict(estimate(None, 0.1, 0.3)) == "not computed"
    assert verdict(estimate(math.nan, 0.1, 0.3)) == "not computed"


def results(*bounds: tuple[str, float | None, float | None]) -> Results:
    transfers = [
        Transfer(
            teacher="prompt",
            noise=0.0,
            trait=trait,
            transfer=estimate(0.0, low, high),
            specific=estimate(0.0, low, high),
        )
        for trait, low, high in bounds
    ]
    return Results(
        title="t", question="q", model="m", headline="h", confidence=0.9,
        conditions=[], transfers=transfers,
    )  # fmt: skip


def test_every_outcome_has_its_sentence() -> None:
    found = plain_words(
        results(
            ("owl", 0.1, 0.2),
            ("cat", -0.1, 0.2),
            ("dog", -0.3, 0.2),
            ("elk", -0.3, -0.2),
            ("fox", None, None),
        )
    )
    flat = "cat by prompt; dog by prompt: its 90\N{NO-BREAK SPACE}% interval"
    assert found == [
        "Transfer was shown in 1 of 5 conditions.",
        f"No transfer was shown for {flat} includes zero.",
        "Against the teacher's trait moved elk by prompt.",
        "Nothing is shown for fox by prompt: no interval could be computed.",
    ]


def test_one_condition_needs_no_tally_and_none_is_silent() -> None:
    level = "its 90\N{NO-BREAK SPACE}% interval"
    assert plain_words(results(("owl", 0.1, 0.2))) == [
        f"Transfer was shown for owl by prompt: {level} excludes zero."
    ]
    assert plain_words(results(("owl", -0.1, 0.2))) == [
        f"No transfer was shown for owl by prompt: {level} includes zero."
    ]
    assert plain_words(results()) == []
