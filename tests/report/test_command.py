"""`undertow report` writes the page and the data of its figures from `results.json`."""

import json
from pathlib import Path

import pytest

from undertow.cli.report import report
from undertow.errors import RunError
from undertow.findings import Findings
from undertow.report.audit_card import render_audit_card
from undertow.report.html import render_report
from undertow.results import Results
from undertow.storage import write_json, write_text


@pytest.fixture
def directory(empty: Results, tmp_path: Path) -> Path:
    write_json(tmp_path / "results.json", empty.model_dump(mode="json"))
    return tmp_path


def test_the_report_of_a_run_lies_in_its_directory(
    directory: Path, empty: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    report(str(directory))
    page = directory / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text(encoding="utf-8") == render_report(empty)
    assert (directory / "figures" / "transfer.csv").is_file()


def test_the_data_lies_beside_a_report_elsewhere(directory: Path) -> None:
    report(str(directory), out=directory / "other" / "page.html")
    assert (directory / "other" / "page.html").is_file()
    assert (directory / "other" / "figures" / "noise_factors.csv").is_file()
    assert not (directory / "report.html").exists()


def test_results_of_another_version_are_refused(directory: Path) -> None:
    write_json(directory / "results.json", {"title": "t"})
    with pytest.raises(RunError, match=r"results\.json: not results of this version"):
        report(str(directory))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seconds", {"provenance": float("inf")}),
        (
            "alignments",
            [{"teacher": None, "kind": "none", "trait": None, "noise": 0, "seed": 0,
              "rows": 0, "vectors": ["owl"], "layers": [0], "cosines": [], "nats": [],
              "nats_sd": [], "vector_layer": None, "dose": 0}],
        ),
    ],
)  # fmt: skip
def test_results_that_do_not_fit_together_are_refused(
    directory: Path, name: str, change: object
) -> None:
    path = directory / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: change}))
    with pytest.raises(RunError, match="results: the numbers do not fit together"):
        report(str(directory))


@pytest.mark.slow
def test_an_audit_s_card_lies_beside_its_report(
    none_found: Findings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "audit.json", none_found.model_dump(mode="json"))
    report(str(tmp_path), card=True)
    page, card = tmp_path / "report.html", tmp_path / "card.md"
    assert capsys.readouterr().out == f"{card}\n{page}\n"
    assert page.is_file()
    assert card.read_text(encoding="utf-8") == render_audit_card(none_found)


def test_a_run_has_no_card(directory: Path) -> None:
    with pytest.raises(RunError, match="--card is for audits"):
        report(str(directory), card=True)
    assert not (directory / "report.html").exists()


@pytest.fixture
def several(empty: Results, none_found: Findings, tmp_path: Path) -> Path:
    """Two runs, one with an audit of its own; an audit; a run that is not finished."""
    studies = tmp_path / "studies"
    for name in ("b", "old/a"):
        write_json(studies / name / "results.json", empty.model_dump(mode="json"))
    findings = none_found.model_dump(mode="json")
    for name in ("b/audits/biased", "c"):
        write_json(studies / name / "audit.json", findings)
    write_text(studies / "begun" / "recipe.yaml", "title: t\n")
    write_text(studies / "notes" / "read.me", "nothing")
    return studies


def test_every_finished_one_below_a_folder_is_drawn(
    several: Path, empty: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    out = several.parent / "out"
    report(str(several), out=out)
    drawn = [out / name / "report.html" for name in ("b", "c", "old/a")]
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{several / 'begun'}: not finished, left out", *map(str, drawn)]
    assert sorted(out.rglob("*.html")) == drawn
    assert drawn[2].read_text(encoding="utf-8") == render_report(empty)
    assert (out / "b" / "figures" / "transfer.csv").is_file()
    assert not list(several.rglob("*.html"))


def test_without_a_place_each_is_drawn_in_its_own(several: Path) -> None:
    report(str(several))
    found = sorted(
        p.parent.relative_to(several).as_posix() for p in several.rglob("*.html")
    )
    assert found == ["b", "c", "old/a"]


def test_several_do_not_fit_into_one_file(several: Path) -> None:
    with pytest.raises(RunError, match=r"holds 3; --out has to be a folder"):
        report(str(several), out=several / "page.html")
    assert not list(several.rglob("*.html"))


def test_a_folder_with_nothing_below_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "notes" / "read.me", "nothing")
    with pytest.raises(RunError, match="holds no run, audit or measurement"):
        report(str(tmp_path))
