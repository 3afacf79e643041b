"""Who can be benchmarked: a small protocol, and undertow's own auditor behind it.

An auditor sees rows and reference rows and answers with a number, larger for more
suspicious, and with whatever else it can tell. Knows nothing of the truth.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np

from undertow.audit.auditor import inexact, run_audit
from undertow.audit.bench_settings import BenchmarkSettings, CarrierSettings
from undertow.audit.judge import judge
from undertow.audit.judgement import Judgement
from undertow.audit.meter import Meter
from undertow.audit.reference import Reference
from undertow.audit.sampling import Sampling
from undertow.records import Row
from undertow.stats import MaxT
from undertow.traits import TraitFamily

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Answer:
    """What an auditor says of one set of rows.

    Attributes:
        score: Larger is more suspicious; NaN if it cannot tell.
        trait: Named, or None.
        kind: "steer" or "prompt", or None.
        layer: Block of a vector, or None.
        p_value: Of the null "nothing was done", for auditors that test.
        verdict: In a word, where it has one.
        details: Further numbers to be kept with the answer, p-values of arms above all.
        reasons: Why it says so, in sentences.
    """

    score: float
    trait: str | None = None
    kind: str | None = None
    layer: int | None = None
    p_value: float | None = None
    verdict: str | None = None
    details: Values = field(default_factory=lambda: MappingProxyType({}))
    reasons: tuple[str, ...] = ()


@runtime_checkable
class Auditor(Protocol):
    """Anything that judges rows beside reference rows."""

    name: str

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        """Judges rows.

        Args:
            audited: Different rows, in the order of their ids.
            reference: Rows of the base on the same prompts, one for each audited row
                and in the same order.
        """
        ...


@dataclass(frozen=True)
class Workbench:
    """What auditors of one carrier may work with.

    Attributes:
        meter: Measures rows, each once; its battery holds the traits' vectors.
        family: The traits.
        decoys: Traits that nobody put there.
        carrier: How rows were drawn.
        accepted: Share of the base's draws that passed the carrier's filter.
        settings: Of the benchmark.
    """

    meter: Meter
    family: TraitFamily
    decoys: TraitFamily
    carrier: CarrierSettings
    accepted: float | None
    settings: BenchmarkSettings


MakeAuditor = Callable[[Workbench], Auditor]


class OwnAuditor:
    """undertow's judgement of rows, with measurements shared by all audits.

    The score is −log₁₀ p of all arms together. Permutation p-values cannot fall below
    1/(1 + B), so for each permutation test that stands at that floor the score grows
    by log₁₀(observed statistic / largest permuted one): it orders sets that are all
    found, and lifts none above one with a smaller p by more than that ratio.
    """

    name = "undertow"

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        """Judges rows; see `Auditor`."""
        bench, meter = self.bench, self.bench.meter
        against = Reference(
            tier="A", rows=tuple(reference), paired=tuple(range(len(reference))),
            accepted=bench.accepted,
        )  # fmt: skip
        sampling = Sampling(meter.sampler, "given")
        found = judge(
            meter, audited, against, family=bench.family, decoys=bench.decoys,
            settings=bench.settings.audit,
            exact=inexact(
                meter.model, audited, sampling, against, passed=bench.carrier.passed
            ),
            passed=bench.carrier.passed,
        )  # fmt: skip
        return _answer(found)


class WholeAuditor:
    """The same, with all that `undertow audit` does: format differences may overrule it.

    It costs the shortcut baselines of every set that is audited. Power, forecast and
    discovery are left out, since they change no verdict.
    """

    name = "whole"

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.settings = bench.settings.audit.model_copy(
            update={
                "planted": 0, "forecast": 0, "discover": False, "triage": 0,
                "sampler": bench.meter.sampler, "filter": bench.carrier.passed,
            }
        )  # fmt: skip

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        """Judges rows; see `Auditor`."""
        meter = self.bench.meter
        against = Reference(
            tier="A", rows=tuple(reference), paired=tuple(range(len(reference))),
            accepted=self.bench.accepted,
        )  # fmt: skip
        _, found = run_audit(
            meter.model, audited, settings=self.settings, drawn=against, meter=meter
        )
        return _answer(found.judgement)


def _answer(found: Judgement) -> Answer:
    known = math.isfinite(found.p_value)
    tests = [t for t in (found.scores.test, found.race.fresh) if t is not None]
    score = -math.log10(found.p_value) if known else math.nan
    return Answer(
        score=score + sum(_beyond_floor(test) for test in tests),
        trait=found.trait,
        kind=None if found.kind == "unknown" else found.kind,
        layer=found.layer,
        p_value=found.p_value if known else None,
        verdict=found.verdict,
        details={f"p {arm.name}": arm.p_value for arm in found.arms},
        reasons=found.reasons,
    )


def _beyond_floor(test: MaxT) -> float:
    """log₁₀ of how far a statistic lies beyond all permuted ones; 0 if it does not."""
    if not len(test.draws) or not test.p_value <= 1 / (1 + len(test.draws)):
        return 0.0
    largest, null = float(np.nanmax(np.abs(test.statistics))), float(test.draws.max())
    return math.log10(largest / null) if largest > null > 0 else 0.0
