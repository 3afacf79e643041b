"""Makes matplotlib's SVG fit for a page: no styles, no colours of its own, small.

A drawing uses the colours of `PALETTE` as stand-ins; here each becomes a class, so the
page's style sheet decides what it looks like, in the light, in the dark and in print.
What is left has no `style` attribute, which lets the page forbid inline styles.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

ROLES = ("base", "teacher", "control", "student")
SERIES = tuple(f"series-{place}" for place in range(1, 7))
NAMES = ("ink", "muted", "rule", "paper", "more", "less", *ROLES, *SERIES)
PALETTE = {name: f"#{place:02x}{place:02x}fe" for place, name in enumerate(NAMES, 1)}
"""Stand-in colours by name; each name is a CSS variable of the page."""

_CLASSES = {colour: name for name, colour in PALETTE.items()}
_KEPT = {
    "fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width",
    "stroke-dasharray", "stroke-linecap", "opacity", "font-size", "font-weight",
    "text-anchor",
}  # fmt: skip
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML has no place for, escaped or not."""
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def drawing(salt: str) -> Iterator[None]:
    """A context with one fixed set of settings, whatever the user's own are.

    Text stays text, is never read as mathematics, and element names depend on the
    salt alone, so the same data gives the same bytes.
    """
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "text.usetex": False,
        "font.family": ["DejaVu Sans"],
        "font.size": 12,
        "text.color": PALETTE["ink"],
        "axes.edgecolor": PALETTE["rule"],
        "axes.labelcolor": PALETTE["muted"],
        "axes.labelsize": 12,
        "axes.unicode_minus": True,
        "axes.facecolor": "none",
        "axes.linewidth": 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "xtick.color": PALETTE["rule"],
        "ytick.color": PALETTE["rule"],
        "xtick.labelcolor": PALETTE["muted"],
        "ytick.labelcolor": PALETTE["muted"],
        "xtick.labelsize": 12,
        "ytick.labelsize": 12,
        "figure.facecolor": "none",
        "path.simplify": False,
    }
    with warnings.catch_warnings(), matplotlib.rc_context():
        # The page's fonts draw the text; matplotlib's need not know every letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        cast(Any, matplotlib.rcParams).update(settings)
        yield


def page_svg(figure: Figure, *, key: str, label: str) -> str:
    """Renders a figure as an `<svg>` element to stand inside a page.

    Args:
        figure: Drawn inside `drawing`, in the colours of `PALETTE`.
        key: Begins every id, so that figures on one page do not share any.
        label: What the figure shows, for those who do not see it.
    """
    text = io.StringIO()
    # Not savefig: it would look for an output backend by the user's settings.
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(text, metadata={"Date": None})
    root = ElementTree.fromstring(_UNFIT.sub(_spelled, text.getvalue()))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", text.getvalue()))
    for element in root.iter():
        _plain(element, key, used)
    _drop_invisible(root)
    _title(root, label)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _spelled(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _plain(element: ElementTree.Element, key: str, used: set[str]) -> None:
    """Turns one element's style into attributes and classes, and names it anew."""
    element.tag = element.tag.removeprefix(_SVG)
    classes = []
    style = element.attrib.pop("style", "")
    for name, value in re.findall(r"([\w-]+):\s*([^;]+)", style):
        if name in ("fill", "stroke") and value in _CLASSES:
            classes.append(f"{name[0]}-{_CLASSES[value]}")
        elif name in _KEPT:
            element.set(name, value.removesuffix("px"))
    if classes:
        element.set("class", " ".join(classes))
    if element.attrib.get("id") in used:
        element.set("id", f"{key}-{element.attrib['id']}")
    else:
        element.attrib.pop("id", None)
    if _HREF in element.attrib:
        element.set("href", f"#{key}-{element.attrib.pop(_HREF)[1:]}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{key}-"))
    for name in ("d", "x", "y", "transform", "width", "height"):
        if name in element.attrib:
            element.set(name, _rounded(element.attrib[name]))
    if element.attrib.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if element.text and not element.text.strip():
        element.text = None
    element.tail = None


def _rounded(text: str) -> str:
    short = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0"), text)
    return " ".join(re.sub(r"\.(?=\D|$)", "", short).split())


def _drop_invisible(root: ElementTree.Element) -> None:
    """Removes shapes that draw nothing, such as the empty background."""
    for parent in list(root.iter()):
        for child in list(parent):
            drawn = child.attrib.get("class") or child.attrib.get("stroke")
            if child.tag == "path" and child.attrib.get("fill") == "none" and not drawn:
                parent.remove(child)
        for child in list(parent):
            if child.tag == "g" and len(child) == 0:
                parent.remove(child)


def _title(root: ElementTree.Element, label: str) -> None:
    for name in ("version", "width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
