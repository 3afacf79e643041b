"""What travels through undertow: messages, rows and verdicts, as frozen values.

Knows nothing of models, files or statistics. A row never changes: filters answer
with a `Verdict` about it, and everything else refers to it by `row_id`, the hash of
its content.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and the completion that a model gave to it.

    Attributes:
        messages: The prompt as a conversation, oldest turn first, completion excluded.
        completion: The text of the answer.
        completion_ids: The tokens as sampled, end token included; None if the row was
            made elsewhere and has to be tokenised from its text.
        finish: "stop" if the model ended its answer, "length" if it was cut, None if
            unknown.
        provenance: Where the row comes from (teacher, trait, seed, prompt index …).
            Never part of the content hash and never rendered into training text.
    """

    messages: tuple[Message, ...]
    completion: str
    completion_ids: tuple[int, ...] | None = None
    finish: Finish | None = None
    provenance: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType({}), compare=False
    )

    @property
    def row_id(self) -> str:
        """Content hash: 16 hexadecimal digits of the sha256 of prompt and completion."""
        content = [[m.role, m.content] for m in self.messages]
        text = json.dumps([content, self.completion], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter says of one row: accepted, or every reason why not."""

    row_id: str
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """True if no rule was broken."""
        return not self.reasons
