"""`channel`: how much of a teacher its rows can carry, before anything is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from undertow.cli.rows import workplace

if TYPE_CHECKING:
    from undertow.measurements import ChannelSpot, Spread


@expanded
def channel(
    *,
    loading: Loading,
    trait: Annotated[str, typer.Option(help="The teacher's trait, of the family.")],
    teacher: Annotated[
        Literal["prompt", "steer"], typer.Option(help="How it is given the trait.")
    ] = "prompt",
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "--layer",
            help="Blocks of the vector, with commas; else half of the depth.",
        ),
    ] = None,
    doses: Annotated[
        str,
        typer.Option(
            "--doses", "--dose", help="‖αv‖/‖h‖ there, with commas, for 'steer'."
        ),
    ] = "0.5",
    carriers: Annotated[
        str,
        typer.Option(
            help="Kinds of row, with commas: numbers, code, reasoning, paraphrase."
        ),
    ] = "numbers",
    against: Annotated[
        str, typer.Option(help="Other traits, with commas: the part that is specific.")
    ] = "",
    noise: Annotated[
        str, typer.Option(help="Sizes of weight noise on the base, with commas.")
    ] = "0",
    noise_seeds: Annotated[
        str, typer.Option(help="Seeds of that noise, with commas.")
    ] = "0",
    count: Annotated[
        int, typer.Option(min=2, help="Prompts answered, of a kind.")
    ] = 96,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions on which the trait's share is read.")
    ] = 12,
    family: Family = "animals",
    sampling: Sampling,
    system: System = None,
    seed: Seed = 0,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="All numbers, as JSON, for `undertow report`; the same call continues a "
            "grid that was broken off.",
        ),
    ] = None,
) -> None:
    """Measures a teacher's divergence from the base on rows that it writes.

    Forward passes only. KL(teacher ‖ base) in nats a token, over the whole vocabulary
    (what soft distillation sees) and over what the sampler may draw (what sampled rows
    carry); against other traits, the part that tells them apart. Rows are lists of
    numbers unless --allowed says otherwise; of other kinds of row those are measured
    that pass their filter.
    """
    from undertow.experiment.channel import measure_channel
    from undertow.measurements import ChannelGrid, ChannelSpot
    from undertow.models.sampling import SamplerSettings
    from undertow.storage import append_jsonl, write_json
    from undertow.storage.files import plain
    from undertow.traits import load_family

    if json_file is not None:
        refuse_existing(json_file)
    sampler: SamplerSettings = sampling.settings()
    if sampling.allowed is None:
        sampler = sampler.model_copy(update={"allowed": "list"})
    members, others = load_family(family), words(against)
    settings: dict[str, Any] = {
        "layers": None if layers is None else numbers("--layers", layers, int),
        "doses": numbers("--doses", doses, float),
        "carriers": words(carriers),
        "noise": numbers("--noise", noise, float),
        "noise_seeds": numbers("--noise-seeds", noise_seeds, int),
    }
    facts: dict[str, Any] = {
        "model": loading.model, "family": members.name, "trait": trait,
        "teacher": teacher, "against": list(others), "count": count,
        "questions": questions, "seed": seed, "system": system,
        "sampler": sampler.model_dump(mode="json"),
    }  # fmt: skip
    wide = max(map(len, ("base", *others)))
    for line in _head(trait, wide):
        say(line)
    with _kept(json_file, facts | settings) as (file, known), progress() as report:
        points = [ChannelSpot.model_validate(each) for each in known]
        for point in points:
            _say_point(point, wide)
        for measured in measure_channel(
            loading.load, family=members, trait=trait, kind=teacher, against=others,
            **settings, count=count, questions=questions, sampler=sampler,
            system=system, seed=seed, skip=len(points),
            tell=lambda stage, done, total: report(stage, done, total, ""),
        ):  # fmt: skip
            if file is not None:
                append_jsonl(file, measured.as_dict())
            points.append(ChannelSpot.model_validate(plain(measured.as_dict())))
            _say_point(points[-1], wide)
        if json_file is not None:
            write_json(json_file, ChannelGrid(**facts, points=points).model_dump())
    if json_file is not None:
        say(f"numbers  {json_file}")


@contextmanager
def _kept(
    json_file: Path | None, facts: dict[str, Any]
) -> Iterator[tuple[Path | None, list[Any]]]:
    """A file for points as they come, and those that are there already."""
    from undertow.storage import read_jsonl
    from undertow.storage.files import plain

    if json_file is None:
        yield None, []
        return
    with workplace(json_file, plain(facts)) as run:
        file = run.path("points.jsonl")
        there = file.exists()
        yield file, list(read_jsonl(file, tolerate_torn_tail=True)) if there else []


def _head(trait: str, wide: int) -> list[str]:
    """What stands over the columns; intervals are over rows."""
    columns = (
        f"{'rows':<20}{'block':<7}{'dose':<7}{'noise':<7}{'seed':<6}"
        f"{'against':<{wide + 4}}{'all tokens':>26}{'as sampled':>26}{'a row':>9}"
        f"{'share':>8}{'base':>8}"
    )
    return [f"KL({trait} ‖ …), nats a token", columns]


def _say_point(point: "ChannelSpot", wide: int) -> None:
    """One line for each other of a teacher."""
    dash = "—"
    rows = f"{point.carrier} {point.rows}/{point.written}"
    layer = dash if point.layer is None else str(point.layer)
    dose = dash if point.dose is None else f"{point.dose:g}"
    seed = dash if point.noise_seed is None else str(point.noise_seed)
    head = f"{rows:<20}{layer:<7}{dose:<7}{point.noise:<7g}{seed:<6}"
    for width in point.widths:
        say(
            f"{head}{width.other:<{wide + 4}}{_bounds(width.vocabulary):>26}"
            f"{_bounds(width.carrier):>26}{_number(width.nats_a_row.mean, 2):>9}"
            f"{point.share:>8.3f}{point.base_share:>8.3f}"
        )
    if not point.widths:
        say(f"{head}too few rows pass their filter to measure anything")


def _number(value: float | None, digits: int = 4) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def _bounds(found: "Spread") -> str:
    return f"{_number(found.mean)} [{_number(found.low)}, {_number(found.high)}]"
