"""The command as a whole: its start, exit statuses, errors and tracebacks."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from undertow import __version__
from undertow.cli import app, runs
from undertow.errors import DatasetError, visible

if TYPE_CHECKING:
    from tests.conftest import Command

START = "import sys; from undertow.cli import main; sys.argv = ['undertow', '--help']\n"
CHECK = """
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_help_starts_fast_and_without_torch() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", START + CHECK],
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    modules = done.stdout.splitlines()[-1]
    for heavy in ("torch", "transformers", "numpy", "scipy", "pyarrow", "pydantic"):
        assert f"'{heavy}'" not in modules
    # Time of the processor, so that a busy machine does not fail the test.
    assert after.ru_utime - before.ru_utime < 0.5


def commands(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that the tree holds, as words."""
    inner = getattr(tree, "commands", None)
    if inner is None:
        yield path
        return
    for name, command in inner.items():
        yield from commands(command, (*path, name))


ALL = sorted(commands(typer.main.get_command(app)))


def test_the_commands_are_those_that_the_documents_name() -> None:
    assert {path[0] for path in ALL} == {
        "demo", "run", "generate", "filter", "train", "evaluate", "vector", "noise",
        "models", "recipes", "report", "audit", "benchmark", "channel", "analyze",
        "census", "families",
        "fingerprint", "doctor", "completion",
    }  # fmt: skip


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself_and_its_options(
    path: tuple[str, ...], command: "Command"
) -> None:
    found = command(*path, "--help")
    assert found.status == 0
    tree: Any = typer.main.get_command(app)
    for name in path:
        tree = tree.commands[name]
    assert tree.help
    for parameter in tree.params:
        assert parameter.help or parameter.name in ("help", "distribution"), (
            parameter.name
        )


def test_the_version_is_shown(command: "Command") -> None:
    assert command("--version").out == f"undertow {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask"], "No such command 'ask'"),
        (["generate", "--hats"], "--hats"),
        (["generate", "--model", "x", "--count", "1"], "Missing option '--out'"),
        (
            ["generate", "--model", "x", "--out", "y.jsonl", "--count", "0"],
            "greater than or equal to 1",
        ),
        (["train", "--kind", "odd", "--model", "x", "--out", "y"], "'odd'"),
        (
            ["noise", "--model", "x", "--out", "y", "--p", "much"],
            "'--p': expected a valid number",
        ),
        (["vector", "show"], "Missing argument"),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], message: str, command: "Command"
) -> None:
    found = command(*arguments)
    assert found.status == 2
    assert message in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    "arguments",
    [
        # Direction marks and line ends are repeated by typer as they are.
        ["recipes", "list", "\x1b[1m\u202e"], ["models", "list", "\x07", "owl\u2028"],
        ["vector", "show", "a", "\x1b]8;;http://evil.example\x1b\\owl\x1b]8;;\x1b\\"],
        ["\x1b[31mred"], ["recipes", "list", "--\x9b1m=\u2028"], ["noise", "-\x1b"],
        ["doctor", "--dtype", "\u2066\x00"],
    ],
)  # fmt: skip
def test_words_of_a_wrong_usage_are_repeated_harmlessly(
    arguments: list[str], command: "Command"
) -> None:
    found = command(*arguments)
    assert (found.status, found.out) == (2, "")
    assert found.err.startswith("Usage: undertow ")
    assert "\\u" in found.err or "\\x" in found.err
    assert visible(found.err) == found.err


def failing(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_an_error_is_printed_alone_and_exits_with_2(
    command: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "packaged", failing(DatasetError("rows:3: bad \x1b[1m")))
    found = command("recipes", "list")
    assert found == (2, "", "error: rows:3: bad \\u001b[1m\n")


def test_debug_shows_the_traceback_too(
    command: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "packaged", failing(DatasetError("rows:3: \x1b[1m")))
    found = command("--debug", "recipes", "list")
    assert found.status == 2
    assert found.err.startswith("Traceback (most recent call last)")
    assert "undertow.errors.DatasetError" in found.err
    assert found.err.endswith("error: rows:3: \\u001b[1m\n")
    assert "\x1b" not in found.err


def test_a_system_error_names_the_file_and_exits_with_2(
    command: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rows.jsonl")
    monkeypatch.setattr(runs, "packaged", failing(full))
    found = command("recipes", "list")
    assert found == (
        2,
        "",
        "error: rows.jsonl: No space left on device; finished work is kept\n",
    )


def test_a_bug_keeps_its_traceback(
    command: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "packaged", failing(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        command("recipes", "list")


def test_ctrl_c_exits_with_130_and_says_what_is_kept(
    command: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "packaged", failing(KeyboardInterrupt()))
    found = command("recipes", "list")
    assert found == (
        130,
        "",
        "error: interrupted; finished work is kept, the same command continues\n",
    )


def test_output_that_the_terminal_cannot_show_is_spelled_out(tmp_path: Path) -> None:
    recipe = tmp_path / "odd.yaml"
    recipe.write_text("title: 猫 → 4\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "from undertow.cli import main; main()", "recipes",
         "show", str(recipe)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )  # fmt: skip
    assert done.stdout == b"title: \\u732b \\u2192 4\n"
