"""`analyze vector`: the vector that rows would teach, and what it says."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import (
    Family,
    Loading,
    Sampling,
    Seed,
    System,
    expanded,
    refuse_existing,
)

if TYPE_CHECKING:
    from undertow.analysis.trained_vector import TrainedVector
    from undertow.findings import Discovery
    from undertow.interventions.steering import SteeringVector

_SHOWN = 8


@expanded
def row_vector(
    rows: Annotated[Path, typer.Argument(help="Rows of unknown origin.")],
    *,
    loading: Loading,
    layer: Annotated[
        int | None,
        typer.Option(help="Block after which it acts; else half of the depth."),
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option(help="Rows that carry nothing: what they teach too is taken off."),
    ] = None,
    use: Annotated[int, typer.Option(min=2, help="Rows of a set, at most.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of an update.")] = 16,
    learning_rate: Annotated[
        float,
        typer.Option(min=1e-6, help="Of AdamW, by the stream's root mean square."),
    ] = 0.01,
    family: Family = "animals",
    sampling: Sampling,
    system: System = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="File for the vector, safetensors.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="All numbers, as JSON.")
    ] = None,
) -> None:
    """Trains one vector on rows, and says what it is.

    A bias after one block, from zero, that makes the completions likelier while the
    model stays as it is. Told are its cosines with the 'tell_me' vectors of the family,
    the tokens that it raises, what the model answers along it, and how far it moves each
    trait. It names the teachers of steered rows; those of prompted rows it does not.
    Nothing here is a test: `undertow audit` says whether there is anything.
    """
    from undertow.analysis.trained_vector import train_vector
    from undertow.audit.discovery import describe_direction
    from undertow.interventions.extraction import family_vectors
    from undertow.interventions.steering import save_vector
    from undertow.models.chat import render_row
    from undertow.storage import read_rows, write_json
    from undertow.traits import load_family

    for file in (out, json_file):
        if file is not None:
            refuse_existing(file)
    members = load_family(family)
    sets = {
        path: read_rows(path, accepted_only=True)[:use]
        for path in (rows, control)
        if path is not None
    }
    model = loading.load()
    block = len(model.architecture.blocks) // 2 if layer is None else layer
    found = {}
    with progress() as report:
        for path, own in sets.items():
            found[path] = train_vector(
                model, [render_row(model, row, system=system) for row in own], block,
                sampler=sampling.settings(), steps=steps, batch_size=batch_size,
                learning_rate=learning_rate, seed=seed,
                on_step=partial(_tell, report, str(path)),
            )  # fmt: skip
    trained = found[rows]
    vector = trained.vector if control is None else _less(trained, found[control])
    likeness = _cosines(
        vector, family_vectors(model, members, layers=(block,), system=system), block
    )
    described = describe_direction(
        model, members, vector.directions[0], block,
        residual_norm=vector.residual_norms[0], system=system,
    )  # fmt: skip
    for line in (*_fits(found), *_lines(block, likeness, described)):
        say(line)
    if out is not None:
        save_vector(vector, out)
        say(f"vector   {out}")
    if json_file is not None:
        write_json(json_file, {
            "format": 1, "model": loading.model, "fingerprint": model.fingerprint,
            "layer": block, "cosines": likeness,
            "sets": [{"rows": str(path), "count": each.vector.n, "dose": each.dose,
                      "losses": list(each.losses)} for path, each in found.items()],
            "says": described.model_dump(mode="json"),
        })  # fmt: skip
        say(f"numbers  {json_file}")


def _tell(report: "object", path: str, done: int, total: int) -> None:
    assert callable(report)
    report(f"vector of {path}", done, total, "")


def _less(trained: "TrainedVector", control: "TrainedVector") -> "SteeringVector":
    """What the rows teach and the control does not."""
    from dataclasses import replace

    difference = trained.vector.directions - control.vector.directions
    return replace(trained.vector, directions=difference)


def _cosines(
    vector: "SteeringVector", known: "Mapping[str, SteeringVector]", layer: int
) -> dict[str, float]:
    """With each of the known ones, the largest first."""
    from torch.nn.functional import cosine_similarity

    own = vector.directions[0].double()
    found = {
        name: float(cosine_similarity(own, each.direction(layer).double(), dim=0))
        for name, each in known.items()
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _fits(found: "Mapping[Path, TrainedVector]") -> list[str]:
    """How far each set was explained: the first and the last tenth of the updates."""
    from statistics import fmean

    lines = []
    for path, each in found.items():
        part = max(1, len(each.losses) // 10)
        first, last = fmean(each.losses[:part]), fmean(each.losses[-part:])
        lines.append(
            f"fit      {path}: {first:.4f} to {last:.4f} nats a token, {each.vector.n} "
            f"rows; length {each.dose:.2f} of the stream's norm"
        )
    return lines


def _lines(
    layer: int, likeness: Mapping[str, float], described: "Discovery"
) -> list[str]:
    """What the vector is like, and what it says."""
    moved = {k: v for k, v in described.battery.items() if v is not None}
    most = sorted(moved.items(), key=lambda pair: -pair[1])[:_SHOWN]
    mean = sum(likeness.values()) / len(likeness)
    nearest = _listed(list(likeness.items())[:_SHOWN], "+.3f")
    return [
        f"cosine   block {layer}: {nearest}; mean of {len(likeness)} {mean:+.3f}",
        f"traits   nats, steered along it: {_listed(most, '+.2f')}",
        f"raised   {' '.join(repr(token.text) for token in described.raised)}",
        f"lowered  {' '.join(repr(token.text) for token in described.lowered)}",
        *(f"answer   {text!r}" for text in described.behaviour[:3]),
    ]


def _listed(pairs: Sequence[tuple[str, float]], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in pairs)
