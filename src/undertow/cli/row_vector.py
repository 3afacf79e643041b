"""`analyze vector`: the vector that rows would teach, and what it says."""

from collections.abc import Mapping, Sequence
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
    from undertow.experiment.row_vector import RowVector

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
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 100,
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
    from undertow.experiment.row_vector import measure_row_vector
    from undertow.interventions.steering import save_vector
    from undertow.measurements import DrawnBy, VectorMeasurement
    from undertow.storage import read_rows, write_json
    from undertow.storage.files import plain
    from undertow.traits import load_family

    for file in (out, json_file):
        if file is not None:
            refuse_existing(file)
    members = load_family(family)
    own = read_rows(rows, accepted_only=True)[:use]
    other = read_rows(control, accepted_only=True)[:use] if control else None
    model, sampler = loading.load(), sampling.settings()
    with progress() as report:
        found = measure_row_vector(
            model, members, own, other, layer=layer, system=system,
            sampler=sampler, steps=steps, batch_size=batch_size,
            learning_rate=learning_rate, seed=seed,
            tell=lambda name, n, total: report(f"vector of {name}", n, total, ""),
        )  # fmt: skip
    for line in (*_fits(found.sets), *_lines(found)):
        say(line)
    if out is not None:
        save_vector(found.vector, out)
        say(f"vector   {out}")
    if json_file is not None:
        facts = VectorMeasurement(
            model=loading.model, fingerprint=model.fingerprint,
            dtype=str(model.dtype).removeprefix("torch."), family=members.name,
            rows=str(rows), control=None if control is None else str(control), use=use,
            steps=steps, batch_size=batch_size, learning_rate=learning_rate,
            sampler=DrawnBy(**sampler.model_dump()), system=system, seed=seed,
            **plain(found.as_dict()),
        )  # fmt: skip
        write_json(json_file, facts.model_dump())
        say(f"numbers  {json_file}")


def _fits(sets: "Mapping[str, TrainedVector]") -> list[str]:
    """How far each set was explained: the first and the last tenth of the updates."""
    from statistics import fmean

    lines = []
    for name, each in sets.items():
        part = max(1, len(each.losses) // 10)
        first, last = fmean(each.losses[:part]), fmean(each.losses[-part:])
        lines.append(
            f"fit      {name}: {first:.4f} to {last:.4f} nats a token, {each.vector.n} "
            f"rows; length {each.dose:.2f} of the stream's norm"
        )
    return lines


def _lines(found: "RowVector") -> list[str]:
    """What the vector is like, and what it says."""
    likeness, says = found.cosines, found.says
    moved = {k: v for k, v in says.battery.items() if v is not None}
    most = sorted(moved.items(), key=lambda pair: -pair[1])[:_SHOWN]
    mean = sum(likeness.values()) / len(likeness)
    nearest = _listed(list(likeness.items())[:_SHOWN], "+.3f")
    block = found.vector.layers[0]
    return [
        f"cosine   block {block}: {nearest}; mean of {len(likeness)} {mean:+.3f}",
        f"traits   nats, steered along it: {_listed(most, '+.2f')}",
        f"raised   {' '.join(repr(token.text) for token in says.raised)}",
        f"lowered  {' '.join(repr(token.text) for token in says.lowered)}",
        *(f"answer   {text!r}" for text in says.behaviour[:3]),
    ]


def _listed(pairs: Sequence[tuple[str, float]], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in pairs)
