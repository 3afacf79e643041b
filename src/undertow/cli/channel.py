"""`channel`: how much of a teacher its rows can carry, before anything is trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import (
    Family,
    Loading,
    Sampling,
    Seed,
    System,
    expanded,
    numbers,
    refuse_existing,
    words,
)

if TYPE_CHECKING:
    from undertow.experiment.channel import ChannelPoint
    from undertow.stats import Interval


@expanded
def channel(
    *,
    loading: Loading,
    trait: Annotated[str, typer.Option(help="The teacher's trait, of the family.")],
    teacher: Annotated[
        Literal["prompt", "steer"], typer.Option(help="How it is given the trait.")
    ] = "prompt",
    layer: Annotated[
        int | None, typer.Option(help="Block of the vector; else half of the depth.")
    ] = None,
    dose: Annotated[float, typer.Option(help="‖αv‖/‖h‖ there, for 'steer'.")] = 0.5,
    against: Annotated[
        str, typer.Option(help="Other traits, with commas: the part that is specific.")
    ] = "",
    noise: Annotated[
        str, typer.Option(help="Sizes of weight noise on the base, with commas.")
    ] = "0",
    noise_seeds: Annotated[
        str, typer.Option(help="Seeds of that noise, with commas.")
    ] = "0",
    count: Annotated[int, typer.Option(min=2, help="Number prompts answered.")] = 96,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions on which the trait's share is read.")
    ] = 12,
    family: Family = "animals",
    sampling: Sampling,
    system: System = None,
    seed: Seed = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="All numbers, as JSON.")
    ] = None,
) -> None:
    """Measures a teacher's divergence from the base on rows that it writes.

    Forward passes only. KL(teacher ‖ base) in nats a token, over the whole vocabulary
    (what soft distillation sees) and over what the sampler may draw (what sampled rows
    carry); against other traits, the part that tells them apart. Rows are lists of
    numbers unless --allowed says otherwise.
    """
    from undertow.experiment.channel import measure_channel
    from undertow.models.sampling import SamplerSettings
    from undertow.storage import write_json
    from undertow.traits import load_family

    if json_file is not None:
        refuse_existing(json_file)
    sampler: SamplerSettings = sampling.settings()
    if sampling.allowed is None:
        sampler = sampler.model_copy(update={"allowed": "list"})
    levels = numbers("--noise", noise, float)
    seeds = numbers("--noise-seeds", noise_seeds, int)
    members = load_family(family)
    others = words(against)
    points: list[ChannelPoint] = []
    with progress() as report:
        for point in measure_channel(
            loading.load, family=members, trait=trait, kind=teacher, against=others,
            layer=layer, dose=dose, noise=levels, noise_seeds=seeds, count=count,
            questions=questions, sampler=sampler, system=system, seed=seed,
            tell=lambda stage, done, total: report(stage, done, total, ""),
        ):  # fmt: skip
            wide = max(map(len, ("base", *others)))
            for line in (*(() if points else _head(trait, wide)), *_lines(point, wide)):
                say(line)
            points.append(point)
    if json_file is not None:
        facts = {
            "model": loading.model, "family": members.name, "teacher": teacher,
            "layer": layer, "dose": dose if teacher == "steer" else None,
            "count": count, "questions": questions, "seed": seed, "system": system,
            "sampler": sampler.model_dump(mode="json"),
        }  # fmt: skip
        found = [point.as_dict() for point in points]
        write_json(json_file, {"format": 1, **facts, "points": found})
        say(f"numbers  {json_file}")


def _head(trait: str, wide: int) -> list[str]:
    """What stands over the columns; intervals are over rows."""
    columns = (
        f"{'noise':<7}{'seed':<6}{'against':<{wide + 4}}{'all tokens':>26}"
        f"{'as sampled':>26}{'a row':>9}{'share':>8}{'base':>8}"
    )
    return [f"KL({trait} ‖ …), nats a token", columns]


def _lines(point: "ChannelPoint", wide: int) -> list[str]:
    """One line for each other of a base."""
    seed = "—" if point.noise_seed is None else str(point.noise_seed)
    return [
        f"{point.noise:<7g}{seed:<6}{width.other:<{wide + 4}}"
        f"{_bounds(width.vocabulary):>26}{_bounds(width.carrier):>26}"
        f"{width.nats_a_row.mean:>9.2f}{point.share:>8.3f}{point.base_share:>8.3f}"
        for width in point.widths
    ]


def _bounds(found: "Interval") -> str:
    return f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]"
