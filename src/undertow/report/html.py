"""Writes a run's results as one HTML file that needs no network and runs no script.

Every piece of text that comes from the results passes through `visible` and is
escaped; the page's own policy forbids scripts, foreign styles and any request. What
the page says stands in `report.tables` and `report.verdicts`, what it draws in `report.figures`.
"""

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from undertow.errors import visible
from undertow.report import run_tables, tables
from undertow.report.text import duration_text, level_text
from undertow.report.verdicts import plain_words
from undertow.results import Results
from undertow.storage import write_text

PANELS_AT_ONCE = 12
"""Panels of one figure that are open; further ones are folded away."""


def write_report(results: Results, path: Path | str) -> Path:
    """Writes the report and returns its path.

    The same results give the same bytes. Sections with nothing to show are left out.

    Args:
        results: What the run measured; nothing else is read.
        path: The HTML file; replaced whole if it is there.

    Raises:
        RunError: The place cannot be written.

    Cost: about a tenth of a second a condition, for drawing.
    """
    write_text(path, render_report(results))
    return Path(path)


def render_report(results: Results) -> str:
    """The report as text; see `write_report`."""
    # Late: matplotlib takes half a second that the rest of the package need not pay.
    from undertow.report.figures import draw_figures
    from undertow.report.svg import NAMES

    environment = _environment()
    style = environment.get_template("report.css.j2").render(colours=NAMES)
    text = environment.get_template("report.html.j2").render(
        results=results,
        figures=draw_figures(results),
        tables=_tables(results),
        answers=_sentences(results.headline),
        plain=plain_words(results),
        level=level_text(results.confidence),
        total_time=duration_text(sum(results.seconds.values(), 0.0)),
        panels_at_once=PANELS_AT_ONCE,
        style=Markup(style),
        policy=_policy(style),
    )
    # Blank lines are the template's, not the results': those hold no bare ones here.
    return re.sub(r"\n\s*\n+", "\n", text)


def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _template(name: str) -> str:
    return files("undertow.report").joinpath(name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """What every expression of the template passes through before it is escaped."""
    return value if isinstance(value, Markup) else visible(str(value))


def _policy(style: str) -> str:
    """A content policy that allows this one style sheet and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def _sentences(text: str) -> list[str]:
    """A headline cut into its sentences; figures such as 0.5 stay whole."""
    return [part for part in re.split(r"(?<=\.)\s+", text.strip()) if part]


def _tables(results: Results) -> dict[str, Any]:
    return {
        "transfer": tables.transfer_table(results),
        "readouts": tables.readout_table(results),
        "seeds": tables.seed_table(results),
        "confusion": tables.confusion_table(results),
        "factors": tables.factor_table(results),
        "sweeps": [tables.sweep_table(sweep) for sweep in results.sweeps],
        "rows": run_tables.row_table(results),
        "seconds": run_tables.seconds_table(results),
        "stages": run_tables.stage_table(results),
        "provenance": run_tables.provenance_table(results),
    }
