"""`report`: pages of finished runs, audits and measurements, drawn from their files."""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.console import say
from undertow.cli.places import Directory, opened_place
from undertow.errors import RunError, UndertowError

if TYPE_CHECKING:
    from collections.abc import Iterator


def report(
    directory: Directory,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file, or a folder if DIR holds several; if not given DIR/report.html, "
            "and FILE.html of FILE.json."
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card", help="Write card.md beside it: an audit's dataset card."
        ),
    ] = False,
) -> None:
    """Draws the report of a finished run or audit: one HTML file, figures/*.csv beside it.

    A JSON file of a measurement (`channel`, `analyze vector`, `analyze entanglement`
    with --json) is drawn too, as one page alone. Of a folder that is neither run nor
    audit, every finished one and every measurement below is drawn, each in a place of
    its own name under --out.
    """
    if directory.endswith(".json") and Path(directory).is_file():
        file = Path(directory)
        if card:
            fault = f"{file}: --card is for audits, and this is no audit's folder"
            raise RunError(fault)
        say(str(_draw_measurement(file, out or file.with_suffix(".html"))))
        return
    with opened_place(directory) as folder:
        places = [] if _is_begun(folder) else list(_finished_below(folder))
        if places and out is not None and out.suffix == ".html":
            fault = f"{folder} holds {len(places)}; --out has to be a folder, not {out}"
            raise RunError(fault)
        for place in places:
            target = (out or folder) / place.relative_to(folder)
            if place.is_file():
                say(str(_draw_measurement(place, target.with_suffix(".html"))))
            else:
                _draw(place, target / "report.html", card=card, named=str(place))
        if not places:
            _draw(folder, out or folder / "report.html", card=card, named=directory)


_FINISHED = frozenset({"results.json", "audit.json"})


def _is_begun(folder: Path) -> bool:
    from undertow.runs import RECIPE

    return any((folder / name).exists() for name in (*_FINISHED, RECIPE))


def _finished_below(folder: Path) -> "Iterator[Path]":
    """Runs, audits and measurements by name, without those in another's folder."""
    for where, inner, names in os.walk(folder):
        inner.sort()
        if _is_begun(Path(where)):
            inner.clear()
            if _FINISHED.isdisjoint(names):
                say(f"{where}: not finished, left out")
            else:
                yield Path(where)
        else:
            files = (Path(where, name) for name in sorted(names))
            yield from filter(_is_measurement, files)


def _is_measurement(path: Path) -> bool:
    from undertow.measurements import NAMES
    from undertow.storage import read_json

    if path.suffix != ".json":
        return False
    try:
        found = read_json(path)
    except UndertowError:
        return False
    return isinstance(found, dict) and found.get("measurement") in NAMES


def _draw(folder: Path, target: Path, *, card: bool, named: str) -> None:
    if (folder / "audit.json").exists():
        page = _draw_audit(folder / "audit.json", target, card=card)
    elif card:
        fault = f"{folder}: --card is for audits, and there is no audit.json"
        raise RunError(fault)
    else:
        page = _draw_run(folder, target, named=named)
    say(str(page))


def _draw_run(directory: Path, target: Path, *, named: str) -> Path:
    from undertow.report.figure_data import write_figure_data
    from undertow.report.html import write_report
    from undertow.results import Results
    from undertow.storage import read_json
    from undertow.storage.remote import without_secrets

    path, recipe = directory / "results.json", directory / "recipe.yaml"
    if not path.exists():
        if not recipe.is_file():
            fault = "holds no run, audit or measurement; check the name"
            raise RunError(f"{without_secrets(named)}: {fault}")
        if directory.suffix == ".partial":
            fault = "work that is not finished; give the command again that began it"
            raise RunError(f"{directory}: {fault}")
        raise RunError(
            f"{path}: not there; the run is not finished. Continue it with "
            f"undertow run {recipe} --out {without_secrets(named)}"
        )
    with _of_this_version(path, "results"):
        results = Results.model_validate(read_json(path))
    page = write_report(results, target)
    write_figure_data(results, page.parent)
    return page


def _draw_audit(path: Path, target: Path, *, card: bool) -> Path:
    from undertow.findings import Findings
    from undertow.report.audit_card import write_audit_card
    from undertow.report.audit_data import write_audit_figure_data
    from undertow.report.audit_page import write_audit_report
    from undertow.storage import read_json

    with _of_this_version(path, "findings"):
        findings = Findings.model_validate(read_json(path))
    page = write_audit_report(findings, target)
    write_audit_figure_data(findings, page.parent)
    if card:
        say(str(write_audit_card(findings, page.with_name("card.md"))))
    return page


def _draw_measurement(path: Path, target: Path) -> Path:
    from undertow.measurements import NAMES, parse
    from undertow.report.measurement_page import write_measurement
    from undertow.storage import read_json

    kept = read_json(path)
    name = kept.get("measurement") if isinstance(kept, dict) else None
    if name not in NAMES:
        raise RunError(
            f"{path}: holds no measurement that can be drawn; expected 'measurement' to be "
            f"one of {', '.join(NAMES)}, got {name!r}. Of a run or an audit give the folder"
        )
    with _of_this_version(path, "a measurement"):
        found = parse(kept)
    return write_measurement(found, target)


@contextmanager
def _of_this_version(path: Path, what: str) -> "Iterator[None]":
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        raise RunError(f"{path}: not {what} of this version: {error}") from error
