"""A dataset card as a hub reads it: front matter, verdict, and hostile text as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from undertow.findings import Findings
from undertow.report.audit_card import escaped, render_audit_card, write_audit_card
from undertow.report.audit_words import HEADINGS, facts, plain_words

HEADS = [
    "What an audit of these rows found", "What was tested", "What has to hold",
    "What this audit cannot see", "Limits", "How to repeat it",
]  # fmt: skip
HARMFUL = {"html_block", "html_inline", "link_open", "image", "hr", "blockquote_open",
           "em_open", "s_open", "ordered_list_open", "code_block"}  # fmt: skip
MARKDOWN = (
    "---\ntags: [evil]\n---", "| a | b |", "`x` ```", "# head", "- item", "1. item",
    "> quote", "*em* __strong__ ~~gone~~", "[a](http://evil.example)", "![i](x.png)",
    "<b>bold</b> <!-- gone -->", "&lt; &amp;", "a\\", "    code", "\x1b[31m\u202e\t",
    "www.evil.example", "https://evil.example/|x`y`", "`https://evil.example/``x`", "a@evil.example", "$x$ :smile:",
    "a\n# b", "~~~", "+ item", "--- ---", "[^1]", "| `", "***", "===", "| a\\|`b|",
)  # fmt: skip


def matter_of(card: str) -> dict[str, Any]:
    """The front matter as the hub's own client reads it."""
    data: Any = DatasetCard(card).data
    matter: dict[str, Any] = data.to_dict()
    return matter


def body_of(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def tokens_of(markdown: str) -> list[Token]:
    """All tokens, inner ones too, by the rules of CommonMark and GitHub's tables."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    outer = parser.parse(markdown)
    return [t for token in outer for t in (token, *(token.children or []))]


def text_of(tokens: Sequence[Token]) -> str:
    kinds = ("text", "code_inline", "fence")
    return "".join(token.content for token in tokens if token.type in kinds)


def headings(tokens: Sequence[Token]) -> list[str]:
    return [
        tokens[place + 1].content
        for place, token in enumerate(tokens)
        if token.type == "heading_open"
    ]


def cells(tokens: Sequence[Token]) -> list[int]:
    """Cells of every row of every table."""
    counts: list[int] = []
    for token in tokens:
        if token.type == "tr_open":
            counts.append(0)
        if token.type in ("td_open", "th_open"):
            counts[-1] += 1
    return counts


def test_a_hub_reads_the_front_matter(trait_found: Findings) -> None:
    data = matter_of(render_audit_card(trait_found))
    assert data["tags"] == [
        "undertow", "subliminal-learning", "data-audit", "audit-verdict-trait"
    ]  # fmt: skip
    assert data["size_categories"] == ["1K<n<10K"]
    assert data["undertow"] == {
        "verdict": "trait", "trait": "owl", "kind": "steer", "p_value": 1e-4,
        "error_rate": 0.01, "reference_tier": "A", "detectable_fraction": 0.098,
        "rows": 1000, "rows_digest": "7d2f19c0a4", "model": "smollm2-135m",
        "model_fingerprint": trait_found.provenance["model_fingerprint"],
        "family": "animals", "version": "0.1.0",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["trait_found", "none_found", "shift_found", "inconclusive"]
)
def test_the_card_says_what_the_findings_say(
    name: str, request: pytest.FixtureRequest
) -> None:
    findings: Findings = request.getfixturevalue(name)
    tokens = tokens_of(body_of(render_audit_card(findings)))
    text = text_of(tokens)
    assert headings(tokens) == HEADS
    said = [
        HEADINGS[findings.verdict], findings.sentence, plain_words(findings),
        *findings.reasons, *findings.warnings, *findings.not_tested,
        *(arm.assumes for arm in findings.arms), findings.model, findings.family,
        findings.data.digest, *findings.data.sources, *findings.reference.notes,
        findings.command or "The command was not recorded.",
        *(part for fact in facts(findings) for part in fact),
    ]  # fmt: skip
    for words in said:
        assert words in text, words
    assert not {"None", "nan"} & set(text.split())


def test_what_could_not_be_computed_is_null_and_a_dash(inconclusive: Findings) -> None:
    found = inconclusive.model_copy(update={"p_value": float("nan")})
    card = render_audit_card(found)
    matter = yaml.safe_load(card.split("---\n")[1])
    assert matter["undertow"]["p_value"] is None
    assert matter["undertow"]["detectable_fraction"] is None
    assert "| p-value | — | not computed: no reference |" in card


@pytest.mark.parametrize(
    ("rows", "size"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (5_000_000, "1M<n<10M"),
     (10**12, "100M<n<1B")],
)  # fmt: skip
def test_the_size_is_one_of_the_hub_s(
    rows: int, size: str, none_found: Findings
) -> None:
    data = none_found.data.model_copy(update={"rows": rows})
    card = render_audit_card(none_found.model_copy(update={"data": data}))
    assert matter_of(card)["size_categories"] == [size]


@pytest.mark.parametrize("text", MARKDOWN)
def test_foreign_text_is_text(text: str) -> None:
    shown = escaped(text)
    for place in (f"{shown}", f"- {shown}", f"**a** {shown}"):
        tokens = tokens_of(place)
        assert not {t.type for t in tokens} & HARMFUL, place
        assert not headings(tokens)
    table = tokens_of(f"| a | b |\n|---|---|\n| {shown} | x |\n")
    assert cells(table) == [2, 2]
    assert not {t.type for t in table} & HARMFUL
    *_, one, other = [t for t in table if t.type == "inline"]
    wanted = text.strip(" ").replace("\n", "↵").replace("\t", "\\u0009")
    wanted = wanted.replace("\x1b", "\\u001b").replace("\u202e", "\\u202e")
    (inline,) = [t for t in tokens_of(shown) if t.type == "inline"]
    assert text_of(inline.children or []) == wanted
    # Cells beyond the head's would be dropped, not shown.
    assert (text_of(one.children or []), other.content) == (wanted, "x")


@pytest.mark.parametrize(
    "text", ["www.evil.example", "see https://evil.example", "a@b.c"]
)
def test_addresses_are_code_that_no_hub_makes_a_link_of(text: str) -> None:
    tokens = tokens_of(escaped(text))
    code = [t.content for t in tokens if t.type == "code_inline"]
    assert code == [text.split()[-1]]


def test_hostile_findings_keep_the_card_s_shape(
    hostile_findings: Findings, evil: Sequence[str]
) -> None:
    mean = [*evil, *MARKDOWN]
    data = hostile_findings.data.model_copy(
        update={"sources": mean, "layout": "```\n---\n| x |", "digest": "\n---\na: b"}
    )
    found = hostile_findings.model_copy(
        update={"data": data, "reasons": mean, "warnings": mean, "not_tested": mean,
                "command": "undertow audit '\n````\n---\n# a\n```\n' <b>",
                "sentence": MARKDOWN[0], "model": MARKDOWN[0], "family": '"\': {a}\n---\n'}
    )  # fmt: skip
    card = render_audit_card(found)
    assert card.startswith("---\ntags:\n- undertow\n")
    matter = matter_of(card)
    assert set(matter) == {"tags", "size_categories", "undertow"}
    assert "evil" not in matter["tags"]
    assert matter["undertow"]["model"] == "---↵tags: [evil]↵---"
    assert not set(map(chr, range(32))) - {"\n"} & set(card)
    assert "\u202e" not in card
    tokens = tokens_of(body_of(card))
    assert headings(tokens) == HEADS
    assert not {t.type for t in tokens} & HARMFUL
    assert set(cells(tokens)) == {2, 3}
    (fence,) = [t for t in tokens if t.type == "fence"]
    assert fence.content == found.command + "\n"


def test_no_row_is_in_the_card(trait_found: Findings) -> None:
    card = render_audit_card(trait_found)
    for row in trait_found.triage:
        assert row.completion not in card
        assert row.row_id not in card


def test_the_same_findings_give_the_same_bytes(
    trait_found: Findings, tmp_path: Path
) -> None:
    one = write_audit_card(trait_found, tmp_path / "one.md")
    other = write_audit_card(trait_found, tmp_path / "two.md")
    assert one.read_bytes() == other.read_bytes()
    assert one.read_text(encoding="utf-8") == render_audit_card(trait_found)
