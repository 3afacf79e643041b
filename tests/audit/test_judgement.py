"""What is kept of a null, and the share of the error rate that an arm has."""

from typing import Literal

import numpy as np
import pytest

from undertow.audit.judgement import arm_share, null_of
from undertow.findings import Arm
from undertow.stats import MaxT


def _test(draws: np.ndarray, statistics: tuple[float, ...] = (1.0, -3.0)) -> MaxT:
    found = np.array(statistics)
    return MaxT(found, np.ones(len(found)), 0.5, draws, len(draws))


@pytest.mark.parametrize("count", [199, 2000, 2001, 9999])
def test_what_is_kept_of_a_null_has_its_ends_and_its_rare_part(count: int) -> None:
    draws = np.random.default_rng(0).normal(size=count)
    kept = null_of(_test(draws))
    assert kept is not None
    assert (kept.observed, kept.permutations) == (3.0, count)
    assert len(kept.draws) == min(count, 2000)
    assert (kept.draws[0], kept.draws[-1]) == (draws.min(), draws.max())
    assert kept.draws == sorted(kept.draws)
    for share in (0.5, 0.99):
        assert np.quantile(kept.draws, share) == pytest.approx(
            np.quantile(draws, share), abs=0.03
        )


def test_without_draws_or_statistics_there_is_none() -> None:
    assert null_of(_test(np.empty(0))) is None
    assert null_of(_test(np.ones(9), (np.nan,))) is None


def test_an_arm_has_its_weight_of_the_rate() -> None:
    def arm(
        name: Literal["gradient", "likelihood", "exact"], p_value: float | None
    ) -> Arm:
        return Arm(name=name, question="?", statistic=1.0, p_value=p_value, rows=9,
                   assumes="nothing")  # fmt: skip

    arms = [arm("gradient", 0.2), arm("exact", 0.1), arm("likelihood", None)]
    assert arm_share(arms, "gradient") == pytest.approx(1 / 1.1)
    assert arm_share(arms, "likelihood") == pytest.approx(1 / 2.1)
