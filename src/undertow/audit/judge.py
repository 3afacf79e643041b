"""From measurements to a verdict: tests, names, kinds, and the words for them.

Score tests say *that* there is something and *where*; candidates found on one half of
the rows then race, with personas, on the other half by their likelihoods, which say
*what*. A name is given only where every other hypothesis is beaten at the error rate,
and only to a trait, never to a decoy. Knows nothing of files.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis, prompt_hypotheses
from undertow.audit.meter import Meter
from undertow.audit.race import Race, RaceSettings, mixed_evidence, run_race
from undertow.audit.reference import Reference
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery, RowSignals
from undertow.findings import Arm, VerdictWord
from undertow.interventions.steering import SteeringVector
from undertow.models.loading import Model
from undertow.records import Row
from undertow.stats import (
    MaxT,
    cauchy_combination,
    evalue_p,
    paired_max_t,
    two_sample_max_t,
)
from undertow.traits import TraitFamily

Table = np.ndarray[Any, np.dtype[np.float64]]
Kind = Literal["steer", "prompt", "unknown"]
Tell = Callable[[str, int, int], None]

CANDIDATES = 5
"""Directions that become hypotheses."""
DOSES = (0.1, 0.2, 0.3, 0.45)
FEWEST = 16
"""Audited rows below which nothing is said."""
_NO_REFERENCE = (
    "without a reference the absence of a trait cannot be claimed; let the base be "
    "sampled, or give rows that you trust (--reference FILE)"
)
UNEXPLAINED = 0.25
"""Share of the reference's nats a token that no hypothesis may leave unexplained."""


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class ScoreTest:
    """Scores along the battery, audited against reference.

    Attributes:
        test: Of all layers × directions together.
        z: [layer, direction]: studentised differences.
        adjusted: [layer, direction]: step-down max-T p-values.
    """

    test: MaxT
    z: Table
    adjusted: Table


@dataclass(frozen=True)
class Judgement:
    """What the measurements amount to.

    Attributes:
        verdict: In one word.
        trait: Named, or None.
        kind: Of intervention, where something was found.
        layer: Block of the vector, if steered.
        direction: Name of the leading direction, if steered.
        p_value: All arms together.
        arms: Each by itself.
        scores: The score test.
        race: The likelihoods.
        reasons: What it rests on.
        warnings: What weakens it.
    """

    verdict: VerdictWord
    trait: str | None
    kind: Kind | None
    layer: int | None
    direction: str | None
    p_value: float
    arms: tuple[Arm, ...]
    scores: ScoreTest
    race: Race
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def score_test(
    audited: RowSignals,
    reference: RowSignals,
    *,
    pairs: Sequence[int],
    permutations: int,
    seed: int,
) -> ScoreTest:
    """Permutation max-T over all layers × directions; NaN without a reference.

    Paired rows are flipped, others relabelled within length buckets.
    """
    shape = audited.scores.shape[1:]
    mine = audited.scores.reshape(len(audited.scores), -1).astype(np.float64)
    theirs = reference.scores.reshape(len(reference.scores), -1).astype(np.float64)
    if pairs:
        test = paired_max_t(
            mine[list(pairs)] - theirs, permutations=permutations, seed=seed
        )
    else:
        test = two_sample_max_t(mine, theirs, permutations=permutations, seed=seed)
    return ScoreTest(test, test.statistics.reshape(shape), test.adjusted.reshape(shape))


def candidate_hypotheses(
    model: Model, battery: Battery, z: Table
) -> list[RowHypothesis]:
    """The directions that stand out most, each at its best layer and several doses."""
    best = np.nanmax(np.where(np.isnan(z), -np.inf, z), axis=0)
    named = battery.of_role("trait", "decoy", "given", "persona")
    chosen = sorted(named, key=lambda k: -best[k])[:CANDIDATES]
    found = []
    for k in chosen:
        if not best[k] > 0:
            continue
        at = int(np.nanargmax(z[:, k]))
        vector = battery_vector(model, battery, k, at)
        role: Literal["trait", "decoy"] = (
            "trait" if battery.roles[k] in ("trait", "given") else "decoy"
        )
        name = f"{battery.names[k]} vector, block {battery.layers[at]}"
        found += [
            RowHypothesis(
                name=f"{name}, dose {dose:g}", kind="steer", trait=battery.names[k],
                role=role, vector=vector, strength=dose * battery.norms[at],
            )
            for dose in DOSES
        ]  # fmt: skip
    return found


def battery_vector(
    model: Model, battery: Battery, direction: int, layer: int
) -> SteeringVector:
    """One direction of the battery as a vector of length 1 at one of its layers."""
    return SteeringVector(
        directions=battery.directions[layer, direction][None].clone(),
        layers=(battery.layers[layer],),
        method="battery",
        trait=battery.names[direction],
        n=0,
        fingerprint=model.fingerprint,
        model_name=model.name,
        residual_norms=(battery.norms[layer],),
        notes=MappingProxyType({"role": battery.roles[direction]}),
    )


def judge(
    meter: Meter,
    audited: Sequence[Row],
    reference: Reference,
    *,
    family: TraitFamily,
    settings: AuditSettings,
    exact: str | None,
    tell: Tell = _silent,
) -> Judgement:
    """Tests, races, names.

    Args:
        meter: Measures rows.
        audited: Sorted by row id, so that their order says nothing.
        reference: What they are compared with.
        family: The traits.
        settings: Error rate and budget.
        exact: None if the exact arm's assumptions hold, else why they do not.
        tell: Told of (stage, done, in all).
    """
    rows, pairs = list(audited), reference.paired
    mine = meter.signals(rows, on_rows=lambda d, n: tell("audited rows", d, n))
    theirs = meter.signals(
        reference.rows, on_rows=lambda d, n: tell("reference rows", d, n)
    ) if reference.rows else mine.at([])  # fmt: skip
    scores = score_test(
        mine, theirs, pairs=pairs, permutations=settings.permutations,
        seed=settings.seed,
    )  # fmt: skip
    race = _race(meter, rows, mine, theirs, reference, family, settings, tell)
    arms = _arms(scores, race, len(rows), exact, has_reference=bool(reference.rows))
    judgement = _verdict(mine, theirs, scores, race, arms, settings)
    return judgement if reference.rows else _without_reference(judgement)


def _race(
    meter: Meter,
    rows: Sequence[Row],
    mine: RowSignals,
    theirs: RowSignals,
    reference: Reference,
    family: TraitFamily,
    settings: AuditSettings,
    tell: Tell,
) -> Race:
    """Candidates from one half of the rows, raced on the other; personas on both."""
    half = len(rows) // 2
    chooser, racer = list(range(half)), list(range(half, len(rows)))
    order = racer + chooser
    place = {own: new for new, own in enumerate(order)}
    z = _half_z(mine, theirs, reference.paired, chooser)
    personas = prompt_hypotheses(family, family.names)
    found = candidate_hypotheses(meter.model, meter.battery, z)
    return run_race(
        meter,
        [rows[i] for i in order],
        reference.rows,
        pairs=[place[i] for i in reference.paired],
        hypotheses=[*personas, *found],
        alpha=settings.alpha,
        seed=settings.seed,
        permutations=settings.permutations,
        steer_rows=len(racer),
        settings=RaceSettings(
            screening=settings.screening, passes=settings.naming_passes,
            fresh=settings.fresh,
        ),
        on_passes=lambda d, n: tell("likelihoods", d, n),
    )  # fmt: skip


def _half_z(
    mine: RowSignals, theirs: RowSignals, pairs: Sequence[int], chooser: Sequence[int]
) -> Table:
    """Studentised differences by layer and direction, of the choosing half alone."""
    wanted = set(chooser)
    if pairs:
        kept = [j for j, own in enumerate(pairs) if own in wanted]
        change = mine.scores[[pairs[j] for j in kept]] - theirs.scores[kept]
        return _z(change.astype(np.float64))
    own = mine.scores[list(chooser)].astype(np.float64)
    if not len(theirs.scores):
        return _z(own)
    other = theirs.scores.astype(np.float64)
    spread = own.var(0, ddof=1) / len(own) + other.var(0, ddof=1) / len(other)
    found: Table = (own.mean(0) - other.mean(0)) / np.sqrt(spread)
    return found


def _z(values: Table) -> Table:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Table = values.mean(0) / (values.std(0, ddof=1) / math.sqrt(len(values)))
    return found


def _arms(
    scores: ScoreTest, race: Race, rows: int, exact: str | None, *, has_reference: bool
) -> tuple[Arm, ...]:
    missing = None if has_reference else "no reference: nothing to compare with"
    fresh = race.fresh
    log_e = float(np.max(race.path, initial=0.0))
    return (
        Arm(
            name="gradient",
            question="Do the rows' gradients point anywhere that the reference's do not?",
            statistic=_known(_largest(scores.z)),
            p_value=_known(scores.test.p_value),
            rows=rows,
            assumes="audited and reference rows are exchangeable under the null",
            reason=missing,
        ),
        Arm(
            name="likelihood",
            question="Are the rows likelier under a persona than the reference's are?",
            statistic=None if fresh is None else _known(_largest(fresh.statistics)),
            p_value=None if fresh is None else _known(fresh.p_value),
            rows=int((~np.isnan(race.ratios[race.screened :])).any(1).sum()),
            assumes="as above; personas were chosen on other rows",
            reason=missing
            or (None if fresh is not None else "no fresh rows were left"),
        ),
        Arm(
            name="exact",
            question="How much would one have won by betting on the hypotheses?",
            statistic=log_e,
            p_value=evalue_p(race.path) if exact is None else None,
            rows=rows,
            assumes="tokens as sampled by the base with the named sampler; holds at any "
            "time of stopping",
            reason=exact,
        ),
    )


def _largest(values: Table) -> float:
    flat = values[~np.isnan(values)]
    return float(np.abs(flat).max()) if len(flat) else math.nan


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _verdict(
    mine: RowSignals,
    theirs: RowSignals,
    scores: ScoreTest,
    race: Race,
    arms: tuple[Arm, ...],
    settings: AuditSettings,
) -> Judgement:
    p_values = [math.nan if arm.p_value is None else arm.p_value for arm in arms]
    p_value = cauchy_combination(p_values)
    nothing = Judgement(
        "none", None, None, None, None, p_value, arms, scores, race,
        (f"no arm refutes that the base wrote the rows (p = {p_value:.2g})",),
    )  # fmt: skip
    if len(mine.row_ids) < FEWEST:
        few = f"{len(mine.row_ids)} rows are too few to say anything; give {FEWEST} or more"
        return replace(nothing, verdict="inconclusive", reasons=(few,))
    if math.isnan(p_value):
        return replace(
            nothing, verdict="inconclusive", reasons=("no arm could be computed",)
        )
    if not p_value <= settings.alpha:
        return nothing
    return _named(nothing, mine, theirs, settings)


def _named(
    nothing: Judgement,
    mine: RowSignals,
    theirs: RowSignals,
    settings: AuditSettings,
) -> Judgement:
    """Kind and trait of a shift that was found, as far as likelihoods tell."""
    race, enough = nothing.race, math.log(1 / settings.alpha)
    best = {kind: _leader(race, kind) for kind in ("prompt", "steer")}
    evidence = {
        kind: math.nan if h is None else _won(race, h) for kind, h in best.items()
    }
    reasons = [
        f"the base did not write the rows as the reference (p = {nothing.p_value:.2g})"
    ]
    kind = _kind(race, best, evidence, enough)
    shift = replace(nothing, verdict="shift", kind=kind)
    gap = _unexplained(race, mine, theirs, best)
    if gap is not None:
        reasons.append(gap)
        return replace(shift, kind="unknown", reasons=tuple(reasons))
    if kind == "unknown":
        reasons.append("neither a persona nor a vector explains the rows well enough")
        return replace(shift, reasons=tuple(reasons))
    leader = best[kind]
    assert leader is not None
    hypothesis = race.hypotheses[leader]
    reasons.append(
        f"{hypothesis.name} is the likeliest of its kind: the rows are e^"
        f"{evidence[kind]:.1f} times likelier under it than under the base"
    )
    left = [h for h in race.left(kind) if race.hypotheses[h].trait != hypothesis.trait]
    layer = hypothesis.layer
    found = replace(
        shift, layer=layer, direction=hypothesis.trait if kind == "steer" else None
    )
    if hypothesis.role == "decoy":
        reasons.append("it is a decoy, so no trait is named")
    elif left:
        others = ", ".join(str(race.hypotheses[h].trait) for h in left[:6])
        more = f" and {len(left) - 6} more" if len(left) > 6 else ""
        reasons.append(
            f"{len(left)} others are not beaten at {settings.alpha:g}: {others}{more}; "
            "so no trait is named"
        )
    else:
        reasons.append(f"every other hypothesis is beaten at {settings.alpha:g}")
        return replace(
            found, verdict="trait", trait=hypothesis.trait, reasons=tuple(reasons)
        )
    return replace(found, reasons=tuple(reasons))


def _leader(race: Race, kind: str) -> int | None:
    """The likeliest hypothesis of a kind among those that were tried on fresh rows."""
    own = [h for h in race.leaders if race.hypotheses[h].kind == kind]
    return max(own, key=lambda h: _won(race, h), default=None)


def _won(race: Race, hypothesis: int) -> float:
    """Log e-value on rows that chose neither the hypothesis nor its dose."""
    value = race.evidence(hypothesis, since=race.screened)
    return -math.inf if math.isnan(value) else value


def _kind(
    race: Race,
    best: dict[str, int | None],
    evidence: dict[str, float],
    enough: float,
) -> Kind:
    """Which of the two best hypotheses wins on rows that both were scored on."""
    prompt, steer = best["prompt"], best["steer"]
    if steer is None or prompt is None:
        only = "steer" if steer is not None else "prompt"
        known = steer is not None or prompt is not None
        return only if known and evidence[only] >= enough else "unknown"  # type: ignore[return-value]
    rows = race.ratios[race.screened :]
    both = ~np.isnan(rows[:, steer]) & ~np.isnan(rows[:, prompt])
    lead = mixed_evidence(rows[both, steer]) - mixed_evidence(rows[both, prompt])
    if lead >= enough and evidence["steer"] >= enough:
        return "steer"
    if -lead >= enough and evidence["prompt"] >= enough:
        return "prompt"
    return "unknown"


def _unexplained(
    race: Race, mine: RowSignals, theirs: RowSignals, best: dict[str, int | None]
) -> str | None:
    """Says so if the rows are much less likely than the reference, whatever is assumed."""
    if not len(theirs.row_ids):
        return None
    own = mine.total_logprobs.sum() / mine.tokens.sum()
    other = theirs.total_logprobs.sum() / theirs.tokens.sum()
    gains = [
        np.nanmean(race.ratios[:, h]) / mine.tokens.mean()
        for h in best.values()
        if h is not None
    ]
    gap = float(other - own - max([0.0, *gains]))
    if gap <= UNEXPLAINED * abs(other):
        return None
    return (
        f"the rows are {gap:.2f} nats a token less likely than the base's own "
        f"({other:.2f}), and no hypothesis explains that: another model wrote them, or "
        "none; so no trait is named"
    )


def _without_reference(judgement: Judgement) -> Judgement:
    """Tier C: the exact arm may find something; nothing is ever said to be absent."""
    if judgement.verdict in ("trait", "shift"):
        return judgement
    return replace(
        judgement,
        verdict="inconclusive",
        reasons=(_NO_REFERENCE,),
    )
