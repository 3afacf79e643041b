"""An audit's figures: what is drawn where, in the page's colours, the same every time."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from undertow.findings import Direction, Findings
from undertow.report.audit_figures import draw_audit_figures
from undertow.report.panels import Figure
from undertow.report.svg import NAMES


@pytest.fixture(scope="module")
def figures(trait_found: Findings) -> dict[str, Figure]:
    return draw_audit_figures(trait_found)


def marks(svg: str, name: str) -> list[tuple[float, float]]:
    """Where markers filled with one of the palette's colours stand."""
    return [
        (float(use.attrib["x"]), float(use.attrib["y"]))
        for use in ElementTree.fromstring(svg).iter("use")
        if f"f-{name}" in use.attrib.get("class", "").split()
    ]


def boxes(svg: str, name: str) -> list[tuple[float, float, float]]:
    """Left end, middle and opacity of every rectangle of one colour."""
    found = []
    for path in ElementTree.fromstring(svg).iter("path"):
        if f"f-{name}" not in path.attrib.get("class", "").split():
            continue
        opacity = float(
            path.attrib.get("fill-opacity", path.attrib.get("opacity", "1"))
        )
        for part in path.attrib["d"].split("M")[1:]:
            numbers = [float(v) for v in re.findall(r"-?[\d.]+", part)]
            found.append((min(numbers[::2]), sum(numbers[1:8:2]) / 4, opacity))
    return found


def plain(*rows: tuple[str, Sequence[float | None]]) -> list[Direction]:
    return [Direction(name=name, role="trait", z=list(z)) for name, z in rows]


def heat(found: Findings, directions: list[Direction], layers: list[int]) -> str:
    changed = found.model_copy(
        update={"directions": directions, "layers": layers, "trait": None}
    )
    return draw_audit_figures(changed)["directions"].panels[0].svg


def test_there_is_a_panel_for_everything(figures: dict[str, Figure]) -> None:
    assert {name: [p.title for p in f.panels] for name, f in figures.items()} == {
        "directions": ["Studentised difference z"],
        "hypotheses": [
            "Trait prompts: nats a row", "Trait prompts: behind the leader",
            "Steering vectors: nats a row", "Steering vectors: behind the leader",
        ],
        "explanation": [
            "Largest difference of gradients from the mixture's rows"
        ],
        "null": ["Largest statistic under shuffled labels"],
        "power": ["Power of this audit"],
        "baselines": ["AUROC of each shortcut"],
        "battery": ["Every trait, steered along it"],
    }  # fmt: skip


def test_descriptions_say_the_numbers(
    figures: dict[str, Figure], trait_found: Findings
) -> None:
    (z,) = (panel.label for panel in figures["directions"].panels)
    top = max(v for v in trait_found.directions[0].z if v is not None)
    assert z.startswith(f"Largest: owl +{top:.2f} at layer 2")
    assert z.endswith(
        "Of 41 directions, 3 with a max-T p of at most 0.01: owl, eagle, wolf"
    )
    behind = figures["hypotheses"].panels[3].label
    assert behind == "20 hypotheses are told apart from the leader, 1 are not: dolphin"
    assert "9,999 permutations" in figures["null"].panels[0].label
    assert "observed 26.30" in figures["null"].panels[0].label
    assert "5\N{NO-BREAK SPACE}% biased: power 0.44" in figures["power"].panels[0].label
    assert "n-gram logistic regression 0.71" in figures["baselines"].panels[0].label


def test_cells_are_shaded_by_size_and_sign(trait_found: Findings) -> None:
    # Full shade is 8; a half, a quarter of it on the other side, and nothing.
    svg = heat(trait_found, plain(("a", [8.0, 4.0]), ("b", [-2.0, 0.0])), [3, 7])
    more, less = boxes(svg, "more"), boxes(svg, "less")
    # The first cells belong to the map, the last eight of each to its scale.
    assert [round(o, 3) for _, _, o in more[:2]] == [0.46, 0.92]
    assert [round(o, 3) for _, _, o in less[:1]] == [0.23]
    assert len(more) == 2 + 8
    assert len(less) == 1 + 8
    (half_x, half_y, _), (full_x, full_y, _) = more[:2]
    assert half_x > full_x
    assert half_y == full_y
    assert less[0][0] == full_x
    assert less[0][1] > full_y


def test_chance_looks_pale(trait_found: Findings) -> None:
    svg = heat(trait_found, plain(("a", [1.5, -1.5])), [0, 1])
    (cell, *_) = boxes(svg, "more")
    assert cell[2] == pytest.approx(0.92 * 2 / 8)
    assert "+6.0" in svg


def test_neighbours_of_one_shade_are_one_shape(trait_found: Findings) -> None:
    many = plain(*((f"d{n}", [7.0] * 40) for n in range(60)))
    svg = heat(trait_found, many, list(range(40)))
    assert len(boxes(svg, "more")) == 60 + 8
    sizes = [float(v) for v in re.findall(r'font-size="([\d.]+)"', svg)]
    assert min(sizes) >= 10
    assert svg.startswith('<svg viewBox="0 0 344 ')


def test_a_cell_without_a_number_is_struck_and_not_shaded(
    trait_found: Findings,
) -> None:
    svg = heat(trait_found, plain(("a", [8.0, None, float("nan")])), [0, 1, 2])
    assert len(boxes(svg, "more")) == 1 + 8
    strokes = [
        path.attrib["d"]
        for path in ElementTree.fromstring(svg).iter("path")
        if "s-muted" in path.attrib.get("class", "").split()
        and path.attrib.get("fill") == "none"
    ]
    assert sum(d.count("M") for d in strokes) == 2


def test_hypotheses_stand_where_their_values_are(
    figures: dict[str, Figure], trait_found: Findings
) -> None:
    svg = figures["hypotheses"].panels[2].svg
    own = [h for h in trait_found.hypotheses if h.kind == "steer" and h.role == "trait"]
    found = sorted(x for x, _ in marks(svg, "student"))
    values = sorted(h.nats_per_row for h in own if h.nats_per_row is not None)
    assert len(found) == len(values) == 20
    scale = (found[-1] - found[0]) / (values[-1] - values[0])
    for x, value in zip(found, values, strict=True):
        assert x - found[0] == pytest.approx(scale * (value - values[0]), abs=0.05)


def test_who_is_not_told_apart_has_a_colour_of_its_own(
    figures: dict[str, Figure],
) -> None:
    svg = figures["hypotheses"].panels[3].svg
    assert len(marks(svg, "series-2")) == 1
    assert len(marks(svg, "ink")) == 20


def test_the_share_that_is_found_stands_on_the_line_of_its_power(
    figures: dict[str, Figure],
) -> None:
    svg = figures["power"].panels[0].svg
    ((x, y),) = marks(svg, "ink")
    points = marks(svg, "student")
    assert len(points) == 8
    # From 0.5 % to 100 % on a logarithmic axis, 9.8 % lies at 56 % of the way.
    first, last = points[0], points[-1]
    assert (x - first[0]) / (last[0] - first[0]) == pytest.approx(0.5616, abs=2e-3)
    assert (first[1] - y) / (first[1] - last[1]) == pytest.approx(0.8, abs=5e-3)


def test_panels_bring_no_colours_styles_or_shared_names(
    figures: dict[str, Figure],
) -> None:
    every = "".join(panel.svg for found in figures.values() for panel in found.panels)
    assert "style=" not in every
    assert not re.search(r'(?:fill|stroke)="#', every)
    ids = re.findall(r' id="([^"]+)"', every)
    assert len(ids) == len(set(ids))
    classes = {
        c for found in re.findall(r'class="([^"]+)"', every) for c in found.split()
    }
    assert classes <= {f"{kind}-{name}" for kind in "fs" for name in NAMES}


def test_nothing_known_draws_nothing(inconclusive: Findings) -> None:
    assert draw_audit_figures(inconclusive) == {}


def test_hostile_names_stay_text(hostile_findings: Findings) -> None:
    for figure in draw_audit_figures(hostile_findings).values():
        for panel in figure.panels:
            root = ElementTree.fromstring(panel.svg)
            assert {e.tag for e in root.iter()} <= {
                "svg", "g", "defs", "path", "use", "text", "clipPath", "rect",
            }  # fmt: skip
            assert not re.search("[\u202e\u2066\x00-\x08\x1b]", panel.svg + panel.title)
