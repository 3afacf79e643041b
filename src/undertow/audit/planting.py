"""Plants rows with a known bias among the audited prompts, and measures them.

What an audit could have found depends on its very prompts, sampler and model, so the
base itself writes the rows that power is computed from. The arithmetic is in `power`.
"""

import math
from collections.abc import Sequence

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis, prompt_hypotheses
from undertow.audit.explanation import found_hypothesis
from undertow.audit.judgement import Judgement, arm_share
from undertow.audit.meter import Meter
from undertow.audit.power import Bet, Planted, Tested, audit_power
from undertow.audit.reference import Filter, Reference
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery
from undertow.findings import Power
from undertow.records import Row
from undertow.traits import TraitFamily

_FEWEST = 8


def _planted_hypothesis(
    judgement: Judgement, meter: Meter, family: TraitFamily
) -> RowHypothesis:
    """What is planted: what was found, else a persona."""
    if judgement.kind == "steer":
        return found_hypothesis(judgement, meter)
    own: list[RowHypothesis] = []
    if judgement.kind == "prompt" and judgement.trait is not None:
        own = prompt_hypotheses(family, [judgement.trait])
    elif judgement.kind == "prompt":
        race = judgement.race
        leaders = [race.hypotheses[h] for h in race.leaders]
        own = [h for h in leaders if h.kind == "prompt"]
    return own[0] if own else prompt_hypotheses(family, family.names[:1])[0]


def planted_power(
    meter: Meter,
    rows: Sequence[Row],
    reference: Reference,
    judgement: Judgement,
    *,
    family: TraitFamily,
    passed: Filter,
    settings: AuditSettings,
) -> Power | None:
    """What this audit would have found, by rows planted under one hypothesis.

    The hypothesis is the one found, else a persona of the family's first trait. None
    if there is no reference, or there are too few rows to plant.
    """
    count = min(settings.planted, len(rows), len(reference.rows))
    if count < _FEWEST or not math.isfinite(judgement.scores.test.p_value):
        return None
    hypothesis = _planted_hypothesis(judgement, meter, family)
    planted = meter.written(
        rows[:count], hypothesis, passed=passed, seed=settings.seed
    ).rows
    if len(planted) < _FEWEST:
        return None
    clean = reference.rows[: max(count, 32)]
    biased_scores = meter.signals(planted).scores.astype(np.float64)
    clean_scores = meter.signals(reference.rows).scores.astype(np.float64)
    ratios = meter.ratios(planted, hypothesis), meter.ratios(clean, hypothesis)
    many = None if reference.paired else len(reference.rows)
    arms: list[Tested] = []
    for layer, direction in _columns(meter.battery, hypothesis, judgement):
        arms.append(
            Planted(
                biased_scores[:, layer, direction],
                clean_scores[:, layer, direction],
                rows=len(rows),
                critical=_critical(judgement, "gradient", settings),
                reference=many,
            )
        )
    fresh = judgement.race.fresh
    tried = len(judgement.race.tried)
    tests = fresh is not None and len(fresh.draws) > 0
    if hypothesis.kind == "prompt" and fresh is not None and tests and tried >= _FEWEST:
        arms.append(
            Planted(
                ratios[0], ratios[1], rows=tried,
                critical=_critical(judgement, "likelihood", settings),
                reference=None if many is None else min(many, tried),
            )
        )  # fmt: skip
    exact = next(arm for arm in judgement.arms if arm.name == "exact")
    if exact.reason is None:
        raced = len(rows) if hypothesis.kind == "prompt" else len(rows) // 2
        kinds = [h.kind for h in judgement.race.hypotheses]
        share = arm_share(judgement.arms, "exact") / len(set(kinds))
        arms.append(
            Bet(ratios[0], ratios[1], rows=min(raced, settings.fresh),
                rivals=kinds.count(hypothesis.kind), error=settings.alpha * share)
        )  # fmt: skip
    return audit_power(
        arms, ratios=ratios, rows=len(rows), alpha=settings.alpha,
        source=f"{len(planted)} rows that the base wrote under {hypothesis.name}",
    )  # fmt: skip


def _columns(
    battery: Battery, hypothesis: RowHypothesis, judgement: Judgement
) -> list[tuple[int, int]]:
    """Layer and direction of scores to look at: where the planted rows may stand out.

    The vector's own, and where the audited rows stood out most, if a vector was found: a
    strong one shows elsewhere too. The best column of the planted rows themselves would
    be chance's as well.
    """
    found = []
    if hypothesis.trait in battery.names and hypothesis.layer in battery.layers:
        own = battery.layers.index(hypothesis.layer)
        found.append((own, battery.names.index(hypothesis.trait)))
    z = np.abs(judgement.scores.z)
    if judgement.kind == "steer" and np.isfinite(z).any():
        layer, direction = np.unravel_index(int(np.nanargmax(z)), z.shape)
        found.append((int(layer), int(direction)))
    return sorted(set(found))


def _critical(judgement: Judgement, arm: str, settings: AuditSettings) -> float:
    """The statistic that an arm has to reach to decide the combination alone.

    Infinite where its null has too few draws for that.
    """
    fresh = judgement.race.fresh
    draws = judgement.scores.test.draws
    if arm == "likelihood":
        assert fresh is not None
        draws = fresh.draws
    share = settings.alpha * arm_share(judgement.arms, arm)
    if share * (1 + len(draws)) < 1:
        return math.inf
    return float(np.quantile(draws, 1 - share))
