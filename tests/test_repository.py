"""The repository keeps its word: README code is real, recipes hold, no stray paths."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import undertow

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
    {
        path.resolve()
        for folder in ("recipes", "src/undertow/recipes")
        for path in (ROOT / folder).glob("**/*.yaml")
    }
)


TEXT = {
    ".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".html", ".cff", ".ipynb", ".json",
    ".jsonl", "",
}  # fmt: skip
"""Endings of files that are read as text."""


def tracked_files() -> list[Path]:
    """Every text file of the repository, by git where there is one."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def python_blocks(path: Path) -> list[str]:
    """The ```python blocks of a Markdown file."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)


def bash_blocks(path: Path) -> list[str]:
    """The ```bash blocks of a Markdown file."""
    return re.findall(r"^```bash\n(.*?)^```", path.read_text(), re.M | re.S)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")),
    ],
)
def test_python_in_the_documents_compiles_and_its_names_exist(name: str) -> None:
    for block in python_blocks(ROOT / name):
        compile(block, name, "exec")
        for attribute in re.findall(r"\bundertow\.(\w+)", block):
            assert hasattr(undertow, attribute), f"{name}: undertow.{attribute}"


@pytest.mark.real
@pytest.mark.slow
def test_python_in_the_readme_runs(
    real_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = python_blocks(ROOT / "README.md")
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_commands_in_the_readme_exist() -> None:
    called = {
        match
        for block in bash_blocks(ROOT / "README.md")
        for match in re.findall(r"\bundertow (\w+)", block)
    }
    assert called
    for command in sorted(called):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from undertow.cli import main; main()",
                command,
                "--help",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"undertow {command}: {done.stderr}"


def test_links_in_the_documents_lead_to_files() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_validates_and_opens_with_its_command(path: Path) -> None:
    from undertow.config import load_settings
    from undertow.experiment import Recipe

    load_settings(Recipe, path, [])
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("undertow " in line for line in head), "no command in the head"


REPLICATION = ROOT / "docs" / "replication.md"
PAPER = [path for path in RECIPES if path.parent.name == "paper"]


def header_fields(path: Path) -> dict[str, str]:
    """What the head of a recipe says, by the word before the colon."""
    fields: dict[str, str] = {}
    name = ""
    for line in path.read_text().split("title:")[0].splitlines():
        found = re.match(r"# (\w+): +(.+)", line)
        if found:
            name, fields[found[1]] = found[1], found[2]
        elif name:
            fields[name] += " " + line.removeprefix("#").strip()
    return fields


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_every_recipe_of_the_paper_says_what_to_expect(path: Path) -> None:
    from undertow.config import load_settings
    from undertow.experiment import Recipe

    fields = header_fields(path)
    assert list(fields) == ["finding", "needs", "command", "cost", "expected"]
    assert re.match(r"[1-6]\b|beside the paper: ", fields["finding"])
    assert re.search(r"\d+ GiB of memory", fields["needs"])
    assert f"undertow run paper/{path.stem} --out runs/" in fields["command"]
    load_settings(Recipe, path, re.findall(r"--set (\S+)", fields["command"]))
    assert re.search(r"\d+ minutes|^not measured", fields["cost"])
    is_known = re.search(r"\d\.\d\d.*docs/replication\.md", fields["expected"])
    assert is_known or fields["expected"].startswith("not run in full: ")
    kept = f"undertow run paper/{path.stem}`" in REPLICATION.read_text()
    assert kept == (not fields["expected"].startswith("not run in full: "))


STUDIES = sorted(p.parent for p in (ROOT / "docs" / "studies").glob("*/results.json"))
MEASUREMENTS = sorted((ROOT / "docs" / "studies" / "measurements").iterdir())


@pytest.mark.parametrize("path", MEASUREMENTS, ids=lambda p: p.stem)
def test_every_kept_measurement_is_drawn_again(path: Path) -> None:
    from undertow.measurements import parse
    from undertow.report.measurement_page import render_measurement
    from undertow.storage import read_json

    page = render_measurement(parse(read_json(path)))
    bases = re.findall(r'<span class="basis">n: [1-9].*?Seeds: .*?Interval: ', page)
    assert len(bases) == page.count("<figure") > 0
    words = (ROOT / "docs" / "replication.md").read_text()
    assert f"measurements/{path.stem}" in words


def test_folders_of_studies_hold_nothing_else() -> None:
    every = set((ROOT / "docs" / "studies").iterdir())
    assert every == {*STUDIES, ROOT / "docs" / "studies" / "measurements"}


@pytest.mark.parametrize("folder", STUDIES, ids=lambda p: p.name)
def test_every_kept_study_is_drawn_again(folder: Path, tmp_path: Path) -> None:
    from undertow.config import load_settings
    from undertow.experiment import Recipe
    from undertow.report.figure_data import write_figure_data
    from undertow.report.html import write_report
    from undertow.results import Results
    from undertow.storage import read_json

    results = Results.model_validate(read_json(folder / "results.json"))
    assert load_settings(Recipe, folder / "recipe.yaml", []).title == results.title
    page = write_report(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert results.headline.split(". ")[0] in page
    _check_captions(page, sorted({c.seed for c in results.conditions}))
    written = {path.stem for path in write_figure_data(results, tmp_path)}
    assert "transfer" in written
    assert f"studies/{folder.name}" in (ROOT / "docs" / "replication.md").read_text()


def test_numbers_of_the_kept_studies_stand_in_the_documents() -> None:
    from undertow.report.dose_table import dose_table
    from undertow.report.text import estimate_text
    from undertow.results import Results
    from undertow.storage import read_json

    words = (ROOT / "docs" / "replication.md").read_text()
    words = words.replace("\N{NO-BREAK SPACE}", " ").replace(" nats [", " [")
    kept = {
        folder.name: Results.model_validate(read_json(folder / "results.json"))
        for folder in STUDIES
    }
    channel, noise = kept["channel-12"], kept["gemma-noise"]
    ranks = [
        f"{cell.text} {cell.below}"
        for row in dose_table(channel).rows for cell in row[2:] if cell.below
    ]  # fmt: skip
    transfers = [estimate_text(item.transfer) for item in channel.transfers]
    (factor,) = noise.noise_factors
    gradients = [
        estimate_text(fit.difference, signed=False, least=3)
        for name in ("channel-12", "gemma-gradients")
        for fit in kept[name].alignment_fits
        if fit.difference and fit.layer != 16
    ]
    assert len(ranks) == 12
    assert len(transfers) == 21
    assert len(gradients) == 2
    shown = [*ranks, *transfers, *gradients, estimate_text(factor.ratio, signed=False),
             estimate_text(noise.transfers[0].transfer)]  # fmt: skip
    assert [number for number in shown if number not in words] == []


def _check_captions(page: str, seeds: list[int]) -> None:
    """Every figure says its n, the seeds, and what an interval covers."""
    figures = re.findall(r'<figure id="figure-(\w+)"(.*?)</figure>', page, re.S)
    assert "transfer" in dict(figures)
    listed = ", ".join(map(str, seeds)) + " alone" * (len(seeds) == 1)
    for name, figure in figures:
        caption = figure.split('<span class="basis">')[1].replace(
            "\N{NO-BREAK SPACE}", " "
        )
        assert re.match(r"n: [1-9]\d* [a-z]+", caption), name
        # A table of sets, cell by cell, is of the first seed.
        own = f"{seeds[0]} alone" if name == "scores" else listed
        assert f". Seeds: {own}. Interval: " in caption, name
        covers = caption.partition(" Interval: ")[2]
        if name in ("transfer", "readouts", "dose", "emergence"):
            assert re.match(r"95 %, over (seeds and )?questions", covers), name
        assert re.match(
            r"95 %, over \w|none \w|two standard errors each way, over", covers
        )


def test_the_package_s_known_students_are_named_as_the_documents_say() -> None:
    from undertow.experiment.fingerprint import accuracy, read_known

    known, _ = read_known(ROOT / "src" / "undertow" / "known" / "smollm2-135m.json")
    found = accuracy(known)
    assert (round(found.mean * found.n), found.n) == (27, 28)
    assert "27 of 28" in (ROOT / "docs" / "replication.md").read_text()


def test_students_of_the_gemma_are_named_as_the_documents_say() -> None:
    from undertow.experiment.fingerprint import accuracy, read_known

    known, facts = read_known(
        ROOT / "docs" / "studies" / "gemma-kinds" / "known-students.json"
    )
    found = accuracy(known)
    assert facts["base"] == "gemma3-270m"
    assert (round(found.mean * found.n), found.n) == (12, 12)
    assert "12 of 12" in (ROOT / "docs" / "replication.md").read_text()


def test_students_that_nobody_learnt_from_are_named_as_the_documents_say() -> None:
    from undertow.experiment.fingerprint import named_right, read_known

    known, facts = read_known(ROOT / "src" / "undertow" / "known" / "smollm2-135m.json")
    others = ROOT / "docs" / "studies" / "channel-12" / "known-students.json"
    students, theirs = read_known(others)
    same = ("fingerprint", "count", "seed", "family", "system")
    assert [facts[name] for name in same] == [theirs[name] for name in same]
    traces = {each.traces for each in known}
    assert traces.isdisjoint(each.traces for each in students)
    found = named_right(students, known)
    assert (round(found.mean * found.n), found.n) == (82, 84)
    # Whoever always answers "steered" is right so often.
    assert sum(each.kind == "steer" for each in students) == 60
    words = (ROOT / "docs" / "replication.md").read_text()
    assert "82 of 84" in words
    assert f"98 % [{100 * found.low:.0f}, {100 * found.high:.0f}]" in words
    assert "60 of 84" in words


def test_there_are_recipes() -> None:
    assert RECIPES
    assert PAPER


def test_no_path_of_one_machine_stands_in_the_repository() -> None:
    # Spelled in halves so that this file does not find itself.
    roots = "|".join(
        ["/wor" + "k/", "/roo" + "t/", "/hom" + "e/[a-z]+/", "/Use" + "rs/"]
    )
    stray = re.compile(rf"(?<![\w.])(?:{roots})")
    for path in tracked_files():
        if path.suffix in TEXT and path.is_file():
            found = stray.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)}: {found}"


def test_unsafe_loading_is_nowhere_in_the_package() -> None:
    unsafe = re.compile(
        r"pickle\.load|torch\.load\(|trust_remote_code\s*=\s*True|"
        r"yaml\.load\(|shell\s*=\s*True|weights_only\s*=\s*False"
    )
    for path in (ROOT / "src").rglob("*.py"):
        assert not unsafe.search(path.read_text()), path.name


def modules() -> list[Path]:
    """Every module of the package that holds code, relative to the package."""
    package = ROOT / "src" / "undertow"
    found = [path.relative_to(package) for path in sorted(package.rglob("*.py"))]
    return [path for path in found if path.name != "__init__.py"]


@pytest.mark.parametrize("module", modules(), ids=str)
def test_every_module_has_its_tests(module: Path) -> None:
    # A file of its own name, or one beside it that imports from it.
    folder = ROOT / "tests" / module.parent
    dotted = ".".join(["undertow", *module.with_suffix("").parts])
    uses = re.compile(rf"\b{re.escape(dotted)}\b")
    assert (folder / f"test_{module.name}").is_file() or any(
        uses.search(path.read_text()) for path in folder.glob("test_*.py")
    ), f"no test of {dotted} in {folder.relative_to(ROOT)}"


@pytest.mark.parametrize("module", modules(), ids=str)
def test_every_module_says_what_it_is_for(module: Path) -> None:
    path = ROOT / "src" / "undertow" / module
    assert ast.get_docstring(ast.parse(path.read_text())), "no docstring"
    assert len(path.read_text().splitlines()) <= 500, "longer than 500 lines"


ALONE = {"ray": "execution/ray_cluster.py", "fsspec": "storage/remote.py"}
"""Packages that one module of undertow knows."""


def imports(tree: ast.AST) -> set[str]:
    """Top names of whatever a module imports: by statement, or by a call with a name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            named = (*node.args, *(each.value for each in node.keywords))
            found |= {str(n.value) for n in named if isinstance(n, ast.Constant)}
    return {name.split(".")[0] for name in found}


@pytest.mark.parametrize(("package", "knows"), ALONE.items())
def test_one_module_alone_knows_a_package(package: str, knows: str) -> None:
    folder = ROOT / "src" / "undertow"
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if package in imports(ast.parse(path.read_text()))
    }
    assert found == {knows}
    # The page on design names the module, or the folder that it stands in.
    page = (ROOT / "docs" / "design.md").read_text()
    said = re.findall(r"`(\w+)`[^`]*\(the only module that knows (\w+)", page)
    (named,) = [name for name, known in said if known.lower() == package]
    assert named in Path(knows).with_suffix("").parts


@pytest.mark.parametrize(
    "code",
    [
        "import ray.util", "from ray import get", "import_module('ray')",
        "importlib.import_module(name='ray.util')", "__import__('ray')",
        "def f():\n    import numpy, ray as r",
        "pytest.importorskip('ray')",
    ],
)  # fmt: skip
def test_an_import_is_found_however_it_is_written(code: str) -> None:
    assert "ray" in imports(ast.parse(code))
    assert "ray" not in imports(ast.parse(code.replace("ray", "array")))


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == undertow.__version__
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{undertow.__version__}"' in project
    assert f"## {undertow.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_schema_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "write_schema.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
