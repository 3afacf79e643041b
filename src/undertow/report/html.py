"""Writes a run's results as one HTML file that needs no network and runs no script.

What the page says stands in `report.tables`, `report.captions`, `report.verdicts` and
`report.blind_audits`, what it draws in `report.figures`; how text is escaped and requests are forbidden, in `report.pages`.
"""

import re
from pathlib import Path
from typing import Any

from undertow.report import blind_audits, inner_tables, run_tables, tables
from undertow.report.captions import captions
from undertow.report.contrast_table import contrast_table
from undertow.report.dose_table import dose_table
from undertow.report.pages import fitting, render_page
from undertow.report.shift_table import shift_table
from undertow.report.text import duration_text, level_text
from undertow.report.verdicts import plain_words
from undertow.results import Results
from undertow.storage import write_text


def write_report(results: Results, path: Path | str) -> Path:
    """Writes the report and returns its path.

    The same results give the same bytes. Sections with nothing to show are left out.

    Args:
        results: What the run measured; nothing else is read.
        path: The HTML file; replaced whole if it is there.

    Raises:
        RunError: The place cannot be written, or the results do not fit together.

    Cost: about a tenth of a second a condition, for drawing.
    """
    write_text(path, render_report(results))
    return Path(path)


def render_report(results: Results) -> str:
    """The report as text; see `write_report`.

    Raises:
        RunError: The results do not fit together.
    """
    # Late: matplotlib takes half a second that the rest of the package need not pay.
    from undertow.report.figures import draw_figures

    with fitting("results"):
        figures = draw_figures(results)
        return render_page(
            "report.html.j2",
            styles=("report.css.j2",),
            results=results,
            figures=figures,
            captions=captions(results, figures),
            tables=_tables(results),
            answers=_sentences(results.headline),
            plain=plain_words(results),
            audited=blind_audits.tally(results),
            level=level_text(results.confidence),
            total_time=duration_text(sum(results.seconds.values(), 0.0)),
        )


def _sentences(text: str) -> list[str]:
    """A headline cut into its sentences; figures such as 0.5 stay whole."""
    return [part for part in re.split(r"(?<=\.)\s+", text.strip()) if part]


def _tables(results: Results) -> dict[str, Any]:
    return {
        "transfer": tables.transfer_table(results),
        "contrasts": contrast_table(results),
        "readouts": tables.readout_table(results),
        "seeds": tables.seed_table(results),
        "confusion": tables.confusion_table(results),
        "factors": tables.factor_table(results),
        "causes": inner_tables.cause_table(results),
        "shifts": shift_table(results),
        "channel": inner_tables.channel_table(results),
        "predictions": inner_tables.prediction_table(results),
        "doses": dose_table(results),
        "gradients": inner_tables.gradient_table(results),
        "sweeps": [tables.sweep_table(sweep) for sweep in results.sweeps],
        "rows": run_tables.row_table(results),
        "audits": blind_audits.audit_table(results),
        "seconds": run_tables.seconds_table(results),
        "stages": run_tables.stage_table(results),
        "provenance": run_tables.provenance_table(results),
    }
