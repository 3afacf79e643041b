"""Draws the figures of the pages from the kept studies: `python docs/write_figures.py`.

The panels are those of `undertow report docs/studies --out DIR`, one SVG file each, with
the report's own colours for light and dark screens. The same study gives the same bytes;
each file names its study by hash, so that a test notices when it is old.
"""

import re
from importlib.resources import files
from pathlib import Path

from undertow.measurements import parse
from undertow.report.figures import draw_figures
from undertow.report.measurement_page import measurement_content
from undertow.report.panels import Figure
from undertow.report.svg import NAMES
from undertow.results import Results
from undertow.storage import file_sha256, read_json, write_text

DOCS = Path(__file__).parent
STUDIES, FOLDER = DOCS / "studies", DOCS / "figures"
PANELS = {
    "transfer-steered": ("channel-12", "transfer", "Teacher: block24_0.30"),
    "transfer-prompted": ("channel-12", "transfer", "Teacher: prompt"),
    "transfer-finetuned": ("channel-12", "transfer", "Teacher: finetune"),
    "lambda-steered": ("traits", "confusion", "Teacher: steer"),
    "lambda-prompted": ("traits", "confusion", "Teacher: prompt"),
    "traits-wolf": ("channel-12", "traits", "wolf by block24_0.30"),
    "shift-wolf": ("channel-12", "shift", "wolf by block24_0.30"),
    "gradients": ("channel-12", "gradients", "Steered after block 24"),
    "gradients-doses": ("channel-12", "doses", "Steered after block 24"),
    "channel-transfer": ("channel-12", "channel", "transfer"),
    "channel-hard": ("hard", "channel", "transfer"),
    "channel-shift": ("channel-12", "channel", "size of the student's shift"),
    "gemma-gradients": ("gemma-gradients", "gradients", "Steered after block 14"),
    "gemma-noise": ("gemma-noise", "dose", "Teacher: steer"),
    "gemma-noise-prompt": ("gemma-noise-prompt", "dose", "Teacher: prompt"),
    "noise": ("noise", "dose", "Teacher: steer"),
    "noise-curve": ("noise-curve", "dose", "Teacher: steer"),
    "noise-teacher": ("noise-teacher", "dose", "Teacher: steer"),
    "emergence": ("emergence", "emergence", "owl by steer"),
    "channel-noise": (
        "measurements/channel-noise.json",
        "widths",
        "From the base, all tokens",
    ),
    "channel-noise-share": (
        "measurements/channel-noise.json",
        "shares",
        "owl, asked of the teacher",
    ),
    "entanglement": (
        "measurements/entanglement-owl.json",
        "told",
        "Each number that was told",
    ),
    "vector-steered": (
        "measurements/vector-steered-owl.json",
        "likeness",
        "Cosine with each trait's vector, block 20",
    ),
    "vector-prompted": (
        "measurements/vector-prompted-owl.json",
        "likeness",
        "Cosine with each trait's vector, block 15",
    ),
}
"""File's name: the study or measurement, the figure in its report, and the panel."""
_SPACE = 8


def palettes() -> tuple[str, str]:
    """The colours of the report's style sheet: of a light page and of a dark one."""
    style = files("undertow.report").joinpath("report.css.j2").read_text("utf-8")
    names = "|".join(map(re.escape, NAMES))
    found = re.findall(rf"(--(?:{names}): #[0-9a-f]+);", style)
    half = len({text.split(":")[0] for text in found})
    return "; ".join(found[:half]), "; ".join(found[half : 2 * half])


def study_of(name: str) -> Path:
    """The results that a figure is drawn from."""
    place = STUDIES / PANELS[name][0]
    return place if place.suffix else place / "results.json"


def figures_of(study: Path) -> dict[str, Figure]:
    """Every figure of a study's, or a measurement's, report."""
    kept = read_json(study)
    if study.name == "results.json":
        return draw_figures(Results.model_validate(kept))
    return dict(measurement_content(parse(kept)).figures)


def standalone(svg: str, study: Path) -> str:
    """An SVG that stands by itself: with a name space, its study, paper, and colours."""
    light, dark = palettes()
    classes = "".join(
        f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}"
        for name in NAMES
        if re.search(rf"\b[fs]-{name}\b", svg) or name in ("ink", "paper")
    )
    style = (
        f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}{classes}"
        "text{fill:var(--ink);font-family:system-ui,'Noto Sans',Arial,sans-serif;"
        "paint-order:stroke;stroke:var(--paper);stroke-width:3px}svg{stroke-linejoin:round}"
    )
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    box = f"{-_SPACE} {-_SPACE} {float(width) + 2 * _SPACE:g} {float(height) + 2 * _SPACE:g}"
    head, body = svg.split(">", 1)
    head = head.replace(f'viewBox="0 0 {width} {height}"', f'viewBox="{box}"')
    names = f'<svg xmlns="http://www.w3.org/2000/svg" data-study="{file_sha256(study)}"'
    head = head.replace("<svg", names, 1)
    paper = f'<rect x="{-_SPACE}" y="{-_SPACE}" width="100%" height="100%" class="f-paper"/>'
    return f"{head}><style>{style}</style>{paper}{body}\n"


def main() -> None:
    """Writes every figure."""
    for study in dict.fromkeys(map(study_of, PANELS)):
        drawn = figures_of(study)
        for name, (_, figure, title) in PANELS.items():
            if study_of(name) == study:
                (panel,) = [p for p in drawn[figure].panels if p.title == title]
                write_text(FOLDER / f"{name}.svg", standalone(panel.svg, study))


if __name__ == "__main__":
    main()
