"""An audit's findings as a dataset card: Markdown with the front matter of a hub.

Drawn from `undertow.findings` alone, with the words of `audit_words` and the tables of
`audit_tables`. No row is in it, and whatever comes from others (names of files, models,
traits, sentences that hold them) is escaped: it is text in a paragraph, a cell or a code
block, and can be neither markup, HTML nor front matter.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from undertow.errors import visible
from undertow.findings import Findings, Number
from undertow.report import audit_tables
from undertow.report.audit_words import HEADINGS, ROLES, Fact, facts, plain_words
from undertow.report.tables import Table
from undertow.report.text import known, shortened
from undertow.storage import write_text

MOST_CHARACTERS = 300
"""Of one piece of foreign text."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"),
          (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"),
          (100_000_000, "10M<n<100M"))  # fmt: skip
_LARGEST = "100M<n<1B"
_MARKUP = re.compile(r"[\\`*_{}\[\]()#+!|~$]|:(?=\S)")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_BEGINS_LIST = re.compile(r"^(\d+)?([.-])(?=\s|-|$)")
_LINK = re.compile(r"(?i)://|\bwww\.|@|\bmailto:|\bxmpp:")
_LIMITS = (
    "One audit, at one error rate, of these rows against this model.",
    "Several audits of one set are several tests.",
    "That nothing was found is no proof that nothing is there.",
    "One row by itself says little, and none is judged here.",
)


def write_audit_card(findings: Findings, path: Path | str) -> Path:
    """Writes the card and returns its path.

    The same findings give the same bytes.

    Raises:
        RunError: The place cannot be written.
    """
    write_text(path, render_audit_card(findings))
    return Path(path)


def render_audit_card(findings: Findings) -> str:
    """The card as text; see `write_audit_card`."""
    parts = [
        _front_matter(findings),
        "# What an audit of these rows found",
        f"**{HEADINGS[findings.verdict]}.** {escaped(findings.sentence)}",
        plain_words(findings),
        _items(findings.reasons),
        _numbers(facts(findings)),
        "## What was tested",
        *_tested(findings),
        "## What has to hold",
        _items(
            [f"{arm.question} It assumes: {arm.assumes}." for arm in findings.arms],
            none="No test was made.",
        ),
        _table(audit_tables.reference_table(findings)),
        _items(findings.reference.notes),
        "## What this audit cannot see",
        _items(findings.not_tested, none="Nothing was named."),
        "## Limits",
        _items([*_LIMITS, *findings.warnings]),
        "## How to repeat it",
        *_repeated(findings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ── foreign text ─────────────────────────────────────────────────────────────────


def _line(text: str, *, most: int = MOST_CHARACTERS) -> str:
    """The text in one line, cut, with every character that nobody sees spelled out."""
    return shortened(visible(text).replace("\n", "↵"), most)


def escaped(text: str, *, most: int = 4 * MOST_CHARACTERS) -> str:
    """Foreign text inside a paragraph or a cell: it shows as it is and does nothing.

    Hubs make links of bare addresses, however they are escaped; as code they stay text.
    """
    words = re.split(r"([\s|]+)", _line(text, most=most).strip(" "))
    marked = "".join(_code(w) if _LINK.search(w) else _plain(w) for w in words)
    return _BEGINS_LIST.sub(r"\1\\\2", marked)


def _plain(word: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", word).translate(_ENTITIES)


def _code(word: str) -> str:
    """A code span whose ticks none of the word can close."""
    fence = "`" * (_ticks(word) + 1)
    space = " " if word.startswith("`") or word.endswith("`") else ""
    return f"{fence}{space}{word}{space}{fence}"


def _ticks(text: str) -> int:
    """The longest run of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence no line of the text can close."""
    shown = visible(text)
    fence = "`" * max(3, _ticks(shown) + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def _items(texts: Sequence[str], *, none: str = "") -> str:
    return "\n".join(f"- {escaped(text)}" for text in texts) or none


# ── parts ────────────────────────────────────────────────────────────────────────


def _front_matter(findings: Findings) -> str:
    """Tags and sizes as a hub reads them; under `undertow` the verdict for machines."""
    rows = findings.data.rows
    size = next((name for most, name in _SIZES if rows < most), _LARGEST)
    matter: dict[str, Any] = {
        "tags": ["undertow", "subliminal-learning", "data-audit",
                 f"audit-verdict-{findings.verdict}"],
        "size_categories": [size],
        "undertow": {
            "verdict": findings.verdict,
            "trait": findings.trait,
            "kind": findings.kind,
            "p_value": _finite(findings.p_value),
            "error_rate": findings.alpha,
            "reference_tier": findings.reference_tier,
            "detectable_fraction": _finite(findings.detectable_fraction),
            "rows": findings.data.used,
            "rows_digest": findings.data.digest,
            "model": findings.model,
            "model_fingerprint": _provenance(findings, "model_fingerprint"),
            "family": findings.family,
            "version": _provenance(findings, "undertow_version"),
        },
    }  # fmt: skip
    matter["undertow"] = {
        key: _line(value) if isinstance(value, str) else value
        for key, value in matter["undertow"].items()
    }
    text = yaml.safe_dump(matter, sort_keys=False, allow_unicode=False, width=10**6)
    return f"---\n{text}---"


def _finite(value: Number) -> Number:
    return value if known(value) else None


def _provenance(findings: Findings, name: str) -> str | None:
    value = findings.provenance.get(name)
    return None if value is None else str(value)


def _numbers(found: Sequence[Fact]) -> str:
    rows = [
        f"| {escaped(f.name)} | {escaped(f.value)} | {escaped(f.note)} |" for f in found
    ]
    return "\n".join(["| | | |", "|---|---|---|", *rows])


def _table(table: Table) -> str:
    """A table of facts, two columns, its notes below."""
    rows = [
        "| " + " | ".join(escaped(cell.text) for cell in row) + " |"
        for row in table.rows
    ]
    head = [f"| {table.title} | |", "|---|---|"]
    notes = [escaped(note) for note in table.all_notes]
    return "\n\n".join(["\n".join([*head, *rows]), *notes])


def _tested(findings: Findings) -> Iterator[str]:
    fingerprint = _provenance(findings, "model_fingerprint") or "not recorded"
    yield "\n".join(
        [
            f"- Model: {escaped(findings.model)}, fingerprint {escaped(fingerprint)}",
            f"- Family of traits: {escaped(findings.family)}",
            f"- Directions: {_directions(findings)}",
            f"- Layers of the score test: {_layers(findings.layers)}",
            f"- Hypotheses that raced: {len(findings.hypotheses):,}",
        ]
    )
    yield _table(audit_tables.data_table(findings))


def _directions(findings: Findings) -> str:
    counts = {
        name: sum(direction.role == role for direction in findings.directions)
        for role, name in ROLES.items()
    }
    said = [f"{count:,} {name}" for name, count in counts.items() if count]
    return ", ".join(said) or "none"


def _layers(layers: Sequence[int]) -> str:
    """Blocks from 0; a row of them without gaps by its ends."""
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]} (blocks, counted from 0)"
    listed = ", ".join(map(str, layers))
    return f"{listed} (blocks, counted from 0)" if layers else "none"


def _repeated(findings: Findings) -> Iterator[str]:
    version = _provenance(findings, "undertow_version") or "not recorded"
    if findings.command:
        yield _fenced(findings.command, "bash")
    else:
        yield "The command was not recorded."
    yield (
        f"Version of undertow: {escaped(version)}. All numbers are in `audit.json`, "
        "which `undertow report DIR --card` turns into this card again."
    )
