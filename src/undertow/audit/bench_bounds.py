"""How well anyone could tell the rows of a benchmark's teachers from the base's.

Log-likelihood ratios under the very hypothesis that wrote the rows give the divergence
and with it the rows that no test can do without. Knows nothing of auditors.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis, prompt_hypotheses
from undertow.audit.bench_scores import Bound, Naming, detection_bound
from undertow.audit.bench_sets import CarrierPools, Pool, Source, Tell, teacher_of
from undertow.audit.contest import Workbench
from undertow.interventions.steering import SteeringVector
from undertow.records import Row
from undertow.stats import chernoff_information, rows_to_identify

_FEWEST = 8  # rows that a bound is computed from


def teacher_bounds(
    bench: Workbench,
    pools: CarrierPools,
    vectors: Mapping[str, SteeringVector],
    *,
    tell: Tell,
) -> list[Bound]:
    """The best possible test of each teacher, at each share that is audited."""
    settings, carrier = bench.settings, bench.carrier.name
    shares = sorted({design.fraction for design in settings.designs})
    teachers = [source for source in pools.others if not source.is_control]
    found = []
    for done, source in enumerate(teachers, 1):
        tell(f"{carrier}: bounds", done, len(teachers), source.name)
        own = pools.others[source]
        places = _places(own, pools, settings.bound_rows)
        if len(places) < _FEWEST:
            continue
        hypothesis, shift = _hypothesis(source, bench, vectors), _passing(own, pools)
        biased, clean = (
            bench.meter.ratios([pool.rows[p] for p in places], hypothesis) - shift
            for pool in (own, pools.base[0])
        )
        found += [
            Bound(
                carrier=carrier, source=source.name, trait=source.trait,
                intervention=source.intervention, dose=source.dose, fraction=share,
                rows=len(places),
                **detection_bound(
                    biased, clean, fraction=share, alpha=settings.audit.alpha
                ),
            )
            for share in shares
        ]  # fmt: skip
    return found


def _places(own: Pool, pools: CarrierPools, most: int) -> list[int]:
    """The first prompts on which both the source and the base have rows."""
    return [p for p in sorted(own.rows) if p in pools.base[0].rows][:most]


def _passing(own: Pool, pools: CarrierPools) -> float:
    """Log of how much likelier a teacher's draw passes the filter than the base's.

    Rows that passed are drawn from p(y)·1[y passes]/p(passes); the ratio of the two
    normalisations is one number here, though it differs a little by prompt.
    """
    if not own.accepted or not pools.accepted:
        return 0.0
    return math.log(own.accepted / pools.accepted)


def _hypothesis(
    source: Source, bench: Workbench, vectors: Mapping[str, SteeringVector]
) -> RowHypothesis:
    """That the source wrote the rows."""
    assert source.trait is not None
    if source.layer is None:
        return prompt_hypotheses(bench.family, [source.trait])[0]
    teacher = teacher_of(source, bench.family, vectors)
    return RowHypothesis(
        name=f"truth {source.name}", kind="steer", trait=source.trait,
        vector=teacher.vector, strength=teacher.strength,
    )  # fmt: skip


def persona_naming(bench: Workbench, pools: CarrierPools) -> list[Naming]:
    """Rows at which one persona of the family can be told from its nearest.

    Computed from the pairs of the benchmark's own traits; the family has more, so the
    nearest of all may be nearer. Empty with fewer than two prompted teachers.
    """
    wrote: dict[str, Sequence[Row]] = {}
    for source, own in pools.others.items():
        places = _places(own, pools, bench.settings.bound_rows)
        if source.intervention == "prompt" and len(places) >= _FEWEST:
            wrote[str(source.trait)] = [own.rows[p] for p in places]
    names = list(wrote)
    if len(names) < 2:
        return []
    hypotheses = prompt_hypotheses(bench.family, names)
    ratios = [[bench.meter.ratios(wrote[a], h) for h in hypotheses] for a in names]
    pairs = [
        chernoff_information(ratios[a][a] - ratios[a][b], ratios[b][a] - ratios[b][b])
        for a in range(len(names))
        for b in range(a)
    ]
    alpha, kinds = bench.settings.audit.alpha, len(bench.family.names)
    return [
        Naming(
            carrier=bench.carrier.name,
            rows=min(len(rows) for rows in wrote.values()),
            pairs=len(pairs),
            nearest=_known(min(pairs)),
            mean=_known(float(np.mean(pairs))),
            rows_needed=_known(rows_to_identify(pairs, kinds, alpha)),
        )
    ]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
