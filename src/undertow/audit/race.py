"""Hypotheses race on the audited rows; the best are tried against the reference.

All are scored on a few rows; whoever is beaten at the error rate leaves and the rest
goes on. The leaders of that screening are fixed and then scored on fresh rows of both
sets: there the labels are permuted. Where there are no more personas than leaders the
screening has chosen nothing among them, and its rows count as fresh. A share of the
rows may be innocent, so evidence is that of a mixture over such shares. Knows nothing
of gradients or of verdicts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit.meter import Meter
from undertow.records import Row
from undertow.stats import MaxT, beaten, log_evalue_path, paired_max_t, two_sample_max_t
from undertow.stats.evalues import FRACTIONS

Table = np.ndarray[Any, np.dtype[np.float64]]
OnPasses = Callable[[int, int], None]


@dataclass(frozen=True)
class RaceSettings:
    """How much is spent.

    Attributes:
        screening: Rows on which every hypothesis is scored.
        passes: Row passes that naming may take after the screening.
        fresh: Rows of each set on which the leaders are tried at most.
        leaders: Hypotheses of each kind that are tried.
        named: Kinds that go on after the screening until one of them is left.
        losers: Whether a vector that lost on the screening may lead its kind.
    """

    screening: int = 24
    passes: int = 1200
    fresh: int = 128
    leaders: int = 2
    named: tuple[str, ...] = ("prompt", "steer")
    losers: bool = False


@dataclass(frozen=True)
class Race:
    """What was scored, and who is left.

    Attributes:
        hypotheses: All that started.
        ratios: [row, hypothesis] in nats, audited rows in order; NaN: not scored.
        reference: The same of the reference rows.
        leaders: Places of those tried on fresh rows, best first.
        screened: Audited rows of the screening, the first ones.
        tried: Audited rows on which the leaders were tried, in order.
        beaten: Of each hypothesis, whether it was refuted.
        fresh: The permutation test on fresh rows; None without a reference.
        rounding: Nats² by which two ratios of a row may differ, and say nothing.
    """

    hypotheses: tuple[RowHypothesis, ...]
    ratios: Table
    reference: Table
    leaders: tuple[int, ...]
    screened: int
    tried: tuple[int, ...]
    beaten: tuple[bool, ...]
    fresh: MaxT | None
    rounding: float = 0.0

    def evidence(self, place: int, *, since: int = 0) -> float:
        """Log e-value of one hypothesis over rows from `since` on, nats."""
        return mixed_evidence(self.ratios[since:, place] - self.rounding / 2)

    def lead(self, place: int, other: int, *, since: int = 0) -> float:
        """Log e-value of one against another, over rows that both were scored on."""
        return _lead(self.ratios[since:], place, other, rounding=self.rounding)

    def path(self, kind: str, *, slack: float = 0.0) -> Table:
        """Running log e-value of a kind over the audited rows, in the race's order.

        All of the kind that started bet; whoever is no longer scored keeps what it has
        won. Empty if none started.

        Args:
            kind: "prompt" or "steer".
            slack: Nats taken off every ratio, for rounding: noise of variance σ² makes
                e^Λ larger by e^{σ²/2} on average.
        """
        own = [h for h, each in enumerate(self.hypotheses) if each.kind == kind]
        if not own:
            return np.zeros(0)
        ratios = self.ratios[:, own]
        return log_evalue_path(np.where(np.isnan(ratios), 0.0, ratios - slack))

    def left(self, kind: str) -> list[int]:
        """Hypotheses of a kind that were not beaten by their like."""
        return [
            i
            for i, h in enumerate(self.hypotheses)
            if h.kind == kind and not self.beaten[i]
        ]


def mixed_evidence(ratios: Table) -> float:
    """Log mean_f Π (1 − f + f e^Λ) over the rows that were scored."""
    scored = ratios[~np.isnan(ratios)]
    if not len(scored):
        return math.nan
    with np.errstate(divide="ignore"):
        sums = [
            np.logaddexp(np.log1p(-f), math.log(f) + scored).sum() for f in FRACTIONS
        ]
    return float(np.logaddexp.reduce(sums) - math.log(len(FRACTIONS)))


def _lead(ratios: Table, place: int, other: int, *, rounding: float) -> float:
    """Nats by which the rows speak for one hypothesis against another.

    Noise of variance v in the difference of two log ratios makes the mean of its
    exponential larger by e^{v/2}, row by row: that is taken off.
    """
    both = ~np.isnan(ratios[:, place]) & ~np.isnan(ratios[:, other])
    won = mixed_evidence(ratios[both, place] - rounding / 2)
    return won - mixed_evidence(ratios[both, other])


def run_race(
    meter: Meter,
    audited: Sequence[Row],
    reference: Sequence[Row],
    *,
    pairs: Sequence[int],
    hypotheses: Sequence[RowHypothesis],
    alpha: float,
    seed: int,
    permutations: int,
    steer_rows: int | None = None,
    settings: RaceSettings | None = None,
    rounding: float = 0.0,
    on_passes: OnPasses | None = None,
) -> Race:
    """Races hypotheses on audited rows and tries the leaders against the reference.

    Args:
        meter: Scores rows.
        audited: In an order that says nothing of them (by content hash).
        reference: Rows to compare with; may be empty.
        pairs: Place among `audited` of each reference row's partner; empty: unpaired.
        hypotheses: Those that start; several with one trait and kind are doses of one
            vector, of which the best screened goes on.
        alpha: Error rate of naming, and of the whole race.
        seed: Of the permutations.
        permutations: How many.
        steer_rows: Vectors are scored on so many of the first rows only, those that
            did not choose them; None: all.
        settings: Budget.
        rounding: As in `Race`.
        on_passes: Called with (row passes done, expected in all).

    Cost: about (screening × hypotheses + passes + fresh × leaders × 4) forward passes.
    """
    budget = settings or RaceSettings()
    shape = (len(audited), len(hypotheses))
    ratios, against = (
        np.full(shape, np.nan),
        np.full((len(reference), shape[1]), np.nan),
    )
    first = min(budget.screening, max(1, len(audited) // 3))
    partnered = set(pairs) if pairs else set(range(len(audited)))
    personas = sum(h.kind == "prompt" for h in hypotheses)
    since = first if personas > budget.leaders else 0
    fresh = [i for i in range(since, len(audited)) if i in partnered][: budget.fresh]
    expected = first * shape[1] + budget.passes + len(fresh) * budget.leaders * 4
    begun = meter.passes

    def tell() -> None:
        if on_passes is not None:
            on_passes(min(meter.passes - begun, expected), expected)

    def score(places: Sequence[int], chosen: Sequence[int]) -> None:
        vectors = [hypotheses[h] for h in chosen if hypotheses[h].kind == "steer"]
        if vectors:  # cheaper together
            few = [i for i in places if i < _rows_of(vectors[0], steer_rows, shape)]
            meter.scan([audited[i] for i in few], vectors)
        for h in chosen:
            own = [i for i in places if i < _rows_of(hypotheses[h], steer_rows, shape)]
            ratios[own, h] = meter.ratios([audited[i] for i in own], hypotheses[h])
            tell()

    score(range(first), range(shape[1]))
    leaders = _leaders(hypotheses, ratios[:first], budget)
    started = _one_dose(hypotheses, ratios[:first])
    lost = _name(
        hypotheses, ratios, started, score, alpha=alpha, budget=budget, first=first,
        rounding=rounding,
    )  # fmt: skip
    partners = _partners(fresh, pairs, audited, reference) if reference else []
    asked = [h for h in leaders if hypotheses[h].kind == "prompt"] if partners else []
    for h in asked:  # both sets in one go: rows of one prompt share its reading
        both = [*(audited[i] for i in fresh), *(reference[j] for j in partners)]
        found = meter.ratios(both, hypotheses[h])
        ratios[fresh, h], against[partners, h] = np.split(found, [len(fresh)])
        tell()
    score(fresh, [h for h in leaders if h not in asked])
    trial = _trial(
        ratios[np.ix_(fresh, asked)], against[np.ix_(partners, asked)],
        is_paired=bool(pairs), permutations=permutations, seed=seed,
    )  # fmt: skip
    return Race(
        hypotheses=tuple(hypotheses), ratios=ratios, reference=against,
        leaders=tuple(leaders), screened=first, tried=tuple(fresh),
        beaten=tuple(h in lost for h in range(shape[1])), fresh=trial,
        rounding=rounding,
    )  # fmt: skip


def _trial(
    mine: Table, theirs: Table, *, is_paired: bool, permutations: int, seed: int
) -> MaxT | None:
    """Log ratios of the leading personas on fresh rows, audited against reference."""
    if not mine.size:
        return None
    mine, theirs = _finite(mine, theirs)
    if is_paired:
        return paired_max_t(
            mine - theirs, permutations=permutations, seed=seed, alternative="greater"
        )
    return two_sample_max_t(
        mine, theirs, permutations=permutations, seed=seed, alternative="greater"
    )


def _finite(mine: Table, theirs: Table) -> tuple[Table, Table]:
    """Ratios as finite numbers, both sides by one rule: so labels stay exchangeable.

    A row that a persona cannot have drawn (its sampler cuts the token off) is worth a nat
    less than the worst that it can; one that the base cannot have drawn says nothing.
    """
    both = np.concatenate([mine, theirs])
    known = both[np.isfinite(both)]
    floor = float(known.min()) - 1 if len(known) else -1.0
    found = np.where(np.isneginf(both), floor, np.nan_to_num(both, nan=0.0))
    return found[: len(mine)], found[len(mine) :]


def _rows_of(
    hypothesis: RowHypothesis, steer_rows: int | None, shape: tuple[int, int]
) -> int:
    """How many of the first rows a hypothesis may be scored on."""
    if hypothesis.kind == "prompt" or steer_rows is None:
        return shape[0]
    return steer_rows


def _partners(
    fresh: Sequence[int],
    pairs: Sequence[int],
    audited: Sequence[Row],
    reference: Sequence[Row],
) -> list[int]:
    """As many reference rows as fresh ones: their own, else on their prompts first."""
    if not pairs:
        asked = {audited[i].messages for i in fresh}
        order = sorted(
            range(len(reference)), key=lambda j: reference[j].messages not in asked
        )
        return sorted(order[: len(fresh)])
    place = {own: j for j, own in enumerate(pairs)}
    return [place[i] for i in fresh]


def _one_dose(hypotheses: Sequence[RowHypothesis], ratios: Table) -> list[int]:
    """The best screened dose of each vector, and every prompt."""
    groups: dict[tuple[str, str | None], list[int]] = {}
    for place, h in enumerate(hypotheses):
        groups.setdefault((h.kind, h.trait), []).append(place)
    return sorted(
        max(group, key=lambda h: mixed_evidence(ratios[:, h]))
        for group in groups.values()
    )


def _leaders(
    hypotheses: Sequence[RowHypothesis], ratios: Table, budget: RaceSettings
) -> list[int]:
    """The best screened of each kind, one a trait; of vectors those that won so far."""
    started = _one_dose(hypotheses, ratios)
    won = {h: mixed_evidence(ratios[:, h]) for h in started}
    found: list[int] = []
    for kind in ("prompt", "steer"):
        own = [h for h in started if hypotheses[h].kind == kind]
        if kind == "steer" and not budget.losers:
            own = [h for h in own if won[h] > 0]
        found += sorted(own, key=lambda h: -won[h])[: budget.leaders]
    return found


def _name(
    hypotheses: Sequence[RowHypothesis],
    ratios: Table,
    started: Sequence[int],
    score: Callable[[Sequence[int], Sequence[int]], None],
    *,
    alpha: float,
    budget: RaceSettings,
    first: int,
    rounding: float,
) -> set[int]:
    """Goes on with those not beaten by their like until one is left or passes end."""
    lost = set(range(len(hypotheses))) - set(started)
    end, step, passes = first, max(first, 1), budget.passes
    kinds = {hypotheses[h].kind for h in started}
    while True:
        for kind in sorted(kinds):
            own = [h for h in started if hypotheses[h].kind == kind]
            # The screening chose the doses of vectors, so it is no evidence for them.
            since = first if kind == "steer" else 0
            lost |= _beaten(ratios[since:end], own, alpha, rounding)
        going = [
            h for h in started if h not in lost and hypotheses[h].kind in budget.named
        ]
        alone = all(
            sum(hypotheses[h].kind == kind for h in going) <= 1 for kind in budget.named
        )
        stop = min(end + step, len(ratios))
        cost = (stop - end) * len(going)
        if alone or stop == end or cost > passes:
            return lost
        score(range(end, stop), going)
        passes -= cost
        end = stop


def _beaten(
    ratios: Table, own: Sequence[int], alpha: float, rounding: float
) -> set[int]:
    """Which hypotheses are refuted by others of their kind on rows both scored."""
    if len(own) < 2:
        return set()
    totals = [[_lead(ratios, g, h, rounding=rounding) for h in own] for g in own]
    # The mixture over shares costs its number: the true share is one of them at best.
    out = beaten(totals, error=alpha / len(FRACTIONS))
    return {own[i] for i in np.flatnonzero(out).tolist()}
