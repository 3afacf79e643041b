"""Scores of records worked by hand, and bounds of normal log ratios."""

import math
from typing import Any

import numpy as np
import pytest

from undertow.audit.bench_scores import (
    Bound,
    Record,
    detection_bound,
    score_cells,
    score_clean,
)
from undertow.seeding import generator


def _record(**changes: Any) -> Record:
    facts: dict[str, Any] = {
        "auditor": "a", "set": "s", "digest": "d", "seed": 0, "carrier": "list",
        "intervention": "steer", "trait": "owl", "layer": 10, "dose": 0.5, "rows": 64,
        "fraction": 1.0, "index": 0, "row_ids": ["r1", "r2"], "reference_ids": ["q"],
        "score": 3.0, "named": "owl", "kind": "steer", "named_layer": 12,
        "p_value": 0.001, "verdict": "trait", "details": {"p exact": 0.2}, "seconds": 1.0,
    }  # fmt: skip
    return Record(**(facts | changes))


def _clean(score: float | None, p_value: float | None, **changes: Any) -> Record:
    facts = {"intervention": "none", "trait": None, "layer": None, "dose": None,
             "fraction": 0.0, "named": None, "kind": None, "named_layer": None}  # fmt: skip
    return _record(**(facts | {"score": score, "p_value": p_value} | changes))


def test_a_cell_by_hand() -> None:
    records = [
        _record(),
        _record(named="cat", named_layer=13, score=2.0, row_ids=["r2", "r3"]),
        _record(named=None, kind="prompt", named_layer=None, score=0.5, p_value=0.3),
        _record(named=None, kind=None, named_layer=None, score=None, p_value=None),
        _clean(1.0, 0.1),
        _clean(0.0, 1.0),
        _clean(9.0, 0.0001, carrier="answers"),
        _clean(9.0, 0.0001, rows=128),
    ]
    (cell,) = score_cells(records, [], alpha=0.01)
    # Pairs won: 2 + 2 + 1 of 6.
    assert cell.auroc is not None
    assert cell.auroc.value == pytest.approx(5 / 6)
    assert cell.tpr_at_1_fpr is not None
    assert cell.tpr_at_1_fpr.value == pytest.approx(2 / 3)
    assert (cell.audits, cell.unanswered, cell.clean_audits) == (4, 1, 2)
    assert cell.distinct_rows == 3
    shares = [
        None if rate is None else rate.value
        for rate in (cell.found, cell.right, cell.wrong, cell.unnamed, cell.kind_right,
                     cell.layer_near)
    ]  # fmt: skip
    assert shares == [0.5, 0.25, 0.25, 0.5, pytest.approx(2 / 3), 0.5]
    assert cell.efficiency is None


def test_rows_needed_are_those_from_which_on_most_are_found() -> None:
    found, lost = {"p_value": 0.001}, {"p_value": 0.5}
    sizes = {16: [lost] * 5, 32: [found] * 5, 64: [found] * 3 + [lost] * 2,
             128: [found] * 4 + [lost], 256: [found] * 5}  # fmt: skip
    records = [
        _record(rows=rows, **each) for rows, group in sizes.items() for each in group
    ]
    bounds = [
        Bound(carrier="list", source=name, intervention="steer", trait=name, dose=0.5,
              fraction=1.0, rows=9, divergence=d, chernoff=None, stein_rows=s,
              best_rows=None)
        for name, d, s in (("owl", 0.1, 40.0), ("cat", 0.2, 24.0))
    ]  # fmt: skip
    cells = score_cells(records, bounds, alpha=0.01)
    assert {c.rows_needed for c in cells} == {128}  # a lucky 32 does not count
    assert cells[0].divergence == pytest.approx(0.15)
    assert cells[0].efficiency == pytest.approx(32 / 128)
    assert cells[0].best_efficiency is None
    assert [c.auroc for c in cells] == [None] * 5


def test_clean_sets_by_hand() -> None:
    records = [
        _clean(1.0, 0.005, named="owl", rows=64),
        *(_clean(0.0, p, rows=64) for p in (0.25, 0.5, 0.75)),
        _clean(0.0, 0.9, rows=128, carrier="answers", details={}),
        _record(),
    ]
    found = {(c.carrier, c.rows): c for c in score_clean(records, alpha=0.01)}
    assert set(found) == {("list", 64), ("answers", 128), ("all", None)}
    here, everywhere = found["list", 64], found["all", None]
    assert here.false_positives is not None
    assert here.false_positives.value == 0.25
    assert here.named.value == 0.25
    assert everywhere.audits == 5
    assert everywhere.false_positives is not None
    assert everywhere.false_positives.value == 0.2
    # Ranks of four p-values: the largest gap is 0.5 − 0.25, 0.25 above and below.
    assert here.ks == pytest.approx(0.25)
    assert here.ks_p_by_arm.keys() == {"p exact"}


def test_an_auditor_without_p_values_has_no_false_positives() -> None:
    (cell, _) = score_clean([_clean(1.0, None)], alpha=0.01)
    assert cell.false_positives is None
    assert cell.ks_p is None


@pytest.mark.parametrize("nats", [0.1, 0.5])
def test_the_bound_of_normal_log_ratios(nats: float) -> None:
    """N(±D, 2D): Chernoff D/4; rows 2(z_α + z_β)²/(4D) at 1 % and 80 %."""
    stream = generator(0, "bound test")
    noise = stream.normal(size=(2, 40_000)) * math.sqrt(2 * nats)
    found = detection_bound(noise[0] + nats, noise[1] - nats, fraction=1.0, alpha=0.01)
    assert found["divergence"] == pytest.approx(nats, rel=0.05)
    assert found["chernoff"] == pytest.approx(nats / 4, rel=0.08)
    assert found["stein_rows"] == pytest.approx(math.log(100) / nats, rel=0.05)
    assert found["best_rows"] == pytest.approx(5.018 / nats, rel=0.06)


def test_a_small_share_needs_many_more_rows() -> None:
    stream = generator(1, "bound test")
    noise = stream.normal(size=(2, 4000))
    whole, tenth = (
        detection_bound(noise[0] + 0.5, noise[1] - 0.5, fraction=f, alpha=0.01)
        for f in (1.0, 0.1)
    )
    assert whole["best_rows"] is not None
    assert tenth["best_rows"] is not None
    # The information of a share f near zero falls with f².
    assert 40 < tenth["best_rows"] / whole["best_rows"] < 160
    assert tenth["chernoff"] is not None
    assert whole["chernoff"] is not None
    assert 0 < tenth["chernoff"] < whole["chernoff"] / 20


def test_equal_hypotheses_need_rows_without_end() -> None:
    nothing = np.zeros(50)
    found = detection_bound(nothing, nothing, fraction=1.0, alpha=0.01)
    assert found == {"divergence": 0.0, "chernoff": 0.0, "stein_rows": None,
                     "best_rows": None}  # fmt: skip
