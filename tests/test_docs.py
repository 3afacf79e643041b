"""The documentation holds together: pages, links, commands, settings, and no requests."""

import hashlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
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


def test_figures_stand_by_themselves_and_are_of_the_kept_study() -> None:
    source = (DOCS / "write_figures.py").read_text()
    names = re.findall(r'^    "([\w-]+)": \("\w+", "', source, re.M)
    drawn = sorted((DOCS / "figures").iterdir())
    assert [path.name for path in drawn] == sorted(f"{name}.svg" for name in names)
    study = (DOCS / "studies" / "channel" / "results.json").read_bytes()
    stamp = f'data-study="{hashlib.sha256(study).hexdigest()}"'
    for path in drawn:
        text = path.read_text(encoding="utf-8")
        assert stamp in text, "old; run: python docs/write_figures.py"
        assert text.count("://") == text.count('xmlns="http://www.w3.org/2000/svg"')
        assert "<script" not in text
        assert len(text) < 30_000


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
