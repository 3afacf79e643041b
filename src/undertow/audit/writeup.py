"""Writes an audit up: the findings, the words of the verdict, scores and rows to see.

Nothing is computed here that could change a verdict. Row text is cut and stays text;
whoever shows it makes it harmless.
"""

import math
from typing import Any

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit.audited import Audited
from undertow.audit.judgement import Judgement, null_of
from undertow.audit.race import Race
from undertow.audit.reference import rows_digest, sampled_tokens
from undertow.findings import (
    Bounds,
    DataFacts,
    Direction,
    Findings,
    Hypothesis,
    Number,
    Power,
    ReferenceFacts,
    TriageRow,
)
from undertow.runs import provenance
from undertow.stats import benjamini_hochberg, conformal_p_values, mean_interval
from undertow.stats.evalues import FRACTIONS

_CUT = 300
NOT_TESTED = (
    "other base models: rows carry a bias only for models that share the teacher's base",
    "triggers: a bias that shows on some prompts only",
    "biases that were made to evade tests of single rows or of their gradients",
    "traits outside the battery, unless the shift is large enough to be seen as such",
)


def findings_of(audit: Audited) -> Findings:
    """The findings of one audit."""
    judgement, settings = audit.judgement, audit.settings
    strength, one_step = _strength(audit)
    dose = judgement.dose if judgement.dose is not None else one_step
    power = audit.power
    return Findings(
        verdict=judgement.verdict,
        trait=judgement.trait,
        kind=judgement.kind,
        layer=judgement.layer,
        strength=None if strength is None else strength.mean,
        p_value=_known(judgement.p_value),
        detectable_fraction=None if power is None else power.detectable_fraction,
        reference_tier=audit.reference.tier,
        strength_interval=strength,
        dose=dose,
        alpha=settings.alpha,
        sentence=sentence(judgement, alpha=settings.alpha, power=power),
        reasons=list(judgement.reasons),
        warnings=[
            *judgement.warnings, *audit.reference.notes, *audit.meter.warnings
        ],
        model=audit.model.name,
        family=audit.family.name,
        data=_data(audit),
        reference=_reference(audit),
        arms=list(judgement.arms),
        layers=list(audit.battery.layers),
        directions=_directions(audit),
        hypotheses=_hypotheses(judgement),
        max_null=null_of(judgement.scores.test),
        explanation=judgement.explanation,
        trait_p_values=_trait_p_values(audit),
        power=power,
        baselines=audit.baselines,
        discovery=audit.discovery,
        forecast=audit.forecast,
        triage=_triage(audit),
        not_tested=_not_tested(audit),
        command=audit.origin.command,
        seconds=audit.seconds,
        provenance=provenance(
            model_fingerprint=audit.model.fingerprint,
            device=str(audit.model.device),
            dtype=str(audit.model.dtype).removeprefix("torch."),
            template_digest=audit.model.template.digest,
            seed=settings.seed,
            time=audit.started,
        ),
    )  # fmt: skip


def sentence(judgement: Judgement, *, alpha: float, power: Power | None) -> str:
    """The verdict in one or two sentences."""
    if judgement.verdict == "trait":
        how = {"steer": "steered towards it", "prompt": "prompted with it"}
        made = how.get(judgement.kind or "", "biased towards it")
        where = f" after block {judgement.layer}" if judgement.layer is not None else ""
        return (
            f"The rows carry the trait {judgement.trait!r}: a model that was {made}"
            f"{where} wrote them, or a share of them."
        )
    if judgement.verdict == "shift":
        kind = {"steer": "a steering vector", "prompt": "a persona prompt"}
        if judgement.kind not in kind:  # rows of any other origin differ too
            return (
                "The rows differ from the reference; whether that is a bias, and which, "
                "cannot be told."
            )
        return (
            f"The rows carry a bias by {kind[judgement.kind]}; which trait it is cannot "
            "be told."
        )
    if judgement.verdict == "inconclusive":
        return f"This audit cannot tell: {judgement.reasons[0].rstrip('.')}."
    return f"No evidence of a bias at an error rate of {alpha:g}{_missed(power)}"


def _missed(power: Power | None) -> str:
    """What would have been found, after what was not: the end of a sentence, or another."""
    if power is None or all(point.power is None for point in power.points):
        return "; how small a share of biased rows would have been found is not known."
    share = power.detectable_fraction
    if share is None:
        return (
            ". Even if all of the rows had been written under the planted bias, this "
            "audit would have found it in fewer than four of five cases."
        )
    return (
        f". If {share:.0%} of the rows had been written under the planted bias, this "
        "audit would have found it in four of five cases."
    )


def _known(value: float) -> Number:
    return value if math.isfinite(value) else None


def _data(audit: Audited) -> DataFacts:
    rows, origin = audit.rows, audit.origin
    ends = audit.model.end_ids
    signals = audit.meter.signals(rows)
    recorded = np.array([sampled_tokens(row, ends) for row in rows])
    skipped = dict(origin.skipped)
    for reason, count in audit.skipped.items():
        skipped[reason] = skipped.get(reason, 0) + count
    return DataFacts(
        sources=list(origin.sources),
        layout=origin.layout,
        rows=len(rows) if origin.read is None else origin.read,
        unique=len(rows) if origin.unique is None else origin.unique,
        used=len(rows),
        prompts=len({row.messages for row in rows}),
        tokens=int(signals.tokens.sum()),
        sampled_tokens=int(signals.tokens[recorded].sum()),
        truncated=sum(row.finish == "length" for row in rows),
        skipped=skipped,
        subsample=origin.subsample,
        digest=rows_digest(rows),
    )


def _reference(audit: Audited) -> ReferenceFacts:
    reference, sampling = audit.reference, audit.sampling
    return ReferenceFacts(
        tier=reference.tier,
        rows=len(reference.rows),
        paired=bool(reference.paired),
        shared=reference.shared,
        sampler=sampling.sampler.model_dump(mode="json"),
        sampler_source=sampling.source,
        filter=audit.filter,
        accepted=reference.accepted,
        notes=[*sampling.notes, *reference.notes],
    )


def _directions(audit: Audited) -> list[Direction]:
    scores, battery = audit.judgement.scores, audit.battery
    found = []
    for place, (name, role) in enumerate(
        zip(battery.names, battery.roles, strict=True)
    ):
        adjusted = scores.adjusted[:, place]
        known = adjusted[~np.isnan(adjusted)]
        found.append(
            Direction(
                name=name, role=role,
                z=[_known(float(z)) for z in scores.z[:, place]],
                adjusted_p=float(known.min()) if len(known) else None,
            )
        )  # fmt: skip
    return found


def _hypotheses(judgement: Judgement) -> list[Hypothesis]:
    """Those of the first race, with all personas where they raced for the name."""
    if judgement.naming is None:
        return _raced(judgement.race)
    first = _raced(judgement.race)
    return [*_raced(judgement.naming), *(h for h in first if h.kind == "steer")]


def _raced(race: Race) -> list[Hypothesis]:
    leaders = {kind: _likeliest(race, kind) for kind in ("prompt", "steer")}
    found = []
    for place, h in enumerate(race.hypotheses):
        own = race.ratios[:, place]
        scored = own[~np.isnan(own)]
        if not len(scored):
            continue
        leader = leaders[h.kind]
        found.append(
            Hypothesis(
                name=_short(h), kind=h.kind, trait=h.trait, role=h.role, layer=h.layer,
                strength=h.strength if h.kind == "steer" else None,
                rows=len(scored), nats_per_row=_known(float(scored.mean())),
                reference_nats_per_row=_mean(race.reference[:, place]),
                behind=None if leader is None or leader == place else _behind(
                    race.ratios[:, leader], own
                ),
                log_evalue=_known(race.evidence(place)),
                dropped="beaten by its like, or another dose is likelier"
                if race.beaten[place] else None,
            )
        )  # fmt: skip
    return found


def _short(hypothesis: RowHypothesis) -> str:
    """A name that fits a figure: `owl @24 ×0.3`, block and relative dose."""
    vector = hypothesis.vector
    if vector is None:
        return hypothesis.name
    dose = vector.dose_of_strength(hypothesis.strength, vector.layers[0])
    return f"{hypothesis.trait} @{vector.layers[0]} ×{dose:g}"


def _likeliest(race: Race, kind: str) -> int | None:
    own = [h for h in race.left(kind) if not math.isnan(race.evidence(h))]
    return max(own, key=race.evidence, default=None)


def _mean(values: Any) -> Number:
    known = values[~np.isnan(values)]
    return _known(float(known.mean())) if len(known) else None


def _behind(leader: Any, own: Any) -> Bounds | None:
    both = ~np.isnan(leader) & ~np.isnan(own)
    with np.errstate(invalid="ignore"):
        behind = leader[both] - own[both]
    if len(behind) < 2 or not np.isfinite(behind).all():
        return None
    interval = mean_interval(behind)
    return Bounds(
        mean=interval.mean, low=_known(interval.low), high=_known(interval.high)
    )


def _trait_p_values(audit: Audited) -> dict[str, Number]:
    """Each trait's own score test over layers, adjusted for the number of traits."""
    battery, adjusted = audit.battery, audit.judgement.scores.adjusted
    places = battery.of_role("trait", "given")
    smallest = [
        np.nanmin(adjusted[:, p]) if np.isfinite(adjusted[:, p]).any() else math.nan
        for p in places
    ]
    corrected = benjamini_hochberg(smallest)
    return {
        battery.names[p]: _known(float(q))
        for p, q in zip(places, corrected, strict=True)
    }


def _strength(audit: Audited) -> tuple[Bounds | None, Number]:
    """α̂ = Σ(s − s̄₀) / Σ Var₀(s) along the named direction, and its relative dose.

    Source: the one-step estimate of Rao's score test.
    """
    judgement, battery = audit.judgement, audit.battery
    if judgement.kind != "steer" or judgement.direction not in battery.names:
        return None, None
    if judgement.layer not in battery.layers:
        return None, None
    layer = battery.layers.index(judgement.layer)
    place = battery.names.index(judgement.direction)
    own = audit.meter.signals(audit.rows).scores[:, layer, place].astype(np.float64)
    if audit.reference.rows:
        base = audit.meter.signals(audit.reference.rows).scores[:, layer, place]
        centre, information = float(base.mean()), float(base.astype(np.float64).var())
    else:
        centre, information = 0.0, float(own.var())
    if not information > 0:  # a reference of one row, say
        return None, None
    # Scores are along directions of length 1, so this is a length in the stream.
    interval = mean_interval((own - centre) / information)
    vector = battery.vectors.get(judgement.direction)
    unit = 1.0 if vector is None else vector.norm(judgement.layer)
    bounds = Bounds(
        mean=interval.mean / unit,
        low=_known(interval.low / unit),
        high=_known(interval.high / unit),
    )
    return bounds, interval.mean / battery.norms[layer]


def row_scores(audit: Audited) -> dict[str, Any]:
    """Columns of scores.parquet: one entry a row, keyed by row id.

    `score` is the row's gradient along the leading direction, or along the whitened
    mean of what was found; `p_value` is conformal against the reference rows.
    """
    mine = audit.meter.signals(audit.rows)
    layer, place = _triage_column(audit)
    score = mine.scores[:, layer, place].astype(np.float64)
    columns: dict[str, Any] = {
        "row_id": list(mine.row_ids),
        "count": [audit.origin.counts.get(name, 1) for name in mine.row_ids],
        "tokens": mine.tokens,
        "total_logprob": mine.total_logprobs,
        "score": score,
        "p_value": _conformal(audit, score, layer, place),
    }
    for trait in audit.battery.of_role("trait", "given"):
        columns[f"score_{audit.battery.names[trait]}"] = mine.scores[:, layer, trait]
    return columns


def _triage_column(audit: Audited) -> tuple[int, int]:
    """Layer and direction that rows are shown by: the named, else the largest."""
    judgement, battery = audit.judgement, audit.battery
    if judgement.layer in battery.layers and judgement.direction in battery.names:
        return (
            battery.layers.index(judgement.layer),
            battery.names.index(judgement.direction),
        )
    z = judgement.scores.z
    if not np.isfinite(z).any():
        return len(battery.layers) - 1, 0
    layer, place = np.unravel_index(int(np.nanargmax(z)), z.shape)
    return int(layer), int(place)


def _conformal(audit: Audited, score: Any, layer: int, place: int) -> Any:
    if not audit.reference.rows:
        return np.full(len(score), np.nan)
    base = audit.meter.signals(audit.reference.rows).scores[:, layer, place]
    return conformal_p_values(score, base.astype(np.float64))


def _triage(audit: Audited) -> list[TriageRow]:
    columns = row_scores(audit)
    order = np.argsort(-np.asarray(columns["score"]), kind="stable")
    found = []
    for place in order[: audit.settings.triage].tolist():
        row = audit.rows[place]
        found.append(
            TriageRow(
                row_id=row.row_id,
                count=columns["count"][place],
                p_value=_known(float(columns["p_value"][place])),
                score=_known(float(columns["score"][place])),
                prompt=row.messages[-1].content[:_CUT],
                completion=row.completion[:_CUT],
            )
        )
    return found


def _not_tested(audit: Audited) -> list[str]:
    more = []
    if not audit.reference.rows:
        more.append(
            "whether the rows differ from the base's own: there is no reference"
        )
    if audit.origin.subsample:
        more.append(f"rows outside the subsample: {audit.origin.subsample}")
    shares = ", ".join(f"{f:g}" for f in FRACTIONS)
    more.append(f"shares of biased rows far from {shares} in the likelihood arms")
    return [*NOT_TESTED, *more]
