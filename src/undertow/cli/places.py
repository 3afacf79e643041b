"""The option that says where a run directory is: a folder, or a URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from undertow.cli.console import say

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
    from undertow.mirrors import is_url, mirrored
    from undertow.models.registry import cache_directory

    if not is_url(place):
        yield Path(place)
        return
    with mirrored(place, cache=cache_directory() / "runs") as folder:
        yield folder
    say("all of it lies at the URL that was given")
