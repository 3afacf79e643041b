"""What commands print with: plain lines, errors, and progress with rates.

Text that comes from rows or files is made harmless first: control characters,
escape sequences and direction overrides are shown, not sent to the terminal.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from undertow.errors import visible

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else.")
]
"""`--json` of commands that list or show."""


def say(text: str) -> None:
    """Prints a line of result to standard output."""
    print(visible(text), flush=True)


def say_json(value: object) -> None:
    """Prints one JSON document to standard output.

    Strict and in ASCII: NaN becomes null, and text of others stays behind escapes.
    """
    from undertow.storage.files import plain

    text = json.dumps(plain(value), indent=2, allow_nan=False)
    print(text.replace("\x7f", "\\u007f"), flush=True)


def say_error(text: str) -> None:
    """Prints an error to standard error."""
    print(f"error: {visible(text)}", file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """A callback (stage, done, total, note) that draws progress with time left.

    On a terminal a bar that moves; elsewhere a line a stage, and one every half
    minute while a stage lasts.
    """
    if sys.stderr.isatty():
        with _bars() as update:
            yield update
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}
        starts: dict[str, tuple[float, int]] = {}

        def update(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(
                    visible(stage), total=total, rate="", note=""
                )
                starts[stage] = (time.monotonic(), done)
            bars.update(
                tasks[stage],
                completed=done,
                total=total,
                rate=_rate(starts[stage], done),
                note=visible(note),
            )

        yield update


def _rate(start: tuple[float, int], done: int) -> str:
    seconds, steps = time.monotonic() - start[0], done - start[1]
    return f"{steps / seconds:.1f}/s" if steps > 0 and seconds > 1 else ""


def _lines() -> Callable[[str, int, int, str], None]:
    starts: dict[str, tuple[float, int]] = {}
    spoken: dict[str, float] = {}

    def update(stage: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        starts.setdefault(stage, (now, done))
        if stage in spoken and done < total and now - spoken[stage] < 30:
            return
        spoken[stage] = now
        rate, left = _rate(starts[stage], done), ""
        steps = done - starts[stage][1]
        if rate and done < total:
            seconds = (total - done) * (now - starts[stage][0]) / steps
            left = f"{seconds:.0f} s left"
        parts = [f"{stage} {done}/{total}", rate, left, note]
        text = " · ".join(part for part in parts if part)
        print(visible(text), file=sys.stderr, flush=True)

    return update
