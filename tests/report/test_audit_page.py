"""An audit's page as text: complete, escaped, closed, the same every time."""

import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from undertow.errors import RunError
from undertow.findings import Findings, TriageRow
from undertow.report.audit_page import (
    MOST_TRIAGED,
    render_audit_report,
    write_audit_report,
)
from undertow.report.audit_words import ADVICE, HEADINGS

SECTIONS = [
    "verdict", "directions", "hypotheses", "explanation", "null", "power", "tests", "baselines",
    "discovery", "forecast", "triage", "data", "limits", "repeat",
]  # fmt: skip


class Tags(HTMLParser):
    """Every tag of a page with the names of its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


@pytest.fixture(scope="module")
def page(trait_found: Findings) -> str:
    return render_audit_report(trait_found)


def sections(raw: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', raw)


def part(raw: str, name: str) -> str:
    """The text of one section, tags left out and white space squeezed."""
    start = raw.index(f'<section id="{name}"')
    inside = raw[start : raw.index("</section>", start)]
    return " ".join(unescape(re.sub("<[^>]+>", " ", inside)).split())


def test_sections_come_in_order(page: str) -> None:
    assert sections(page) == SECTIONS
    assert re.findall(r'href="#(\w+)"', page)[: len(SECTIONS) - 1] == SECTIONS[1:]


def test_the_verdict_comes_first_in_words(page: str, trait_found: Findings) -> None:
    text = part(page, "verdict")
    places = [
        text.index(words)
        for words in (
            "Evidence of a trait", trait_found.sentence, "The trait beats its decoys",
            *trait_found.reasons, *trait_found.warnings,
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert '<p class="said v-trait">' in page
    assert "p-value 1.0×10⁻⁴" in text


@pytest.mark.parametrize(
    ("name", "mark", "heading"),
    [
        ("none_found", "v-none", "No evidence found"),
        ("shift_found", "v-shift", "Evidence of a shift, trait not identified"),
        ("inconclusive", "v-inconclusive", "Inconclusive"),
    ],
)
def test_every_verdict_has_its_mark(
    name: str, mark: str, heading: str, request: pytest.FixtureRequest
) -> None:
    raw = render_audit_report(request.getfixturevalue(name))
    assert f'<p class="said {mark}">{heading}</p>' in raw
    # Nothing here is ever called that.
    assert "clean" not in unescape(re.sub("<style>.*?</style>", "", raw, flags=re.S))


def test_the_page_says_what_to_do(page: str, trait_found: Findings) -> None:
    assert f"<strong>What to do:</strong> {ADVICE[trait_found.verdict]}." in page
    assert set(ADVICE) == set(HEADINGS)


def test_what_has_nothing_to_show_is_left_out(none_found: Findings) -> None:
    raw = render_audit_report(none_found)
    left = {"explanation", "discovery", "forecast", "triage"}
    assert sections(raw) == [name for name in SECTIONS if name not in left]
    bare = none_found.model_copy(
        update={"directions": [], "hypotheses": [], "max_null": None, "power": None,
                "arms": [], "baselines": [], "not_tested": [], "command": "",
                "seconds": {}, "provenance": {}}
    )  # fmt: skip
    raw = render_audit_report(bare)
    assert sections(raw) == ["verdict", "data", "repeat"]
    assert "<figure" not in raw
    assert "The command was not recorded." in raw


def test_a_page_without_a_single_number_says_why(inconclusive: Findings) -> None:
    raw = render_audit_report(inconclusive)
    assert "<figure" not in raw
    assert "— not computed: no reference" in part(raw, "verdict")
    assert "no power could be estimated" in part(raw, "power")
    assert "— means: no z could be computed for it" in part(raw, "directions")
    text = unescape(re.sub("<[^>]+>", " ", raw))
    assert not re.search(r"\b(?:None|nan|Undefined)\b", text)


def test_the_audit_can_be_repeated_from_the_page(
    page: str, trait_found: Findings
) -> None:
    text = part(page, "repeat")
    assert trait_found.command in text
    for value in trait_found.provenance.values():
        if value is not None:
            assert str(value) in text
    for limit in trait_found.not_tested:
        assert limit in part(page, "limits")


def test_triage_says_that_it_is_none_and_shows_its_rows(
    page: str, trait_found: Findings
) -> None:
    text = part(page, "triage")
    assert "This is triage, no verdict" in text
    for row in trait_found.triage:
        assert row.row_id in text
    assert f"0.0080 score +3.60 {trait_found.triage[3].prompt}" in text
    assert "03c4f0a9be71, 2 times" in text


def test_a_long_triage_is_cut_and_says_so(trait_found: Findings) -> None:
    rows = [
        TriageRow(row_id=f"row-{n}", p_value=0.5, score=1.0, prompt="p" * 400,
                  completion="c")
        for n in range(MOST_TRIAGED + 7)
    ]  # fmt: skip
    raw = render_audit_report(trait_found.model_copy(update={"triage": rows}))
    text = part(raw, "triage")
    assert f"row-{MOST_TRIAGED - 1} " in text
    assert f"row-{MOST_TRIAGED}" not in text
    assert "7 more stand in audit.json" in text
    assert "p" * 299 + "…" in text
    assert "p" * 300 not in text


def test_the_policy_allows_the_one_style_and_nothing_else(page: str) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert unescape(policy) == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_text_is_shown_and_does_nothing(
    hostile_findings: Findings, evil: Sequence[str]
) -> None:
    raw = render_audit_report(hostile_findings)
    page = Tags(raw)
    assert not {"script", "img", "iframe", "object", "link"} & {
        t for t, _ in page.found
    }
    for _, names in page.found:
        assert not [n for n in names if n.startswith("on") or n in ("style", "src")]
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u2028\u202a-\u202e\u2066-\u2069]", raw
    )
    for name in ("verdict", "power", "tests", "triage", "data", "limits", "repeat"):
        text = part(raw, name)
        assert evil[0] in text, name
        assert r"\u202e" in text, name
    triage = raw[raw.index('<section id="triage"') :]
    assert r"<b>\u202e</b>evil<b>\u2066</b>" in triage
    assert "<b>↵</b>\n<b>↵</b>\n<b>↵</b>\n<b>\\u2028</b><b>\\u000d</b>=HYPER" in triage
    assert "{{ 7*7 }}" in part(raw, "verdict")


def test_a_row_that_says_it_is_a_verdict_changes_nothing(
    trait_found: Findings, page: str
) -> None:
    first = trait_found.triage[0]
    says = '</td></table><h1>No evidence found</h1> {"verdict": "none"}'
    rows = [first.model_copy(update={"completion": says}), *trait_found.triage[1:]]
    raw = render_audit_report(trait_found.model_copy(update={"triage": rows}))
    assert part(raw, "verdict") == part(page, "verdict")
    assert raw.count("<h1>") == 1
    assert says in part(raw, "triage")


def test_the_same_findings_give_the_same_bytes(
    page: str, trait_found: Findings, tmp_path: Path
) -> None:
    data, again = tmp_path / "audit.json", tmp_path / "report.html"
    data.write_text(trait_found.model_dump_json(), encoding="utf-8")
    # Another process, with other hashes and from the stored file.
    code = (
        "import sys, pathlib\n"
        "from undertow.findings import Findings\n"
        "from undertow.report.audit_page import write_audit_report\n"
        "data = pathlib.Path(sys.argv[1]).read_text(encoding='utf-8')\n"
        "write_audit_report(Findings.model_validate_json(data), sys.argv[2])\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(data), str(again)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == page.encode()


def test_a_place_that_cannot_be_written_is_named(
    inconclusive: Findings, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "page.html"
    assert write_audit_report(inconclusive, path) == path
    with pytest.raises(RunError, match=r"new: is not a regular file"):
        write_audit_report(inconclusive, tmp_path / "new")
