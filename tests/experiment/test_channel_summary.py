"""Channels of a run: per row, over seeds, by noise, and what they foretold."""

import math
from pathlib import Path

import pytest

from undertow.experiment.channel_summary import (
    cell_channel,
    channel_ratio,
    mean_channel,
    predictions,
    scope_of,
)
from undertow.results import Channel, Estimate, Transfer
from undertow.runs import open_run


def estimate(mean: float | None) -> Estimate:
    return Estimate(mean=mean, low=None, high=None, n=1, clusters="row")


def channel(width: float | None) -> Channel:
    half = None if width is None else width / 2
    return Channel(
        vocabulary=estimate(width), carrier=estimate(half), nats_a_row=estimate(1.0)
    )


def transfer(width: float | None, moved: float, cosine: float | None) -> Transfer:
    return Transfer(
        teacher="steer", noise=0, trait="owl", transfer=estimate(moved),
        specific=estimate(0.0),
        shift_size=2 * moved,
        shift_cosine=None if cosine is None else estimate(cosine),
        channel=None if width is None else channel(width),
    )  # fmt: skip


def test_a_cell_s_channel_by_hand(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", recipe_text="x") as run:
        assert cell_channel(run, "noise-0/seed-0", "steer-owl") is None
        run.finish(
            "noise-0/seed-0/steer-owl/channel",
            {"tokens": [2, 4], "vocabulary": [3.0, 6.0], "carrier": [1.0, math.inf]},
        )
        found = cell_channel(run, "noise-0/seed-0", "steer-owl")
    assert found is not None
    # 9 nats on 6 tokens; rows of 3/3 and 6/3 nats a mean token, sd 0.7071/…
    assert found.vocabulary.mean == pytest.approx(1.5)
    assert found.vocabulary.high == pytest.approx(1.5 + 12.706205 * 0.5)
    assert (found.vocabulary.n, found.vocabulary.clusters) == (2, "row")
    assert found.carrier.mean is None, "an infinite divergence is no number"
    assert found.nats_a_row.mean is None


def test_seeds_are_averaged_and_one_keeps_its_rows() -> None:
    one = channel(0.2)
    assert mean_channel([None, one]) == one
    assert mean_channel([None]) is None
    found = mean_channel([channel(0.2), channel(0.4)])
    assert found is not None
    assert found.vocabulary.mean == pytest.approx(0.3)
    assert (found.vocabulary.n, found.vocabulary.clusters) == (2, "seed")


def test_the_ratio_is_of_the_students_own_channel() -> None:
    assert scope_of("soft") == "vocabulary"
    assert scope_of("lora") == scope_of("full") == "carrier"
    noised, clean = [channel(0.6), channel(0.6)], [channel(0.2), channel(0.2)]
    found = channel_ratio(noised, clean, scope="vocabulary")
    assert found is not None
    assert found.mean == pytest.approx(3)
    assert channel_ratio(noised, [None], scope="vocabulary") is None
    unknown = channel_ratio([channel(None)] * 2, clean, scope="vocabulary")
    assert unknown is not None
    assert unknown.mean is None


def test_predictions_are_rank_correlations_over_cells() -> None:
    widths = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    moved = [0.2, 0.1, 0.4, 0.3, 0.6, 0.5]
    cells = [
        transfer(w, m, 0.3 if w < 0.35 else None)
        for w, m in zip(widths, moved, strict=True)
    ]
    found = predictions([*cells, transfer(None, 9.0, 0.9)])
    assert [(p.of, p.scope) for p in found] == [
        ("transfer", "vocabulary"), ("transfer", "carrier"),
        ("shift_size", "vocabulary"), ("shift_size", "carrier"),
    ]  # fmt: skip
    for each in found:
        assert each.correlation.mean == pytest.approx(29 / 35)
        assert (each.correlation.n, each.correlation.clusters) == (6, "cell")
    assert predictions(cells[:3]) == []


def test_students_trained_otherwise_are_never_put_together() -> None:
    """Each way has its own correlation; together these two would have none."""
    widths = [0.1, 0.2, 0.3, 0.4, 0.5]
    rising = [transfer(w, w, None) for w in widths]
    falling = [
        transfer(w, -w, None).model_copy(update={"way": "optimizer sgd"})
        for w in widths
    ]
    found = {
        (p.student, p.way): p.correlation
        for p in predictions([*rising, *falling])
        if (p.of, p.scope) == ("transfer", "carrier")
    }
    assert list(found) == [("lora", ""), ("lora", "optimizer sgd")]
    assert [rho.mean for rho in found.values()] == pytest.approx([1.0, -1.0])
    assert [rho.n for rho in found.values()] == [5, 5]
