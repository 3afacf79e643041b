"""What stands on the page of a measurement, as a value, and the words that all share."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undertow.measurements import DrawnBy, Spread
from undertow.report.captions import Basis
from undertow.report.panels import Figure
from undertow.report.tables import Table
from undertow.report.text import number

LEVEL = "95 %"
ONE_SEED = "{} alone"
_LEAST, _MOST = 2, 6


@dataclass(frozen=True)
class Content:
    """What stands on one page.

    Attributes:
        title: Heading.
        question: What was asked.
        answers: Sentences, the first said largest.
        figures: By name.
        words: What each figure shows.
        bases: What each rests on.
        tables: Under the figures.
        command: How to repeat it.
        facts: What it was measured with.
    """

    title: str
    question: str
    answers: Sequence[str]
    figures: Mapping[str, Figure]
    words: Mapping[str, str]
    bases: Mapping[str, Basis]
    tables: Sequence[Table]
    command: str
    facts: Mapping[str, str]


def command_line(name: str, *words: str, **options: object) -> str:
    """A command as a line for a shell, every word quoted; options that are None left out.

    Args:
        name: Of the command.
        words: Arguments; one that begins with a dash is made no option.
        options: By name, with underscores; lists are written with commas.
    """
    parts = []
    for option, value in options.items():
        if isinstance(value, list):
            value = ",".join(map(str, value)) or None
        if value is not None:
            parts += [f"--{option.replace('_', '-')}", shlex.quote(str(value))]
    ends = ["--", *map(shlex.quote, words)] if words else []
    return " ".join([f"undertow {name}", *parts, "--json FILE", *ends])


def sampler_options(sampler: DrawnBy) -> dict[str, object]:
    """The sampler as options of a command."""
    return sampler.model_dump()


def sampler_words(sampler: DrawnBy) -> str:
    """The sampler in words."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in sampler.model_dump().items()
    )


def system_words(system: str | None) -> str:
    """The system setting in words."""
    return "the template's own" if system is None else repr(system)


def spread_text(spread: Spread, *, least: int = _LEAST, signed: bool = False) -> str:
    """Mean and bounds in one line: the width with two figures, and none looking like 0."""
    parts = (spread.mean, spread.low, spread.high)
    known = [v for v in parts if v]
    digits = least
    if spread.low is not None and spread.high is not None and spread.high > spread.low:
        digits = max(least, 1 - math.floor(math.log10(spread.high - spread.low)))
    while digits < _MOST and not all(round(v, digits) for v in known):
        digits += 1
    mean, low, high = (
        number(v, digits=min(digits, _MOST), signed=signed) for v in parts
    )
    return f"{mean} [{low}, {high}]"
