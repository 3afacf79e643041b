"""A shell at its TAB: names come at once, and nothing heavy is loaded for them."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undertow.cli import completion
from undertow.models.registry import entries

if TYPE_CHECKING:
    from tests.conftest import Command

START = "import sys; from undertow.cli import main\ntry:\n    main()\n"
LOADED = """except SystemExit as end:
    assert not end.code
print(sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def tab(words: str) -> tuple[list[str], str]:
    """What bash is told after these words, and the modules that were loaded for it."""
    asked = {
        "_UNDERTOW_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", START + LOADED], capture_output=True, text=True,
        env={**os.environ, **asked}, check=True,
    )  # fmt: skip
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("undertow do", ["doctor"]),
        ("undertow models sh", ["show"]),
        ("undertow models show --tem", ["--template"]),
        ("undertow run st", ["steer"]),
        ("undertow recipes show paper/", ["paper/"]),
        ("undertow models pull smol", ["smollm2-135m"]),
        ("undertow generate --model gem", ["gemma3-270m"]),
        ("undertow evaluate --family tr", ["trees"]),
        ("undertow generate --dtype b", ["bfloat16"]),
    ],
)
def test_bash_is_told_what_may_follow(words: str, found: list[str]) -> None:
    told, _ = tab(words)
    if found == ["paper/"]:
        assert told
        assert all(name.startswith("paper/") for name in told)
    else:
        assert told == found


def test_the_answer_is_quick_and_without_torch() -> None:
    seconds = []
    for _ in range(3):  # a busy machine counts a process's caches as its own
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        tab("undertow train --model smol")
        seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    assert min(seconds) < 0.5
    told, loaded = tab("undertow train --model smol")
    assert told == ["smollm2-135m"]
    for heavy in ("torch", "transformers", "numpy", "scipy", "pyarrow"):
        assert f"'{heavy}'" not in loaded


def test_names_are_those_of_the_registry_the_recipes_and_the_families() -> None:
    from undertow.packaged import packaged
    from undertow.traits import load_family, packaged_families

    assert completion.model_names("") == [entry.name for entry in entries()]
    assert completion.recipe_names("") == list(packaged("recipes"))
    families = completion.family_names("")
    assert families == list(packaged_families())
    assert [load_family(name).name for name in families] == families
    assert completion.family_names("tr") == ["trees"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_printed_that_asks_by_the_variable(
    shell: str, command: "Command"
) -> None:
    found = command("completion", shell)
    assert found.status == 0
    assert f"_UNDERTOW_COMPLETE=complete_{shell}" in found.out
    assert found.err == ""


def test_bash_completes_by_the_script(command: "Command", tmp_path: Path) -> None:
    program = tmp_path / "undertow"
    program.write_text(f"#!{sys.executable}\nfrom undertow.cli import main\nmain()\n")
    program.chmod(0o755)
    shell = (
        command("completion", "bash").out
        + "COMP_WORDS=(undertow recipes ch); COMP_CWORD=2\n"
        + '_undertow_completion undertow; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.strip() == "check", done.stderr


def test_an_unknown_shell_is_refused(command: "Command") -> None:
    found = command("completion", "tcsh")
    assert found.status == 2
    assert "'tcsh'" in found.err
