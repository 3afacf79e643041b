"""`undertow models`: the registry, fetching, a look at a model, plain checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.cli.completion import model_names
from undertow.cli.console import JsonFlag, progress, say, say_json
from undertow.cli.options import (
    BlocksPath,
    Loading,
    Template,
    expanded,
    refuse_existing,
)

if TYPE_CHECKING:
    from undertow.models.loading import Model

app = typer.Typer(no_args_is_help=True, help="List, pull, show and export models.")


@app.command("list")
def list_(*, json_flag: JsonFlag = False) -> None:
    """Lists the short names that can be pulled, and whether they are here."""
    from undertow.models.registry import entries, is_pulled

    if json_flag:
        facts = ("name", "summary", "licence", "sha256")
        say_json(
            [
                {fact: getattr(entry, fact) for fact in facts}
                | {"pulled": is_pulled(entry.name)}
                for entry in entries()
            ]
        )
        return
    for entry in entries():
        state = "pulled" if is_pulled(entry.name) else "not pulled"
        say(f"{entry.name:<16} {state:<12} {entry.summary}")


@app.command()
def pull(
    name: Annotated[
        str, typer.Argument(help="Short name.", autocompletion=model_names)
    ],
) -> None:
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
    name: Annotated[
        str,
        typer.Argument(
            help="Short name, folder, GGUF or hub name.", autocompletion=model_names
        ),
    ],
    *,
    template: Template = None,
    blocks_path: BlocksPath = None,
    json_flag: JsonFlag = False,
) -> None:
    """Loads a model and shows its structure, dtype, template and end tokens."""
    model = Loading(model=name, template=template, blocks_path=blocks_path).load()
    if json_flag:
        say_json(_facts(model))
        return
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


def _facts(model: "Model") -> dict[str, Any]:
    found = model.architecture
    return {
        "name": model.name, "family": found.family, "blocks": len(found.blocks),
        "hidden_size": found.hidden_size, "vocabulary": found.vocab_size,
        "context": model.context,
        "template": {"name": model.template.name, "digest": model.template.digest},
        "end_tokens": model.end_ids, "fingerprint": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device),
        "reason": model.reason,
    }  # fmt: skip


@app.command()
@expanded
def export(
    *,
    loading: Loading,
    adapter: Annotated[Path, typer.Option(help="Folder of a student or teacher.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
) -> None:
    """Merges what `undertow train` made into a plain checkpoint for any engine."""
    from undertow.pipeline.export import export_teacher
    from undertow.pipeline.students import load_student, student_facts
    from undertow.pipeline.teachers import Teacher

    refuse_existing(out)
    model = loading.load()
    facts = student_facts(adapter)
    teacher = Teacher(
        kind="finetune", trait=facts.get("trait"), student=load_student(model, adapter)
    )
    provenance = {"adapter": str(adapter), "student": facts}
    say(f"model    {export_teacher(model, teacher, out, provenance=provenance)}")
