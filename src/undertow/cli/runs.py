"""`demo`, `run`, `report` and `recipes`: whole experiments from YAML."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.completion import recipe_names
from undertow.cli.console import JsonFlag, progress, say, say_json
from undertow.cli.options import Set, expanded
from undertow.cli.places import Out, opened_place
from undertow.cli.tracking import Track, check, tracking
from undertow.cli.where import Where
from undertow.errors import ConfigError, RunError, shown
from undertow.packaged import packaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from undertow.execution.executor import Executor, Needs
    from undertow.results import AuditOutcome, Transfer

recipes_app = typer.Typer(no_args_is_help=True, help="List, show and check recipes.")
RecipeName = Annotated[
    str, typer.Argument(help="Name or file.", autocompletion=recipe_names)
]


def recipe_path(name: str) -> Path:
    """A YAML file, or a packaged recipe by its short name.

    Raises:
        ConfigError: There is neither.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    ours = packaged("recipes")
    if name not in ours:
        raise ConfigError(
            f"recipe {name!r}",
            [f"no such file or packaged recipe; there are {shown(list(ours))}"],
        )
    return ours[name]


@expanded
def run(
    recipe: Annotated[
        str,
        typer.Argument(help="YAML file or packaged name.", autocompletion=recipe_names),
    ],
    *,
    out: Out,
    overrides: Set = None,
    allow_cpu: Annotated[
        bool, typer.Option(help="Run a recipe that is marked as needing a GPU.")
    ] = False,
    together: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Students trained side by side; not given: 1 on a "
            "CPU, up to 16 on a GPU.",
        ),
    ] = None,
    track: Track = None,
    where: Where,
) -> None:
    """Runs a recipe; the same command continues an interrupted run."""
    with opened_place(out) as folder:
        _run(
            recipe_path(recipe), folder, overrides or [], allow_cpu=allow_cpu,
            together=together, track=track, where=where,
        )  # fmt: skip


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("demo-run"),
    overrides: Set = None,
) -> None:
    """Biased teacher, number rows, student and control, read-outs, report, audits.

    A slow machine gets a sixth of the rows; `undertow run demo` is always the whole.
    """
    from undertow.models.registry import is_pulled, pull

    path = _demo_recipe(out)
    if not is_pulled("smollm2-135m"):
        with progress() as report_progress:
            pull(
                "smollm2-135m",
                progress=lambda s, done, total: report_progress(s, done, total, ""),
            )
    _run(path, out, overrides or [], allow_cpu=True, where=Where(on="auto"))


_FAST = 2.5e11
"""Operations a second below which the whole demo would take more than a quarter of an hour."""


_DEMOS = ("demo", "demo-small")


def _title(path: Path) -> str | None:
    """Of a recipe; None if the file is none."""
    from undertow.safe_yaml import read_yaml

    try:
        content = read_yaml(path)
    except ConfigError:
        return None
    return content.get("title") if isinstance(content, dict) else None


def _demo_recipe(out: Path) -> Path:
    """The demo that fits the machine; the one that was begun, if one was."""
    from undertow.audit.cost import timed_flops
    from undertow.runs import RECIPE

    begun = out / RECIPE
    if begun.is_file() and _title(begun) in map(_title, map(recipe_path, _DEMOS)):
        return begun
    flops = timed_flops(dtype="auto", device="auto")
    if flops >= _FAST:
        return recipe_path("demo")
    say(
        f"This machine computes {flops / 1e12:.2f} TFLOP/s, so this is the small demo "
        f"(undertow run demo --out {out} is the whole one)."
    )
    return recipe_path("demo-small")


def _run(
    path: Path,
    out: Path,
    overrides: list[str],
    *,
    allow_cpu: bool,
    together: int | None = None,
    track: list[str] | None = None,
    where: Where | None = None,
) -> None:
    from undertow.cli.foretelling import expected
    from undertow.config import load_settings
    from undertow.experiment import Recipe, run_experiment
    from undertow.experiment.tracking import Watcher
    from undertow.report.figure_data import write_figure_data
    from undertow.report.html import write_report

    recipe = load_settings(Recipe, path, overrides)
    check(track)
    settings = recipe.model_dump(mode="json")
    models = [model for model in (recipe.model, recipe.writer) if model is not None]
    where = where or Where()
    is_elsewhere = where.place(recipe.execution) == "ray"
    with (
        where.opened(
            recipe.execution,
            models=[model.name for model in models],
            devices=[model.device for model in models],
        ) as (executor, needs),
        tracking(track, out, settings) as told,
        progress() as report_progress,
    ):
        if recipe.needs_gpu and not allow_cpu:
            _check_gpu(path, executor, needs)
        if line := expected(recipe, out, is_here=not is_elsewhere):
            say(f"expected {line}")
        watcher = Watcher(told, report_progress, out, recipe.traits)
        results = run_experiment(
            recipe, out, together=together, executor=executor, needs=needs,
            progress=watcher,
        )  # fmt: skip
        watcher.tell_results(results)
    page = write_report(results, out / "report.html")
    write_figure_data(results, out)
    for line in table(results.transfers):
        say(line)
    say(results.headline)
    for line in audit_lines(results.audits):
        say(line)
    say(f"results  {out / 'results.json'}")
    say(f"figures  {out / 'figures'}")
    say(f"report   {page}")


def _check_gpu(path: Path, executor: "Executor", needs: "Needs") -> None:
    if executor.is_here:
        import torch

        has_one = torch.cuda.is_available()
    else:
        has_one = needs.gpus > 0
    if not has_one:
        raise RunError(
            f"{path}: this recipe needs a GPU (needs_gpu: true) and there is none; "
            "run it where there is one, or add --allow-cpu"
        )


def table(transfers: "Sequence[Transfer]") -> list[str]:
    """The headline table as aligned lines."""
    from undertow.report.text import estimate_text, mean_text

    head = (
        f"{'teacher':<10}{'noise':>6}  {'trait':<12}{'transfer, nats':>24}"
        f"{'from base':>11}{'specific':>10}{'cos(shift, v)':>15}{'control':>9}"
    )
    lines = [head]
    for item in transfers:
        base, student, control = (
            mean_text(estimate) if estimate else "—"
            for estimate in (item.from_base, item.shift_cosine, item.control_cosine)
        )
        lines.append(
            f"{item.teacher:<10}{item.noise:>6g}  {item.trait:<12}"
            f"{estimate_text(item.transfer):>24}{base:>11}"
            f"{mean_text(item.specific):>10}{student:>15}{control:>9}"
        )
    return lines


def audit_lines(audits: "Sequence[AuditOutcome]") -> list[str]:
    """A line an audit: what the rows are, what the auditor said, whether that is true."""
    from undertow.report.blind_audits import judged, verdict_words
    from undertow.report.text import p_text

    return [
        f"audit {item.name:<9}{judged(item)}: {verdict_words(item)} "
        f"(p {p_text(item.p_value)}); truth: {item.truth.words}"
        for item in audits
    ]


@recipes_app.command("list")
def recipes_list(*, json_flag: JsonFlag = False) -> None:
    """Lists the packaged recipes."""
    import yaml

    found = []
    for name, path in packaged("recipes").items():
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        needs_gpu = bool(content.get("needs_gpu"))
        found.append({"name": name, "title": content["title"], "needs_gpu": needs_gpu})
    if json_flag:
        say_json(found)
        return
    for recipe in found:
        gpu = " (GPU)" if recipe["needs_gpu"] else ""
        say(f"{recipe['name']:<18} {recipe['title']}{gpu}")


@recipes_app.command("show")
def recipes_show(name: RecipeName, *, json_flag: JsonFlag = False) -> None:
    """Prints a recipe, to copy and edit."""
    path = recipe_path(name)
    if json_flag:
        from undertow.safe_yaml import read_yaml

        say_json(read_yaml(path))
        return
    say(path.read_text(encoding="utf-8").rstrip())


@recipes_app.command("check")
def recipes_check(
    name: RecipeName,
    *,
    overrides: Set = None,
    json_flag: JsonFlag = False,
) -> None:
    """Checks a recipe; prints it with every default filled in, and what it will take.

    Students, rows and updates are counted from the run's own plan. Time, here and on one
    H100, is a guess: within a factor of two for the stored studies of small models.
    """
    from undertow.cli.foretelling import cost_facts, cost_lines
    from undertow.config import dump_settings, load_settings
    from undertow.experiment import Recipe
    from undertow.experiment.cost import recipe_cost, recipe_sizes

    recipe = load_settings(Recipe, recipe_path(name), overrides or [])
    cost = recipe_cost(recipe, sizes=recipe_sizes(recipe))
    if json_flag:
        facts = cost_facts(recipe, cost)
        say_json({"recipe": recipe.model_dump(mode="json"), "cost": facts})
        return
    say(dump_settings(recipe).rstrip())
    for line in cost_lines(recipe, cost):
        say(line)


@recipes_app.command("schema")
def recipes_schema() -> None:
    """Prints the JSON Schema of a recipe."""
    from undertow.config import json_schema
    from undertow.experiment import Recipe

    say(json.dumps(json_schema(Recipe), indent=2))
