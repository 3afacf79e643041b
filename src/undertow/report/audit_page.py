"""Writes an audit's findings as one HTML file: the verdict first, in words.

Drawn from `undertow.findings` alone; text of the rows is hostile and is shown, never
obeyed. What the page says stands in `report.audit_words` and `report.audit_tables`,
what it draws in `report.audit_figures`.
"""

from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from undertow.findings import Findings, TriageRow
from undertow.report import audit_tables
from undertow.report.audit_captions import audit_captions
from undertow.report.audit_explanation import explanation_table
from undertow.report.audit_words import ADVICE, HEADINGS, facts, plain_words
from undertow.report.pages import fitting, marked, render_page
from undertow.report.run_tables import facts_table
from undertow.report.text import (
    duration_text,
    level_text,
    number,
    p_text,
    share_text,
    shortened,
)
from undertow.storage import write_text

MOST_TRIAGED = 40
"""Rows of the triage that the page shows."""
MOST_FORECAST = 10
"""Traits of the forecast that are open; the others are folded away."""
MOST_CHARACTERS = 300


class Shown(NamedTuple):
    """One row of the triage, its text marked up."""

    p_value: str
    score: str
    times: int
    row_id: str
    prompt: Markup
    completion: Markup


def write_audit_report(findings: Findings, path: Path | str) -> Path:
    """Writes the page and returns its path.

    The same findings give the same bytes. Sections with nothing to show are left out.

    Args:
        findings: What the audit found; nothing else is read.
        path: The HTML file; replaced whole if it is there.

    Raises:
        RunError: The place cannot be written, or the findings do not fit together.

    Cost: about a second, for drawing.
    """
    write_text(path, render_audit_report(findings))
    return Path(path)


def render_audit_report(findings: Findings) -> str:
    """The page as text; see `write_audit_report`.

    Raises:
        RunError: The findings do not fit together.
    """
    # Late: matplotlib takes half a second that the rest of the package need not pay.
    from undertow.report.audit_figures import draw_audit_figures

    with fitting("findings"):
        figures = draw_audit_figures(findings)
        return render_page(
            "audit.html.j2",
            styles=("report.css.j2", "audit.css.j2"),
            findings=findings,
            heading=HEADINGS[findings.verdict],
            plain=plain_words(findings),
            advice=ADVICE[findings.verdict],
            facts=facts(findings),
            figures=figures,
            captions=audit_captions(findings, figures),
            sections=_sections(findings, has_null="null" in figures),
            tables=_tables(findings),
            triage=[_shown_row(row) for row in findings.triage[:MOST_TRIAGED]],
            behaviour=_behaviour(findings),
            tokens=_tokens(findings),
            alike=_alike(findings),
            level=level_text(findings.confidence),
            rate=share_text(findings.alpha),
            total_time=duration_text(sum(findings.seconds.values(), 0.0)),
            discovery_p=p_text(
                findings.discovery.p_value if findings.discovery else None
            ),
            discovery_cosine=number(
                findings.discovery.cosine if findings.discovery else None, signed=True
            ),
            most_forecast=MOST_FORECAST,
        )


def _sections(findings: Findings, *, has_null: bool) -> dict[str, str]:
    """Sections with something to show, by id, with their short names."""
    every = {
        "directions": (bool(findings.directions), "Directions"),
        "hypotheses": (bool(findings.hypotheses), "Hypotheses"),
        "explanation": (findings.explanation is not None, "Explanation"),
        "null": (has_null, "Null"),
        "power": (findings.power is not None, "Power"),
        "tests": (bool(findings.arms), "Tests"),
        "baselines": (bool(findings.baselines), "Shortcuts"),
        "discovery": (findings.discovery is not None, "Discovery"),
        "forecast": (findings.forecast is not None, "Forecast"),
        "triage": (bool(findings.triage), "Rows to look at"),
        "data": (True, "Data"),
        "limits": (bool(findings.not_tested), "Not tested"),
        "repeat": (True, "Repeat it"),
    }
    return {key: name for key, (is_shown, name) in every.items() if is_shown}


def _tables(findings: Findings) -> dict[str, Any]:
    return {
        "arms": audit_tables.arms_table(findings),
        "directions": audit_tables.directions_table(findings),
        "hypotheses": audit_tables.hypotheses_table(findings),
        "explanation": explanation_table(findings),
        "power": audit_tables.power_table(findings),
        "baselines": audit_tables.baselines_table(findings),
        "forecast": audit_tables.forecast_table(findings, most=MOST_FORECAST),
        "forecast_all": audit_tables.forecast_table(findings),
        "data": audit_tables.data_table(findings),
        "reference": audit_tables.reference_table(findings),
        "seconds": audit_tables.seconds_table(findings),
        "provenance": facts_table(findings.provenance),
    }


def _shown_row(row: TriageRow) -> Shown:
    return Shown(
        p_text(row.p_value),
        number(row.score, signed=True),
        row.count,
        row.row_id,
        marked(shortened(row.prompt, MOST_CHARACTERS)),
        marked(shortened(row.completion, MOST_CHARACTERS)),
    )


def _behaviour(findings: Findings) -> list[Markup]:
    answers = findings.discovery.behaviour if findings.discovery else []
    return [marked(shortened(answer, MOST_CHARACTERS)) for answer in answers]


def _alike(findings: Findings) -> list[tuple[Markup, str, str]]:
    """Directions nearest to the discovered one: name, role, whitened cosine."""
    near = findings.discovery.alike if findings.discovery else []
    return [
        (marked(a.name, breaks=False), a.role, number(a.cosine, signed=True))
        for a in near
    ]


def _tokens(findings: Findings) -> dict[str, list[tuple[Markup, str]]]:
    """Tokens that the discovered direction raises and lowers, with their logits."""
    found = findings.discovery
    sides = {"raised": found.raised, "lowered": found.lowered} if found else {}
    return {
        side: [
            (marked(t.text, breaks=False), number(t.logit, signed=True)) for t in tokens
        ]
        for side, tokens in sides.items()
    }
