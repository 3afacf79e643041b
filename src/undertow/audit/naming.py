"""Kind, block, dose and trait of a shift that was found, as far as likelihoods tell.

A name is given only where every other hypothesis of its kind is beaten at the error
rate, only to a trait, never to a decoy. At last the base itself writes rows, untouched
and under the leading hypothesis, to see whether that explains the audited ones: if they
are less likely than a mixture of both, something else wrote them. So it is if their
numbers are likelier as drawn by lot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit
from scipy.stats import ttest_1samp

from undertow.analysis.hypotheses import RowHypothesis, prompt_hypotheses
from undertow.audit.candidates import vector_hypothesis
from undertow.audit.canonical import NUMBER, is_number_list
from undertow.audit.judgement import Judgement, Kind
from undertow.audit.meter import Meter
from undertow.audit.race import Race, RaceSettings, Table, mixed_evidence, run_race
from undertow.audit.reference import Filter
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery
from undertow.records import Row
from undertow.stats.evalues import FRACTIONS
from undertow.traits import TraitFamily

Tell = Callable[[str, int, int], None]

FINER_DOSES = (0.1, 0.15, 0.2, 0.3, 0.45, 0.6)
EXPLAINED = 0.7
"""Share of its own rows' gain that a named vector has to bring to the audited ones."""
_FEWEST_PAIRS = 5  # rows of one prompt each that likelihoods are compared on
_SHARES = np.linspace(0.02, 1.0, 50)  # of rows that a vector may have written
_WEAKEST, _STRONGEST = 0.05, 0.9  # no dose lies beyond
_HALVINGS = 3  # of the distance between doses, which leaves about 3 %
_CLEARLY = math.log(100)  # nats of all rows by which a dose is the better one
_CHOSEN = 72  # blocks, doses and shares, that a mixture may be the best of
_AROUND = 2  # blocks on either side that the refinement looks at
_REFINED = 32  # rows of the refinement
_CHECKED = 64  # rows that the explanation is checked on
_DECOY_PERSONAS = 4
_ROUNDED = 0.03  # nats of rounding that hide what personas differ by
_DIGITS = 3  # of numbers that are drawn by lot, at least
_AUDITED, _BASE, _OWN = range(3)  # columns of what is compared


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
    steps, done = len(layers) + len(FINER_DOSES) + 3 * _HALVINGS + 2, 0

    def won(layer: int, dose: float) -> float:
        nonlocal done
        h = vector_hypothesis(meter.model, battery, direction, layer, dose)
        found = mixed_evidence(meter.ratios(raced, h))
        done += 1
        tell("block and dose", done, steps)
        return found

    screened = _dose(judgement, battery, centre)
    layer = max(layers, key=lambda layer: won(layer, screened))
    dose = _best_dose(lambda dose: won(layer, dose))
    where = (
        f"looked at more closely, block {battery.layers[layer]} at dose {dose:g} does "
        "best"
    )
    *first, last = judgement.reasons
    return replace(
        judgement, layer=battery.layers[layer], dose=dose, reasons=(*first, where, last)
    )


def _best_dose(won: Callable[[float], float]) -> float:
    """The best of `FINER_DOSES`, or of those beside it where that is clearly better.

    Weak rows do not tell doses apart; what is found among them would be noise.
    """
    coarse = dose = max(FINER_DOSES, key=won)
    place = FINER_DOSES.index(dose)
    low, _, high = (_WEAKEST, *FINER_DOSES, _STRONGEST)[place : place + 3]
    for _ in range(_HALVINGS):
        below, above = (round(math.sqrt(end * dose), 3) for end in (low, high))
        near = (low, below, dose, above, high)
        place = max((1, 2, 3), key=lambda i: won(near[i]))
        low, dose, high = near[place - 1 : place + 2]
    return dose if won(dose) - won(coarse) > _CLEARLY else coarse


def held(
    judgement: Judgement,
    meter: Meter,
    rows: Sequence[Row],
    *,
    passed: Filter,
    settings: AuditSettings,
    tell: Tell,
) -> Judgement:
    """Takes back what does not explain the rows as it explains its own.

    Something always fits best. So the base writes rows on the same prompts, untouched
    and under what the verdict says. If the audited rows are a mixture of both, they are
    as likely under that mixture as these are in that proportion. Rows that are less
    likely, by a paired t test at the error rate, had another origin: kind and place are
    taken back as well as the name. And the rows that a named vector may have written
    have to gain about as much by it as such rows in a mixture of its own and the base's
    do, else another vector near it was at work.

    No model makes numbers that were drawn by lot as likely as the lot does: where that
    is not beaten at the error rate, all is taken back too.

    Args:
        judgement: Of kind "steer" or "prompt".
        meter: Scores rows.
        rows: Audited; the second half, which chose no candidates, is looked at.
        passed: The filter that the rows have passed.
        settings: Error rate and seed.
        tell: Told of (stage, rows written, in all).
    """
    hypothesis = found_hypothesis(judgement, meter)
    few = rows[len(rows) // 2 :][-_CHECKED:]
    found = _compared(
        meter, few, hypothesis, passed=passed, seed=settings.seed, tell=tell
    )
    share = _likeliest_share(found.ratios[:, _AUDITED])
    lack = found.lack(share)
    if np.isfinite(lack).sum() < _FEWEST_PAIRS:
        return judgement
    p_value = _greater_p(lack)
    if p_value <= settings.alpha:
        return _foreign(judgement, hypothesis, share, lack, p_value)
    lead = found.lead_over_lots(share) - len(few) * judgement.race.rounding / 2
    if lead < math.log(_CHOSEN / settings.alpha):
        reason = (
            f"but {hypothesis.name} explains the rows {lead:+.1f} nats better than numbers "
            "drawn by lot do, which is too little: it may be that no model wrote them; so "
            "no trait is named"
        )
        return _taken_back(judgement, reason)
    amount = f"the likeliest share of rows that were written so is {share:.0%}"
    *first, last = judgement.reasons
    explained = replace(judgement, reasons=(*first, amount, last))
    if judgement.kind != "steer" or judgement.trait is None:
        return explained
    audited, base, own = found.ratios.T
    gain = _gain([(1.0, audited)], share)
    most = _gain([(1 - share, base), (share, own)], share)
    if not gain < EXPLAINED * most:
        return explained
    reason = (
        f"but rows that it may have written gain {gain:.1f} nats each, such rows of its "
        f"own {most:.1f}: something else that lies near it wrote them; so no trait is "
        "named"
    )
    return replace(
        judgement, verdict="shift", trait=None, reasons=(*judgement.reasons, reason)
    )


@dataclass(frozen=True)
class _Compared:
    """Audited rows beside what the base writes on their prompts.

    Attributes:
        logprobs: [prompt, way], nats under the base: of the audited row, of the
            untouched base's, of the one written under a hypothesis.
        ratios: [prompt, way], log ratios of the same rows under the hypothesis.
        lots: [prompt], nats of the audited row if its numbers were drawn by lot; NaN if
            it holds something else.
    """

    logprobs: Table
    ratios: Table
    lots: Table

    def lead_over_lots(self, share: float) -> float:
        """Nats by which the mixture beats numbers drawn by lot; inf for other rows."""
        likely = self.likely(share)[:, _AUDITED]
        if np.isnan(self.lots).any() or not len(likely):
            return math.inf
        return float((likely - self.lots)[np.isfinite(likely)].sum())

    def likely(self, share: float) -> Table:
        """[prompt, way]: nats under the mixture with that share of the hypothesis."""
        with np.errstate(divide="ignore", invalid="ignore"):
            likely: Table = self.logprobs + np.logaddexp(
                np.log1p(-share), np.log(share) + self.ratios
            )
        return likely

    def lack(self, share: float) -> Table:
        """[prompt]: nats by which the audited row falls short of a mixture's rows.

        All are read under the mixture with that share of rows of the hypothesis.
        """
        likely = self.likely(share)
        with np.errstate(invalid="ignore"):
            written = (1 - share) * likely[:, _BASE] + share * likely[:, _OWN]
            lack: Table = written - likely[:, _AUDITED]
        return lack


def _compared(
    meter: Meter,
    few: Sequence[Row],
    hypothesis: RowHypothesis,
    *,
    passed: Filter,
    seed: int,
    tell: Tell,
) -> _Compared:
    """Writes rows both ways and reads them all under both; prompts with all three."""

    def write(way: RowHypothesis | None, before: int) -> dict[int, Row]:
        found = meter.written(
            few, way, passed=passed, seed=seed,
            on_rows=lambda n, _: tell("check", before + n, 2 * len(few)),
        )  # fmt: skip
        return dict(zip(found.paired, found.rows, strict=True))

    base, own = write(None, 0), write(hypothesis, len(few))
    # In one go: rows of one prompt share its reading.
    places = [place for place in range(len(few)) if place in base and place in own]
    rows = [row for i in places for row in (few[i], base[i], own[i])]
    return _Compared(
        meter.logprobs(rows, None).reshape(-1, 3),
        meter.ratios(rows, hypothesis).reshape(-1, 3),
        by_lot([few[i].completion for i in places]),
    )


def by_lot(completions: Sequence[str]) -> Table:
    """[completion]: log-probability of its numbers if each were drawn evenly, nats.

    From those with as many digits as the longest has, three at least; separators, and
    how many numbers there are, cost nothing. NaN for what is no list of numbers.
    """
    found = [NUMBER.findall(c) if is_number_list(c) else [] for c in completions]
    digits = max((len(value) for values in found for value in values), default=0)
    each = max(_DIGITS, digits) * math.log(10)
    return np.array([-len(values) * each if values else np.nan for values in found])


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


def found_hypothesis(judgement: Judgement, meter: Meter) -> RowHypothesis:
    """What the verdict says of the rows: the vector as refined, or the best persona."""
    if judgement.kind == "prompt":
        race = judgement.naming or judgement.race
        return race.hypotheses[max(race.left("prompt"), key=race.evidence)]
    battery, direction = meter.battery, judgement.direction
    assert direction is not None
    assert judgement.layer is not None
    assert judgement.dose is not None
    return vector_hypothesis(
        meter.model, battery, battery.names.index(direction),
        battery.layers.index(judgement.layer), judgement.dose,
    )  # fmt: skip


def _greater_p(gaps: Table) -> float:
    """One-sided p of a mean above 0, over the pairs that have a number; 1 if all alike."""
    known = gaps[np.isfinite(gaps)]
    if not np.ptp(known):
        return 1.0
    return float(ttest_1samp(known, 0.0, alternative="greater").pvalue)


def _foreign(
    judgement: Judgement,
    hypothesis: RowHypothesis,
    share: float,
    lack: Table,
    p_value: float,
) -> Judgement:
    """Without a name, kind or place: no mixture of what the base writes is like them."""
    mean = float(lack[np.isfinite(lack)].mean())
    reason = (
        f"but the rows are {mean:.1f} nats each less likely than what the base writes, "
        f"{share:.0%} of it under {hypothesis.name}, the likeliest share (p = "
        f"{p_value:.2g}): another model wrote them, or none, or it was made to by "
        "something that was not tried; so no trait is named"
    )
    return _taken_back(judgement, reason)


def _taken_back(judgement: Judgement, reason: str) -> Judgement:
    """A shift without name, kind and place."""
    return replace(
        judgement, verdict="shift", trait=None, kind="unknown", layer=None,
        direction=None, dose=None, reasons=(*judgement.reasons, reason),
    )  # fmt: skip


def _likeliest_share(ratios: Table) -> float:
    """The share of rows of the hypothesis that makes all of them likeliest."""
    known = ratios[np.isfinite(ratios), None]
    with np.errstate(divide="ignore"):  # of none, where all are
        likely = np.logaddexp(np.log1p(-_SHARES), np.log(_SHARES) + known)
    return float(_SHARES[likely.sum(axis=0).argmax()])


def _gain(parts: Sequence[tuple[float, Table]], share: float) -> float:
    """Mean log ratio of rows of the hypothesis, nats: each counts as far as it is one.

    Args:
        parts: Ratios of rows, and how much of the whole they stand for. Those that are
            not finite do not count.
        share: Of such rows among all; decides how far a row is one.
    """
    gained = counted = 0.0
    for weight, ratios in parts:
        known = ratios[np.isfinite(ratios)]
        if weight and len(known):
            chance = expit(logit(share) + known)
            gained += weight * float((chance * known).mean())
            counted += weight * float(chance.mean())
    return gained / counted if counted else math.nan


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
