"""`undertow models`: what the registry holds, fetching it, looking at a model."""

from typing import Annotated

import typer

from undertow.cli.console import progress, say

app = typer.Typer(no_args_is_help=True, help="List, pull and show models.")


@app.command("list")
def list_() -> None:
    """Lists the short names that can be pulled, and whether they are here."""
    from undertow.models.registry import entries, is_pulled

    for entry in entries():
        state = "pulled" if is_pulled(entry.name) else "not pulled"
        say(f"{entry.name:<16} {state:<12} {entry.summary}")


@app.command()
def pull(name: Annotated[str, typer.Argument(help="Short name.")]) -> None:
    """Fetches a model into the user cache, verifies and converts it once."""
    from undertow.models.registry import pull as pull_model

    with progress() as report:
        path = pull_model(
            name,
            progress=lambda stage, done, total: report(stage, done, total, ""),
        )
    say(f"{name} is at {path}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Short name, folder, GGUF or hub name.")],
) -> None:
    """Loads a model and shows its structure, dtype, template and end tokens."""
    from undertow.models.loading import load_model

    model = load_model(name)
    found = model.architecture
    say(f"name         {model.name}")
    say(f"family       {found.family}")
    say(f"blocks       {len(found.blocks)} × {found.hidden_size}")
    say(f"vocabulary   {found.vocab_size}")
    say(f"context      {model.context}")
    say(f"template     {model.template.name} ({model.template.digest})")
    say(f"end tokens   {', '.join(map(str, model.end_ids))}")
    say(f"fingerprint  {model.fingerprint}")
    say(f"dtype        {model.dtype} on {model.device}: {model.reason}")
