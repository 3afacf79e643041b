"""`census`: do the rows' mean scores differ from the reference's, however many rows?"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.audit import TIERS, Comparison, opened
from undertow.cli.console import progress, say
from undertow.cli.options import FailOn, Loading, Set, Vectors, expanded
from undertow.cli.places import FindingsOut, check_sources, command_line, opened_place
from undertow.cli.where import Where

if TYPE_CHECKING:
    from undertow.audit.shards import Survey
    from undertow.findings import Census, Tier


@expanded
def census(
    rows: Annotated[
        list[str],
        typer.Argument(
            help="JSONL, JSON, CSV, Parquet, a folder of such files, '-', "
            "hub:owner/name, or a URL, read where it lies; repeatable."
        ),
    ],
    *,
    loading: Loading,
    comparison: Comparison,
    out: FindingsOut,
    vector: Vectors = None,
    fail_on: FailOn = "never",
    overrides: Set = None,
    where: Where,
) -> None:
    """Tests mean scores over every row of a set of any size, in memory that does not grow.

    Settings of --set: alpha, family, decoys, seed, flips, layers, system, sampler.*,
    filter, batch_rows, shard_batches, pilot, top, subsample, dose.
    """
    from undertow.audit.census import census as take_census
    from undertow.audit.census_settings import CensusSettings
    from undertow.config import check_settings
    from undertow.interventions.steering import load_vector

    comparison.check("census", None)
    settings = check_settings(
        CensusSettings, comparison.settings(), where="census", overrides=overrides or []
    )
    vectors = [load_vector(path) for path in vector or []]
    greedy = settings.sampler is not None and settings.sampler.temperature == 0
    tier: Tier = "B" if comparison.reference else "A"
    if comparison.no_reference or (greedy and tier == "A"):
        tier = "C"
    check_sources(rows, out)
    with opened_place(out) as folder:
        sources = opened(rows, folder)
        with (
            where.opened(models=[loading.model], devices=[loading.device]) as (
                executor,
                needs,
            ),
            progress() as tell,
        ):
            found = take_census(
                loading.load, sources, folder, reference=comparison.reference or [],
                settings=settings, vectors=vectors, columns=comparison.columns(),
                split=comparison.split, loading=loading.options(), executor=executor,
                needs=needs, on_survey=partial(_foretell, loading, tier, settings.layers),
                command=command_line(), progress=tell,
            )  # fmt: skip
        _say(found, folder)
    if fail_on == "evidence" and found.verdict == "shift":
        raise typer.Exit(1)


def _foretell(
    loading: Loading,
    tier: "Tier",
    layers: tuple[int, ...] | None,
    seen: "Survey",
    trusted: "Survey | None",
) -> None:
    """Says what is to be expected, before the weights are loaded."""
    from undertow.audit.census_cost import census_cost
    from undertow.audit.cost import check_layers, model_size, timed_flops
    from undertow.errors import ModelError

    given = "" if trusted is None else f", {trusted.rows:,} to compare with"
    say(f"rows       {seen.rows:,} in {len(seen.sizes)} files{given}")
    for reason, count in seen.skipped.items():
        say(f"left out   {count:,}: {reason}")
    say(f"reference  {tier}: {TIERS[tier]}")
    try:
        size = model_size(loading.model)
    except ModelError as error:
        say(f"expected   not known: {error}")
        return
    check_layers(layers, size=size, model=loading.model, where="census")
    flops = timed_flops(dtype=loading.dtype, device=loading.device)
    cost = census_cost(seen, trusted, size=size, tier=tier, flops=flops)
    say(f"tokens     about {cost.tokens:,} of prompts and completions")
    say(
        f"expected   about {max(1, round(cost.seconds / 60)):,} min on one device like "
        f"this ({flops / 1e12:.2f} TFLOP/s)"
    )


def _say(found: "Census", out: Path) -> None:
    p_value = "—" if found.p_value is None else f"{found.p_value:.2g}"
    share = "—" if found.detectable_fraction is None else (
        f"{found.detectable_fraction:.2g} of the rows"
    )  # fmt: skip
    say(f"verdict    {found.verdict}: {found.sentence}")
    for reason in found.reasons:
        say(f"           {reason}")
    say(f"p-value    {p_value} (error rate {found.alpha:g})")
    say(f"detectable {share}, steered at dose {found.dose:g}, at 80 % power")
    for reason, count in found.data.skipped.items():
        say(f"left out   {count:,}: {reason}")
    for warning in found.warnings:
        say(f"note       {warning}")
    say(f"note       {found.selection}")
    for line in found.next_commands:
        say(f"next       {line}")
    say(f"findings   {out / 'census.json'}")
    say(f"rows       {out / 'top_rows.jsonl'}, {out / 'subsample.jsonl'}")
