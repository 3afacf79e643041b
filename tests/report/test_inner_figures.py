"""Figures of channels and gradients: where marks stand, and what the labels say."""

import math
from xml.etree import ElementTree

import pytest

from undertow.report.inner_figures import draw_inner_figures
from undertow.report.panels import Figure
from undertow.results import Results


@pytest.fixture(scope="module")
def figures(realistic: Results) -> dict[str, Figure]:
    return draw_inner_figures(realistic)


def marks(svg: str, name: str) -> list[tuple[float, float]]:
    """Where markers filled with one of the palette's colours stand."""
    return [
        (float(use.attrib["x"]), float(use.attrib["y"]))
        for use in ElementTree.fromstring(svg).iter("use")
        if f"f-{name}" in use.attrib.get("class", "").split()
    ]


def test_marks_stand_at_the_logarithm_of_the_channel(
    figures: dict[str, Figure],
) -> None:
    panel = figures["channel"].panels[0]
    (calm, low), (noisy, high) = marks(panel.svg, "series-1")
    (flat, _), (_, _) = marks(panel.svg, "series-2")
    owl, loud, dolphin = (0.01 + e / 30 for e in (0.42, 0.95, 0.03))
    assert (noisy - calm) / (calm - flat) == pytest.approx(
        math.log(loud / owl) / math.log(owl / dolphin), rel=1e-2
    )
    assert high < low, "more transfer stands higher"
    assert "ρ = +0.80" in panel.label
    assert "too few cells" in figures["channel"].panels[1].label
    assert figures["channel"].legend == (("series-1", "owl"), ("series-2", "dolphin"))


def test_labels_say_the_cosines(figures: dict[str, Figure]) -> None:
    (by_layer,) = figures["gradients"].panels
    assert by_layer.title == "Steered after block 24"
    assert "own trait's vector +0.06" in by_layer.label
    (doses,) = figures["doses"].panels
    assert doses.label.count("dose ") == 4
    assert [p.title for p in figures["scores"].panels] == [
        "steer, block 24", "weak, block 24", "weaker, block 24"
    ]  # fmt: skip
    assert "Mean cosine with the own vector +0.12" in figures["scores"].panels[0].label


def test_students_are_drawn_update_by_update(figures: dict[str, Figure]) -> None:
    *cells, direction = figures["emergence"].panels
    assert [panel.title for panel in cells] == [
        "owl by steer, no noise", "dolphin by steer, no noise",
        "owl by steer, noise 0.05", "dolphin by steer, noise 0.05",
    ]  # fmt: skip
    assert cells[0].label == (
        "Student − control at the last update that both have: 0.41 nats"
    )
    found = marks(cells[0].svg, "student")
    assert len(found) == 15, "five seeds, three points each"
    (start, low), (half, middle), (end, high) = found[:3]
    assert half - start == pytest.approx(end - half)
    assert (low - middle) / (low - high) == pytest.approx(0.2, abs=0.02)
    assert "owl by steer, no noise 0.40" in direction.label
    assert len(marks(direction.svg, "series-1")) == 10, "nothing has moved at the start"
    assert len(figures["emergence"].legend) == 4


def test_scores_rise_with_the_dose(figures: dict[str, Figure]) -> None:
    for name in ("series-1", "series-2"):
        found = sorted(marks(figures["doses"].panels[0].svg, name))
        assert len(found) == 4
        heights = [y for _, y in found]
        assert heights[-1] == min(heights), "the strongest dose stands highest"


def test_nothing_measured_draws_nothing(empty: Results) -> None:
    assert draw_inner_figures(empty) == {}


def test_students_trained_otherwise_have_panels_of_their_own(
    realistic: Results,
) -> None:
    other = {"student": "soft", "way": "rank 1"}
    doubled = realistic.model_copy(
        update={
            "transfers": [
                *realistic.transfers,
                *(t.model_copy(update=other) for t in realistic.transfers),
            ]
        }
    )
    panels = draw_inner_figures(doubled)["channel"].panels
    titles = [panel.title for panel in panels]
    assert len(titles) == 2 * len(draw_inner_figures(realistic)["channel"].panels)
    assert "transfer (lora)" in titles
    assert "transfer (soft, rank 1)" in titles
    for panel in panels:
        if panel.title.startswith("transfer ("):
            own = marks(panel.svg, "series-1") + marks(panel.svg, "series-2")
            assert len(own) == 4, "the cells of one way"
