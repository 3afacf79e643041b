"""Read-outs on the way, as differences by question."""

from pathlib import Path

import numpy as np
import pytest

from undertow.experiment.emergence_summary import emergence
from undertow.experiment.estimates import log_odds
from undertow.runs import open_run
from undertow.stats import mean_interval

FACTS = {"place": "noise-0/seed-0", "name": "steer-owl", "control": "control"}


def _point(update: int, *, seed: int, cosine: float | None) -> dict[str, object]:
    draw = np.random.default_rng(seed).normal(size=(3, 2))
    return {"update": update, "total_logprobs": draw.tolist(), "cosine": cosine}


def test_only_updates_at_which_both_were_read_are_compared(tmp_path: Path) -> None:
    own = [_point(2, seed=1, cosine=0.1), _point(4, seed=2, cosine=0.3)]
    others = [_point(2, seed=3, cosine=None), _point(3, seed=4, cosine=None)]
    base = log_odds(_point(0, seed=5, cosine=None))
    with open_run(tmp_path / "run", recipe_text="x") as run:
        for name, points in (("steer-owl", own), ("control", others)):
            run.finish(
                f"noise-0/seed-0/{name}/emergence",
                {"vector_layer": 1, "points": points},
            )
        found = emergence(run, FACTS, base, 1)
    assert found is not None
    assert found.updates == [0, 2]
    assert found.cosine == [None, 0.1]
    student, control = (log_odds(points[0])[:, 1] for points in (own, others))
    expected = mean_interval(student - control)
    assert found.transfer[1].mean == pytest.approx(expected.mean)
    assert (found.transfer[1].low, found.transfer[1].high) == pytest.approx(
        (expected.low, expected.high)
    )
    assert found.student[1] == pytest.approx((student - base[:, 1]).mean())
    assert found.control[1] == pytest.approx((control - base[:, 1]).mean())


def test_nothing_where_one_of_both_was_not_read(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", recipe_text="x") as run:
        run.finish("noise-0/seed-0/steer-owl/emergence", {"points": []})
        assert emergence(run, FACTS, np.zeros((3, 2)), 0) is None
