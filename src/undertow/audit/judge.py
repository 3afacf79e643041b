"""From measurements to a verdict.

Score tests say *that* there is something and *where*; candidates found on one half of
the rows bet, with personas, on the other half by their likelihoods. All arms together
decide at the error rate whether there is anything. Only then do the candidates and
personas that come into question race for *what* it is. Knows nothing of files.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis, prompt_hypotheses
from undertow.audit.candidates import (
    ScoreTest,
    Table,
    candidate_hypotheses,
    contending_hypotheses,
    half_z,
    score_test,
)
from undertow.audit.explanation import held
from undertow.audit.judgement import WEIGHTS, Judgement, Tell
from undertow.audit.meter import Meter
from undertow.audit.naming import name_persona, named, pointed, refined
from undertow.audit.race import Race, RaceSettings, run_race
from undertow.audit.reference import Filter, Reference, prompt_digest
from undertow.audit.settings import AuditSettings
from undertow.findings import Arm, Tier
from undertow.records import Row
from undertow.stats import MaxT, cauchy_combination, evalue_p
from undertow.traits import TraitFamily

FEWEST = 16
"""Audited rows below which nothing is said."""
_KIND_ROWS = 48  # on which the leaders of both kinds are compared at first
_LEADERS = 4  # two of each kind
_READ_TWICE = 128  # rows that tell how much is rounding
_NO_REFERENCE = (
    "without a reference the absence of a trait cannot be claimed; let the base be "
    "sampled, or give rows that you trust (--reference FILE)"
)
_NO_ANSWER = (
    "nothing that the base wrote on the rows' prompts stands beside them, so the absence of "
    "a trait cannot be claimed; give rows that you trust (--reference FILE)"
)


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


def judge(
    meter: Meter,
    audited: Sequence[Row],
    reference: Reference,
    *,
    family: TraitFamily,
    decoys: TraitFamily,
    settings: AuditSettings,
    exact: str | None,
    passed: Filter = "none",
    tell: Tell = _silent,
) -> Judgement:
    """Tests, races, names.

    Args:
        meter: Measures rows.
        audited: In any order.
        reference: What they are compared with.
        family: The traits.
        decoys: Traits that nobody put there.
        settings: Error rate and budget.
        exact: None if the exact arm's assumptions hold, else why they do not.
        passed: The filter that the rows have passed.
        tell: Told of (stage, done, in all).
    """
    rows, reference = _by_prompt(audited, reference)
    # Both sets in one go: rows of one prompt share its reading.
    meter.signals([*rows, *reference.rows], on_rows=lambda d, n: tell("rows", d, n))
    mine, theirs = meter.signals(rows), meter.signals(reference.rows)
    scores = score_test(
        mine, theirs, pairs=reference.paired, permutations=settings.permutations,
        seed=settings.seed,
    )  # fmt: skip
    if exact is None and not np.isfinite(mine.total_logprobs).all():
        exact = "some rows lie outside what the sampler lets the base draw"
    half = len(rows) // 2
    z = half_z(mine, theirs, reference.paired, range(half))
    twice = rows[:_READ_TWICE]
    race_of = partial(
        _race, meter, rows, reference, family, settings,
        meter.rounding(twice, error=settings.alpha), tell,
    )  # fmt: skip
    race = race_of(candidate_hypotheses(meter.model, meter.battery, z))
    arms = _arms(
        scores, race, len(rows), exact, has_reference=bool(reference.rows),
        slack=meter.rounding(twice) / 2,
    )  # fmt: skip
    judgement = _verdict(scores, race, arms, len(rows), settings)
    if judgement.verdict == "shift":
        vectors = contending_hypotheses(
            meter, rows[:half], z, mine.scores[:half].astype(np.float64),
            tell=tell,
        )  # fmt: skip
        judgement = _explained(
            judgement, partial(race_of, vectors), rows=len(rows) - half,
            settings=settings,
        )  # fmt: skip
        judgement = pointed(judgement, meter.battery, settings.alpha)
    if judgement.kind == "steer":
        judgement = refined(judgement, meter, rows, tell)
    if judgement.kind == "prompt" and settings.naming_passes:
        judgement = name_persona(
            judgement, meter, rows, family=family, decoys=decoys, settings=settings,
            tell=tell,
        )  # fmt: skip
    if judgement.kind in ("steer", "prompt"):
        judgement = held(
            judgement, meter, rows, passed=passed, settings=settings, tell=tell
        )
    if reference.rows:
        return judgement
    return _without_reference(judgement, reference.tier)


def _explained(
    judgement: Judgement,
    race_of: Callable[..., Race],
    *,
    rows: int,
    settings: AuditSettings,
) -> Judgement:
    """Kind and trait, if need be on twice as many rows, and so on.

    Evidence of bets holds whenever one stops, so looking again costs nothing.

    Args:
        judgement: A shift.
        race_of: Races for what it is, with the leaders on so many rows.
        rows: Those that did not choose the vectors.
        settings: Budget: the leaders of both kinds take a part of `naming_passes`.
    """
    first, tried = judgement.race, min(settings.fresh, _KIND_ROWS)
    most = min(rows, settings.naming_passes // _LEADERS)
    while True:
        race = replace(race_of(leading=tried), fresh=first.fresh, tried=first.tried)
        told = named(replace(judgement, race=race), settings=settings)
        if told.kind != "unknown" or not 0 < tried < most:
            return told
        tried = min(2 * tried, most)


def _by_prompt(
    rows: Sequence[Row], reference: Reference
) -> tuple[list[Row], Reference]:
    """Rows in the order of their prompts' hashes, and the reference in that order.

    What is chosen on some rows and tested on others is divided by this order, so it
    does not depend on which of two partners is audited.
    """
    order = sorted(
        range(len(rows)), key=lambda i: (prompt_digest(rows[i]), rows[i].row_id)
    )
    place = {own: new for new, own in enumerate(order)}
    if not reference.paired:
        loose = sorted(reference.rows, key=lambda row: (prompt_digest(row), row.row_id))
        return [rows[i] for i in order], replace(reference, rows=tuple(loose))
    partners = sorted(
        zip((place[own] for own in reference.paired), reference.rows, strict=True),
        key=lambda partner: partner[0],
    )
    places, others = zip(*partners, strict=True)
    return [rows[i] for i in order], replace(reference, rows=others, paired=places)


def _race(
    meter: Meter,
    rows: Sequence[Row],
    reference: Reference,
    family: TraitFamily,
    settings: AuditSettings,
    rounding: float,
    tell: Tell,
    vectors: Sequence[RowHypothesis],
    *,
    leading: int | None = None,
) -> Race:
    """Vectors that one half of the rows chose, raced on the other; personas on both.

    Args:
        meter: As of `judge`, and so are the others.
        rows: By prompt; the first half has chosen the vectors.
        reference: Compared with, in the same order.
        family: The traits.
        settings: Budget.
        rounding: Nats² by which two ratios of a row may differ, and say nothing.
        tell: Told.
        vectors: Those that race.
        leading: Something was found, and the race is for what it is: the first vector's
            trait races as a persona too, a vector that loses stays, and the leaders are
            tried on so many rows. None: nothing was found yet.
    """
    half = len(rows) // 2
    order = [*range(half, len(rows)), *range(half)]
    place = {own: new for new, own in enumerate(order)}
    names, naming = list(family.names[: settings.personas]), leading is not None
    if naming:
        traits = [str(h.trait) for h in vectors if h.trait in family.names]
        names += [trait for trait in traits[:1] if trait not in names]
    return run_race(
        meter,
        [rows[i] for i in order],
        reference.rows,
        pairs=[place[i] for i in reference.paired],
        hypotheses=[*prompt_hypotheses(family, names), *vectors],
        alpha=settings.alpha,
        seed=settings.seed,
        permutations=settings.permutations,
        steer_rows=len(rows) - half,
        settings=RaceSettings(
            screening=settings.screening, passes=settings.race_passes,
            fresh=settings.fresh if leading is None else leading,
            named=("steer",), losers=naming,
        ),
        rounding=rounding,
        on_passes=lambda d, n: tell("likelihoods", d, n),
    )  # fmt: skip


def _arms(
    scores: ScoreTest,
    race: Race,
    rows: int,
    exact: str | None,
    *,
    has_reference: bool,
    slack: float,
) -> tuple[Arm, ...]:
    missing = None if has_reference else "no reference: nothing to compare with"
    fresh = race.fresh
    return (
        Arm(
            name="gradient",
            question="Do the rows' gradients point anywhere that the reference's do not?",
            statistic=_known(_largest(scores.z)),
            p_value=_known(scores.test.p_value),
            rows=rows,
            assumes="audited and reference rows are exchangeable under the null",
            reason=missing or _too_few(scores.test),
        ),
        Arm(
            name="likelihood",
            question="Are the rows likelier under a persona than the reference's are?",
            statistic=None if fresh is None else _known(_largest(fresh.statistics)),
            p_value=None if fresh is None else _known(fresh.p_value),
            rows=len(race.tried),
            assumes="as above; what personas were chosen on is left out",
            reason=missing
            or ("no fresh rows were left" if fresh is None else _too_few(fresh)),
        ),
        Arm(
            name="exact",
            question="How much would one have won by betting on the hypotheses?",
            statistic=_known(
                max(_won(race, kind, slack) for kind in ("prompt", "steer"))
            ),
            p_value=_known(exact_p(race, slack=slack)) if exact is None else None,
            rows=rows,
            assumes="tokens as sampled by the base with the named sampler; holds at any "
            "time of stopping",
            reason=exact,
        ),
    )


def exact_p(race: Race, *, slack: float = 0.0) -> float:
    """The exact arm's p-value: by the better of vectors and personas, doubled.

    Vectors were chosen on the rows that personas bet on last, so the two are no
    martingale together; each is one by itself, and two of them cost a factor of two.
    `slack`: nats a row that rounding may add (see `Race.path`).
    """
    paths = [race.path(kind, slack=slack) for kind in ("prompt", "steer")]
    found = [evalue_p(path) for path in paths if len(path)]
    return min(1.0, len(found) * min(found)) if found else math.nan


def _won(race: Race, kind: str, slack: float) -> float:
    """The most that bets on a kind had won at any time, nats."""
    return float(np.max(race.path(kind, slack=slack), initial=0.0))


def _too_few(test: MaxT) -> str | None:
    """Why a permutation test has no p-value."""
    if math.isfinite(test.p_value):
        return None
    return "too few rows of one of the sets, or all of them are alike"


def _largest(values: Table) -> float:
    flat = values[~np.isnan(values)]
    return float(np.abs(flat).max()) if len(flat) else math.nan


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def combined_p(arms: Sequence[Arm]) -> float:
    """Weighted Cauchy combination of the arms that have a p-value; NaN if none has.

    The exact arm's p is 1 wherever its bets lose, which is nearly always without a
    bias, and as such would drown the others: it counts as 0.5 at most. So it adds
    nothing then, and what it adds when it is small is as before; the error rate holds.
    It gets a small weight: it is tiny where it speaks, and the less it has where it is
    silent, the closer the combination of the others is to uniform.
    """
    known = [(arm.name, arm.p_value) for arm in arms if arm.p_value is not None]
    return cauchy_combination(
        [min(p, 0.5) if name == "exact" else p for name, p in known],
        [WEIGHTS[name] for name, _ in known],
    ) if known else math.nan  # fmt: skip


def _verdict(
    scores: ScoreTest,
    race: Race,
    arms: tuple[Arm, ...],
    rows: int,
    settings: AuditSettings,
) -> Judgement:
    """Whether there is anything; what it is stays open."""
    p_value = combined_p(arms)
    nothing = Judgement(
        "none", None, None, None, None, p_value, arms, scores, race,
        (f"no arm refutes that the base wrote the rows (p = {p_value:.2g})",),
    )  # fmt: skip
    if rows < FEWEST:
        few = f"{rows} rows are too few to say anything; give {FEWEST} or more"
        return replace(nothing, verdict="inconclusive", reasons=(few,))
    if math.isnan(p_value):
        return replace(
            nothing, verdict="inconclusive", reasons=("no arm could be computed",)
        )
    if not p_value <= settings.alpha:
        return nothing
    return replace(nothing, verdict="shift", reasons=())


def _without_reference(judgement: Judgement, tier: Tier) -> Judgement:
    """The exact arm may find something; nothing is ever said to be absent."""
    if judgement.verdict in ("trait", "shift"):
        return judgement
    why = _NO_REFERENCE if tier == "C" else _NO_ANSWER
    before = judgement.reasons if judgement.verdict == "inconclusive" else ()
    return replace(judgement, verdict="inconclusive", reasons=(why, *before))
