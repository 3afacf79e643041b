"""`audit`: what will these rows teach, with a stated error rate."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import FailOn, Loading, Set, Vectors, expanded
from undertow.cli.places import FindingsOut, check_sources, command_line, opened_place
from undertow.cli.where import Where, others
from undertow.errors import ConfigError, RunError

if TYPE_CHECKING:
    from undertow.audit.audited import Audited, Origin
    from undertow.audit.settings import AuditSettings
    from undertow.findings import Findings
    from undertow.storage import RowSet


TIERS = {"A": "sampled from the base", "B": "the rows given", "C": "none"}
"""Where reference rows come from, in words."""
_PLACES = 3  # lines that were left out, shown in full


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Where rows stand in their files, and what they are compared with."""

    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows that you trust, to compare with; else the base answers the same "
            "prompts. May be repeated."
        ),
    ] = None
    no_reference: Annotated[
        bool,
        typer.Option(
            "--no-reference",
            help="Compare with nothing; then nothing is ever ruled out.",
        ),
    ] = False
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the rows stand: prompt=NAME completion=NAME, or messages=NAME; "
            "repeatable."
        ),
    ] = None
    split: Annotated[
        str | None, typer.Option(help="Split of a dataset folder or hub dataset.")
    ] = None

    def check(self, command: str, divide: float | None) -> None:
        """Refuses options of a command that do not fit together.

        Raises:
            ConfigError: No reference, and one given or needed.
        """
        if self.no_reference and self.reference:
            fault = "give --reference or --no-reference, not both"
            raise ConfigError(command, [fault])
        if self.no_reference and divide is not None:
            fault = "--divide needs a reference: without one no row has a p-value"
            raise ConfigError(command, [fault])

    def settings(self) -> dict[str, Any]:
        """What it says of the settings of an audit or census."""
        return {"reference": "none"} if self.no_reference else {}

    def columns(self) -> dict[str, str] | None:
        """prompt=NAME completion=NAME as a mapping; None if nothing was given."""
        found = {}
        for text in self.column or []:
            key, equals, name = text.partition("=")
            if not equals or not name:
                raise ConfigError(
                    "--column", [f"got {text!r}, expected prompt=NAME or messages=NAME"]
                )
            found[key] = name
        return found or None


@expanded
def audit(
    rows: Annotated[
        list[str],
        typer.Argument(
            help="JSONL, JSON, CSV, Parquet, a folder, '-', hub:owner/name, or a URL."
        ),
    ],
    *,
    loading: Loading,
    comparison: Comparison,
    out: FindingsOut,
    vector: Vectors = None,
    confirm: Annotated[
        int, typer.Option(min=0, help="Updates of canary students that measure it.")
    ] = 0,
    divide: Annotated[
        float | None,
        typer.Option(
            help="Write clean.jsonl and quarantine.jsonl: rows whose conformal p is at "
            "most this are put away."
        ),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write card.md too, a dataset card.")
    ] = False,
    fail_on: FailOn = "never",
    overrides: Set = None,
    where: Where,
) -> None:
    """Says which trait rows carry, how it was put there, or how little would be found.

    Settings of --set: alpha, family, decoys, seed, max_rows, layers, system, sampler.*,
    filter, permutations, personas, screening, fresh, race_passes, naming_passes, planted,
    discover, forecast, triage.
    """
    from undertow.audit.files import write_findings
    from undertow.report.audit_card import write_audit_card

    comparison.check("audit", divide)
    settings = _settings(comparison, confirm, overrides or [])
    check_sources(rows, out)
    with opened_place(out) as folder:
        sources = opened(rows, folder)
        findings, audited = _audit(
            sources, folder, settings, loading, comparison, vector or [], where
        )
        write_findings(findings, audited, folder)
        if divide is not None:
            _divide(sources, folder, divide, comparison, audited)
        _say(findings, folder, is_power_asked=settings.planted > 0)
        if card:
            say(f"card       {write_audit_card(findings, folder / 'card.md')}")
    if fail_on == "evidence" and findings.verdict in ("trait", "shift"):
        raise typer.Exit(1)


def _audit(
    sources: list[str | Path],
    out: Path,
    settings: "AuditSettings",
    loading: Loading,
    comparison: Comparison,
    vector: list[Path],
    where: Where,
) -> "tuple[Findings, Audited]":
    """Reads the rows, says what is to be expected, and audits them."""
    from undertow.audit.auditor import run_audit
    from undertow.interventions.steering import load_vector
    from undertow.storage import take_rows

    take = partial(
        take_rows, columns=comparison.columns(), limit=settings.max_rows,
        seed=settings.seed,
    )  # fmt: skip
    found = take(sources, split=comparison.split)
    trusted = take(comparison.reference).rows if comparison.reference else None
    _foretell(found, None if trusted is None else len(trusted), loading, settings)
    vectors = [load_vector(path) for path in vector]
    with where.opened(models=[loading.model], devices=[loading.device]) as (
        executor,
        needs,
    ):
        model = loading.load()
        with progress() as tell:
            return run_audit(
                model, found.rows, reference=trusted, settings=settings,
                vectors=vectors, origin=_origin(found), directory=out, progress=tell,
                others=others(executor, needs, loading),
            )  # fmt: skip


def _settings(
    comparison: Comparison, confirm: int, overrides: list[str]
) -> "AuditSettings":
    from undertow.audit.settings import AuditSettings
    from undertow.config import check_settings
    from undertow.traits import load_family

    given = {"canary_updates": confirm, **comparison.settings()}
    settings = check_settings(AuditSettings, given, where="audit", overrides=overrides)
    if settings.canary_updates and not settings.forecast:
        fault = "--confirm is part of the forecast, which forecast=0 leaves out"
        raise ConfigError("audit", [fault])
    load_family(settings.decoy_family)  # refused now, not when a model is loaded
    return settings


def opened(rows: list[str], out: Path) -> list[str | Path]:
    """Sources of rows; what comes on standard input is kept beside `out`."""
    from undertow.storage import keep_stdin

    kept = out.with_name(f"{out.name}-stdin.jsonl")
    return [keep_stdin(kept) if name == "-" else name for name in rows]


def _origin(found: "RowSet") -> "Origin":
    from undertow.audit.audited import Origin

    return Origin(
        sources=found.sources, layout=found.layout, read=found.read,
        unique=found.unique, counts=found.counts, skipped=found.skipped,
        subsample=found.subsample, command=command_line(),
    )  # fmt: skip


def _foretell(
    found: "RowSet", reference: int | None, loading: Loading, settings: "AuditSettings"
) -> None:
    """Says what is to be expected, before the weights are loaded."""
    from undertow.audit.cost import (
        check_layers,
        expected_cost,
        model_size,
        timed_flops,
    )
    from undertow.audit.judge import FEWEST
    from undertow.errors import ModelError

    duplicates = "" if found.read == found.unique else f" ({found.unique} different)"
    say(f"rows       {found.read}{duplicates} from {', '.join(found.sources)}")
    say(f"columns    {found.layout}")
    if found.subsample:
        say(f"           {found.subsample}")
    for reason, count in found.skipped.items():
        say(f"left out   {count}: {reason}")
    for place in found.places[:_PLACES]:
        say(f"           {place}")
    if len(found.rows) < FEWEST:
        say(f"too few    {len(found.rows)} rows tell nothing; give {FEWEST} or more")
    try:
        size = model_size(loading.model)
    except ModelError as error:
        say(f"expected   not known: {error}")
        return
    check_layers(settings.layers, size=size, model=loading.model, where="audit")
    flops = timed_flops(dtype=loading.dtype, device=loading.device)
    cost = expected_cost(
        found.rows, size=size, settings=settings, reference=reference, flops=flops
    )
    say(f"tokens     about {cost.tokens:,} of completions")
    say(f"reference  {cost.tier}: {TIERS[cost.tier]}")
    usual, found_minutes = (
        max(1, round(each / 60)) for each in (cost.seconds, cost.found_seconds)
    )
    say(
        f"expected   about {usual} min, {found_minutes} if something is found, and "
        f"{cost.memory_mib / 1024:.1f} GiB ({flops / 1e12:.2f} TFLOP/s here)"
    )


def _divide(
    sources: "list[str | Path]",
    out: Path,
    at_most: float,
    comparison: Comparison,
    audited: "Audited",
) -> None:
    """Puts rows away by their conformal p; the others, and unjudged ones, are kept."""
    from undertow.audit.writeup import row_scores
    from undertow.storage import write_split

    if not audited.reference.rows:
        raise RunError("--divide needs a reference: without one no row has a p-value")
    scores = row_scores(audited)
    away = {
        name
        for name, p in zip(scores["row_id"], scores["p_value"], strict=True)
        if p <= at_most
    }
    done = write_split(
        sources, keep=lambda row: row.row_id not in away, clean=out / "clean.jsonl",
        quarantine=out / "quarantine.jsonl", columns=comparison.columns(),
        split=comparison.split,
    )  # fmt: skip
    unusable = f", {done.unusable} of them unusable" if done.unusable else ""
    put_away = done.quarantined + done.unusable
    say(
        f"divided    {done.clean} records kept, {put_away} put away{unusable} "
        "(triage: a bias may stay in what is kept)"
    )
    if audited.origin.subsample:
        say("           rows outside the subsample were not judged and are kept")


def _measured(findings: "Findings") -> str | None:
    """What the canary took on, in a line; None if none was trained."""
    forecast = findings.forecast
    known = [
        (each.measured, each.trait)
        for each in (forecast.traits if forecast else [])
        if each.measured is not None
    ]
    if forecast is None or not known:
        return None
    ranked = sorted(known, reverse=True)
    rose, most = ranked[0]
    told = f"{forecast.canary_updates} updates raised {most} most: {rose:+.2f} nats"
    for place, (nats, trait) in enumerate(ranked, start=1):
        if trait == findings.trait and place > 1:
            told += f"; {trait} {nats:+.2f}, place {place} of {len(ranked)}"
    return f"{told} (one student, one control: no interval)"


def _say(findings: "Findings", out: Path, *, is_power_asked: bool) -> None:
    from undertow.report.audit_words import ADVICE, why_undetectable

    p_value = "—" if findings.p_value is None else f"{findings.p_value:.2g}"
    detectable = findings.detectable_fraction
    why = why_undetectable(findings) if is_power_asked else "planted=0 leaves it out"
    share = f"not known: {why}"
    if detectable is not None:
        share = f"{detectable:.0%} of the rows, at 80 % power"
    say(f"verdict    {findings.verdict}: {findings.sentence}")
    for reason in findings.reasons:
        say(f"           {reason}")
    say(f"do         {ADVICE[findings.verdict]}")
    say(f"p-value    {p_value} (error rate {findings.alpha:g})")
    say(f"detectable {share}")
    if told := _measured(findings):
        say(f"training   {told}")
    said = {findings.sentence, *findings.reasons}
    for warning in dict.fromkeys([*findings.warnings, *findings.reference.notes]):
        if warning not in said:
            say(f"note       {warning}")
    say(f"findings   {out / 'audit.json'}")
    say(f"scores     {out / 'scores.parquet'}")
    say(f"report     {out / 'report.html'}")
