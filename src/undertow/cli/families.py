"""`families`: which traits there are, and families as files to copy and edit."""

from pathlib import Path
from typing import Annotated

import typer

from undertow.cli.completion import family_names
from undertow.cli.console import JsonFlag, say, say_json
from undertow.errors import ConfigError, shown
from undertow.packaged import packaged

app = typer.Typer(no_args_is_help=True, help="List, show and check trait families.")
Name = Annotated[str, typer.Argument(help="Name or file.", autocompletion=family_names)]


@app.command("list")
def families_list(*, json_flag: JsonFlag = False) -> None:
    """Lists the packaged families and their members."""
    from undertow.traits import load_family

    found = [load_family(name) for name in packaged("traits")]
    if json_flag:
        say_json(
            [{"name": f.name, "members": list(f.names), "questions": len(f.questions)}
             for f in found]
        )  # fmt: skip
        return
    for family in found:
        say(
            f"{family.name:<9}{len(family.questions):>3} questions  {', '.join(family.names)}"
        )


@app.command("show")
def families_show(name: Name, *, json_flag: JsonFlag = False) -> None:
    """Prints a family, to copy and edit."""
    ours = packaged("traits")
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else ours.get(name)
    if path is None:
        fault = f"no such file or packaged family; there are {shown(list(ours))}"
        raise ConfigError(f"family {name!r}", [fault])
    if json_flag:
        from undertow.safe_yaml import read_yaml

        say_json(read_yaml(path))
        return
    say(path.read_text(encoding="utf-8").rstrip())


@app.command("check")
def families_check(name: Name, *, json_flag: JsonFlag = False) -> None:
    """Reads a family as every command reads it, and says what it holds."""
    from dataclasses import asdict

    from undertow.traits import load_family

    family = load_family(name)
    if json_flag:
        say_json(asdict(family))
        return
    say(f"family     {family.name}: {', '.join(family.names)}")
    say(f"questions  {len(family.questions)}")
    if len(family.questions) < _FEW:
        say(f"note       intervals are over questions: give {_FEW} or more")


_FEW = 16
