"""Figures of a channel measurement: where marks stand, and what labels say."""

import math
import re
from itertools import pairwise

import pytest
from tests.report.measured import grid, spot
from tests.report.test_inner_figures import marks

from undertow.report.channel_figures import draw_channel_figures


def test_marks_stand_at_the_numbers() -> None:
    figures = draw_channel_figures(grid())
    assert [p.title for p in figures["widths"].panels] == [
        "From the base, all tokens", "From the base, as sampled",
        "From the nearest other trait, all tokens",
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


@pytest.mark.parametrize("carriers", [("numbers",), ("numbers", "code")])
@pytest.mark.parametrize("seeds", [(None,), (0, 1)])
def test_a_prompt_is_drawn_over_noise(
    carriers: tuple[str, ...], seeds: tuple[int | None, ...]
) -> None:
    found = grid(
        *(spot(None, layer=None, carrier=c, seed=s, noise=0.1 if s is not None else 0.0)
          for c in carriers for s in seeds),
        teacher="prompt",
    )  # fmt: skip
    figures = draw_channel_figures(found)
    assert len(figures["widths"].panels) == 3
    assert "weight noise of the base, p" in figures["widths"].panels[0].svg
    assert "relative dose" not in figures["widths"].panels[0].svg
    assert [line for _, line in figures["widths"].legend] == list(carriers)


def test_each_base_has_its_own_level() -> None:
    spots = [
        spot(None, layer=None, noise=p).model_copy(update={"base_share": share})
        for p, share in ((0.0, 0.1), (0.1, 0.02), (0.2, 0.5))
    ]
    (panel,) = draw_channel_figures(grid(*spots, teacher="prompt"))["shares"].panels
    assert "Without the intervention 0.020 to 0.500" in panel.label
    dashed = [
        path for path in re.findall(r"<path[^>]*>", panel.svg) if "s-muted" in path
    ]
    heights = {
        float(y) for path in dashed for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)
    }
    assert len(heights) == 3


def test_many_lines_stay_at_their_places() -> None:
    lines = grid(
        *(spot(d, layer=at, carrier=c) for at in (8, 16, 24) for d in (0.1, 0.2, 0.3)
          for c in ("numbers", "code", "reasoning", "paraphrase"))
    )  # fmt: skip
    panel = draw_channel_figures(lines)["widths"].panels[0]
    places = [x for n in range(1, 7) for x, _ in marks(panel.svg, f"series-{n}")]
    assert len(places) == 36
    low, high = min(places), max(places)
    step = (high - low) / 2.73
    gaps = sorted(places)
    # Three clusters, a clear gap between them.
    wide = [b - a for a, b in pairwise(gaps) if b - a > 0.15 * step]
    assert len(wide) == 2
    assert low > 56
    assert panel.svg.count("stroke-dasharray") >= 6


def test_what_was_not_measured_leaves_a_gap() -> None:
    bare = grid(spot(rows=0))
    figures = draw_channel_figures(bare)
    assert "widths" not in figures
    assert len(figures["shares"].panels) == 1
    mixed = draw_channel_figures(grid(spot(0.1), spot(0.3, rows=0), spot(0.45)))
    assert len(marks(mixed["widths"].panels[0].svg, "series-1")) == 2
    assert len(marks(mixed["shares"].panels[0].svg, "series-1")) == 3
    assert draw_channel_figures(grid().model_copy(update={"points": []})) == {}
    unknown = grid(spot().model_copy(update={"share": None, "base_share": None}))
    assert "—" in draw_channel_figures(unknown)["shares"].panels[0].label
    assert math.isfinite(len(unknown.points))
