"""The few exceptions that undertow raises on purpose.

Every message says what is wrong, where, what was found and expected, and what to
do. The command line prints the message alone and exits with status 2; anything
that is not an `UndertowError` is a bug and keeps its traceback.
"""

import unicodedata
from collections.abc import Sequence

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


class UndertowError(Exception):
    """Something that the user can mend."""


class ConfigError(UndertowError):
    """A recipe or setting is wrong; carries every fault of the file at once."""

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        self.where = where
        self.faults = tuple(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{where}: {len(self.faults)} fault(s):\n{lines}")

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        """So that it comes back whole from another process."""
        return type(self), (self.where, self.faults)


class DatasetError(UndertowError):
    """Rows cannot be read or used; the message names the file and line, or the row."""


class ModelError(UndertowError):
    """A model cannot be found, verified or understood."""


class VectorMismatchError(UndertowError):
    """A steering vector does not belong to this model, layer or size."""


class TrainingError(UndertowError):
    """Training cannot go on (a loss that is not finite, say)."""


class RunError(UndertowError):
    """A run directory is locked, incomplete, or belongs to another recipe."""


class MissingDependencyError(UndertowError):
    """An optional feature needs an extra that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        self.feature, self.extra = feature, extra
        super().__init__(
            f"{feature} needs an optional dependency; "
            f"install it with: pip install 'undertow[{extra}]'"
        )

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """So that it comes back whole from another process."""
        return type(self), (self.feature, self.extra)


def shown(values: Sequence[object], *, limit: int = 10) -> str:
    """Renders values for a message: each with `!r`, the list cut at `limit`."""
    head = ", ".join(repr(value) for value in values[:limit])
    more = len(values) - limit
    return head + (f", … and {more} more" if more > 0 else "")


def visible(text: str) -> str:
    r"""The text with unseen characters spelled out as `\u202e`; newlines are kept.

    For foreign text on its way to a reader: controls, escape sequences and direction
    overrides reach neither a terminal nor a page.
    """
    return "".join(
        char
        if char == "\n" or unicodedata.category(char) not in _UNSEEN
        else f"\\u{ord(char):04x}"
        for char in text
    )
