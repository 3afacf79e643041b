"""`--track`: trackers that commands tell how training goes; the same in all of them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.errors import visible

if TYPE_CHECKING:
    from undertow.experiment.tracking import Tracking

Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TRACKER",
        help="Report to a tracker: trackio, wandb (offline unless WANDB_MODE is set), "
        "tensorboard, … May be given several times. Results are the same.",
    ),
]


def check(names: Sequence[str] | None) -> None:
    """Refuses trackers that there are not, before anything is computed."""
    if names:  # heavy, so not for nothing
        from undertow.experiment.tracking import check_trackers

        check_trackers(names)


@contextmanager
def tracking(
    names: Sequence[str] | None, directory: Path, settings: Mapping[str, Any]
) -> "Iterator[Tracking]":
    """Trackers by name; those that fail are told of on standard error."""
    from undertow.experiment.tracking import tracked

    with tracked(names or (), directory, settings=settings, say=_warn) as found:
        yield found


def _warn(text: str) -> None:
    print(f"warning: {visible(text)}", file=sys.stderr, flush=True)
