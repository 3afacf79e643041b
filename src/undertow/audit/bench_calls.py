"""One audit of the benchmark as a call that any process can make."""

import time
from dataclasses import dataclass, replace

from undertow.audit.bench_sets import LabelledSet
from undertow.audit.bench_settings import BenchmarkSettings, CarrierSettings
from undertow.audit.contest import Answer, MakeAuditor, Workbench
from undertow.audit.meter import Meter
from undertow.audit.signals import Battery, RowSignals
from undertow.models.reloading import ModelFacts, same_model
from undertow.traits import load_family


@dataclass(frozen=True)
class Call:
    """A set for an auditor, with all that its workbench holds.

    Attributes:
        make: Makes the auditor; at the top of a module.
        each: The set.
        model: Which.
        battery: Of the carrier.
        carrier: How rows were drawn.
        accepted: Share of the base's draws that passed the carrier's filter.
        settings: Of the benchmark.
        known: What was measured of the set's rows before.
    """

    make: MakeAuditor
    each: LabelledSet
    model: ModelFacts
    battery: Battery
    carrier: CarrierSettings
    accepted: float | None
    settings: BenchmarkSettings
    known: RowSignals


@dataclass(frozen=True)
class Judged:
    """What an auditor answered, and how long it took."""

    answer: Answer
    seconds: float


def judge_set(call: Call) -> Judged:
    """Lets a call's auditor judge its set."""
    audit = call.settings.audit
    meter = Meter(
        same_model(call.model), call.battery, call.carrier.drawn_by, system=audit.system
    )
    meter.learn(call.known)
    bench = Workbench(
        meter, load_family(audit.family), load_family(audit.decoy_family), call.carrier,
        call.accepted, call.settings,
    )  # fmt: skip
    auditor = call.make(bench)
    began = time.monotonic()
    answer = auditor.audit(call.each.audited, call.each.reference)
    seconds = time.monotonic() - began
    return Judged(replace(answer, details=dict(answer.details)), seconds)
