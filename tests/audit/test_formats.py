"""Where format tells the sets apart, what was found has to hold on rows of one format."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from undertow.audit.baselines import LENGTH, NGRAMS, PERPLEXITY, SEPARATORS, WORDS
from undertow.audit.formats import shortcuts, with_formats
from undertow.audit.meter import Meter
from undertow.audit.reference import Reference
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery
from undertow.findings import Arm, Baseline, Bounds
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.records import Message, Row
from undertow.traits import load_family

if TYPE_CHECKING:
    from tests.audit.conftest import Planted, Shifts

Plant = Callable[..., "Planted"]
SETTINGS = AuditSettings(permutations=199)


def _baseline(name: str, *, separates: bool) -> Baseline:
    low = 0.8 if separates else 0.4
    bounds = Bounds(mean=low + 0.1, low=low, high=low + 0.15)
    return Baseline(name=name, auroc=bounds, separates=separates)


def _again(found: "Planted", *baselines: Baseline) -> "tuple[str, list[str]]":
    judgement = with_formats(
        found.judgement, found.meter, found.audited, found.reference,
        baselines=baselines, settings=SETTINGS,
    )  # fmt: skip
    return judgement.verdict, [*judgement.warnings, *judgement.reasons]


def test_without_a_difference_nothing_is_repeated(
    planted: Plant, shifts: "Shifts"
) -> None:
    found = planted(shifts.vector("cat"), count=240)
    for baseline in (
        _baseline(LENGTH, separates=False),
        _baseline(WORDS, separates=True),  # what rows say is no format
    ):
        judgement = with_formats(
            found.judgement, found.meter, found.audited, found.reference,
            baselines=[baseline], settings=SETTINGS,
        )  # fmt: skip
        assert judgement is found.judgement


def test_clean_rows_of_another_format_stay_clean(planted: Plant) -> None:
    found = planted()
    assert found.judgement.verdict == "none"
    assert _again(found, _baseline(LENGTH, separates=True))[0] == "none"


def test_what_holds_on_one_format_stays_with_a_warning(
    planted: Plant, shifts: "Shifts"
) -> None:
    found = planted(shifts.vector("cat"), count=240)
    verdict, said = _again(found, _baseline(LENGTH, separates=True))
    assert verdict == "trait"
    assert said[0].startswith("Format differs: length (AUROC 0.90 [0.80, 0.95])")
    assert (
        "the score test holds on 240 rows of each set with the same format" in said[-1]
    )


@pytest.mark.parametrize("p_value", [0.001, 0.2, None])
def test_what_does_not_hold_needs_the_exact_arm(
    planted: Plant, shifts: "Shifts", p_value: float | None
) -> None:
    """The same number of rows a set, but a persona that scores hardly see."""
    found = planted(shifts.persona("dog"))
    arms = [a for a in found.judgement.arms if a.name != "exact"]
    reason = "filtered" if p_value is None else None
    exact = Arm(name="exact", question="", statistic=None, p_value=p_value, rows=1,
                assumes="", reason=reason)  # fmt: skip
    found = replace(found, judgement=replace(found.judgement, arms=(*arms, exact)))
    verdict, said = _again(found, _baseline(LENGTH, separates=True))
    if p_value == 0.001:
        assert verdict == "trait"
        assert said[-1] == "the exact arm does not compare formats (p = 0.001)"
        return
    assert verdict == "inconclusive"
    assert said[1].startswith("Format differs: length")
    assert "the score test shows nothing (p = " in said[-2]
    assert "--reference" in said[-1], "what to do"


def _row(place: int, text: str) -> Row:
    return Row((Message("user", f"ask {place}"),), text)


def test_rewritten_rows_that_nobody_can_draw_are_left_out(
    planted: Plant, shifts: "Shifts", four_layers: Model, battery: Battery
) -> None:
    """White space becomes an empty answer; such a row has no score."""
    found = planted(shifts.vector("cat"), count=240)
    one, two = (
        [_row(i, f"{10 + i}{sep}{20 + i}") for i in range(20)]
        for sep in (";", ", ")
    )  # fmt: skip
    meter = Meter(four_layers, battery, SamplerSettings())
    judgement = with_formats(
        found.judgement, meter, [*one, _row(77, " \n ")],
        Reference(tier="B", rows=tuple(two)),
        baselines=[_baseline(SEPARATORS, separates=True)], settings=SETTINGS,
    )  # fmt: skip
    # Rewritten, both sets are the same rows: nothing can differ.
    assert judgement.reasons[-1].startswith("the exact arm does not compare formats")
    plain = meter.signals(two)
    again = meter.signals([_row(0, "10, 20")])
    assert np.array_equal(again.scores[0], plain.scores[0])


def test_shortcuts_need_a_reference(planted: Plant) -> None:
    found = planted()
    family = load_family("animals")
    nothing = Reference(tier="C")
    assert shortcuts(found.meter, found.audited, nothing, family=family, seed=0) == []
    both = shortcuts(found.meter, found.audited, found.reference, family=family, seed=0)
    by_name = {b.name: b for b in both}
    # "audited" and "baserow" are of one length, and their letters differ.
    assert by_name[NGRAMS].separates
    assert not by_name[LENGTH].separates
    assert not by_name[PERPLEXITY].separates
