"""Figures: what is drawn where, in the page's colours, and the same every time."""

import re
from xml.etree import ElementTree

import matplotlib
import pytest

from undertow.report.drawings import grouped, limits, mean_of
from undertow.report.figures import Panel, draw_figures
from undertow.report.svg import NAMES, drawing
from undertow.results import Results


@pytest.fixture(scope="module")
def panels(realistic: Results) -> dict[str, tuple[Panel, ...]]:
    return {name: figure.panels for name, figure in draw_figures(realistic).items()}


def test_there_is_a_panel_for_every_cell(panels: dict[str, tuple[Panel, ...]]) -> None:
    assert {name: len(found) for name, found in panels.items()} == {
        "transfer": 1, "readouts": 4, "shift": 4, "traits": 4, "confusion": 2,
        "dose": 1, "sweeps": 4, "training": 4, "shape": 4, "emergence": 5, "channel": 4, "scores": 3,
        "gradients": 1, "doses": 1,
    }  # fmt: skip
    assert panels["shift"][0].title == "owl by steer, no noise"
    assert panels["sweeps"][3].title == "dolphin, noise 0.05, seed 0"


def marks(svg: str, name: str) -> list[tuple[float, float]]:
    """Where markers filled with one of the palette's colours stand."""
    root = ElementTree.fromstring(svg)
    return [
        (float(use.attrib["x"]), float(use.attrib["y"]))
        for use in root.iter("use")
        if f"f-{name}" in use.attrib.get("class", "").split()
    ]


def test_means_stand_where_their_values_are(
    panels: dict[str, tuple[Panel, ...]],
) -> None:
    # Three of the four transfers exclude zero: 0.42, 0.95, 0.24, on one linear axis.
    found = marks(panels["transfer"][0].svg, "student")
    assert len(found) == 3
    (owl, _), (noisy, _), (dolphin, _) = found
    assert (noisy - owl) / (owl - dolphin) == pytest.approx(
        (0.95 - 0.42) / (0.42 - 0.24), rel=1e-2
    )
    ((flat, _),) = marks(panels["transfer"][0].svg, "control")
    assert (owl - flat) / (noisy - flat) == pytest.approx(0.39 / 0.92, rel=1e-2)


def test_descriptions_say_the_numbers(panels: dict[str, tuple[Panel, ...]]) -> None:
    label = panels["transfer"][0].label
    assert "owl at noise 0.05: +0.95 nats, 95\N{NO-BREAK SPACE}% interval" in label
    assert "its own trait ranks 1 of 20" in panels["traits"][0].label
    assert "student of dolphin on owl +0.07" in panels["confusion"][0].label
    assert (
        "chosen: layer 24, dose 0.50, trait's share 0.69" in panels["sweeps"][0].label
    )


def test_panels_bring_no_colours_styles_or_shared_names(
    panels: dict[str, tuple[Panel, ...]],
) -> None:
    every = "".join(panel.svg for found in panels.values() for panel in found)
    assert "style=" not in every
    assert "<style" not in every
    assert not re.search(r'(?:fill|stroke)="#', every)
    assert "font-family" not in every
    ids = re.findall(r' id="([^"]+)"', every)
    assert ids
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', every))
    assert references == set(ids)
    classes = {
        c for found in re.findall(r'class="([^"]+)"', every) for c in found.split()
    }
    assert classes <= {f"{kind}-{name}" for kind in "fs" for name in NAMES}


def test_every_panel_is_as_wide_as_a_phone(
    panels: dict[str, tuple[Panel, ...]],
) -> None:
    for found in panels.values():
        for panel in found:
            assert panel.svg.startswith('<svg viewBox="0 0 344 ')
            sizes = [float(v) for v in re.findall(r'font-size="([\d.]+)"', panel.svg)]
            assert min(sizes) >= 10


def test_the_same_results_are_drawn_alike(realistic: Results) -> None:
    few = realistic.model_copy(update={"conditions": realistic.conditions[:2]})
    assert draw_figures(few) == draw_figures(few)


def test_the_users_own_settings_change_nothing(realistic: Results) -> None:
    few = realistic.model_copy(update={"conditions": realistic.conditions[:1]})
    expected = draw_figures(few)
    with matplotlib.rc_context(
        {"font.size": 31, "axes.grid": True, "lines.linewidth": 9}
    ):
        before = matplotlib.rcParams["font.size"]
        assert draw_figures(few) == expected
        assert matplotlib.rcParams["font.size"] == before


def test_settings_come_back_after_a_fault() -> None:
    before = dict(matplotlib.rcParams)
    with pytest.raises(ZeroDivisionError), drawing("x"):
        _ = 1 / 0
    assert dict(matplotlib.rcParams) == before


def test_nothing_known_draws_nothing(empty: Results) -> None:
    assert draw_figures(empty) == {}


def test_hostile_names_stay_text(hostile: Results) -> None:
    for figure in draw_figures(hostile).values():
        for panel in figure.panels:
            root = ElementTree.fromstring(panel.svg)
            assert {e.tag for e in root.iter()} <= {
                "svg", "g", "defs", "path", "use", "text", "clipPath", "rect",
            }  # fmt: skip
            assert not re.search("[\u202e\u2066\x00-\x08\x1b]", panel.svg + panel.title)


def test_groups_keep_their_order_and_gaps_are_no_zeros() -> None:
    assert grouped([3, 1, 4, 1, 5], lambda v: v % 2) == [[3, 1, 1, 5], [4]]
    assert mean_of([1.0, None, float("nan"), 3.0]) == 2.0
    low, high = limits([-1.0, None, 2.0])
    assert low < -1 < 2 < high
    assert limits([5.0], include=None) == (4.5, 5.5)
