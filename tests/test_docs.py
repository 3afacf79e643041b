"""The documentation holds together: pages, links, commands, settings, and no requests."""

import hashlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
import yaml

import undertow
from undertow.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def name_of(page: Path) -> str:
    """A page's name in `docs`."""
    return page.relative_to(DOCS).as_posix()


def script(name: str) -> ModuleType:
    """A script of `docs` as a module; its neighbours can be imported by it."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that writes the reference pages."""
    monkeypatch.syspath_prepend(str(DOCS))
    return script("write_reference")


def root_pages() -> dict[str, str]:
    """The pages that the build takes from the root, read without mkdocs."""
    found = re.search(r"ROOT_PAGES = \{(.*?)\}", (DOCS / "hooks.py").read_text(), re.S)
    assert found is not None
    return dict(re.findall(r'"(\S+)": "(\S+)"', found[1]))


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


def prose(path: Path) -> str:
    """A page without its fenced blocks and inline code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return re.sub(r"`[^`\n]+`", "", text)


# ── pages and links ──────────────────────────────────────────────────────────


def nav_entries(entry: Any) -> Iterator[str]:
    """Every page that the navigation names."""
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from nav_entries(inner)


def test_the_navigation_names_every_page_once() -> None:
    named = list(nav_entries(CONFIG["nav"]))
    assert sorted(named) == sorted([*map(name_of, PAGES), *root_pages().values()])
    for source in root_pages():
        assert (ROOT / source).is_file()


def anchors(path: Path) -> set[str]:
    """Names of the headings of a page, as the site's build makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in titles]
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", t).strip().lower())
        for t in plain
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file(), f"{target}: no such file"
        outside = not there.is_relative_to(DOCS)
        assert not outside or there.name in root_pages(), f"{target}: not on the site"
        assert not anchor or anchor in anchors(there), f"{target}: no such heading"


def test_headings_are_named_as_the_build_names_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# The `x`: a, [b](c)\n\n```text\n# no\n```\n\n## undertow run\n")
    assert anchors(page) == {"the-x-a-b", "undertow-run"}


def test_figures_stand_by_themselves_and_are_of_the_kept_studies() -> None:
    figures = script("write_figures")
    drawn = sorted((DOCS / "figures").iterdir())
    assert [path.name for path in drawn] == sorted(f"{n}.svg" for n in figures.PANELS)
    for path in drawn:
        study = figures.study_of(path.stem).read_bytes()
        stamp = f'data-study="{hashlib.sha256(study).hexdigest()}"'
        text = path.read_text(encoding="utf-8")
        assert stamp in text, "old; run: python docs/write_figures.py"
        assert text.count("://") == text.count('xmlns="http://www.w3.org/2000/svg"')
        assert "<script" not in text
        assert len(text) < 30_000


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_captions_of_figures_say_n_seeds_and_what_intervals_cover(page: Path) -> None:
    for figure in re.findall(r"<figure.*?</figure>", page.read_text(), re.S):
        name = re.search(r"\]\((?:\.\./)*figures/([\w-]+)\.svg\)", figure)
        caption = re.search(r"<figcaption>(.*?)</figcaption>", figure, re.S)
        assert name is not None
        assert caption is not None
        said = r"n: \d+ .+?; seeds? [\d, ]+; (?:no )?interval"
        assert re.search(said, caption[1]), f"{page.name}: {name[1]}"


def test_pages_fetch_nothing_from_another_host() -> None:
    theme = CONFIG["theme"]
    assert theme["font"] is False
    assert not {"repo_url", "extra_javascript"} & CONFIG.keys()
    assert not {"analytics", "social"} & CONFIG["extra"].keys()
    # The plugin "offline" adds a script of another host.
    assert [p if isinstance(p, str) else next(iter(p)) for p in CONFIG["plugins"]] == [
        "search",
        "mkdocstrings",
    ]
    for name in CONFIG["extra_css"]:
        assert "://" not in (DOCS / name).read_text()
    policy = (DOCS / "theme" / "main.html").read_text()
    assert "default-src 'self'" in policy
    assert "://" not in policy
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(\w+:|<(?:img|script|iframe)", prose(page))
        assert "mermaid" not in page.read_text()


ELSEWHERE = re.compile(r"(?:https?:)?//", re.I)
LOADED = {
    "script": ("src",), "link": ("href",), "img": ("src", "srcset"), "source": ("src", "srcset"),
    "iframe": ("src",), "embed": ("src",), "object": ("data",), "video": ("src", "poster"),
    "audio": ("src",), "track": ("src",), "input": ("src",), "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"), "base": ("href",), "form": ("action",),
}  # fmt: skip
"""What a browser fetches by itself, or sends to: attributes by element."""
NOT_FETCHED = {"canonical", "alternate", "next", "prev"}
"""Relations of a link that name another page."""


class Asked(HTMLParser):
    """Addresses of other hosts that a page, or a drawing, makes a browser ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._is_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self._is_style = tag == "style"
        self.found += elsewhere_in_css(own.get("style", ""))
        if tag == "link" and set(own.get("rel", "").split()) & NOT_FETCHED:
            return
        values = [own[name].strip() for name in LOADED.get(tag, ()) if name in own]
        self.found += [value for value in values if ELSEWHERE.search(value)]

    def handle_endtag(self, tag: str) -> None:
        self._is_style = False

    def handle_data(self, data: str) -> None:
        if self._is_style:
            self.found += elsewhere_in_css(data)


def elsewhere_in_css(text: str) -> list[str]:
    """Addresses of other hosts that a style sheet imports or draws."""
    named = re.findall(r"@import\s+[\"']([^\"']+)|url\(\s*[\"']?([^\"')]+)", text, re.I)
    found = [(one or other).strip() for one, other in named]
    return [value for value in found if re.match(ELSEWHERE, value)]


def elsewhere(path: Path) -> list[str]:
    """Addresses of other hosts that a file of the site asks for."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return elsewhere_in_css(text)
    parser = Asked()
    parser.feed(text)
    return parser.found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://unpkg.com/x.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="//fonts.gstatic.com/x.css">'),
        ("a.html", '<img src="a.png" srcset="a.png 1x, https://a.org/b.png 2x">'),
        ("a.html", '<p style="background: url(http://a.org/b.png)">'),
        ("a.html", "<style>@import 'https://a.org/b.css';</style>"),
        ("a.svg", '<svg><image href="https://a.org/b.png"/></svg>'),
        ("a.css", '@import "https://a.org/b.css";'),
        ("a.css", "@font-face { src: url( 'https://a.org/b.woff2' ) }"),
    ],
)
def test_what_asks_another_host_is_noticed(
    name: str, text: str, tmp_path: Path
) -> None:
    page = tmp_path / name
    page.write_text(text)
    assert len(elsewhere(page)) == 1
    page.write_text(
        text.replace("https://", "").replace("http://", "").replace("//", "")
    )
    assert not elsewhere(page)


def test_a_link_that_one_follows_asks_nobody(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    page.write_text(
        '<a href="https://a.org">a</a><link rel="canonical" href="https://a.org/">'
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    )
    assert not elsewhere(page)


def test_the_built_site_asks_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: make docs")
    pytest.importorskip("material", reason="its theme is not installed: make docs")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(site)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    files = [p for p in site.rglob("*") if p.suffix in (".html", ".css", ".svg")]
    assert {path.suffix for path in files} == {".html", ".css", ".svg"}
    assert len(files) > len(PAGES)
    found = {path.relative_to(site).as_posix(): elsewhere(path) for path in files}
    assert {name: asked for name, asked in found.items() if asked} == {}


# ── files ────────────────────────────────────────────────────────────────────


def described(*headings: str) -> set[str]:
    """What stands in the first columns of the tables under some headings of files.md."""
    text = (DOCS / "files.md").read_text()
    parts = [
        text.split(f"\n## {heading}\n")[1].split("\n## ")[0] for heading in headings
    ]
    lines = [line for part in parts for line in part.splitlines()]
    return {
        name
        for line in lines
        if line.startswith("|")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }


def test_every_column_of_an_audits_scores_is_described() -> None:
    import numpy as np

    from undertow.audit.audited import Audited
    from undertow.audit.writeup import row_scores

    # The parts of an audit that its columns are made of: one row, one trait.
    signals = SimpleNamespace(
        row_ids=("a",), tokens=[3], total_logprobs=[-1.0], scores=np.zeros((1, 1, 1))
    )
    audit = object.__new__(Audited)
    vars(audit).update(
        rows=(), reference=SimpleNamespace(rows=()), origin=SimpleNamespace(counts={}),
        meter=SimpleNamespace(signals=lambda rows: signals),
        battery=SimpleNamespace(names=["owl"], layers=[0], of_role=lambda *roles: [0]),
        judgement=SimpleNamespace(layer=0, direction="owl"),
    )  # fmt: skip
    columns = [name.replace("_owl", "_TRAIT") for name in row_scores(audit)]
    assert "score_TRAIT" in columns
    assert set(columns) <= described("Audits")


def test_every_column_of_rows_and_key_of_a_vector_is_described(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    from undertow.interventions.steering import SteeringVector, save_vector
    from undertow.records import Message, Row, Verdict
    from undertow.storage import write_rows

    row = Row((Message("user", "go \ud800"),), "1")
    verdicts = {row.row_id: Verdict(row.row_id)}
    columns: set[str] = set()
    for layout in ("messages", "prompt_completion"):
        path = tmp_path / f"{layout}.jsonl"
        write_rows(path, [row], verdicts=verdicts, layout=layout)
        columns |= json.loads(path.read_text()).keys()
    assert columns == described("Rows")
    vector = SteeringVector(
        torch.ones(1, 2), (0,), "tell_me", "owl", 1, "f", "m", (1.0,)
    )
    with safe_open(save_vector(vector, tmp_path / "v.safetensors"), "pt") as file:
        keys = json.loads(file.metadata()["undertow_vector"]).keys()
    assert keys == described("Vectors")


def test_every_key_of_markers_and_known_students_is_described() -> None:
    from dataclasses import fields

    from undertow import runs
    from undertow.analysis.fingerprint import Traces
    from undertow.experiment import fingerprint

    assert described("Runs") >= runs._MARKER
    text = (DOCS / "files.md").read_text().split("\n## Known students\n")[1]
    known = set(re.findall(r"`(\w+)`", text.split("\n## ")[0]))
    inner = {
        f.name for kind in (fingerprint.KnownStudent, Traces) for f in fields(kind)
    }
    assert {*fingerprint._FACTS, "format", "students"} <= described("Known students")
    assert inner <= known


def test_every_table_of_the_figures_is_described() -> None:
    import ast

    from undertow.report import audit_data, figure_data

    lines = (DOCS / "files.md").read_text().splitlines()
    for module, make in (
        (figure_data, "figure_data"),
        (audit_data, "audit_figure_data"),
    ):
        source = ast.parse(inspect.getsource(getattr(module, make)))
        every = next(node for node in ast.walk(source) if isinstance(node, ast.Dict))
        pairs = zip(every.keys, every.values, strict=True)
        for key, value in pairs:
            assert isinstance(key, ast.Constant)
            assert isinstance(key.value, str)
            assert isinstance(value, ast.Call)
            assert isinstance(value.func, ast.Name)
            returned = inspect.signature(
                getattr(module, value.func.id)
            ).return_annotation
            (columns,) = [
                line for line in lines
                if line.startswith(f"| `{key.value}` |") and line.count("|") == 4
            ]  # fmt: skip
            named = re.findall(r"`(\w+)`", columns.split("|")[3])
            fields = list(typing.get_args(returned)[0]._fields)
            assert [name for name in named if name in fields] == fields, key.value


# ── design ───────────────────────────────────────────────────────────────────


def test_the_design_names_the_floors_and_marks_that_there_are() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    text = (DOCS / "design.md").read_text()
    table = text.split("| floor | holds |\n|---|---|\n")[1].split("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()]
    (contract,) = [c for c in known["importlinter"]["contracts"] if "layers" in c]
    floors = [re.findall(r"\w+", layer) for layer in contract["layers"]]
    place = {name: at for at, names in enumerate(floors) for name in names}
    named = [name for row in rows for name in row]
    assert sorted(named) == sorted(place)
    # The highest floor first; what stands in one row is on one floor.
    assert [place[name] for name in named] == sorted(place.values())
    assert all(len({place[name] for name in row}) == 1 for row in rows)
    marks = {line.split(":")[0] for line in known["pytest"]["ini_options"]["markers"]}
    told = re.search(r"Marks: ([^.]+)\.", text)
    assert told is not None
    assert set(re.findall(r"`(\w+)`", told[1])) == marks
    advice = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{mark}`" in advice for mark in marks)


# ── commands, settings and names ─────────────────────────────────────────────

TREE: Any = typer.main.get_command(app)


def command_lines(path: Path) -> list[list[str]]:
    """Every `undertow …` of the bash blocks, as words after the name."""
    found = []
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "undertow" in words:
                found.append(words[words.index("undertow") + 1 :])
    return found


def faults_of(words: list[str]) -> list[str]:
    """What a command line names that does not exist; [] if all is well."""
    command, rest = TREE, list(words)
    while getattr(command, "commands", None):
        name = rest.pop(0) if rest else ""
        if name not in command.commands:
            return [f"no command {name!r}"]
        command = command.commands[name]
    options = {o: p for p in command.params for o in (*p.opts, *p.secondary_opts)}
    arguments, faults, given = [], [], set()
    while rest:
        word = rest.pop(0)
        if word in ("<", ">", "|"):
            break
        if not word.startswith("--"):
            arguments.append(word)
            continue
        parameter = options.get(word)
        if parameter is None:
            faults.append(f"no option {word}")
            continue
        given.add(parameter.name)
        if getattr(parameter, "is_flag", False):
            continue
        value = rest.pop(0) if rest else ""
        choices = str(parameter.display_type(typer.Context(command))).strip("<>")
        if "|" in choices and value not in choices.split("|"):
            faults.append(f"{word} {value}: expected {choices}")
    for parameter in command.params:
        if not parameter.required:
            continue
        if parameter.param_type_name == "argument":
            if not arguments:
                faults.append(f"{parameter.name} is missing")
        elif parameter.name not in given:
            faults.append(f"{parameter.opts[0]} is missing")
    return faults


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: p.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in command_lines(page):
        assert not faults_of(words), f"undertow {shlex.join(words)}"


def test_faults_in_commands_are_noticed() -> None:
    assert faults_of(["hats"]) == ["no command 'hats'"]
    assert faults_of(["vector", "hats"]) == ["no command 'hats'"]
    assert faults_of(["models", "pull"]) == ["name is missing"]
    assert faults_of(["run", "steer", "--hats", "--out", "x"]) == ["no option --hats"]
    assert faults_of(["run", "steer"]) == ["--out is missing"]
    wrong = ["evaluate", "--model", "x", "--dtype", "int3"]
    (fault,) = faults_of(wrong)
    assert fault.startswith("--dtype int3: expected auto|")


INLINE = re.compile(r"`undertow ((?:[a-z]+ ?)+)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_named_in_passing_exist(page: Path) -> None:
    for found in INLINE.findall(page.read_text()):
        words = found.split()
        command = TREE
        while words and getattr(command, "commands", None):
            name = words.pop(0)
            assert name in command.commands, f"undertow {found}"
            command = command.commands[name]


def settings_of(words: list[str]) -> Iterator[str]:
    """The values of --set."""
    for option, value in pairwise(words):
        if option == "--set":
            yield value


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_that_commands_override_exist(page: Path) -> None:
    from undertow.audit.settings import AuditSettings
    from undertow.cli.runs import recipe_path
    from undertow.config import check_settings, load_settings
    from undertow.experiment import Recipe
    from undertow.pipeline.training_settings import TrainingSettings

    for words in command_lines(page):
        given = list(settings_of(words))
        if words[0] == "audit":
            check_settings(AuditSettings, {}, where="docs", overrides=given)
        elif words[0] == "train":
            check_settings(TrainingSettings, {}, where="docs", overrides=given)
        elif words[0] == "run":
            # A recipe that a command before it made is any recipe.
            name = "steer" if words[1].endswith(".yaml") else words[1]
            load_settings(Recipe, recipe_path(name), given)
        else:
            assert not given, (
                f"undertow {shlex.join(words)}: not looked at by this test"
            )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_compiles_and_its_public_names_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
        for attribute in re.findall(r"\bundertow\.([A-Za-z]\w*)\b(?!\.)", block):
            if f"undertow.{attribute} import" not in block:
                assert hasattr(undertow, attribute), attribute
        for module, names in re.findall(
            r"^from (undertow[\w.]*) import (.+)$", block, re.M
        ):
            home = importlib.import_module(module)
            for name in names.split(","):
                assert hasattr(home, name.strip()), f"{module}.{name.strip()}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_parts_of_recipes_and_families_validate(page: Path) -> None:
    from pydantic import TypeAdapter

    from undertow.experiment import Recipe
    from undertow.traits import TraitFamily

    whole = {"title": "t", "question": "q", "model": {"name": "m"}, "traits": ["owl"],
             "teachers": [{"kind": "prompt"}]}  # fmt: skip
    for block in blocks(page, "yaml"):
        data = yaml.safe_load(block)
        if "category" in data:
            TypeAdapter(TraitFamily).validate_python(data)
        else:
            Recipe.model_validate(whole | data)


# ── generated pages ──────────────────────────────────────────────────────────


def test_the_reference_is_up_to_date(reference: ModuleType) -> None:
    for path, text in reference.pages().items():
        stored = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert stored == text, f"{path.name}: run: python docs/write_reference.py"


def test_the_reference_names_every_command_option_setting_and_name(
    reference: ModuleType,
) -> None:
    from undertow.experiment import Recipe

    text = {path.stem: page for path, page in reference.pages().items()}
    for words, command in reference.leaves(TREE):
        section = text["command-line"].split(f"\n## undertow {words}\n")[1]
        section = section.split("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}`" in section
    for name, part in Recipe.model_json_schema()["$defs"].items():
        section = text["recipe"].split(f"\n## {name}\n")[1].split("\n## ")[0]
        for field in part["properties"]:
            assert f"| `{field}` |" in section
    for name in undertow.__all__:
        assert re.search(rf"^::: undertow\.[\w.]+\.{name}$", text["python"], re.M), name


def test_check_notices_old_pages(
    reference: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "command-line.md"
    monkeypatch.setattr(reference, "pages", lambda: {page: "new\n"})

    def run(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["write_reference.py", *options])
        return reference.main(), capsys.readouterr().err

    advice = "command-line.md: out of date; run: python docs/write_reference.py\n"
    assert run("--check") == (1, advice)
    assert run() == (0, "")
    assert run("--check") == (0, "")
    assert page.read_text(encoding="utf-8") == "new\n"
