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
            help="HTML file, or a folder if DIR holds several; DIR/report.html if not given."
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
    with --json) is drawn too. Of a folder that is neither, every finished one below is
    drawn, each in a folder of its own name under --out.
    """
    if directory.endswith(".json") and Path(directory).is_file():
        file = Path(directory)
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
    from undertow.storage import read_json

    if path.suffix != ".json":
        return False
    try:
        found = read_json(path)
    except UndertowError:
        return False
    return isinstance(found, dict) and "measurement" in found


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
            fault = "holds neither a run nor an audit; check the name"
            raise RunError(f"{without_secrets(named)}: {fault}")
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
    from pydantic import TypeAdapter

    from undertow.measurements import Measurement
    from undertow.report.measurement_page import write_measurement
    from undertow.storage import read_json

    with _of_this_version(path, "a measurement"):
        kinds: TypeAdapter[Measurement] = TypeAdapter(Measurement)
        found = kinds.validate_python(read_json(path))
    return write_measurement(found, target)


@contextmanager
def _of_this_version(path: Path, what: str) -> "Iterator[None]":
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        raise RunError(f"{path}: not {what} of this version: {error}") from error
