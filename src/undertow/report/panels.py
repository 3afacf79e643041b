"""A figure's parts: panels of one width and one text size, made for a phone.

A page may set panels side by side or one above the other and nothing has to shrink.
Knows the page's palette and nothing of what is drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas

from undertow.errors import visible
from undertow.report.drawings import Axes
from undertow.report.svg import drawing, page_svg

WIDTH = 344
"""Units of a panel, each a CSS pixel where a phone 375 wide shows it."""


@dataclass(frozen=True)
class Panel:
    """One drawing: its title, the `<svg>` element, and what it shows in words."""

    title: str
    svg: str
    label: str


@dataclass(frozen=True)
class Figure:
    """Panels of one kind; `legend` names colours of the palette."""

    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...] = ()


def make_panel(
    key: str,
    title: str,
    label: str,
    draw: Callable[[Axes], None],
    *,
    height: float,
    left: float = 44.0,
    right: float = 10.0,
    top: float = 10.0,
    bottom: float = 38.0,
) -> Panel:
    """Draws into one axes with margins in units and returns the finished panel."""
    with drawing(key):
        canvas = Canvas(figsize=(WIDTH / 72, height / 72), dpi=72)
        axes = canvas.add_axes(
            (
                left / WIDTH,
                bottom / height,
                (WIDTH - left - right) / WIDTH,
                (height - top - bottom) / height,
            )
        )
        axes.tick_params(length=0, pad=5)
        draw(axes)
        title, label = visible(title), visible(label)
        svg = page_svg(canvas, key=key, label=f"{title}. {label}")
        return Panel(title, svg, label)
