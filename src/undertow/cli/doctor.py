"""`doctor`: is everything here that a model needs, and does undertow hold on this one?"""

from typing import TYPE_CHECKING, Annotated

import typer

from undertow import __version__
from undertow.cli.console import JsonFlag, say, say_json
from undertow.cli.options import (
    BlocksPath,
    Device,
    Dtype,
    Loading,
    NormPath,
    Template,
)

if TYPE_CHECKING:
    from undertow.models.checks import Check, Found
    from undertow.models.loading import Model


def doctor(
    *,
    model: Annotated[
        str | None,
        typer.Option(
            help="Short name, folder, GGUF file or hub name: tests undertow's promises "
            "on it."
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    template: Template = None,
    blocks_path: BlocksPath = None,
    norm_path: NormPath = None,
    json_flag: JsonFlag = False,
) -> None:
    """Checks packages, machine and cache; with --model, hooks, batches, adapters, template.

    Exits with 1 if a check failed. Advice alone is no failure.
    """
    from undertow.models.checks import worst
    from undertow.models.environment import environment_checks

    found = environment_checks(device=device, dtype=dtype)
    if model is not None:
        found += _model_checks(
            Loading(model=model, dtype=dtype, device=device, template=template,
                    blocks_path=blocks_path, norm_path=norm_path)
        )  # fmt: skip
    status = worst(found)
    if json_flag:
        checks = [each.as_dict() for each in found]
        say_json({"undertow": __version__, "status": status, "checks": checks})
    else:
        _say(found)
    if status == "failed":
        raise typer.Exit(1)


def _model_checks(loading: Loading) -> "list[Check]":
    """The model's loading as a check, and its self-tests if it loads."""
    from undertow.models.checks import check, ok
    from undertow.models.self_tests import self_tests

    loaded: list[Model] = []

    def load() -> "Found":
        model = loading.load()
        loaded.append(model)
        return ok(f"{model.name} ({model.fingerprint}), {model.reason}")

    found = [check("model", "loading", load)]
    for model in loaded:
        found += self_tests(model)
    return found


def _say(checks: "list[Check]") -> None:
    group, wide = "", max(len(each.name) for each in checks)
    for each in checks:
        if each.group != group:
            group = each.group
            say(group)
        found = each.found
        say(f"  {found.status:<7} {each.name:<{wide}}  {found.measured}")
        if found.advice:
            say(f"  {'':<7} {'':<{wide}}  → {found.advice}")
    counts = [
        f"{sum(each.found.status == status for each in checks)} {status}"
        for status in ("ok", "advice", "failed")
    ]
    say(", ".join(counts))
