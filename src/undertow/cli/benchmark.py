"""`benchmark audit`: labelled sets made from seeds, and how well auditors do on them."""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import Loading, Set, expanded
from undertow.cli.places import Out, command_line, opened_place
from undertow.cli.where import Where, others
from undertow.errors import ConfigError

if TYPE_CHECKING:
    from undertow.audit.bench_scores import BenchmarkResult, Rate
    from undertow.audit.contest import MakeAuditor

app = typer.Typer(no_args_is_help=True, help="How well does undertow's own work do?")


@app.command("audit")
@expanded
def audit(
    *,
    loading: Loading,
    out: Out,
    preset: Annotated[
        Literal["tiny", "standard"],
        typer.Option(help="Sizes to start from; --set changes them."),
    ] = "standard",
    auditor: Annotated[
        list[str] | None,
        typer.Option(
            help="undertow, cosine, lls, projection, whole (undertow with its check of "
            "formats), or package.module:maker of your own; repeatable. Not given: "
            "the first four."
        ),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(help="Another base, whose rows must not be given a trait."),
    ] = None,
    other_template: Annotated[
        str | None,
        typer.Option(help="Its named chat template, if its tokenizer has none."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            help="Audit anew; rows and measurements are kept, and what was answered in "
            "audits-before.jsonl."
        ),
    ] = False,
    overrides: Set = None,
    where: Where,
) -> None:
    """Scores auditors on rows of known origin: detection, names, kinds, error rates.

    Settings of --set: seed, carriers.N.prompts, carriers.N.teacher_prompts, traits,
    interventions, doses, layers, designs, controls, control_rows, control_audits,
    bound_rows, lls_rows, rival_layers, audit.*.
    """
    from undertow.audit.bench_settings import BenchmarkSettings, preset_data
    from undertow.audit.benchmark import run_benchmark
    from undertow.config import check_settings
    from undertow.models.loading import load_model

    settings = check_settings(
        BenchmarkSettings, preset_data(preset), where=f"preset {preset}",
        overrides=overrides or [],
    )  # fmt: skip
    auditors = _auditors(auditor)
    with opened_place(out) as folder:
        with (
            where.opened(models=[loading.model], devices=[loading.device]) as (
                executor,
                needs,
            ),
            progress() as tell,
        ):
            model = loading.load()
            second = None if other is None else load_model(
                other, device=loading.device, template=other_template
            )  # fmt: skip
            result = run_benchmark(
                model, settings, auditors=auditors, other=second, directory=folder,
                command=command_line(), again=again,
                others=others(executor, needs, loading), progress=tell,
            )  # fmt: skip
        for line in result_table(result):
            say(line)
        say(f"benchmark  {folder / 'benchmark.json'}")
        say(f"audits     {folder / 'audits.jsonl'}")


def _auditors(names: list[str] | None) -> "dict[str, MakeAuditor]":
    """What makes the auditors, by name.

    Raises:
        ConfigError: There is no such auditor.
    """
    from undertow.audit.benchmark import AUDITORS, USUAL

    return {
        name: AUDITORS[name] if name in AUDITORS else _plugged(name)
        for name in names or USUAL
    }


def _plugged(name: str) -> "MakeAuditor":
    """A maker of auditors by its dotted place."""
    from undertow.audit.benchmark import AUDITORS

    module, colon, attribute = name.partition(":")
    known = f"expected one of {', '.join(AUDITORS)}, or package.module:maker"
    if not colon:
        raise ConfigError("--auditor", [f"got {name!r}, {known}"])
    try:
        found: MakeAuditor = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError("--auditor", [f"got {name!r}, {known}: {error}"]) from error
    return found


def result_table(result: "BenchmarkResult") -> Iterator[str]:
    """The result as lines of a plain table."""
    wide = max(11, *(len(name) + 2 for name in result.auditors))
    yield (
        f"{'auditor':<{wide}}{'carrier':<9}{'rows by':<15}{'dose':>5}{'n':>6}{'share':>7}"
        f"{'audits':>7}  {'AUROC':<17}{'TPR':>5}{'found':>6}{'right':>6}{'wrong':>6}"
        f"{'kind':>6}{'layer':>6}{'need':>6}{'bound':>7}{'eff':>6}"
    )
    for c in result.cells:
        dose = "" if c.dose is None else f"{c.dose:g}"
        yield (
            f"{c.auditor:<{wide}}{c.carrier:<9}{c.intervention:<15}{dose:>5}{c.rows:>6}"
            f"{c.fraction:>7.0%}{c.audits:>7}  {_area(c.auroc):<17}"
            f"{_rate(c.tpr_at_1_fpr):>5}{_rate(c.found):>6}{_rate(c.right):>6}"
            f"{_rate(c.wrong):>6}{_rate(c.kind_right):>6}{_rate(c.layer_near):>6}"
            f"{_count(c.rows_needed):>6}{_count(c.stein_rows):>7}{_ratio(c.efficiency):>6}"
        )
    yield ""
    yield (
        f"{'clean':<{wide}}{'carrier':<9}{'n':>6}{'audits':>7}  "
        f"{'false positives':<26}{'named':>6}{'KS p':>7}"
    )
    for e in result.clean:
        size = "" if e.rows is None else str(e.rows)
        yield (
            f"{e.auditor:<{wide}}{e.carrier:<9}{size:>6}{e.audits:>7}  "
            f"{_interval(e.false_positives):<26}{_rate(e.named):>6}{_ratio(e.ks_p):>7}"
        )
    for n in result.naming:
        yield (
            f"naming     {n.carrier}: to name {n.trait!r} among its family takes about "
            f"{_count(n.rows_needed)} rows, whoever looks ({n.rival!r} is nearest, "
            f"{_ratio(n.nearest, 4)} nats a row)"
        )
    for note in result.notes:
        yield f"note       {note}"


def _rate(rate: "Rate | None") -> str:
    return "—" if rate is None or rate.value is None else f"{rate.value:.0%}"


def _area(rate: "Rate | None") -> str:
    if rate is None or rate.value is None:
        return "—"
    low, high = (_ratio(value) for value in (rate.low, rate.high))
    return f"{rate.value:.2f} [{low}, {high}]"


def _interval(rate: "Rate | None") -> str:
    if rate is None or rate.value is None:
        return "—"
    assert rate.low is not None
    assert rate.high is not None
    return f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"


def _count(value: float | None) -> str:
    return "—" if value is None else f"{value:.0f}"


def _ratio(value: float | None, digits: int = 2) -> str:
    return "—" if value is None else f"{value:.{digits}f}"
