"""An audit from rows to findings: reference, battery, verdict, power, description.

Every long stage writes what it has, so the same call goes on after an interruption.
What the findings look like on paper is `audit.writeup`'s business; the tests and names
are `audit.judge`'s.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from undertow.audit.audited import Audited, Origin
from undertow.audit.directions import discover
from undertow.audit.forecast import canary, forecast, with_measured
from undertow.audit.formats import shortcuts, with_formats
from undertow.audit.judge import judge
from undertow.audit.meter import Meter
from undertow.audit.others import Others
from undertow.audit.planting import planted_power
from undertow.audit.reference import (
    GREEDY,
    Filter,
    Reference,
    find_filter,
    prompt_digest,
    rows_digest,
    sampled_reference,
    sampled_tokens,
    trusted_reference,
)
from undertow.audit.sampling import Sampling, find_sampler
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery, make_battery
from undertow.audit.writeup import findings_of
from undertow.errors import DatasetError
from undertow.findings import Findings, Forecast
from undertow.interventions.prompting import trait_prompt
from undertow.interventions.steering import SteeringVector, check_vector
from undertow.models.chat import (
    Rendered,
    Unrendered,
    completion_tokens,
    render_row,
)
from undertow.models.loading import Model
from undertow.models.scoring import DrawLikelihood
from undertow.records import Row
from undertow.runs import Run, open_run, timestamp
from undertow.storage import read_rows, write_rows
from undertow.traits import TraitFamily, load_family

Progress = Callable[[str, int, int, str], None]

_PILOT = 32
# Settings of what comes after the verdict: an audit goes on with others.
_ADDED = {"planted", "forecast", "canary_updates", "triage"}
_PERSONA_PROMPTS = 16


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - began
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)


def audit_rows(
    model: Model,
    rows: Sequence[Row],
    *,
    reference: Sequence[Row] | None = None,
    settings: AuditSettings | None = None,
    vectors: Sequence[SteeringVector] = (),
    origin: Origin | None = None,
    directory: Path | None = None,
    progress: Progress = _silent,
) -> Findings:
    """What the rows would teach the model, with a stated error rate.

    Args:
        model: The one that is about to be trained on the rows, or its parent.
        rows: Of unknown origin.
        reference: Rows of the same kind that are trusted (tier B); None lets the base
            answer the same prompts (tier A).
        settings: Error rate, family, budget; None takes the defaults.
        vectors: Further directions to test, at all audited layers.
        origin: Where the rows come from, for the findings.
        directory: Where measurements are kept, so that an interrupted audit goes on.
        progress: Told of every step.

    Raises:
        DatasetError: No row can be used, or the reference cannot.
        ModelError: The model cannot render or draw them.
        RunError: The directory belongs to another audit.
    """
    findings, _ = run_audit(
        model, rows, reference=reference, settings=settings, vectors=vectors,
        origin=origin, directory=directory, progress=progress,
    )  # fmt: skip
    return findings


def run_audit(
    model: Model,
    rows: Sequence[Row],
    *,
    reference: Sequence[Row] | None = None,
    settings: AuditSettings | None = None,
    vectors: Sequence[SteeringVector] = (),
    origin: Origin | None = None,
    directory: Path | None = None,
    progress: Progress = _silent,
    drawn: Reference | None = None,
    meter: Meter | None = None,
    others: Others | None = None,
) -> tuple[Findings, Audited]:
    """As `audit_rows`, with everything that the audit has in hand beside it.

    Args:
        model: As there, and so are the others.
        rows: Audited.
        reference: Trusted rows.
        settings: Error rate, budget.
        vectors: Further directions.
        origin: Of the rows.
        directory: Where measurements are kept.
        progress: Told of every step.
        drawn: A tier-A reference that several audits share, paired with `usable_rows`
            of these rows; then none is sampled.
        meter: Another audit's, with the same model, sampler and settings: its battery
            is taken and what it knows is not measured again.
        others: Processes that measure rows; None measures them here.
    """
    settings = settings or AuditSettings()
    text = _recipe_text(model, rows, reference, settings, vectors)
    place = (
        nullcontext(None)
        if directory is None
        else open_run(directory, recipe_text=text)
    )
    with place as run:
        audited = _audit(
            model, rows, reference, settings, vectors, origin or Origin(), run,
            progress, drawn, meter, others,
        )  # fmt: skip
        return findings_of(audited), audited


def _recipe_text(
    model: Model,
    rows: Sequence[Row],
    reference: Sequence[Row] | None,
    settings: AuditSettings,
    vectors: Sequence[SteeringVector],
) -> str:
    """What has to be the same for an audit to be continued."""
    facts = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dtype": str(model.dtype),
        "template": model.template.digest,
        "rows": rows_digest(rows),
        "reference": None if reference is None else rows_digest(reference),
        "vectors": [
            [v.trait, v.method, list(v.layers), _digest(v.directions.numpy().tobytes())]
            for v in vectors
        ],
        "settings": settings.model_dump(mode="json", exclude=_ADDED)
        | {"decoys": settings.decoy_family},
        "families": _digest(
            repr(
                [load_family(n) for n in (settings.family, settings.decoy_family)]
            ).encode()
        ),
    }
    return yaml.safe_dump(facts, sort_keys=False)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _audit(
    model: Model,
    rows: Sequence[Row],
    trusted: Sequence[Row] | None,
    settings: AuditSettings,
    vectors: Sequence[SteeringVector],
    origin: Origin,
    run: Run | None,
    progress: Progress,
    drawn: Reference | None,
    meter: Meter | None,
    others: Others | None,
) -> Audited:
    clock, started = _Clock(), timestamp()
    family, decoys = load_family(settings.family), load_family(settings.decoy_family)
    for vector in vectors:
        check_vector(model, vector)
    usable, skipped = usable_rows(model, rows, settings)
    with clock.stage("sampler"):
        sampling = find_sampler(
            model, usable, system=settings.system, given=settings.sampler
        )
    passed = find_filter(usable) if settings.filter == "auto" else settings.filter
    with clock.stage("reference"):
        reference = drawn or _reference(
            model, usable, trusted, sampling, passed, settings, run, progress, others
        )
    reference = _drawable(model, reference, sampling, settings)
    with clock.stage("battery"):
        make = Meter if others is None else others.meter
        meter = meter or make(
            model,
            audit_battery(
                model, usable, reference, sampling, family, vectors, settings
            ),
            sampling.sampler, system=settings.system,
            folder=None if run is None else run.path("measured", "x").parent,
        )  # fmt: skip
    with clock.stage("measurement"):
        judgement = judge(
            meter, usable, reference, family=family,
            decoys=decoys, settings=settings,
            exact=inexact(model, usable, sampling, reference, passed=passed),
            passed=passed,
            tell=lambda stage, done, total: progress(stage, done, total, ""),
        )  # fmt: skip
    with clock.stage("baselines"):
        baselines = shortcuts(meter, usable, reference, family=family,
                              seed=settings.seed)  # fmt: skip
        judgement = with_formats(judgement, meter, usable, reference,
                                 baselines=baselines, settings=settings)  # fmt: skip
    with clock.stage("power"):
        if settings.planted:
            progress("planted rows", 0, 1, "")
        power = planted_power(meter, usable, reference, judgement, family=family,
                              passed=passed, settings=settings)  # fmt: skip
        if settings.planted:
            progress("planted rows", 1, 1, "")
    with clock.stage("discovery"):
        discovery = discover(meter, usable, reference, judgement, family=family,
                             settings=settings)  # fmt: skip
    with clock.stage("forecast"):
        told = _forecast(model, usable, reference, family, settings, run, progress)
    return Audited(
        model=model, settings=settings, family=family, origin=origin,
        rows=tuple(usable), skipped=skipped, reference=reference, sampling=sampling,
        filter=passed, battery=meter.battery, meter=meter, judgement=judgement,
        baselines=baselines, power=power, discovery=discovery, forecast=told,
        seconds=clock.seconds, started=started,
    )  # fmt: skip


def usable_rows(
    model: Model, rows: Sequence[Row], settings: AuditSettings
) -> tuple[list[Row], dict[str, int]]:
    """Different rows that the model can render, sorted by id; what was left out.

    Raises:
        DatasetError: Not one of them.
    """
    different = {row.row_id: row for row in rows}
    families = [load_family(name) for name in (settings.family, settings.decoy_family)]
    personas = [trait_prompt(f, name) for f in families for name in f.names]
    found, first = [], ""
    skipped: dict[str, int] = {}
    for name in sorted(different):
        try:
            rendered = render_row(model, different[name], system=settings.system)
            # It has to have room for every hypothesis too.
            render_row(model, different[name], system=settings.system,
                       trait_prompt=max(personas, key=len))  # fmt: skip
        except DatasetError as error:
            reason = (
                error.reason if isinstance(error, Unrendered) else "cannot be rendered"
            )
            first = first or str(error)
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        if rendered.completion_start < 1:
            skipped["no prompt"] = skipped.get("no prompt", 0) + 1
            continue
        found.append(different[name])
    if not found:
        raise DatasetError(f"none of {len(rows)} rows can be audited: {first}")
    return found, skipped


def _reference(
    model: Model,
    rows: Sequence[Row],
    trusted: Sequence[Row] | None,
    sampling: Sampling,
    passed: Filter,
    settings: AuditSettings,
    run: Run | None,
    progress: Progress,
    others: Others | None,
) -> Reference:
    if trusted is not None:
        usable, left_out = usable_rows(model, trusted, settings)
        found = trusted_reference(rows, usable)
        told = (f"{n} reference rows left out: {why}" for why, n in left_out.items())
        return replace(found, notes=(*found.notes, *told))
    if settings.reference == "none" or sampling.sampler.temperature == 0:
        greedy = (GREEDY,)
        return Reference(
            tier="C", notes=greedy if sampling.sampler.temperature == 0 else ()
        )
    if run is not None and run.is_done("reference"):
        kept = run.payload("reference")
        return Reference(
            tier="A", rows=tuple(read_rows(run.path("reference.jsonl"))),
            paired=tuple(kept["paired"]), accepted=kept["accepted"],
            notes=tuple(kept["notes"]),
        )  # fmt: skip
    sample = _sampled_here if others is None else others.sampled_reference
    found = sample(
        model, rows, sampler=sampling.sampler, passed=passed, seed=settings.seed,
        system=settings.system,
        on_rows=lambda done, total, tokens: progress(
            "reference", done, total, f"{tokens} tokens"
        ),
    )  # fmt: skip
    if not found.rows:
        return replace(found, tier="C")
    if run is not None:
        # This layout holds a prompt that ends with an answer too.
        write_rows(run.path("reference.jsonl"), found.rows, layout="messages")
        run.finish("reference", {"paired": list(found.paired),
                                 "accepted": found.accepted,
                                 "notes": list(found.notes)})  # fmt: skip
    return found


def _sampled_here(
    model: Model, rows: Sequence[Row], *, passed: Filter, **rest: Any
) -> Reference:
    return sampled_reference(model, rows, filter=passed, **rest)


def _drawable(
    model: Model, reference: Reference, sampling: Sampling, settings: AuditSettings
) -> Reference:
    """Without reference rows that the rows' sampler cannot have written."""
    if reference.tier != "B":
        return reference
    likelihood = DrawLikelihood(model, sampling.sampler)
    kept = [
        row
        for row in reference.rows
        if likelihood.drawn(render_row(model, row, system=settings.system)).is_possible
    ]
    if len(kept) == len(reference.rows):
        return reference
    if not kept:
        raise DatasetError(
            f"reference: none of its {len(reference.rows)} rows can come from the "
            f"sampler of the audited rows ({sampling.sampler.allowed!r}); give rows of "
            "the same format, or name the sampler that wrote both"
        )
    dropped = f"{len(reference.rows) - len(kept)} reference rows are of another format"
    return replace(
        reference, rows=tuple(kept), notes=(*reference.notes, f"{dropped}: dropped")
    )


def audit_battery(
    model: Model,
    rows: Sequence[Row],
    reference: Reference,
    sampling: Sampling,
    family: TraitFamily,
    vectors: Sequence[SteeringVector],
    settings: AuditSettings,
) -> Battery:
    """The directions that these rows are tested along."""
    pilot = (reference.rows or tuple(rows))[:_PILOT]
    prompts = [row.messages[-1].content for row in rows[:_PERSONA_PROMPTS]]
    return make_battery(
        model, family, decoys=load_family(settings.decoy_family),
        pilot=[render_row(model, row, system=settings.system) for row in pilot],
        prompts=prompts, sampler=sampling.sampler, given=vectors,
        layers=settings.layers, system=settings.system, seed=settings.seed,
    )  # fmt: skip


def inexact(
    model: Model,
    rows: Sequence[Row],
    sampling: Sampling,
    reference: Reference,
    *,
    passed: Filter = "none",
) -> str | None:
    """Why the exact arm does not hold, or None if it does."""
    own = sum(
        sampled_tokens(row, model.end_ids)
        and tuple(completion_tokens(model, row)) == row.completion_ids
        for row in rows
    )
    if own < len(rows):
        return (
            f"{len(rows) - own} rows have no recorded tokens, or others than their text: "
            "tokenised again, they are not what was sampled"
        )
    sampler = sampling.sampler
    if sampling.source == "estimated":
        return "how the rows were sampled is estimated, not known"
    if len({prompt_digest(row) for row in rows}) < len(rows):
        return "several rows share a prompt, and copies among them are not kept"
    if sampler.temperature == 0:
        return "greedy rows hold no chance"
    if reference.accepted is None and passed != "none" and sampler.allowed != "list":
        return (
            f"rows may have had to pass the filter {passed!r}, and how many of the "
            "base's own would is not known"
        )
    if reference.accepted is not None and reference.accepted < 1:
        return (
            f"a filter let {reference.accepted:.0%} of the base's rows pass, and under "
            "a hypothesis it may let another share pass"
        )
    return None


def _rendered(
    model: Model, rows: Sequence[Row], settings: AuditSettings
) -> list[Rendered]:
    return [render_row(model, row, system=settings.system) for row in rows]


def _canary_folder(run: Run, settings: AuditSettings) -> Path:
    """Where its students are kept: others for another number of updates."""
    return run.path("canary", str(settings.canary_updates), "x").parent


def _forecast(
    model: Model,
    rows: Sequence[Row],
    reference: Reference,
    family: TraitFamily,
    settings: AuditSettings,
    run: Run | None,
    progress: Progress,
) -> Forecast | None:
    mine = _rendered(model, rows, settings)
    theirs = _rendered(model, reference.rows, settings)
    told = None
    if settings.forecast:
        told = forecast(
            model, mine, theirs, family=family, rows=settings.forecast, questions=8,
            seed=settings.seed, system=settings.system,
            on_step=lambda done, total: progress("forecast", done, total, ""),
        )  # fmt: skip
    if told is not None and settings.canary_updates and theirs:
        measured = canary(
            model, mine, theirs, family=family, seed=settings.seed,
            updates=settings.canary_updates, system=settings.system,
            directory=None if run is None else _canary_folder(run, settings),
            on_update=lambda done, total, loss: progress(
                "canary", done, total, f"loss {loss:.3f}"
            ),
        )  # fmt: skip
        told = with_measured(told, measured, updates=settings.canary_updates)
    return told
