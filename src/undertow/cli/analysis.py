"""`analyze`: instruments for rows, vectors and students that are there already."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import (
    Family,
    Loading,
    Sampling,
    System,
    expanded,
    numbers,
    refuse_existing,
    words,
)
from undertow.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from undertow.analysis.alignment import Alignment
    from undertow.interventions.steering import SteeringVector
    from undertow.models.loading import Model

analyze_app = typer.Typer(
    no_args_is_help=True, help="Look inside: gradients of rows against vectors."
)


@analyze_app.command("gradients")
@expanded
def gradients(
    rows: Annotated[list[Path], typer.Argument(help="Sets of rows, one file each.")],
    *,
    loading: Loading,
    vector: Annotated[
        list[Path] | None, typer.Option(help="Vector file; may be repeated.")
    ] = None,
    traits: Annotated[
        str, typer.Option(help="And the 'tell_me' vectors of these traits.")
    ] = "",
    layers: Annotated[
        str | None, typer.Option(help="Blocks from 0, with commas; else all.")
    ] = None,
    use: Annotated[int, typer.Option(min=2, help="Rows of a set, at most.")] = 256,
    family: Family = "animals",
    sampling: Sampling,
    system: System = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="All blocks, as JSON.")
    ] = None,
) -> None:
    """Holds the gradients of rows on the plain base against vectors.

    For each set of rows and each vector the block with the largest cosine of the mean
    gradient with the vector, and there the mean slope of a row's log-likelihood by the
    vector's relative dose, with its standard error over rows. Name with the sampling
    options how the rows were drawn, if it is known: clean rows then have a slope of
    zero on average.
    """
    from undertow.analysis.alignment import mean_alignment
    from undertow.models.chat import render_row
    from undertow.storage import read_rows, write_json

    if json_file is not None:
        refuse_existing(json_file)
    if not vector and not traits:
        raise ConfigError("analyze gradients", ["give --vector FILE or --traits a,b"])
    sets = {path: read_rows(path, accepted_only=True)[:use] for path in rows}
    model = loading.load()
    chosen = numbers("--layers", layers, int) if layers is not None else None
    vectors = _vectors(model, vector or [], words(traits), family, chosen, system)
    by_layer = _by_layer(vectors)
    found = {}
    with progress() as report:
        for path, own in sets.items():
            found[path] = mean_alignment(
                model, [render_row(model, row, system=system) for row in own], by_layer,
                sampler=sampling.settings(),
                on_rows=lambda done, total, path=path: report(  # type: ignore[misc]
                    str(path), done, total, ""
                ),
            )  # fmt: skip
    for line in _lines(found, vectors):
        say(line)
    if json_file is not None:
        facts = [
            {"rows": str(path), "count": each.rows, "layers": list(each.layers),
             "vectors": list(vectors), "cosines": each.cosines.tolist(),
             "mean": each.mean.tolist(), "sd": each.sd.tolist()}
            for path, each in found.items()
        ]  # fmt: skip
        write_json(json_file, {"format": 1, "model": loading.model, "sets": facts})
        say(f"numbers  {json_file}")


def _vectors(
    model: "Model",
    files: list[Path],
    traits: tuple[str, ...],
    family: str,
    layers: tuple[int, ...] | None,
    system: str | None,
) -> "dict[str, SteeringVector]":
    """By name: a file's name, or a trait."""
    from undertow.interventions.extraction import extract_vector
    from undertow.interventions.steering import check_vector, load_vector
    from undertow.traits import load_family

    found = {}
    for file in files:
        vector = load_vector(file)
        check_vector(model, vector)
        found[file.stem] = vector.at(*layers) if layers else vector
    for trait in traits:
        found[trait] = extract_vector(
            model, method="tell_me", family=load_family(family), trait=trait,
            layers=layers, system=system,
        )  # fmt: skip
    shared = set.intersection(*(set(v.layers) for v in found.values()))
    if not shared:
        have = {name: list(v.layers) for name, v in found.items()}
        raise ConfigError("analyze gradients", [f"vectors share no block: {have}"])
    return {name: v.at(*sorted(shared)) for name, v in found.items()}


def _by_layer(vectors: "dict[str, SteeringVector]") -> "dict[int, Tensor]":
    import torch

    one = next(iter(vectors.values()))
    return {
        layer: torch.stack([v.direction(layer) for v in vectors.values()])
        for layer in one.layers
    }


def _lines(
    found: "dict[Path, Alignment]", vectors: "dict[str, SteeringVector]"
) -> list[str]:
    """A line for each set and vector, at the block of the largest cosine."""
    import numpy as np

    wide = max(len(str(path)) for path in found) + 2
    names = max(len(name) for name in vectors) + 2
    head = f"{'rows':<{wide}}{'vector':<{names}}{'block':>6}{'cosine':>9}"
    lines = [head + f"{'nats a row by dose':>24}"]
    for path, each in found.items():
        for column, (name, vector) in enumerate(vectors.items()):
            if np.isnan(each.cosines[:, column]).all():
                lines.append(
                    f"{path!s:<{wide}}{name:<{names}}{'—':>6}{'—':>9}{'—':>24}"
                )
                continue
            place = int(np.nanargmax(np.abs(each.cosines[:, column])))
            size = vector.residual_norms[place]
            slope = size * each.mean[place, column]
            error = size * each.sd[place, column] / each.rows**0.5
            lines.append(
                f"{path!s:<{wide}}{name:<{names}}{each.layers[place]:>6}"
                f"{each.cosines[place, column]:>+9.3f}"
                f"{f'{slope:+.2f} ± {error:.2f}':>24}"
            )
    return lines
