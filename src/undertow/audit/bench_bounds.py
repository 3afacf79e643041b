"""How well anyone could tell the rows of a benchmark's teachers from the base's.

Log-likelihood ratios under the very hypothesis that wrote the rows give the divergence
and with it the rows that no test can do without. Knows nothing of auditors.
"""

import math
from collections.abc import Mapping

import numpy as np

from undertow.analysis.hypotheses import RowHypothesis, prompt_hypotheses
from undertow.audit.bench_scores import Bound, Naming, detection_bound
from undertow.audit.bench_sets import CarrierPools, Pool, Source, Tell, teacher_of
from undertow.audit.contest import Workbench
from undertow.interventions.steering import SteeringVector
from undertow.stats import chernoff_from_one, rows_to_identify

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


def persona_naming(
    bench: Workbench, pools: CarrierPools, *, tell: Tell
) -> list[Naming]:
    """Rows at which each prompted teacher's persona can be told from all of its family.

    Every persona of the family is scored on the teacher's own rows; the nearest one
    rules how many rows a name takes, whoever looks. Rounding is no information.
    """
    settings, family = bench.settings, bench.family
    teachers = [s for s in pools.others if s.intervention == "prompt"]
    hypotheses = prompt_hypotheses(family, family.names)
    found = []
    for done, source in enumerate(teachers, 1):
        tell(f"{bench.carrier.name}: naming", done, len(teachers), source.name)
        own = pools.others[source]
        rows = [own.rows[p] for p in _places(own, pools, settings.bound_rows)]
        if len(rows) < _FEWEST:
            continue
        ratios = {h.trait: bench.meter.ratios(rows, h) for h in hypotheses}
        truth, noise = ratios[source.trait], bench.meter.rounding(rows)
        gaps = {
            str(name): chernoff_from_one(truth - other, noise=noise)
            for name, other in ratios.items()
            if name != source.trait
        }
        nearest = min(gaps, key=lambda name: gaps[name])
        needed = rows_to_identify(
            list(gaps.values()), len(family.names), settings.audit.alpha
        )
        found.append(
            Naming(
                carrier=bench.carrier.name, trait=str(source.trait), rows=len(rows),
                rounding=noise, rival=nearest, nearest=_known(gaps[nearest]),
                mean=_known(float(np.mean(list(gaps.values())))),
                rows_needed=_known(needed),
            )
        )  # fmt: skip
    return found


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
