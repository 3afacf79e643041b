"""Figures of shapes: means by teacher, and the spectrum's last block."""

import pytest
from tests.report.test_inner_figures import marks

from undertow.report.inner_figures import draw_inner_figures
from undertow.report.panels import Figure
from undertow.results import Results


@pytest.fixture(scope="module")
def figures(realistic: Results) -> dict[str, Figure]:
    return draw_inner_figures(realistic)


def test_shapes_are_means_by_teacher(figures: dict[str, Figure]) -> None:
    size, constancy, first, spectrum = figures["shape"].panels
    assert spectrum.title == "Share in each singular direction, last block"
    assert "nine tenths: steer, no noise 4; " in spectrum.label
    assert size.title == "Size, relative to the stream"
    assert "steer, no noise 0.06; steer, noise 0.05 0.06" in size.label
    assert "steer, no noise 0.50" in first.label
    quiet, loud = (
        float(text.rsplit(maxsplit=1)[1])
        for text in constancy.label.split(": ")[1].split("; ")
    )
    assert quiet < loud, "more transfer was planted with noise"
    assert [words for _, words in figures["shape"].legend] == [
        "steer, no noise", "steer, noise 0.05"
    ]  # fmt: skip


def test_runs_of_before_have_no_spectrum(realistic: Results) -> None:
    old = [
        c.model_copy(update={"shape": c.shape.model_copy(update={"spectrum": []})})
        for c in realistic.conditions
        if c.shape
    ]
    figures = draw_inner_figures(realistic.model_copy(update={"conditions": old}))
    assert len(figures["shape"].panels) == 3


def test_shares_fall_with_the_direction(figures: dict[str, Figure]) -> None:
    heights = [y for _, y in marks(figures["shape"].panels[3].svg, "series-1")]
    assert len(heights) == 8
    assert heights == sorted(heights), "less stands lower"


def test_a_student_that_did_not_move_has_no_number_of_directions(
    realistic: Results,
) -> None:
    still = [
        c.model_copy(
            update={"shape": c.shape.model_copy(
                update={"spectrum": [[None] * 8] * 30, "size": [0.0] * 30}
            )}
        )
        for c in realistic.conditions[:1] if c.shape
    ]  # fmt: skip
    figures = draw_inner_figures(realistic.model_copy(update={"conditions": still}))
    assert len(figures["shape"].panels) == 3
