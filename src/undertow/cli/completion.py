"""`completion`: a script that lets a shell complete commands, options and names.

The shell calls `undertow` again at every TAB, so names are those of files and of a
light list, and nothing heavy is imported for them.
"""

import os
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, get_type_hints

import typer

from undertow.cli.options import Family, Loading
from undertow.models.known_models import REGISTRY
from undertow.packaged import packaged

VARIABLE = "_UNDERTOW_COMPLETE"
"""Set by the script: what the shell asks for."""


def model_names(incomplete: str) -> list[str]:
    """Short names of the registry that begin like this."""
    return _beginning(incomplete, REGISTRY)


def recipe_names(incomplete: str) -> list[str]:
    """Packaged recipes whose names begin like this."""
    return _beginning(incomplete, packaged("recipes"))


def family_names(incomplete: str) -> list[str]:
    """Packaged trait families whose names begin like this."""
    return _beginning(incomplete, packaged("traits"))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def is_asked() -> bool:
    """Whether it is the shell that calls, at a TAB."""
    return VARIABLE in os.environ


def prepare() -> None:
    """Before an answer: the shells that typer knows, and names for shared options."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()
    # Typer imports pydantic, which would look for plugins in every package.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"
    hints = get_type_hints(Loading, include_extras=True)
    _names(hints["model"], model_names)
    _names(Family, family_names)


def _names(annotated: Any, names: Callable[[str], list[str]]) -> None:
    (option,) = annotated.__metadata__
    option.autocompletion = names


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(help="Which shell's script.")
    ],
) -> None:
    """Prints a script for the shell: eval "$(undertow completion bash)", say.

    It completes commands, options, and the names of recipes, models and families.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    # Not through `say`: a shell reads it, and the script is our own.
    print(
        get_completion_script(prog_name="undertow", complete_var=VARIABLE, shell=shell)
    )
