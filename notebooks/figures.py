"""Shows undertow's drawings in a notebook: the panels of its reports, side by side.

A report's panels take their colours from the page that they stand in; a notebook has
no such page, so here they get the colours themselves. Knows nothing of what is drawn.
"""

import hashlib
import re
from html import escape
from importlib.resources import files

from undertow.report.figures import Panel
from undertow.report.svg import NAMES

SPACE, TITLE = 14, 26


def colours() -> dict[str, str]:
    """The report's colours on a light page, by name."""
    style = files("undertow.report").joinpath("report.css.j2").read_text("utf-8")
    found: dict[str, str] = {}
    for name, colour in re.findall(r"--([\w-]+): (#[0-9a-f]+);", style):
        if name in NAMES:
            found.setdefault(name, colour)  # the light page comes first
    return found


class Picture:
    """An SVG drawing; Jupyter shows it when a cell ends with one."""

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def __repr__(self) -> str:
        return "a drawing"

    def _repr_svg_(self) -> str:
        return self.svg


def side_by_side(*panels: Panel, columns: int = 3) -> Picture:
    """Panels in rows, each under its title."""
    ink = colours()["ink"]
    drawn: list[str] = []
    x = y = float(SPACE)
    tallest = right = 0.0
    for place, panel in enumerate(panels):
        if place and place % columns == 0:
            x, y, tallest = float(SPACE), y + tallest + TITLE + SPACE, 0.0
        width, height = map(
            float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', panel.svg)[0]
        )
        drawn.append(
            f'<text x="{x:g}" y="{y + 16:g}" font-size="14" font-weight="bold" '
            f'stroke="none" fill="{ink}">{escape(panel.title)}</text>'
        )
        placed = (
            f'<svg x="{x:g}" y="{y + TITLE:g}" width="{width:g}" height="{height:g}"'
        )
        drawn.append(_painted(panel.svg).replace("<svg", placed, 1))
        x, tallest = x + width + 2 * SPACE, max(tallest, height)
        right = max(right, x - SPACE)
    bottom = y + TITLE + tallest + SPACE
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:g} {bottom:g}" '
        f'width="{right:g}" font-family="system-ui, Arial, sans-serif">'
        f'<rect width="100%" height="100%" fill="{colours()["paper"]}"/>'
        f"{''.join(drawn)}</svg>"
    )


def _painted(svg: str) -> str:
    """A panel with colours in the place of classes, and names of its own."""
    names = colours()

    def paint(match: re.Match[str]) -> str:
        kinds = {"f": "fill", "s": "stroke"}
        parts = (word.split("-", 1) for word in match[1].split())
        return " ".join(f'{kinds[kind]}="{names[name]}"' for kind, name in parts)

    svg = re.sub(r'class="([^"]*)"', paint, svg)
    svg = re.sub(r"<text(?![^>]*fill=)", f'<text fill="{names["ink"]}"', svg)
    key = hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", svg)
