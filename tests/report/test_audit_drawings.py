"""An audit's drawings, read from matplotlib's own objects before they become SVG."""

import math

import pytest
from matplotlib.figure import Figure

from undertow.report.audit_data import HypothesisRow
from undertow.report.audit_drawings import HeatLine, draw_heat, draw_null, told_apart


def _row(low: float | None) -> HypothesisRow:
    return HypothesisRow(
        "owl prompt", "prompt", "owl", "trait", None, None, 24, 0.3, 0.1, 0.2, low, 0.4,
        1.0, "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("low", "apart"), [(0.1, True), (0.0, False), (-0.1, False), (None, False)]
)
def test_only_an_interval_above_zero_tells_apart(
    low: float | None, *, apart: bool
) -> None:
    assert told_apart(_row(low)) is apart
    assert not told_apart(_row(math.nan))


def test_the_observed_statistic_and_its_limit_are_drawn_over_all_draws() -> None:
    axes = Figure().add_subplot()
    draw_null(axes, [1.0, 2.0, 2.5, 3.0], 8.0, 2.9)
    assert [line.get_xdata()[0] for line in axes.lines] == [2.9, 8.0]  # type: ignore[index]
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert sum(heights) == 4
    low, high = axes.get_xlim()
    assert low < 1.0
    assert high > 8.0
    assert [text.get_text() for text in axes.texts] == ["observed 8.00"]


def test_without_an_observed_statistic_only_the_null_is_drawn() -> None:
    axes = Figure().add_subplot()
    draw_null(axes, [1.0, 2.0], None, None)
    assert not axes.lines
    assert not axes.texts


def test_the_largest_cell_of_a_heat_map_is_framed() -> None:
    axes = Figure().add_subplot()
    lines = [
        HeatLine("traits", is_heading=True),
        HeatLine("owl", (0.5, -6.0, 1.0)),
        HeatLine("cat", (0.1, 2.0, math.nan)),
    ]
    draw_heat(axes, lines, [4, 5, 6], 6.0)
    frames = [p for p in axes.patches if p.get_linewidth() == 1.8]
    assert len(frames) == 1
    x, y = frames[0].get_xy()  # type: ignore[attr-defined]
    assert (round(x), round(y)) == (1, 1)
