"""Kind, block, dose and trait of a shift that was found, as far as likelihoods tell.

A name is given only where every other hypothesis of its kind is beaten at the error
rate, only to a trait, never to a decoy, and not at all where the rows are far less
likely than what the base writes, be it untouched or under the leading hypothesis: then
something else wrote them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis, prompt_hypotheses
from undertow.audit.candidates import vector_hypothesis
from undertow.audit.judgement import Judgement, Kind
from undertow.audit.meter import Meter
from undertow.audit.race import Race, RaceSettings, Table, mixed_evidence, run_race
from undertow.audit.reference import Filter
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery, RowSignals
from undertow.records import Row
from undertow.traits import TraitFamily

Tell = Callable[[str, int, int], None]

UNEXPLAINED = 0.25
"""Share of the nats a token that no hypothesis may leave unexplained."""
FINER_DOSES = (0.1, 0.15, 0.2, 0.3, 0.45, 0.6)
EXPLAINED = 0.6
"""Share of its own rows' gain that a named vector has to bring to the audited ones."""
_FEWEST_GAINS = 3  # rows on either side that this is judged by
_AROUND = 2  # blocks on either side that the refinement looks at
_REFINED = 32  # rows of the refinement
_WRITTEN = 16  # rows that are written under the leader, to compare with
_DECOY_PERSONAS = 4


def named(
    nothing: Judgement,
    meter: Meter,
    rows: Sequence[Row],
    reference: Sequence[Row],
    *,
    passed: Filter,
    settings: AuditSettings,
) -> Judgement:
    """Kind and trait of a shift that was found, as far as likelihoods tell.

    Args:
        nothing: What was measured, with an empty verdict.
        meter: Scores rows.
        rows: Audited.
        reference: Compared with; may be empty.
        passed: The filter that the rows have passed.
        settings: Error rate.
    """
    mine, theirs = meter.signals(rows), meter.signals(reference)
    race = nothing.race
    # The leader is the best of several on the very rows that speak for it.
    enough = math.log(max(1, len(race.leaders)) / settings.alpha)
    best = {kind: _leader(race, kind) for kind in ("prompt", "steer")}
    evidence = {
        kind: math.nan if h is None else _won(race, h) for kind, h in best.items()
    }
    reasons = [
        f"the base did not write the rows as the reference (p = {nothing.p_value:.2g})"
    ]
    kind = _kind(race, best, evidence, enough)
    shift = replace(nothing, verdict="shift", kind=kind)
    likeliest = max(
        (h for h in best.values() if h is not None),
        key=lambda h: _won(race, h), default=None,
    )  # fmt: skip
    gap = _unexplained(
        meter, rows, mine, theirs,
        None if likeliest is None else race.hypotheses[likeliest],
        passed=passed, seed=settings.seed,
    )  # fmt: skip
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
    if kind == "prompt":  # all personas race for the name
        return replace(shift, reasons=tuple(reasons))
    left = [h for h in race.left(kind) if race.hypotheses[h].trait != hypothesis.trait]
    rivals = {h.trait for h in race.hypotheses if h.kind == kind} - {hypothesis.trait}
    layer = hypothesis.layer
    found = replace(shift, layer=layer, direction=hypothesis.trait)
    if hypothesis.role == "decoy":
        reasons.append("it is a decoy, so no trait is named")
    elif not rivals:
        reasons.append("no other direction raced against it, so no trait is named")
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
    meter: Meter,
    rows: Sequence[Row],
    mine: RowSignals,
    theirs: RowSignals,
    leader: RowHypothesis | None,
    *,
    passed: Filter,
    seed: int,
) -> str | None:
    """Says so if the rows are much less likely than what could have been written.

    Than the reference under the base, and than what the base itself writes under the
    leading hypothesis, under that hypothesis: a strong vector makes all rows unlikely,
    its own as well. Many innocent rows among few are explained by the base.
    """
    if not len(theirs.row_ids):
        return None
    own, other = _nats_a_token(mine), _nats_a_token(theirs)
    if not other - own > UNEXPLAINED * abs(other):
        return None
    gap, under = other - own, "the base"
    if leader is not None:
        few = rows[:_WRITTEN]
        written = meter.written(few, leader, passed=passed, seed=seed)
        if written:
            wanted = meter.nats_a_token(written, leader)
            left = wanted - meter.nats_a_token(few, leader)
            if not left > UNEXPLAINED * abs(wanted):
                return None
            if left < gap:
                gap, other, under = left, wanted, leader.name
    return (
        f"the rows are {gap:.2f} nats a token less likely than {under}'s own "
        f"({other:.2f}), and no hypothesis explains that: another model wrote them, or "
        "none; so no trait is named"
    )


def _nats_a_token(signals: RowSignals) -> float:
    """Mean log-probability of a token, over rows that the sampler can draw."""
    drawn = np.isfinite(signals.total_logprobs)
    tokens = signals.tokens[drawn].sum()
    return float(signals.total_logprobs[drawn].sum() / tokens) if tokens else math.nan


def refined(
    judgement: Judgement, meter: Meter, rows: Sequence[Row], tell: Tell
) -> Judgement:
    """Block and dose of the leading vector, by likelihood around where it was screened.

    First the blocks at the screened dose, then doses at the best block.
    """
    battery = meter.battery
    direction = battery.names.index(judgement.direction or "")
    centre = battery.layers.index(judgement.layer or 0)
    raced = rows[len(rows) // 2 :][:_REFINED]
    layers = range(
        max(0, centre - _AROUND), min(len(battery.layers), centre + _AROUND + 1)
    )
    steps = len(layers) + len(FINER_DOSES)

    def best(options: list[tuple[int, float]], done: int) -> tuple[int, float]:
        won = {}
        for step, (layer, dose) in enumerate(options, start=1):
            h = vector_hypothesis(meter.model, battery, direction, layer, dose)
            won[layer, dose] = mixed_evidence(meter.ratios(raced, h))
            tell("block and dose", done + step, steps)
        return max(won, key=lambda option: won[option])

    dose = _dose(judgement, battery, centre)
    layer, _ = best([(layer, dose) for layer in layers], 0)
    layer, dose = best([(layer, d) for d in FINER_DOSES], len(layers))
    where = (
        f"among blocks and doses around it, block {battery.layers[layer]} at dose "
        f"{dose:g} makes the rows likeliest"
    )
    *first, last = judgement.reasons
    return replace(
        judgement, layer=battery.layers[layer], dose=dose, reasons=(*first, where, last)
    )


def held(
    judgement: Judgement,
    meter: Meter,
    rows: Sequence[Row],
    *,
    passed: Filter,
    seed: int,
) -> Judgement:
    """Takes a name back if another vector, near the named one, must have been at work.

    Some direction always fits best. What the base itself writes under it says how much
    likelier its own rows are under it than under the base; the audited rows that it
    makes likelier have to gain about as much. Innocent rows among them do not count.
    """
    if judgement.trait is None:
        return judgement
    battery = meter.battery
    hypothesis = vector_hypothesis(
        meter.model, battery, battery.names.index(judgement.direction or ""),
        battery.layers.index(judgement.layer or 0), judgement.dose or 0.0,
    )  # fmt: skip
    few = rows[len(rows) // 2 :][:_REFINED]
    written = meter.written(few[:_WRITTEN], hypothesis, passed=passed, seed=seed)
    own, wanted = (_gains(meter.ratios(part, hypothesis)) for part in (few, written))
    if min(len(own), len(wanted)) < _FEWEST_GAINS:
        return judgement
    gain, most = float(own.mean()), float(wanted.mean())
    if gain >= EXPLAINED * most:
        return judgement
    reason = (
        f"but rows that it makes likelier gain {gain:.1f} nats each, those that it "
        f"writes itself {most:.1f}: something else that lies near it wrote them; so no "
        "trait is named"
    )
    return replace(
        judgement, verdict="shift", trait=None, reasons=(*judgement.reasons, reason)
    )


def _gains(ratios: Table) -> Table:
    """Those above zero; what cannot be written otherwise gains no finite number."""
    return ratios[np.isfinite(ratios) & (ratios > 0)]


def _dose(judgement: Judgement, battery: Battery, layer: int) -> float:
    """The dose at which the leading vector was screened best."""
    race = judgement.race
    own = [race.hypotheses[h] for h in race.leaders]
    vector = next(
        h for h in own if h.kind == "steer" and h.trait == judgement.direction
    )
    return vector.strength / battery.norms[layer]


def name_persona(
    judgement: Judgement,
    meter: Meter,
    rows: Sequence[Row],
    *,
    family: TraitFamily,
    decoys: TraitFamily,
    settings: AuditSettings,
    tell: Tell,
) -> Judgement:
    """Races all personas of the family, and some decoys, for the name."""
    strange = [
        replace(h, role="decoy")
        for h in prompt_hypotheses(decoys, decoys.names[:_DECOY_PERSONAS])
    ]
    race = run_race(
        meter, rows, (), pairs=(),
        hypotheses=[*prompt_hypotheses(family, family.names), *strange],
        alpha=settings.alpha, seed=settings.seed, permutations=settings.permutations,
        settings=RaceSettings(
            screening=settings.screening, passes=settings.naming_passes, fresh=0
        ),
        on_passes=lambda d, n: tell("naming", d, n),
    )  # fmt: skip
    places = range(len(race.hypotheses))
    left = [h for h in places if not race.beaten[h]]
    winner = max(left, key=race.evidence)
    name, role = race.hypotheses[winner].trait, race.hypotheses[winner].role
    scored = int((~np.isnan(race.ratios[:, winner])).sum())
    judgement = replace(judgement, naming=race)
    if len(left) > 1:
        others = ", ".join(str(race.hypotheses[h].trait) for h in left[:6])
        more = f" and {len(left) - 6} more" if len(left) > 6 else ""
        reason = (
            f"{len(left)} personas are not told apart at {settings.alpha:g} by {scored} "
            f"rows: {others}{more}; so no trait is named"
        )
        return replace(judgement, reasons=(*judgement.reasons, reason))
    if role == "decoy":
        reason = f"the persona that is left, {name!r}, is a decoy: no trait is named"
        return replace(judgement, reasons=(*judgement.reasons, reason))
    reason = f"{scored} rows beat every persona but {name!r} at {settings.alpha:g}"
    return replace(
        judgement, verdict="trait", trait=name, reasons=(*judgement.reasons, reason)
    )
