"""Score tests over the battery, and the vectors that they suggest as hypotheses.

Scores say *that* there is something and *where*. What it is has to be told by
likelihoods (see `race`), since the largest score may be a wrong direction's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import stats as distributions

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit.meter import Meter
from undertow.audit.race import mixed_evidence
from undertow.audit.signals import Battery, RowSignals
from undertow.interventions.steering import SteeringVector
from undertow.models.loading import Model
from undertow.records import Row
from undertow.stats import MaxT, paired_max_t, two_sample_max_t

Table = np.ndarray[Any, np.dtype[np.float64]]

CANDIDATES = 2
"""Directions that bet."""
STANDS_OUT = 4.0
"""Standard deviations on the choosing half below which only the first direction races, at
one layer; about the largest of some fifty directions × thirty blocks of nothing."""
DOSES = (0.15, 0.3)
"""Relative doses at which a direction is screened."""
NAMING_DOSES = (0.15, 0.3, 0.45, 0.6)
"""Those at which directions race for a name."""
LARGEST, LIKELIEST = 2, 4
"""Directions that race for a name: by their scores, and by likelihood of a few rows."""
WEAK, STRONG = 0.3, 0.5
"""Relative doses at which directions are tried at every block."""
ROUNDS = ((1, 150), (2, 60), (4, 25), (8, 12))
"""Before that race: rows read by then, and places that are left after them."""
Option = tuple[int, int, float]  # a direction, a layer (its place) and a dose
_NEAR = 0.7  # of a direction's largest z: layers that come into question


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
    columns = math.prod(shape)  # not −1: there may be no reference rows
    mine, theirs = (
        side.scores.reshape(len(side.scores), columns).astype(np.float64)
        for side in (audited, reference)
    )
    if pairs:
        test = paired_max_t(
            mine[list(pairs)] - theirs, permutations=permutations, seed=seed
        )
    else:
        test = two_sample_max_t(
            mine, theirs, strata=(_buckets(audited), _buckets(reference)),
            permutations=permutations, seed=seed,
        )  # fmt: skip
    return ScoreTest(test, test.statistics.reshape(shape), test.adjusted.reshape(shape))


def _buckets(signals: RowSignals) -> list[int]:
    """The length bucket of each row: labels move between rows of like length only."""
    return [int(tokens).bit_length() for tokens in signals.tokens]


def half_z(
    mine: RowSignals, theirs: RowSignals, pairs: Sequence[int], chooser: Sequence[int]
) -> Table:
    """Studentised differences by layer and direction, of the choosing half alone.

    As standard deviations: a t of few rows counts as the normal quantile of its p.
    """
    wanted = set(chooser)
    if pairs:
        kept = [j for j, own in enumerate(pairs) if own in wanted]
        change = mine.scores[[pairs[j] for j in kept]] - theirs.scores[kept]
        return _one_sample(change.astype(np.float64))
    own = mine.scores[list(chooser)].astype(np.float64)
    if not len(theirs.scores):
        return _one_sample(own)
    other = theirs.scores.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = own.var(0, ddof=1) / len(own) + other.var(0, ddof=1) / len(other)
        return _normal((own.mean(0) - other.mean(0)) / np.sqrt(spread), len(own) - 1)


def _one_sample(values: Table) -> Table:
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = values.mean(0) / (values.std(0, ddof=1) / math.sqrt(len(values)))
    return _normal(t, len(values) - 1)


def _normal(t: Table, degrees: int) -> Table:
    """Student's t as the normal quantile of the same probability, sign kept."""
    tail = distributions.t.logsf(np.abs(t), max(1, degrees))
    size = -distributions.norm.ppf(np.exp(tail))
    # Beyond the smallest number that floats hold, keep the order of t.
    size = np.where(np.isinf(size), 38 + np.log1p(np.abs(t)), size)
    found: Table = np.sign(t) * size
    return found


def candidate_hypotheses(
    model: Model, battery: Battery, z: Table
) -> list[RowHypothesis]:
    """The directions that stand out most, each at a few layers and several doses.

    The first of them races even if it does not stand out, at its best layer only: among
    rows of which many are innocent it does not, and may still win its bets.
    """
    best = _best(z)
    chosen = _by_score(battery, z)[:CANDIDATES]
    places = {k: _spread(z[:, k]) for k in chosen if best[k] > STANDS_OUT}
    if not places and best[chosen[0]] > 0:
        places = {chosen[0]: [int(np.nanargmax(z[:, chosen[0]]))]}
    return [
        vector_hypothesis(model, battery, k, at, dose)
        for k, layers in places.items()
        for at in layers
        for dose in DOSES
    ]


def contending_hypotheses(
    meter: Meter,
    rows: Sequence[Row],
    z: Table,
    scores: Table,
    *,
    tell: Callable[[str, int, int], None],
) -> list[RowHypothesis]:
    """Directions that come into question for a name, each at its best layer.

    Scores are slopes at the untouched base, and a strong vector bends away from them:
    the largest score is often a wrong direction's, at a wrong layer, and the right one's
    can be negative. So all directions are tried at all layers (a block beside the right
    one, the right direction can be among the worst) at a strong dose, and where their
    score is positive at a weak one, on one suspicious row of the choosing half after
    another, and fewer go on each time. The largest scores race too: where a vector is
    weak they are right, and a few rows do not tell.

    Args:
        meter: Scores likelihoods.
        rows: The choosing half.
        z: [layer, direction], of that half.
        scores: [row, layer, direction], of that half.
        tell: Told of (stage, row passes done, in all).
    """
    best, ranked = _best(z), _by_score(meter.battery, z)
    if not best[ranked[0]] > -math.inf:
        return []
    first = int(np.nanargmax(z[:, ranked[0]]))
    far = np.argsort(-scores[:, first, ranked[0]])[: ROUNDS[-1][0]]
    few = [rows[i] for i in far.tolist()]
    layers = range(len(meter.battery.layers))
    everywhere = [(k, place, STRONG) for place in layers for k in ranked]
    everywhere += [
        (k, place, WEAK) for place in layers for k in ranked if z[place, k] > 0
    ]
    found = _searched(meter, few, everywhere, ROUNDS, partial(tell, "directions"))
    large = [(k, int(np.nanargmax(z[:, k]))) for k in ranked[:LARGEST] if best[k] > 0]
    beside = [
        (k, at) for k, place in large for at in layers[max(0, place - 1) : place + 2]
    ]
    raced = [*((k, place) for k, place, _ in found[:LIKELIEST]), *beside]
    near = dict.fromkeys((*place, dose) for place in raced for dose in NAMING_DOSES)
    tuned = _searched(
        meter, few, list(near), ((len(few), len(near)),), partial(tell, "doses")
    )
    # Rows that lie far out make doses look larger than they are: others choose those.
    return [
        vector_hypothesis(meter.model, meter.battery, k, place, dose)
        for k, place, _ in tuned
        for dose in NAMING_DOSES
    ]


def _searched(
    meter: Meter,
    few: Sequence[Row],
    options: Sequence[Option],
    rounds: Sequence[tuple[int, int]],
    tell: Callable[[int, int], None],
) -> list[Option]:
    """The best option of each direction that is left after all rounds, best first.

    What goes on is a direction at a layer, with all its doses.
    """
    alive = {o: vector_hypothesis(meter.model, meter.battery, *o) for o in options}
    doses = len({dose for *_, dose in options})
    counts = [len(alive), *(min(left * doses, len(alive)) for _, left in rounds)]
    steps = np.diff([0, *(rows for rows, _ in rounds)]).tolist()
    total = sum(s * c for s, c in zip(steps, counts, strict=False))  # or fewer
    done = read = 0
    for count, left in rounds:
        each = len(alive)

        def on_rows(rows: int, _: int, done: int = done, each: int = each) -> None:
            tell(done + rows * each, total)

        new = few[read:count]
        meter.scan(new, list(alive.values()), on_rows=on_rows)
        done += len(new) * each
        read = count
        won = {
            o: mixed_evidence(meter.ratios(few[:count], h)) for o, h in alive.items()
        }
        ranked = sorted(alive, key=lambda o: -won[o])
        kept = list(dict.fromkeys(o[:2] for o in ranked))[:left]
        alive = {o: alive[o] for o in ranked if o[:2] in kept}
    if done < total:
        tell(total, total)
    found: dict[int, Option] = {}
    for option in alive:
        found.setdefault(option[0], option)
    return list(found.values())


def _by_score(battery: Battery, z: Table) -> list[int]:
    """The directions that have a name, the largest score at any layer first."""
    best = _best(z)
    named = battery.of_role("trait", "decoy", "given", "persona")
    return sorted(named, key=lambda k: -best[k])


def _best(z: Table) -> Table:
    """[direction]: the largest score at any layer; −inf where none is known."""
    found: Table = np.max(np.where(np.isnan(z), -np.inf, z), axis=0)
    return found


def _spread(z: Table) -> list[int]:
    """The lowest, best and highest of the layers where a direction stands out."""
    near = np.flatnonzero(z >= _NEAR * np.nanmax(z)).tolist()
    return sorted({near[0], int(np.nanargmax(z)), near[-1]})


def vector_hypothesis(
    model: Model, battery: Battery, direction: int, layer: int, dose: float
) -> RowHypothesis:
    """The rows were steered along one direction, at one layer (a place), at one dose."""
    name, role = battery.names[direction], battery.roles[direction]
    return RowHypothesis(
        name=f"{name} vector, block {battery.layers[layer]}, dose {dose:g}",
        kind="steer",
        trait=name,
        role="trait" if role in ("trait", "given") else "decoy",
        vector=battery_vector(model, battery, direction, layer),
        strength=dose * battery.norms[layer],
    )


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
