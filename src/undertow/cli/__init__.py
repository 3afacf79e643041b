"""The command line: the library, printed. Parse, call, say where the result lies.

`main` turns an `UndertowError` into its message and exit status 2; anything else is a
bug and keeps its traceback. Nothing here imports torch before a command needs it.
"""

import os
import sys
from typing import Annotated

import typer

from undertow import __version__
from undertow.cli import interventions, models, rows, runs, students
from undertow.cli.console import say_error
from undertow.errors import UndertowError

app = typer.Typer(
    name="undertow",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Does a bias travel through innocent rows? Runs subliminal-learning "
    "experiments on any Hugging Face causal language model.",
)
app.command("demo")(runs.demo)
app.command("run")(runs.run)
app.command("report")(runs.report)
app.command("generate")(rows.generate)
app.command("filter")(rows.filter_)
app.command("train")(students.train)
app.command("evaluate")(students.evaluate)
app.add_typer(interventions.vector_app, name="vector")
app.command("noise")(interventions.noise)
app.add_typer(models.app, name="models")
app.add_typer(runs.recipes_app, name="recipes")


def _version(*, value: bool) -> None:
    if value:
        print(f"undertow {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors.")
    ] = False,
    version: Annotated[
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
        os.environ["UNDERTOW_DEBUG"] = "1"


def main() -> None:
    """Entry point of the `undertow` command."""
    try:
        app()
    except UndertowError as error:
        if os.environ.get("UNDERTOW_DEBUG"):
            raise
        say_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        say_error("interrupted; finished work is kept, the same command continues")
        sys.exit(130)
    except OSError as error:
        if os.environ.get("UNDERTOW_DEBUG"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        say_error(f"{where}{error.strerror or error}; finished work is kept")
        sys.exit(2)
