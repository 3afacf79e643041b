"""Kind, block, dose and trait of a shift that was found, as far as likelihoods tell.

A name is given only where every other hypothesis of its kind is beaten at the error
rate, only to a trait, never to a decoy. Whether it explains the rows is another question
(see `explanation`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from undertow.analysis.hypotheses import prompt_hypotheses
from undertow.audit.candidates import vector_hypothesis
from undertow.audit.judgement import Judgement, Kind, Tell
from undertow.audit.meter import Meter
from undertow.audit.race import Race, RaceSettings, mixed_evidence, run_race
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery
from undertow.records import Row
from undertow.stats.evalues import FRACTIONS
from undertow.traits import TraitFamily

FINER_DOSES = (0.1, 0.15, 0.2, 0.3, 0.45, 0.6)
_WEAKEST, _STRONGEST = 0.05, 0.9  # no dose lies beyond
_HALVINGS = 3  # of the distance between doses, which leaves about 3 %
_CLEARLY = math.log(100)  # nats of all rows by which a dose is the better one
_AROUND = 2  # blocks on either side that the refinement looks at
_REFINED = 32  # rows of the refinement
_DECOY_PERSONAS = 4
_ROUNDED = 0.03  # nats of rounding that hide what personas differ by


def named(nothing: Judgement, *, settings: AuditSettings) -> Judgement:
    """Kind and trait of a shift that was found, as far as likelihoods tell.

    Args:
        nothing: What was measured, with an empty verdict.
        settings: Error rate.
    """
    race = nothing.race
    # The leader is the best of several on the very rows that speak for it.
    enough = math.log(max(1, len(race.leaders)) / settings.alpha)
    best = {kind: _leader(race, kind) for kind in ("prompt", "steer")}
    evidence = {
        kind: math.nan if h is None else _won(race, h) for kind, h in best.items()
    }
    reasons = [
        f"the rows were not drawn as the reference's were (p = {nothing.p_value:.2g})"
    ]
    kind = _kind(race, best, evidence, enough)
    shift = replace(nothing, verdict="shift", kind=kind)
    if kind == "unknown":
        reasons.append("neither a persona nor a vector explains the rows well enough")
        return replace(shift, reasons=tuple(reasons))
    leader = best[kind]
    assert leader is not None
    hypothesis = race.hypotheses[leader]
    reasons.append(
        f"of those that raced, {hypothesis.name} explains them best: they are e^"
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


def pointed(judgement: Judgement, battery: Battery, alpha: float) -> Judgement:
    """Says where the rows' gradients point, if likelihoods do not tell what made them.

    The largest score is often a wrong direction's, so it is told and names nothing.
    """
    if judgement.kind != "unknown":
        return judgement
    scores = judgement.scores
    own = list(battery.of_role("trait", "decoy", "given", "persona"))
    known = np.nan_to_num(scores.z[:, own], nan=-np.inf)
    z = np.where(scores.adjusted[:, own] <= alpha, known, -np.inf)
    if not own or not z.max() > 0:
        return judgement
    # By z: the smallest p-value that permutations can give is often many directions'.
    layer, column = np.unravel_index(int(z.argmax()), z.shape)
    direction = own[int(column)]
    p_value = float(scores.adjusted[layer, direction])
    reason = (
        f"their gradients point furthest along {battery.names[direction]} at block "
        f"{battery.layers[int(layer)]} (max-T p = {p_value:.2g}), which by itself names "
        "nothing: more rows may tell"
    )
    return replace(judgement, reasons=(*judgement.reasons, reason))


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
    # The true share is one of the mixture's at best: that costs their number.
    ahead = enough + math.log(len(FRACTIONS))
    since = race.screened
    if evidence["steer"] >= enough and race.lead(steer, prompt, since=since) >= ahead:
        return "steer"
    if evidence["prompt"] >= enough and race.lead(prompt, steer, since=since) >= ahead:
        return "prompt"
    return "unknown"


def refined(
    judgement: Judgement, meter: Meter, rows: Sequence[Row], tell: Tell
) -> Judgement:
    """Block and dose of the leading vector, by likelihood around where it was screened.

    First the blocks at the screened dose, then doses at the best block, then doses ever
    closer to it: rows of a strong vector do not look like those of one that is a tenth
    weaker.
    """
    battery = meter.battery
    direction = battery.names.index(judgement.direction or "")
    centre = battery.layers.index(judgement.layer or 0)
    raced = rows[len(rows) // 2 :][:_REFINED]
    layers = range(
        max(0, centre - _AROUND), min(len(battery.layers), centre + _AROUND + 1)
    )
    steps, done = len(layers) + len(FINER_DOSES) + 2 * _HALVINGS, 0

    def won(places: Sequence[tuple[int, float]]) -> list[float]:
        nonlocal done
        asked = [
            vector_hypothesis(meter.model, battery, direction, layer, dose)
            for layer, dose in places
        ]
        meter.scan(raced, asked)  # cheaper together
        done += len(asked)
        tell("block and dose", done, steps)
        return [mixed_evidence(meter.ratios(raced, h)) for h in asked]

    screened = _dose(judgement, battery, centre)
    layer = layers[int(np.argmax(won([(layer, screened) for layer in layers])))]
    dose = _best_dose(lambda doses: won([(layer, dose) for dose in doses]))
    where = (
        f"looked at more closely, block {battery.layers[layer]} at dose {dose:g} does "
        "best"
    )
    *first, last = judgement.reasons
    return replace(
        judgement, layer=battery.layers[layer], dose=dose, reasons=(*first, where, last)
    )


def _best_dose(won: Callable[[Sequence[float]], Sequence[float]]) -> float:
    """The best of `FINER_DOSES`, or of those beside it where that is clearly better.

    Weak rows do not tell doses apart; what is found among them would be noise.
    """
    known = dict(zip(FINER_DOSES, won(FINER_DOSES), strict=True))
    coarse = dose = max(FINER_DOSES, key=lambda each: known[each])
    place = FINER_DOSES.index(dose)
    low, _, high = (_WEAKEST, *FINER_DOSES, _STRONGEST)[place : place + 3]
    for _ in range(_HALVINGS):
        below, above = (round(math.sqrt(end * dose), 3) for end in (low, high))
        known |= zip((below, above), won((below, above)), strict=True)
        near = (low, below, dose, above, high)
        place = max((1, 2, 3), key=lambda i: known[near[i]])
        low, dose, high = near[place - 1 : place + 2]
    return dose if known[dose] - known[coarse] > _CLEARLY else coarse


def _rounded(race: Race) -> tuple[str, ...]:
    """That rounding hides small differences, where it does."""
    noise = math.sqrt(race.rounding)
    if noise < _ROUNDED:
        return ()
    reason = (
        f"two readings of one row differ by up to {noise:.2f} nats (standard deviation) "
        "by rounding alone, which is held against nobody: in float32 (--dtype float32) "
        "fewer rows tell personas apart"
    )
    return (reason,)


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
        rounding=judgement.race.rounding,
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
        reasons = (*judgement.reasons, reason, *_rounded(race))
        return replace(judgement, reasons=reasons)
    if role == "decoy":
        reason = f"the persona that is left, {name!r}, is a decoy: no trait is named"
        return replace(judgement, reasons=(*judgement.reasons, reason))
    reason = f"{scored} rows beat every persona but {name!r} at {settings.alpha:g}"
    return replace(
        judgement, verdict="trait", trait=name, reasons=(*judgement.reasons, reason)
    )
