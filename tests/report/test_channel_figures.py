"""Figures of a channel grid: what is the axis, what tells lines apart, what labels say."""

import pytest
from tests.report.measured import grid, spot
from tests.report.test_inner_figures import marks

from undertow.report.channel_figures import axis_of, draw_channel_figures, line_names


def test_the_axis_is_what_differs_most() -> None:
    doses = grid()
    assert axis_of(doses) == "dose"
    assert (
        list(map(line_names(doses), doses.points))
        == ["block 16"] * 3 + ["block 24"] * 3
    )
    noisy = grid(
        *(spot(noise=p, seed=s if p else None, carrier=c)
          for c in ("numbers", "code") for p in (0.0, 0.1, 0.2) for s in (1, 2))
    )  # fmt: skip
    assert axis_of(noisy) == "noise"
    assert set(map(line_names(noisy), noisy.points)) == {"numbers", "code"}
    blocks = grid(*(spot(layer=at, dose=d) for at in (8, 16, 24) for d in (0.1, 0.3)))
    assert axis_of(blocks) == "layer"
    assert line_names(blocks)(blocks.points[0]) == "dose 0.1"


def test_marks_stand_at_the_numbers() -> None:
    figures = draw_channel_figures(grid())
    assert [p.title for p in figures["widths"].panels] == [
        "From the base, all tokens", "From the base, as sampled",
        "From other traits' teachers, all tokens",
    ]  # fmt: skip
    assert figures["widths"].legend == (
        ("series-1", "block 16"),
        ("series-2", "block 24"),
    )
    (_, low), (_, middle), (_, high) = marks(
        figures["widths"].panels[0].svg, "series-1"
    )
    # Upwards is less; widths are 0.01, 0.09 and 0.2025.
    assert (low - high) / (low - middle) == pytest.approx(0.1925 / 0.08, rel=0.02)
    assert "Largest at dose 0.45, block 16: 0.203" in figures["widths"].panels[0].label
    nearest = figures["widths"].panels[2].label
    assert "Largest at dose 0.45, block 16: 0.101" in nearest, "wolf's, not cat's"
    (shares,) = figures["shares"].panels
    assert "Without the intervention 0.030" in shares.label


def test_a_prompt_has_one_place() -> None:
    figures = draw_channel_figures(grid(spot(None, layer=None), teacher="prompt"))
    assert len(figures["widths"].panels) == 3
    assert figures["widths"].legend == (("series-1", "numbers"),)


def test_what_was_not_measured_leaves_a_gap() -> None:
    bare = grid(spot(rows=0))
    figures = draw_channel_figures(bare)
    assert "widths" not in figures
    assert len(figures["shares"].panels) == 1
    mixed = draw_channel_figures(grid(spot(0.1), spot(0.3, rows=0), spot(0.45)))
    assert len(marks(mixed["widths"].panels[0].svg, "series-1")) == 2
    assert len(marks(mixed["shares"].panels[0].svg, "series-1")) == 3
