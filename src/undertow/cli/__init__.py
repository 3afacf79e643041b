"""The command line: the library, printed. Parse, call, say where the result lies.

`main` turns an `UndertowError`, or what is wrong with the words themselves, into a message
and exit status 2; anything else is a bug and keeps its traceback. Nothing here imports
torch before a command needs it.
"""

import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from undertow import __version__
from undertow.cli import (
    analysis,
    audit,
    benchmark,
    census,
    channel,
    completion,
    doctor,
    evaluation,
    families,
    interventions,
    models,
    report,
    row_vector,
    rows,
    runs,
    students,
)
from undertow.cli.console import say_error
from undertow.errors import UndertowError, visible

DEBUG = "UNDERTOW_DEBUG"
INTERRUPTED = 130
_USAGE: Any = typer.BadParameter.__base__
"""What a wrong command line raises; typer has a click of its own, or the one there is."""
_PLAINER = {": Value error, ": ": ", ": Input should be ": ": expected "}
"""What the library that reads options says, and what is meant."""

app = typer.Typer(
    name="undertow",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Does a bias travel through innocent rows? Runs subliminal-learning "
    "experiments on any Hugging Face causal language model.",
)
app.command("doctor")(doctor.doctor)
app.command("demo")(runs.demo)
app.command("run")(runs.run)
app.command("report")(report.report)
app.command("audit")(audit.audit)
app.command("census")(census.census)
app.command("generate")(rows.generate)
app.command("filter")(rows.filter_)
app.command("train")(students.train)
app.command("evaluate")(evaluation.evaluate)
app.command("channel")(channel.channel)
app.command("fingerprint")(analysis.fingerprint)
analysis.analyze_app.command("vector")(row_vector.row_vector)
app.add_typer(analysis.analyze_app, name="analyze")
app.add_typer(interventions.vector_app, name="vector")
app.command("noise")(interventions.noise)
app.add_typer(models.app, name="models")
app.add_typer(benchmark.app, name="benchmark")
app.add_typer(runs.recipes_app, name="recipes")
app.add_typer(families.app, name="families")
app.command("completion")(completion.completion)


def _version(*, value: bool) -> bool:
    if value:
        print(f"undertow {__version__}")
        raise typer.Exit
    return value


@app.callback()
def _options(
    *,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors.")
    ] = False,
    version: Annotated[  # noqa: ARG001 (its callback acts)
        bool,
        typer.Option(
            "--version",
            help="Show the version.",
            callback=lambda value: _version(value=value),
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Global options."""
    if debug:
        os.environ[DEBUG] = "1"


def main() -> None:
    """Entry point of the `undertow` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show "→" is no reason to lose a result.
            stream.reconfigure(errors="backslashreplace")
    if completion.is_asked():
        completion.prepare()
    status: int | None = None
    try:
        # What the status of an `Exit` is; commands themselves give nothing.
        status = app(prog_name="undertow", standalone_mode=False)
    except _USAGE as error:
        _say_usage(error)
    except UndertowError as error:
        _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; finished work is kept")
    except KeyboardInterrupt:
        _interrupted()
    if status == INTERRUPTED:  # typer makes a status of Ctrl-C
        _interrupted()
    sys.exit(status or 0)


def _say_usage(error: Any) -> None:
    """Says what is wrong with the words, which are repeated with controls spelled out."""
    shown = io.StringIO()
    error.show(shown)
    said = shown.getvalue()
    for theirs, ours in _PLAINER.items():
        said = said.replace(theirs, ours)
    print(visible(said), end="", file=sys.stderr)
    sys.exit(error.exit_code)


def _fail(message: str) -> None:
    if os.environ.get(DEBUG):
        print(visible(traceback.format_exc()), file=sys.stderr)
    say_error(message)
    sys.exit(2)


def _interrupted() -> None:
    say_error("interrupted; finished work is kept, the same command continues")
    sys.exit(INTERRUPTED)
