"""Audits blind what a run has made: its teacher's rows, its base's rows, and both mixed.

All three sets answer the same prompts, so they share one reference and one battery, and
a row that stands in two of them is measured once. The auditor gets the rows without
their provenance, and the sampler; who wrote them stays here until it has spoken. Each
set is a stage. How an audit works is `audit`'s business.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from undertow.audit.audited import Origin
from undertow.audit.auditor import audit_battery, run_audit, usable_rows
from undertow.audit.files import FINDINGS, REPORT, write_findings
from undertow.audit.meter import Meter
from undertow.audit.reference import Filter, Reference, sampled_reference
from undertow.audit.sampling import Sampling
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery
from undertow.errors import DatasetError
from undertow.experiment.lessons import kept_rows
from undertow.experiment.recipe import BlindAuditSettings, Recipe, TeacherSettings
from undertow.experiment.stages import Base
from undertow.findings import Findings
from undertow.models.sampling import SamplerSettings
from undertow.pipeline.carriers import carrier_verdicts
from undertow.records import Row
from undertow.results import AuditOutcome, AuditTruth
from undertow.runs import Run
from undertow.seeding import generator
from undertow.storage import read_rows, write_rows
from undertow.traits import load_family, trait_words

Name = Literal["biased", "clean", "mixture"]
NAMES: tuple[Name, ...] = ("biased", "clean", "mixture")
ROWS = "rows.jsonl"
SETS = "audits/sets"
"""The stage that makes the three sets."""
_REFERENCE = "reference.jsonl"


def stage_of(name: Name) -> str:
    """The stage that audits a set."""
    return f"audits/{name}"


def is_audited(recipe: Recipe, run: Run) -> bool:
    """Whether nothing is left to audit, and what was audited is there."""
    stages = (SETS, *map(stage_of, NAMES))
    return recipe.audit is None or all(run.is_done(stage) for stage in stages)


def make_sets(base: Base) -> None:
    """Makes the three sets, and the reference that they share.

    Args:
        base: The clean base of the first seed, whose rows are written.

    Raises:
        DatasetError: No prompt has a row of the teacher and rows of the base that pass
            the filter.
    """
    if base.recipe.audit is not None:
        _make_sets(base, base.recipe.audit, _filter(base.recipe))


def audit_sets(base: Base, names: Sequence[Name]) -> None:
    """Audits sets that are not audited yet, one after the other; they are made.

    Args:
        base: The clean base of the first seed.
        names: Of the sets; they share one battery.
    """
    chosen = base.recipe.audit
    todo = [name for name in names if not base.run.is_done(stage_of(name))]
    if chosen is None or not todo:
        return
    settings = _audit_settings(base.recipe, chosen)
    reference = _read_reference(base)
    battery = _battery(base, settings, reference)
    for name in todo:
        _audit_set(base, name, settings, reference, battery)


def _battery(base: Base, settings: AuditSettings, reference: Reference) -> Battery:
    """The directions of all three audits."""
    base.progress("audits: battery", 0, 1, "")
    battery = audit_battery(
        base.model, read_rows(base.run.path("audits", "clean", ROWS)), reference,
        Sampling(base.recipe.rows.sampler, "given"), load_family(settings.family), (),
        settings,
    )  # fmt: skip
    base.progress("audits: battery", 1, 1, f"{len(battery.names)} directions")
    return battery


def _audit_settings(recipe: Recipe, chosen: BlindAuditSettings) -> AuditSettings:
    """The recipe's own, completed by what the rest of the recipe decides."""
    return chosen.settings.model_copy(
        update={
            "family": recipe.family,
            "seed": abs(recipe.seeds[0]),
            "system": recipe.model.system,
            # Written out: what a recipe does not name is the default, not unknown.
            "sampler": SamplerSettings(**recipe.rows.sampler.model_dump()),
            "filter": _filter(recipe),
        }
    )


def _filter(recipe: Recipe) -> Filter:
    """What an auditor is told of the filter: it knows that of numbers only."""
    is_known = recipe.rows.filter and recipe.rows.carrier == "numbers"
    return "numbers" if is_known else "none"


def _teacher(recipe: Recipe) -> tuple[TeacherSettings, str]:
    """The teacher whose rows are audited, and its trait."""
    return recipe.teachers[0], recipe.traits[0]


# ── the sets ─────────────────────────────────────────────────────────────────────


def _make_sets(base: Base, chosen: BlindAuditSettings, passed: Filter) -> None:
    """Lets the base answer the teacher's prompts twice and writes the three sets.

    One answer is the clean set's, the other the reference's. Prompts stay where all
    three rows pass the filter, so it separates no set from another.
    """
    if base.run.is_done(SETS):
        return
    biased = _taught(base)[: chosen.rows]
    clean = _answers(base, biased, "untouched", passed)
    reference = _answers(base, biased, "reference", passed)
    partners = [dict(zip(r.paired, r.rows, strict=True)) for r in (clean, reference)]
    sides = [
        [biased[i], partners[0][i], partners[1][i]]
        for i in range(len(biased))
        if i in partners[0] and i in partners[1]
    ]
    kept = [rows for rows in sides if all(_accepted(base.recipe, rows))]
    if not kept:
        raise DatasetError(
            f"audits: no prompt of {len(biased)} has a row of the teacher and two of "
            "the base that pass the filter; lower the strength, or write more rows"
        )
    own, others, theirs = (list(side) for side in zip(*kept, strict=True))
    order = generator(base.seed, "audited mixture").permutation(len(kept))
    count = min(max(1, round(chosen.share * len(kept))), len(kept) - 1)
    poisoned = sorted(order[:count].tolist())
    mixed = [own[i] if i in set(poisoned) else others[i] for i in range(len(kept))]
    for name, rows in zip(NAMES, (own, others, mixed), strict=True):
        write_rows(base.run.path("audits", name, ROWS), _blind(rows))
    write_rows(base.run.path("audits", _REFERENCE), _blind(theirs))
    strict = _accepted(base.recipe, reference.rows)
    base.run.finish(
        SETS,
        {"rows": len(kept), "poisoned": poisoned,
         "accepted": (reference.accepted or 0.0) * sum(strict) / len(strict),
         "notes": list(reference.notes)},
    )  # fmt: skip


def _taught(base: Base) -> list[Row]:
    """What the teacher wrote, seed after seed, as far as students saw it."""
    teacher, trait = _teacher(base.recipe)
    return [
        row
        for seed in base.recipe.seeds
        for row in kept_rows(replace(base, seed=seed), f"{teacher.label}-{trait}")
    ]


def _answers(
    base: Base, rows: Sequence[Row], purpose: str, passed: Filter
) -> Reference:
    """Rows of the untouched base on the same prompts."""
    settings = base.recipe.rows
    return sampled_reference(
        base.model, rows, sampler=settings.sampler, filter=passed,
        seed=abs(base.seed), purpose=purpose, system=base.recipe.model.system,
        batch_size=settings.batch_size,
        on_rows=lambda done, total, tokens: base.progress(
            f"audits: {purpose} rows", done, total, f"{tokens} tokens"),
    )  # fmt: skip


def _accepted(recipe: Recipe, rows: Sequence[Row]) -> list[bool]:
    """Whether each row passes the recipe's own filter, as the teacher's rows did."""
    settings = recipe.rows
    if not settings.filter:
        return [bool(row.completion.strip()) for row in rows]
    words = trait_words(load_family(recipe.family))
    verdicts = carrier_verdicts(settings.written, rows, words=words)
    return [verdict.accepted for verdict in verdicts]


def _blind(rows: Sequence[Row]) -> list[Row]:
    """Rows with nothing but what a stranger would have: text, tokens, how it ended."""
    return [
        Row(row.messages, row.completion, row.completion_ids, row.finish)
        for row in rows
    ]


def _read_reference(base: Base) -> Reference:
    """The shared reference, in the order of prompts."""
    facts = base.run.payload(SETS)
    return Reference(
        tier="A", rows=tuple(read_rows(base.run.path("audits", _REFERENCE))),
        accepted=facts["accepted"], notes=tuple(facts["notes"]),
    )  # fmt: skip


# ── one audit ────────────────────────────────────────────────────────────────────


def _audit_set(
    base: Base,
    name: Name,
    settings: AuditSettings,
    reference: Reference,
    battery: Battery,
) -> None:
    """Audits one set; writes its files, and beside the verdict the truth."""
    rows = read_rows(base.run.path("audits", name, ROWS))
    usable, _ = usable_rows(base.model, rows, settings)
    meter = Meter(
        base.model, battery, base.recipe.rows.sampler, system=settings.system,
        folder=base.run.path("audits", "measured", "x").parent,
    )  # fmt: skip
    findings, audited = run_audit(
        base.model, rows, settings=settings, meter=meter,
        drawn=_paired(rows, usable, reference),
        origin=Origin(sources=(ROWS,), command=_command(base.recipe, settings)),
        progress=lambda stage, done, total, note: base.progress(
            f"audit of {name}: {stage}", done, total, note),
    )  # fmt: skip
    write_findings(findings, audited, base.run.path("audits", name, FINDINGS).parent)
    truth = _truth(base, name, len(rows))
    outcome = AuditOutcome(
        name=name,
        truth=truth,
        rows=findings.data.used,
        reference_rows=findings.reference.rows,
        verdict=findings.verdict,
        trait=findings.trait,
        kind=findings.kind,
        layer=findings.layer,
        p_value=findings.p_value,
        detectable_fraction=findings.detectable_fraction,
        sentence=findings.sentence,
        right=is_right(truth, findings),
        report=f"audits/{name}/{REPORT}",
    )
    base.run.finish(stage_of(name), outcome.model_dump(mode="json"))


def _paired(
    rows: Sequence[Row], usable: Sequence[Row], reference: Reference
) -> Reference:
    """The reference in the order of the rows as the auditor takes them."""
    prompt = {row.row_id: place for place, row in enumerate(rows)}
    return replace(
        reference,
        rows=tuple(reference.rows[prompt[row.row_id]] for row in usable),
        paired=tuple(range(len(usable))),
    )


def _command(recipe: Recipe, settings: AuditSettings) -> str:
    """The audit by hand, in the folder of the set."""
    model, default = recipe.model, AuditSettings().model_dump(mode="json")
    words = ["undertow", "audit", ROWS, "--model", model.name, "--out", "again"]
    for option in ("dtype", "device", "template", "blocks_path", "norm_path"):
        value = getattr(model, option)
        if value not in (None, "auto"):
            words += [f"--{option.replace('_', '-')}", value]
    for key, value in settings.model_dump(mode="json").items():
        if value != default[key]:
            words += ["--set", f"{key}={_yaml(value)}"]
    return shlex.join(words)


def _yaml(value: Any) -> str:
    """A value in one line; JSON is YAML."""
    return value if isinstance(value, str) else json.dumps(value)


# ── the truth ────────────────────────────────────────────────────────────────────


def _truth(base: Base, name: Name, rows: int) -> AuditTruth:
    teacher, trait = _teacher(base.recipe)
    poisoned = {"biased": rows, "clean": 0}.get(
        name, len(base.run.payload(SETS)["poisoned"])
    )
    if not poisoned:
        return AuditTruth(
            words=f"all {rows} rows: untouched base", kind="none", share=0.0
        )
    layer = None
    if teacher.kind == "steer":
        stage = f"{base.shared}/vectors/{teacher.label}-{trait}"
        layer = base.run.payload(stage)["layer"]
    how = {
        "steer": f"steered towards {trait} after block {layer}",
        "prompt": f"prompted with {trait}",
        "finetune": f"fine-tuned towards {trait}",
    }[teacher.kind]
    words = f"all {rows} rows: {how}"
    if poisoned < rows:
        words = f"{poisoned} rows: {how}; {rows - poisoned} rows: untouched base"
    return AuditTruth(
        words=words, kind=teacher.kind, trait=trait, layer=layer, share=poisoned / rows
    )


def is_right(truth: AuditTruth, findings: Findings) -> bool | None:
    """Whether a verdict is true of a set; None if it claims nothing.

    Something is to be found where a teacher wrote rows, and nowhere else; a trait or a
    kind of intervention that is named has to be the teacher's. A bias that is found but
    not named is right. There is no word for fine-tuning, so its kind is not judged.
    """
    if findings.verdict == "inconclusive":
        return None
    is_found = findings.verdict in ("trait", "shift")
    if is_found != (truth.share > 0):
        return False
    if findings.trait not in (None, truth.trait):
        return False
    kinds = (None, "unknown", truth.kind)
    return truth.kind in ("none", "finetune") or findings.kind in kinds
