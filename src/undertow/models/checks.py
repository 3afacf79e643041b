"""What a look at a machine or a model found: ok, advice or failed, in words.

A look that raises is a failed check with its message: whoever asks what is wrong needs
an answer for every part, not the first traceback. Knows nothing of what is looked at.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "advice", "failed"]


@dataclass(frozen=True)
class Found:
    """What one look found.

    Attributes:
        status: "advice" is something to know or to do; "failed" must not be.
        measured: What was measured, in one line.
        advice: What to do, in one line; empty where all is well.
    """

    status: Status
    measured: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A look with its name and what it found."""

    group: str
    name: str
    found: Found

    def as_dict(self) -> dict[str, str]:
        """Group, name, status, measured and advice."""
        return {"group": self.group, "name": self.name, **asdict(self.found)}


def ok(measured: str) -> Found:
    """All is well."""
    return Found("ok", measured)


def advice(measured: str, what_to_do: str) -> Found:
    """Nothing is broken, but there is something to do or to know."""
    return Found("advice", measured, what_to_do)


def failed(measured: str, what_to_do: str) -> Found:
    """Something is broken."""
    return Found("failed", measured, what_to_do)


def check(group: str, name: str, look: Callable[[], Found]) -> Check:
    """Looks; what is raised is what was found."""
    try:
        return Check(group, name, look())
    except Exception as error:  # what foreign models and drivers raise is not foretold
        said = " ".join(str(error).split())[:500] or "nothing was said"
        found = failed(
            f"{type(error).__name__}: {said}",
            "mend what the message names; what needs this part cannot work until then",
        )
        return Check(group, name, found)


def worst(checks: list[Check]) -> Status:
    """The worst status among checks; ok if there is none."""
    order: tuple[Status, ...] = ("failed", "advice", "ok")
    present = {each.found.status for each in checks}
    return next((status for status in order if status in present), "ok")
