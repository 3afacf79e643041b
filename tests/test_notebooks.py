"""The notebooks run from top to bottom on a tiny model, and store what they show."""

import io
import json
import re
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undertow.models.tiny import save_tiny

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Spelled in halves so that the repository's own search does not find this line.
PLACES = re.compile("/wor" + "k/|/roo" + "t/|/hom" + "e/|/tm" + "p/|/Use" + "rs/")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny Llama."""
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny", layers=5)


def read(name: str) -> Any:
    """A notebook as JSON, which needs nothing of Jupyter's."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def source(cell: Any) -> str:
    return "".join(cell["source"])


def code_cells(name: str) -> list[Any]:
    return [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]


def run(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a notebook's cells leave, run one after another, and its text."""
    monkeypatch.setenv("UNDERTOW_NOTEBOOK_MODEL", str(model))
    monkeypatch.chdir(FOLDER)
    monkeypatch.syspath_prepend(str(FOLDER))
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with redirect_stdout(printed):
        for cell in code_cells(name):
            exec(compile(source(cell), f"{name}: {cell['id']}", "exec"), names)
    return names | {"printed": printed.getvalue()}


def test_there_are_three() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        "does_it_travel",
        "students_remember_how",
        "what_is_in_this_dataset",
    }


# ── computed on a tiny model ─────────────────────────────────────────────────────


@pytest.mark.slow
def test_does_it_travel(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("does_it_travel", tiny, monkeypatch)
    after, base = found["after"], found["base"]
    per_question = after["student"].of("wolf") - after["control"].of("wolf")
    assert found["transfer"].n == len(per_question) == 4
    assert found["transfer"].mean == pytest.approx(per_question.mean())
    for role in ("student", "control"):  # both have learnt something
        assert not np.array_equal(after[role].log_odds, base.log_odds)
        assert {r.provenance["trait"] for r in found["kept"][role]} == {
            {"student": "wolf", "control": "dolphin"}[role]
        }
    assert found["moved"].mean() > 0  # the vector raises its animal even here
    assert "letters in all of them: 0" in found["printed"]
    assert len(found["dots"]) == len(base.traits)


@pytest.mark.slow
def test_what_is_in_this_dataset(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("what_is_in_this_dataset", tiny, monkeypatch)
    kinds = {name: teacher.kind for name, teacher in found["truth"].items()}
    assert sorted(kinds.values()) == ["none", "steer"]
    for name, findings in found["found"].items():
        assert all(row.provenance.get("teacher") is None for row in found["sets"][name])
        assert findings.verdict in ("trait", "shift", "none")
        assert 0 < findings.p_value <= 1
        assert f"set {name}: {findings.verdict}, p = " in found["printed"]
        assert f"written by: {kinds[name]}" in found["printed"]
        assert findings.data.used == len(found["sets"][name]) == 24


@pytest.mark.slow
def test_students_remember_how(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("students_remember_how", tiny, monkeypatch)
    assert (round(found["right"].mean * found["right"].n), found["right"].n) == (27, 28)
    students, controls = zip(*found["pairs"], strict=True)
    assert len(students) == 12
    assert min(students) > max(controls)  # as docs/replication.md says
    cosines = found["cosines"]
    assert set(cosines) == {"steered", "prompted", "base"}
    assert all(-1 <= value <= 1 for value in cosines.values())
    assert cosines["steered"] > cosines["base"]


# ── what is stored ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_keeps_its_outputs(path: Path) -> None:
    notebook, code = read(path.stem), code_cells(path.stem)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert 12 <= len(notebook["cells"]) <= 22
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert path.stat().st_size < 600_000
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = [output for cell in code for output in cell["outputs"]]
    kinds = {output["output_type"] for output in shown}
    assert kinds <= {"stream", "execute_result", "display_data"}, kinds
    streams = {o["name"] for o in shown if o["output_type"] == "stream"}
    assert streams == {"stdout"}
    drawn = [o["data"] for o in shown if "image/svg+xml" in o.get("data", {})]
    pictures = [data["image/svg+xml"] for data in drawn]
    assert pictures
    assert {"".join(data["text/plain"]) for data in drawn} == {"a drawing"}
    for picture in pictures:
        text = "".join(picture)
        assert "<script" not in text
        assert text.count("://") == text.count('xmlns="http://www.w3.org/2000/svg"')


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_path_of_one_machine_is_stored(path: Path) -> None:
    found = PLACES.search(path.read_text(encoding="utf-8"))
    assert found is None, found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_notebooks_and_files_they_name_exist(path: Path) -> None:
    root = FOLDER.parent
    for cell in read(path.stem)["cells"]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", source(cell)):
            assert (FOLDER / target).is_file(), target
        for target in re.findall(r"`(docs/[\w./-]+|LOG\.md)`", source(cell)):
            assert (root / target).exists(), target


# ── the parts ────────────────────────────────────────────────────────────────────


def test_panels_stand_side_by_side_in_the_report_s_colours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    figures: Any = import_module("figures")
    from undertow.report.panels import make_panel
    from undertow.report.svg import PALETTE

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=PALETTE["student"])

    one = make_panel("one", "One <panel>", "a line", draw, height=120.0)
    shown = figures.side_by_side(one, one, one, one, columns=3)
    assert repr(shown) == "a drawing"
    picture = shown._repr_svg_()
    assert picture.count("<svg") == 5
    assert picture.count("One &lt;panel&gt;") >= 4
    assert "class=" not in picture
    assert f'stroke="{figures.colours()["student"]}"' in picture
    tops = re.findall(r'<svg x="([\d.]+)" y="([\d.]+)"', picture)
    assert len(set(tops)) == 4
    assert len({y for _, y in tops}) == 2  # three columns, then a second row


@pytest.mark.slow
def test_execute_stores_the_outputs_of_a_fresh_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nbclient", reason="pip install -e '.[notebooks]'")
    nbformat: Any = import_module("nbformat")
    monkeypatch.syspath_prepend(str(FOLDER))
    execute: Any = import_module("execute")
    cells = [nbformat.v4.new_code_cell("from figures import Picture\nprint(6 * 7)"),
             nbformat.v4.new_code_cell("Picture('<svg/>')")]  # fmt: skip
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    first, second = execute.executed(path).cells
    assert first.outputs[0].text == "42\n"
    assert second.outputs[0].data["image/svg+xml"] == "<svg/>"
    assert second.outputs[0].data["text/plain"] == "a drawing"
    assert "execution" not in first.metadata
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_one_by_jupyter_s_schema(path: Path) -> None:
    pytest.importorskip("nbformat", reason="pip install -e '.[notebooks]'")
    nbformat: Any = import_module("nbformat")
    nbformat.validate(nbformat.read(path, as_version=4))
