"""Command lines, drawn from the tree of commands itself, and what `undertow` says to them.

A command that is added later is drawn too, with all its options. No model is loaded and
nothing is fetched, timed or started: what a command does before and after is tried.
"""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from tests.faults import inputs
from tests.faults.guard import is_harmless
from tests.faults.inputs import TEXTS, Draws, as_bytes

from undertow.errors import ModelError


class Command(NamedTuple):
    """One command of the tree.

    Attributes:
        path: Its words.
        needs: What it cannot go without, with sound values.
        options: All others that it takes, each with the values that it names.
    """

    path: tuple[str, ...]
    needs: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def sound(self) -> list[str]:
        """The shortest line that gets through the parser."""
        return [*self.path, *self.needs]


@cache
def tree() -> Any:
    """The tree of commands, which typer would make anew for every line."""
    import typer

    from undertow.cli import app

    return typer.main.get_command(app)


@cache
def commands() -> tuple[Command, ...]:
    """Every command, by its words."""
    return tuple(sorted(_below(tree(), ())))


def _below(command: Any, path: tuple[str, ...]) -> Iterator[Command]:
    if not hasattr(command, "commands"):
        yield _described(command, path)
        return
    yield Command(path, (), ())  # a group without a word
    for name, inner in command.commands.items():
        yield from _below(inner, (*path, name))


def _described(command: Any, path: tuple[str, ...]) -> Command:
    import typer

    needs: list[str] = []
    options = []
    context = typer.Context(command)
    for parameter in command.params:
        # As the help has it: "--dtype <auto|float32>".
        named = parameter.get_help_record(context)[0].partition(" ")[2]
        values = tuple(re.findall(r"[\w-]+", named)) if "|" in named else ()
        is_option = parameter.opts[0].startswith("-")
        if parameter.required:
            sound = _SOUND.get(parameter.name, values[0] if values else "1")
            needs += [parameter.opts[0], sound] if is_option else [sound]
        if is_option:
            options += [
                (o, values) for o in (*parameter.opts, *parameter.secondary_opts)
            ]
    return Command(path, tuple(needs), tuple(options))


_SOUND = {
    "rows": "rows.jsonl", "recipe": "steer", "model": "nothing", "out": "out.jsonl",
    "name": "steer", "trait": "owl",
    "directory": "results", "student": "results", "file": "vector.safetensors",
    "vector": "vector.safetensors", "adapter": "results",
}  # fmt: skip
"""Of parameters that have to be given."""
_VALUES = (
    "-", "--", "1", "0", "-1", "nan", "1e999", "0.5", "2.5", "owl", "animals", "numbers",
    "rows.jsonl", "family.yaml", "vector.safetensors", "recipe.yaml", "results", ".", "out",
    "out.jsonl", "nothing", "nobody/nothing", "x.gguf", "smollm2-135m", "steer", "demo-small",
    "rows.count=2", "a.b=c", "prompt=q", "cpu", "auto", "ray", "here", "wandb", "trackio",
    "known.json", "undertow.models:x", ":", ".:x", "http://[", "--help", "-x",
)  # fmt: skip


def command_lines(draws: Draws) -> bytes:
    """Words with a zero byte between them, which no word of a command can hold."""
    command = draws.one(commands())
    words = list(command.sound if draws.below(4) else command.path)
    for _ in range(draws.below(5)):
        words += _more(draws, command)
    return b"\0".join(as_bytes(word.replace("\0", "")) for word in words)


def _more(draws: Draws, command: Command) -> list[str]:
    """An option of the command with a value that it names, or any; or any word."""
    if not command.options or not draws.below(4):
        return [_word(draws)]
    option, values = draws.one(command.options)
    value = draws.one(values) if values and draws.below(4) else _word(draws)
    return [f"{option}={value}"] if not draws.below(4) else [option, value]


def _word(draws: Draws) -> str:
    match draws.below(6):
        case 0:
            return draws.one(TEXTS)
        case 1:
            return draws.text(6)
        case 2:
            return draws.one(draws.one(commands()).path or ("",))
        case _:
            return draws.one(_VALUES)


def _none(*_: object, **__: object) -> Any:
    raise ModelError("no models while commands are tried")


@contextmanager
def alone() -> Iterator[None]:
    """No model is loaded, nothing is fetched, measured or connected to."""
    with (
        mock.patch("undertow.models.loading._load_from", _none),
        mock.patch("undertow.models.registry._download", _none),
        mock.patch("undertow.execution.ray_cluster.ray_cluster", _none),
        mock.patch("undertow.storage.hub.hub_answers", return_value=False),
        mock.patch("undertow.runs._git", return_value=None),
        mock.patch("undertow.audit.cost.model_size", _none),
        mock.patch("undertow.audit.cost.timed_flops", return_value=1e12),
        mock.patch("undertow.models.speed.product_flops", return_value=1e12),
        # Python asks `uname` for them, once.
        mock.patch("platform.platform", return_value="a machine"),
        mock.patch("platform.processor", return_value="its processor"),
    ):
        yield


class Stream(io.TextIOWrapper):
    """A stream that keeps what was written."""

    def __init__(self) -> None:
        self.kept = io.BytesIO()
        super().__init__(self.kept, encoding="utf-8", write_through=True)


def called(words: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit status and what `undertow WORDS` printed, in a folder with files to read."""
    from undertow.cli import main

    _workshop(folder)
    out, err, status = Stream(), Stream(), 0
    with (
        chdir(folder), alone(), mock.patch("typer.main.get_command", return_value=tree()),
        mock.patch.object(sys, "argv", ["undertow", *words]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{}\n"))),
        mock.patch.object(sys, "stdout", out), mock.patch.object(sys, "stderr", err),
        mock.patch.dict(
            os.environ, {"UNDERTOW_CACHE": str(folder / "cache"), "UNDERTOW_DEBUG": ""}
        ),
    ):  # fmt: skip
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
    return status, out.kept.getvalue().decode(), err.kept.getvalue().decode()


def feed(data: bytes, folder: Path) -> str:
    """One command line: its kind of end, which prints nothing harmful."""
    words = [w for w in data.decode("utf-8", "surrogateescape").split("\0") if data]
    words = [w for w in words if not re.search(r"~|\.\.|(^|=)/", w)]
    status, out, err = called(words, folder)
    assert status in (0, 1, 2), status
    assert "Traceback" not in err
    assert status == 0 or err or out
    assert is_harmless(out), out
    assert is_harmless(err), err
    return f"exit {status}"


def _workshop(folder: Path) -> None:
    """Files that commands may be pointed at, with hostile words in them."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    row = {"prompt": "\x1b[31m\u202eask", "completion": "12, 7\x07\u2066"}
    (folder / "rows.jsonl").write_bytes(
        inputs.as_lines([row, {"odd\x1b[1m": "\u202e"}])
    )
    (folder / "family.yaml").write_bytes(inputs.as_json(inputs.FAMILY))
    (folder / "recipe.yaml").write_bytes(
        inputs.as_json({**inputs.RECIPE, "\x1b[1m": 1})
    )
    header = {**inputs.HEADER, "trait": "\x1b[31mowl\u202e", "notes": {"\x07": "\x9b"}}
    (folder / "vector.safetensors").write_bytes(inputs.vector_file(header))
    (folder / "known.json").write_bytes(inputs.as_json({"\x1b[1m": "\u202e"}))
    (folder / "results").mkdir()
    (folder / "results" / "results.json").write_bytes(b'{"title": "\\u001b[1m"}')
