"""Writes a measurement's numbers as one HTML file: what was found, figures, tables.

Drawn from `undertow.measurements` alone. What each kind says and draws stands in
`report.channel_page`, `report.vector_page` and `report.entanglement_page`.
"""

from pathlib import Path

from undertow.measurements import (
    ChannelMeasurement,
    Measurement,
    VectorMeasurement,
)
from undertow.report.channel_page import channel_content
from undertow.report.entanglement_page import entanglement_content
from undertow.report.measured_content import Content
from undertow.report.pages import fitting, render_page
from undertow.report.run_tables import facts_table
from undertow.report.vector_page import vector_content
from undertow.storage import write_text


def write_measurement(measurement: Measurement, path: Path | str) -> Path:
    """Writes the page and returns its path; the same numbers give the same bytes.

    Raises:
        RunError: The place cannot be written, or the numbers do not fit together.
    """
    write_text(path, render_measurement(measurement))
    return Path(path)


def render_measurement(measurement: Measurement) -> str:
    """The page as text; see `write_measurement`.

    Raises:
        RunError: The numbers do not fit together.
    """
    with fitting(f"{measurement.measurement} measurement"):
        content = measurement_content(measurement)
        return render_page(
            "measurement.html.j2", styles=("report.css.j2",), page=content,
            figures=content.figures, captions=content.bases, model=measurement.model,
            provenance=facts_table(dict(content.facts)),
        )  # fmt: skip


def measurement_content(measurement: Measurement) -> Content:
    """What its page says and draws."""
    if isinstance(measurement, ChannelMeasurement):
        return channel_content(measurement)
    if isinstance(measurement, VectorMeasurement):
        return vector_content(measurement)
    return entanglement_content(measurement)
