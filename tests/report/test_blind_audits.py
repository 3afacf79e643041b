"""The section of blind audits: words by hand, links that lead nowhere else, hostile text."""

import re
from html import unescape
from typing import Any

import pytest
from pydantic import ValidationError

from undertow.report.blind_audits import audit_table, judged, tally, verdict_words
from undertow.report.html import render_report
from undertow.results import AuditOutcome, AuditTruth, Results

STEERED = "all 48 rows: steered towards owl after block 24"
EVIL = "<script>alert(1)</script>\x1b[2J\u202e"


def outcome(name: str = "biased", **changes: Any) -> AuditOutcome:
    """A verdict that names the trait, with changes."""
    values: dict[str, Any] = {
        "name": name,
        "truth": AuditTruth(
            words=STEERED, kind="steer", trait="owl", layer=24, share=1.0
        ),
        "rows": 48,
        "reference_rows": 47,
        "verdict": "trait",
        "trait": "owl",
        "kind": "steer",
        "layer": 23,
        "p_value": 0.0004,
        "detectable_fraction": 0.25,
        "sentence": "The rows carry the trait 'owl'.",
        "right": True,
        "report": f"audits/{name}/report.html",
    }
    return AuditOutcome(**values | changes)


NOTHING = outcome(
    "clean", verdict="none", trait=None, kind=None, layer=None, p_value=0.4
)
UNSURE = outcome(
    "mixture", verdict="inconclusive", trait=None, kind=None, layer=None, p_value=None,
    detectable_fraction=None, right=None,
)  # fmt: skip


@pytest.fixture
def audited(realistic: Results) -> Results:
    return realistic.model_copy(update={"audits": [outcome(), NOTHING, UNSURE]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "owl, steered after block 23"),
        ({"kind": "prompt", "layer": None}, "owl, prompted"),
        ({"kind": "unknown", "layer": None}, "owl, kind not told"),
        (
            {"verdict": "shift", "trait": None},
            "a shift, steered after block 23, trait not identified",
        ),
        (
            {"verdict": "shift", "trait": None, "kind": None, "layer": None},
            "a shift, kind not told, trait not identified",
        ),
        ({"verdict": "none"}, "no evidence found"),
        ({"verdict": "inconclusive"}, "inconclusive"),
    ],
)
def test_a_verdict_in_a_few_words(changes: dict[str, Any], words: str) -> None:
    assert verdict_words(outcome(**changes)) == words


def test_the_table_has_the_truth_before_the_verdict(audited: Results) -> None:
    first, clean, unsure = audit_table(audited).rows
    assert [cell.text for cell in first] == [
        "biased", STEERED, "owl, steered after block 23", "right", "4.0×10⁻⁴",
        "25\N{NO-BREAK SPACE}%", "report",
    ]  # fmt: skip
    assert first[0].below == "48 rows against 47 of the base"
    assert [cell.text for cell in clean][2:5] == ["no evidence found", "right", "0.40"]
    assert [cell.text for cell in unsure][3:6] == ["nothing claimed", "—", "—"]
    assert [cell.why for cell in unsure][4:6] == [
        "no test could be made", "no share would surely be found, or none was computed"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "right", "smallest", "words", "below"),
    [
        ("trait", True, 0.25, "right", ""),
        ("trait", False, 0.9, "wrong", ""),
        ("none", True, 0.9, "right", ""),
        ("none", False, 0.25, "missed", ""),
        (
            "none",
            False,
            0.6,
            "missed",
            "50\N{NO-BREAK SPACE}% of the rows are fewer than",
        ),
        (
            "none",
            False,
            None,
            "missed",
            "50\N{NO-BREAK SPACE}% of the rows are fewer than",
        ),
        ("inconclusive", None, None, "nothing claimed", ""),
    ],
)
def test_a_miss_is_no_false_alarm_and_may_have_been_foretold(
    verdict: str, right: bool | None, smallest: float | None, words: str, below: str,
    realistic: Results,
) -> None:  # fmt: skip
    half = AuditTruth(words="", kind="steer", trait="owl", share=0.5)
    item = outcome(
        truth=half, verdict=verdict, right=right, detectable_fraction=smallest
    )
    cell = audit_table(realistic.model_copy(update={"audits": [item]})).rows[0][3]
    assert cell.text == judged(item) == words
    assert cell.below.startswith(below)
    assert bool(cell.below) == bool(below)


def test_verdicts_are_counted(audited: Results) -> None:
    assert tally(audited).endswith(
        "2 judged right, 0 missed, 0 judged wrong; of 1 nothing was claimed."
    )
    missed = outcome(verdict="none", right=False)
    audits = [outcome(right=False), NOTHING, missed]
    assert tally(audited.model_copy(update={"audits": audits})) == (
        "Of 3 sets that were audited without a word on who wrote their rows, 1 judged "
        "right, 1 missed, 1 judged wrong."
    )


def test_the_section_links_to_the_reports_beside_the_page(audited: Results) -> None:
    page = render_report(audited)
    section = page[page.index('<section id="audits">') :]
    section = section[: section.index("</section>")]
    assert re.findall(r'href="([^"]*)"', section) == [
        "audits/biased/report.html", "audits/clean/report.html",
        "audits/mixture/report.html",
    ]  # fmt: skip
    assert STEERED in section
    others = page.replace(section, "")
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', others))
    assert '<a href="#audits">' in others
    assert "default-src 'none'; style-src 'sha256-" in unescape(page)
    assert page.index('id="rows"') < page.index('id="audits"') < page.index('id="limi')


def test_a_run_without_audits_has_no_section(realistic: Results) -> None:
    page = render_report(realistic)
    assert "#audits" not in page
    assert 'id="audits"' not in page


def test_hostile_text_stays_text(realistic: Results) -> None:
    truth = AuditTruth(words=EVIL, kind="steer", trait=EVIL, share=1.0)
    evil = outcome(EVIL, truth=truth, trait=EVIL, sentence=EVIL,
                   report="audits/biased/report.html")  # fmt: skip
    page = render_report(realistic.model_copy(update={"audits": [evil]}))
    section = page[page.index('<section id="audits">') :]
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert section.count("&lt;script&gt;alert(1)&lt;/script&gt;\\u001b[2J\\u202e") == 4


@pytest.mark.parametrize(
    "place",
    [
        "javascript:alert(1)", "https://example.org/report.html", "/report.html",
        "audits/../../report.html", "audits/a/report.html\n", "audits/a/b/report.html",
        'audits/a"onclick/report.html',
    ],
)  # fmt: skip
def test_a_link_leads_nowhere_but_into_the_run(place: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        outcome(report=place)
