"""What a census says of its sums, and the audit that it leads to.

Knows nothing of how rows were read or summed.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from undertow.audit.census_plan import Plan
from undertow.audit.census_settings import CensusSettings
from undertow.audit.census_verdict import CensusTest, directions_of, known, largest
from undertow.audit.settings import AuditSettings, ComparisonSettings
from undertow.audit.shards import Survey
from undertow.audit.sums import Sums
from undertow.findings import Census, CensusData, CensusReference
from undertow.models.loading import Model
from undertow.models.reloading import ModelFacts
from undertow.runs import provenance

_SELECTION = (
    "the rows of top_rows.jsonl were chosen by their scores: they show what the largest "
    "scores look like, and their own scores cannot be tested again. Those of "
    "subsample.jsonl were chosen by their hashes and lengths alone, so an audit of them is "
    "a test of its own, of as many rows as it holds"
)
_USUAL = {"dtype": "auto", "device": "auto"}


@dataclass(frozen=True)
class Handed:
    """What an audit is given.

    Attributes:
        rows: Those that were chosen by their hashes and lengths.
        reference: Trusted rows, chosen in the same way; None if there are none.
        vectors: Files of further directions.
        out: Where it goes.
    """

    rows: Path
    reference: Path | None
    vectors: tuple[Path, ...]
    out: Path


def audit_command(model: ModelFacts, settings: CensusSettings, handed: Handed) -> str:
    """The command that audits rows as the census compared them."""
    words = ["undertow", "audit", str(handed.rows), "--model", model.name]
    for name, value in model.options.items():
        if value is not None and value != _USUAL.get(name):
            text = value if isinstance(value, str) else json.dumps(value)
            words += [f"--{name.replace('_', '-')}", text]
    if handed.reference is not None:
        words += ["--reference", str(handed.reference)]
    if settings.reference == "none":
        words.append("--no-reference")
    for vector in handed.vectors:
        words += ["--vector", str(vector)]
    for name, value in _told(settings).items():
        words += ["--set", f"{name}={_as_yaml(value)}"]
    return shlex.join([*words, "--out", str(handed.out)])


def _told(settings: CensusSettings) -> dict[str, Any]:
    """What was set otherwise than usual, and an audit knows too."""
    shared = set(ComparisonSettings.model_fields) - {"reference"}
    given = settings.model_dump(mode="json", exclude_defaults=True, include=shared)
    usual = AuditSettings().max_rows
    more = {"max_rows": settings.subsample} if settings.subsample > usual else {}
    return {"family": settings.family, **given, **more}


def _as_yaml(value: object) -> str:
    """A value as `--set` reads it: text as it stands, unless YAML takes it for else."""
    try:
        if isinstance(value, str) and yaml.safe_load(value) == value:
            return value
    except yaml.YAMLError:
        pass
    return json.dumps(value)


def findings_of(
    model: Model,
    plan: Plan,
    test: CensusTest,
    sums: Sequence[Sums],
    seen: Survey,
    *,
    settings: CensusSettings,
    sources: Sequence[str],
    files: int,
    command: str,
    next_command: str,
    seconds: float,
) -> Census:
    """The findings: of the audited rows' sums, and those of trusted rows behind them."""
    place = largest(test)
    layer, direction = place if place is not None else (None, None)
    own = sums[0]
    fraction = known(test.detectable_fraction)
    return Census(
        verdict=test.verdict, p_value=known(test.p_value), alpha=settings.alpha,
        reference_tier=plan.measuring.tier,
        direction=None if direction is None else plan.names[direction],
        role=None if direction is None else plan.roles[direction],
        layer=None if layer is None else plan.measuring.layers[layer],
        z=None if place is None else known(test.z[place]),
        detectable_fraction=fraction, detectable_shift=known(test.detectable_shift),
        dose=settings.dose, length_z=known(test.length_z),
        sentence=_sentence(plan, test, own, fraction), reasons=list(test.reasons),
        warnings=list(test.warnings), selection=_SELECTION,
        next_commands=[next_command], model=model.name,
        family=settings.family,
        data=CensusData(
            sources=list(sources), files=files,
            rows=seen.rows, used=own.own.count, repeats=own.own.repeats,
            effective=known(test.effective), tokens=own.own.tokens,
            without_prompt=seen.without_prompt, skipped=dict(own.skipped),
            digest=f"{own.digest:016x}",
        ),
        reference=_reference(plan, sums),
        layers=list(plan.measuring.layers), directions=directions_of(plan, test),
        flips=plan.measuring.flips, command=command,
        seconds={"census": seconds},
        provenance=provenance(fingerprint=model.fingerprint, dtype=str(model.dtype)),
    )  # fmt: skip


def _reference(plan: Plan, sums: Sequence[Sums]) -> CensusReference:
    given = sums[1] if len(sums) > 1 else None
    side = sums[0].partner if given is None else given.own
    return CensusReference(
        tier=plan.measuring.tier, rows=side.count, tokens=side.tokens,
        repeats=side.repeats,
        skipped={} if given is None else dict(given.skipped),
        sampler=plan.measuring.sampler.model_dump(mode="json"),
        sampler_source=plan.source, filter=plan.measuring.passing.filter,
        notes=list(plan.notes),
    )  # fmt: skip


def _sentence(plan: Plan, test: CensusTest, sums: Sums, fraction: float | None) -> str:
    rows = f"{sums.own.count:,} rows"
    if test.verdict == "inconclusive":
        return f"Nothing can be said of {rows}: {test.reasons[0]}."
    if test.verdict == "shift":
        layer, direction = largest(test) or (0, 0)
        return (
            f"Of {rows} the mean score differs from the reference's, most along "
            f"{plan.names[direction]!r} after block {plan.measuring.layers[layer]} "
            f"(z = {test.z[layer, direction]:+.1f}): that is where, not what."
        )
    least = (
        "no share of steered rows is sure to be found"
        if fraction is None
        else f"{fraction:.2g} of the rows, steered, would have been found at 80 % power"
    )
    return f"{rows}: no difference was found in any direction; {least}."
