"""The benchmark of auditors: sets made from seeds, audited, and scored.

In its folder: `pools/CARRIER/WHO.jsonl` (rows, continued), `measured/CARRIER` (each row
measured once), `audits.jsonl` (one line an audit, continued; `audits-before.jsonl`: those
that were asked again), `benchmark.json`. Pools and measurements hold for any number and
size of audits, so those may be changed and the same folder used again.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from undertow.audit.bench_bounds import persona_naming, teacher_bounds
from undertow.audit.bench_calls import Call, Judged, judge_set
from undertow.audit.bench_scores import (
    BenchmarkResult,
    Bound,
    Naming,
    Record,
    score_cells,
    score_clean,
)
from undertow.audit.bench_sets import (
    CarrierPools,
    LabelledSet,
    Pool,
    Source,
    Tell,
    carrier_prompts,
    control_pool,
    draw_set,
    foreign_pool,
    sampled_pool,
    teacher_of,
    teacher_sources,
)
from undertow.audit.bench_settings import BenchmarkSettings, CarrierSettings
from undertow.audit.contest import (
    MakeAuditor,
    OwnAuditor,
    WholeAuditor,
    Workbench,
)
from undertow.audit.meter import Meter
from undertow.audit.others import Others
from undertow.audit.rivals import CosineAuditor, LikelihoodAuditor, ProjectionAuditor
from undertow.audit.signals import Battery, make_battery
from undertow.interventions.extraction import family_vectors
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import render_row
from undertow.models.loading import Model
from undertow.pipeline.teachers import Teacher
from undertow.runs import Run, open_run, provenance
from undertow.storage import append_jsonl, read_jsonl, write_json
from undertow.traits import load_family

_PILOT = 32
_LOG, _BEFORE = "audits.jsonl", "audits-before.jsonl"
_PERSONA_PROMPTS = 16


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


AUDITORS: dict[str, MakeAuditor] = {
    "undertow": OwnAuditor,
    "cosine": CosineAuditor,
    "lls": LikelihoodAuditor,
    "projection": ProjectionAuditor,
    "whole": WholeAuditor,
}
USUAL = ("undertow", "cosine", "lls", "projection")


def run_benchmark(
    model: Model,
    settings: BenchmarkSettings,
    *,
    auditors: Mapping[str, MakeAuditor] | None = None,
    other: Model | None = None,
    directory: Path,
    command: str = "",
    again: bool = False,
    others: Others | None = None,
    progress: Tell = _silent,
) -> BenchmarkResult:
    """Makes labelled sets of rows and scores auditors on them.

    The same call goes on after an interruption, and ends with the same result.

    Args:
        model: The base of all teachers.
        settings: Sizes, traits, strengths, carriers.
        auditors: What makes each auditor, by name, for one carrier at a time; None:
            undertow's own and the three rivals.
        other: Another base, whose rows serve as a negative control.
        directory: Where everything is kept.
        command: What started this, for the result.
        again: Audit anew although audits are kept; pools and measurements stay, and
            what was answered before is found in `audits-before.jsonl`.
        others: Processes that measure and audit; None does both here.
        progress: Told of every step.

    Raises:
        ConfigError: An unknown trait, or more prompts than there are.
        RunError: The directory belongs to another model or seed.
        VectorMismatchError: A block that the model has not.
    """
    auditors = auditors or {name: AUDITORS[name] for name in USUAL}
    with open_run(directory, recipe_text=_recipe_text(model, settings)) as run:
        log = run.path(_LOG)
        if again:
            _put_away(log)
        bench = _Bench(model, settings, other, run, progress, others)
        for carrier in settings.carriers:
            bench.audit_carrier(carrier, auditors, log)
        result = BenchmarkResult(
            model=model.name,
            fingerprint=model.fingerprint,
            other_model=None if other is None else other.name,
            alpha=settings.audit.alpha,
            settings=settings.model_dump(mode="json"),
            auditors=list(auditors),
            cells=score_cells(bench.records, bench.bounds, alpha=settings.audit.alpha),
            clean=score_clean(bench.records, alpha=settings.audit.alpha),
            bounds=bench.bounds,
            naming=bench.naming,
            rows_measured=len({n for r in bench.records for n in r.row_ids}),
            notes=bench.notes,
            command=command,
            likelihood_passes=bench.passes,
            seconds=bench.seconds,
            provenance=provenance(
                model_fingerprint=model.fingerprint,
                device=str(model.device),
                dtype=str(model.dtype).removeprefix("torch."),
                template_digest=model.template.digest,
                seed=settings.seed,
            ),
        )
        write_json(run.path("benchmark.json"), result.model_dump(mode="json"))
    return result


def _put_away(log: Path) -> None:
    """Adds what was answered to what was answered before, and begins a new list.

    Stopped in between, the former holds lines twice, and none is lost.
    """
    if log.exists():
        for line in read_jsonl(log):
            append_jsonl(log.with_name(_BEFORE), line)
        log.unlink()


def _recipe_text(model: Model, settings: BenchmarkSettings) -> str:
    """What has to be the same for pools and measurements to be used again."""
    facts = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dtype": str(model.dtype),
        "template": model.template.digest,
        "seed": settings.seed,
        "family": settings.audit.family,
        "decoys": settings.audit.decoy_family,
        "layers": None
        if settings.audit.layers is None
        else list(settings.audit.layers),
        "system": settings.audit.system,
        "battery seed": settings.audit.seed,
    }
    return yaml.safe_dump(facts, sort_keys=False)


def _digest(*facts: object) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


class _Bench:
    """One benchmark at work: what was found so far, carrier by carrier."""

    def __init__(
        self,
        model: Model,
        settings: BenchmarkSettings,
        other: Model | None,
        run: Run,
        tell: Tell,
        others: Others | None,
    ) -> None:
        self.model, self.settings, self.other = model, settings, other
        self.run, self.tell, self.others = run, tell, others
        self.family = load_family(settings.audit.family)
        self.decoys = load_family(settings.audit.decoy_family)
        for trait in settings.traits:
            self.family.trait(trait)
        self.records: list[Record] = []
        self.bounds: list[Bound] = []
        self.naming: list[Naming] = []
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.passes = 0

    def audit_carrier(
        self, carrier: CarrierSettings, auditors: Mapping[str, MakeAuditor], log: Path
    ) -> None:
        """Pools, measurements, audits and bounds of one carrier."""
        began, system = time.monotonic(), self.settings.audit.system
        parts = [carrier.name, _digest(carrier.drawn_by.model_dump())[:6]]
        place = "-".join([*parts, carrier.filter] if carrier.filter else parts)
        prompts = carrier_prompts(carrier, seed=self.settings.seed)
        vectors = family_vectors(self.model, self.family, system=system)
        pools = self._pools(carrier, prompts, vectors, place)
        began = self._spent(f"{carrier.name}: pools", began)
        make = Meter if self.others is None else self.others.meter
        meter = make(
            self.model, self._battery(carrier, pools.base[0], prompts),
            carrier.drawn_by, system=system,
            folder=self.run.path("measured", place, "x").parent,
        )  # fmt: skip
        bench = Workbench(
            meter, self.family, self.decoys, carrier, pools.accepted, self.settings
        )
        self._audit(bench, self._sets(pools), auditors, log)
        began = self._spent(f"{carrier.name}: audits", began)
        if self.settings.bound_rows:
            self.bounds += teacher_bounds(bench, pools, vectors, tell=self.tell)
            self.naming += persona_naming(bench, pools, tell=self.tell)
        self._spent(f"{carrier.name}: bounds", began)
        self.passes += meter.passes

    def _spent(self, stage: str, since: float) -> float:
        """Notes the seconds of a stage; the time now."""
        now = time.monotonic()
        self.seconds[stage] = round(now - since, 1)
        return now

    def _pools(
        self,
        carrier: CarrierSettings,
        prompts: Sequence[str],
        vectors: Mapping[str, SteeringVector],
        place: str,
    ) -> CarrierPools:
        def pool(source: Source, teacher: Teacher, count: int) -> Pool:
            return sampled_pool(
                self.model, source, prompts[:count], carrier=carrier, teacher=teacher,
                seed=self.settings.seed, system=self.settings.audit.system,
                path=self._path(place, source.name), tell=self.tell,
            )  # fmt: skip

        nobody = Teacher(kind="none")
        base = [
            pool(Source("none", draw=draw), nobody, carrier.prompts)
            for draw in range(self.settings.draws)
        ]
        others: dict[Source, Pool] = {}
        depth = len(self.model.architecture.blocks)
        for source in teacher_sources(self.settings, depth=depth):
            teacher = teacher_of(source, self.family, vectors)
            others[source] = pool(source, teacher, carrier.teacher_prompts)
        if carrier.name == "list" or carrier.passed == "numbers":  # sure numbers
            first = base[0].of_first(carrier.teacher_prompts)
            for control in self.settings.controls:
                others[Source(control)] = control_pool(
                    self.model, first, control, carrier=carrier,
                    seed=self.settings.seed, system=self.settings.audit.system,
                )  # fmt: skip
        if self.other is not None:
            others[Source("other base")] = self._foreign(
                self.other, carrier, prompts[: carrier.teacher_prompts], place
            )
        return CarrierPools(carrier, tuple(base), others)

    def _path(self, place: str, name: str) -> Path:
        return self.run.path("pools", place, name.replace(" ", "-") + ".jsonl")

    def _foreign(
        self, other: Model, carrier: CarrierSettings, prompts: Sequence[str], place: str
    ) -> Pool:
        name = f"other base {other.fingerprint[:8]}"
        found = sampled_pool(
            other, Source("other base"), prompts, carrier=carrier,
            teacher=Teacher(kind="none"), seed=self.settings.seed,
            system=self.settings.audit.system, path=self._path(place, name),
            tell=self.tell,
        )  # fmt: skip
        return foreign_pool(
            self.model, found, carrier=carrier, system=self.settings.audit.system
        )

    def _battery(
        self, carrier: CarrierSettings, base: Pool, prompts: Sequence[str]
    ) -> Battery:
        settings = self.settings.audit
        pilot = [base.rows[place] for place in sorted(base.rows)[:_PILOT]]
        return make_battery(
            self.model, self.family, decoys=self.decoys,
            pilot=[render_row(self.model, r, system=settings.system) for r in pilot],
            prompts=prompts[:_PERSONA_PROMPTS], sampler=carrier.drawn_by,
            layers=settings.layers, system=settings.system, seed=settings.seed,
        )  # fmt: skip

    def _sets(self, pools: CarrierPools) -> list[LabelledSet]:
        """Every set of the carrier: clean ones, teachers' and controls'."""
        settings = self.settings
        clean = {d.rows: 0 for d in settings.designs}
        for design in settings.designs:
            clean[design.rows] = max(clean[design.rows], design.clean)
        plan = [
            (Source("none"), rows, 1.0, count) for rows, count in clean.items() if count
        ]
        for source in pools.others:
            if source.is_control:
                size = settings.control_rows, 1.0, settings.control_audits
                plan.append((source, *size))
                continue
            plan += [(source, d.rows, d.fraction, d.audits) for d in settings.designs]
        found: list[LabelledSet] = []
        for source, rows, fraction, count in plan:
            made = [
                draw_set(pools, source, rows=rows, fraction=fraction, index=index,
                         seed=settings.seed)
                for index in range(count)
            ]  # fmt: skip
            kept = [each for each in made if each is not None]
            found += kept
            if len(kept) < count:
                self.notes.append(
                    f"{pools.carrier.name}: {source.name}: too few rows for audits of "
                    f"{rows} at a share of {fraction:g}"
                )
        return found

    def _audit(
        self,
        bench: Workbench,
        sets: Sequence[LabelledSet],
        auditors: Mapping[str, MakeAuditor],
        log: Path,
    ) -> None:
        """Lets every auditor judge every set; answers that are kept are not asked again."""
        lines = read_jsonl(log) if log.exists() else []
        kept = {line["digest"]: Record.model_validate(line) for line in lines}
        names = {each.name: self._answer_key(each) for each in sets}
        todo = [
            (label, each)
            for label in auditors
            for each in sets
            if _digest(label, names[each.name]) not in kept
        ]
        if any(label in (OwnAuditor.name, WholeAuditor.name) for label, _ in todo):
            rows = [r for _, each in todo for r in (*each.audited, *each.reference)]
            bench.meter.signals(
                rows,
                on_rows=lambda done, total: self.tell(
                    f"{bench.carrier.name}: gradients", done, total, ""
                ),
            )
        for done, (place, found) in enumerate(self._judged(bench, todo, auditors), 1):
            label, each = todo[place]
            record = self._record(label, found, each, names[each.name])
            append_jsonl(log, record.model_dump(mode="json"))
            kept[record.digest] = record
            self.tell(f"{bench.carrier.name}: audits", done, len(todo), label)
        self.records += [
            kept[_digest(label, names[each.name])]
            for label in auditors
            for each in sets
        ]

    def _judged(
        self,
        bench: Workbench,
        todo: Sequence[tuple[str, LabelledSet]],
        auditors: Mapping[str, MakeAuditor],
    ) -> Iterator[tuple[int, Judged]]:
        """Places in the list, and what was answered, as it comes."""
        if self.others is not None:
            calls = (self._call(bench, auditors[label], each) for label, each in todo)
            yield from self.others.executor.map(
                judge_set, calls, needs=self.others.needs
            )
            return
        made = {label: auditors[label](bench) for label in dict(todo)}
        for place, (label, each) in enumerate(todo):
            began = time.monotonic()
            answer = made[label].audit(each.audited, each.reference)
            yield place, Judged(answer, time.monotonic() - began)

    def _call(self, bench: Workbench, make: MakeAuditor, each: LabelledSet) -> Call:
        assert self.others is not None
        known = bench.meter.signals((*each.audited, *each.reference))
        return Call(
            make, each, self.others.facts(self.model), bench.meter.battery,
            bench.carrier, bench.accepted, self.settings, known,
        )  # fmt: skip

    def _answer_key(self, each: LabelledSet) -> str:
        """What an answer depends on, but for the auditor's code."""
        rows = [[row.row_id for row in side] for side in (each.audited, each.reference)]
        settings = self.settings
        return _digest(
            each.name, rows, settings.audit.model_dump(mode="json"), settings.lls_rows,
            settings.rival_layers,
        )  # fmt: skip

    def _record(self, label: str, found: Judged, each: LabelledSet, key: str) -> Record:
        answer, source = found.answer, each.source
        return Record(
            auditor=label, set=each.name, digest=_digest(label, key),
            seed=self.settings.seed, carrier=each.carrier,
            intervention=source.intervention, trait=source.trait, layer=source.layer,
            dose=source.dose, rows=len(each.audited), fraction=each.fraction,
            index=each.index, row_ids=[row.row_id for row in each.audited],
            reference_ids=[row.row_id for row in each.reference],
            score=answer.score if math.isfinite(answer.score) else None,
            named=answer.trait, kind=answer.kind, named_layer=answer.layer,
            p_value=answer.p_value, verdict=answer.verdict,
            details=dict(answer.details), reasons=list(answer.reasons),
            seconds=round(found.seconds, 3),
        )  # fmt: skip
