"""The option that says where a run directory is: a folder, or a URL."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from undertow.cli.console import say
from undertow.errors import ConfigError

_WHERE = "a folder, or a URL such as s3://bucket/run"
Out = Annotated[str, typer.Option(help=f"Run directory: {_WHERE}.")]
FindingsOut = Annotated[str, typer.Option(help=f"For the findings: {_WHERE}.")]
Directory = Annotated[str, typer.Argument(help=f"Run directory: {_WHERE}.")]


@contextmanager
def opened_place(place: str) -> Iterator[Path]:
    """The folder to work in; of a URL, one here that is kept equal to it.

    Raises:
        ConfigError: No library here knows such a URL.
        RunError: Another process works at it, or it cannot be read or written.
    """
    from undertow.mirrors import as_folder, mirrored
    from undertow.models.registry import cache_directory
    from undertow.storage.remote import is_url

    if not is_url(place):
        yield as_folder(place)
        return
    with mirrored(place, cache=cache_directory() / "runs") as folder:
        yield folder
    say("all of it lies at the URL that was given")


def check_sources(rows: Sequence[str], place: str) -> None:
    """Refuses rows that another machine could not be given again.

    Raises:
        ConfigError: They come on standard input, and the directory is at a URL.
    """
    from undertow.storage.remote import is_url

    if "-" in rows and is_url(place):
        fault = (
            "got '-' and a URL for --out: whoever continues has to be given the same "
        )
        raise ConfigError("rows", [f"{fault}rows; write them to a file"])


def command_line() -> str:
    """The command as it was given, to be kept with what it found; without secrets."""
    from undertow.storage.remote import without_secrets

    return shlex.join(["undertow", *map(without_secrets, sys.argv[1:])])
