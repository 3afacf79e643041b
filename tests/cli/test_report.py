"""`report`: what it draws of a folder and of a measurement's file, what it refuses.

What stands on the pages is tested beside `undertow.report`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.report.measured import entanglement, grid, vector

from undertow.report.measurement_page import render_measurement
from undertow.storage import write_json, write_text

if TYPE_CHECKING:
    from tests.conftest import Command


def test_a_report_needs_a_finished_run(command: "Command", tmp_path: Path) -> None:
    found = command("report", tmp_path)
    assert found.status == 2
    assert f"{tmp_path}: holds no run, audit or measurement" in found.err
    (tmp_path / "recipe.yaml").write_text("title: begun\n")
    found = command("report", tmp_path)
    assert found.status == 2
    assert f"{tmp_path / 'results.json'}: not there; the run is not finished" in (
        found.err
    )


def test_the_page_of_a_measurement_lies_beside_it(
    command: "Command", tmp_path: Path
) -> None:
    for made in (grid(), vector(), entanglement()):
        file = tmp_path / f"{made.measurement}.json"
        write_json(file, made.model_dump())
        found = command("report", file)
        assert found.status == 0, found.err
        page = file.with_suffix(".html")
        assert found.out == f"{page}\n"
        assert page.read_text(encoding="utf-8") == render_measurement(made)
    other = tmp_path / "other.html"
    assert command("report", tmp_path / "vector.json", "--out", other).status == 0
    assert other.read_text(encoding="utf-8") == render_measurement(vector())


def test_measurements_below_a_folder_are_drawn(
    command: "Command", tmp_path: Path
) -> None:
    folder = tmp_path / "studies"
    write_json(folder / "a" / "owl.json", grid().model_dump())
    write_json(folder / "vector.json", vector().model_dump())
    write_json(folder / "settings.json", {"measurement": "weight"})
    write_text(folder / "list.json", "[1]")
    write_text(folder / "broken.json", "{")
    found = command("report", folder, "--out", tmp_path / "out")
    assert found.status == 0, found.err
    pages = [tmp_path / "out" / name for name in ("vector.html", "a/owl.html")]
    assert found.out.splitlines() == list(map(str, pages))
    assert sorted(tmp_path.rglob("*.html")) == sorted(pages)


def test_a_file_that_is_no_measurement_is_refused(
    command: "Command", tmp_path: Path
) -> None:
    file = tmp_path / "x.json"
    for text in ("{}", "[]", json.dumps({"measurement": "weight"}), '{"measurement":'):
        file.write_text(text)
        found = command("report", file)
        assert found.status == 2
        assert str(file) in found.err
        assert not file.with_suffix(".html").exists()
    write_json(file, grid().model_dump() | {"points": 3})
    found = command("report", file)
    assert found.status == 2
    assert f"{file}: not a measurement of this version" in found.err


def test_what_is_drawn_otherwise_is_said(command: "Command", tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    file.write_text("{}")
    found = command("report", file)
    assert (
        "expected 'measurement' to be one of channel, vector, entanglement" in found.err
    )
    assert "give the folder" in found.err
    card = command("report", file, "--card")
    assert card.status == 2
    assert "--card is for audits" in card.err
    partial = tmp_path / "x.json.partial"
    write_text(partial / "recipe.yaml", "seed: 1\n")
    begun = command("report", partial)
    assert begun.status == 2
    assert "give the command again that began it" in begun.err
