"""`channel`: how much of a teacher its rows can carry, before anything is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

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
from undertow.errors import ConfigError

if TYPE_CHECKING:
    from undertow.experiment.channel import ChannelGrid, Place
    from undertow.measurements import ChannelSpot, Spread
    from undertow.models.loading import Model
    from undertow.models.sampling import SamplerSettings

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class Gridding:
    """A teacher, and where its channel is measured."""

    trait: Annotated[str, typer.Option(help="The teacher's trait, of the family.")]
    teacher: Annotated[
        Literal["prompt", "steer"], typer.Option(help="How it is given the trait.")
    ] = "prompt"
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "--layer",
            help="Blocks of the vector, with commas; else half of the depth.",
        ),
    ] = None
    doses: Annotated[
        str | None,
        typer.Option(
            "--doses",
            "--dose",
            help="‖αv‖/‖h‖ there, with commas, for 'steer'; else 0.5.",
        ),
    ] = None
    carriers: Annotated[
        str,
        typer.Option(
            help="Kinds of row, with commas: numbers, code, reasoning, paraphrase."
        ),
    ] = "numbers"
    against: Annotated[
        str, typer.Option(help="Other traits, with commas: the part that is specific.")
    ] = ""
    noise: Annotated[
        str, typer.Option(help="Sizes of weight noise on the base, with commas.")
    ] = "0"
    noise_seeds: Annotated[
        str, typer.Option(help="Seeds of that noise, with commas.")
    ] = "0"
    noise_scope: Annotated[
        str, typer.Option(help="Matrices that have it: mlp, attention, embedding.")
    ] = "mlp,attention,embedding"
    family: Family = "animals"

    def grid(self) -> "ChannelGrid":
        """The grid; a block that was not given is 0 until `settled`.

        Raises:
            ConfigError: Every fault of it.
        """
        from undertow.experiment.channel import ChannelGrid
        from undertow.traits import load_family

        steered = self.teacher == "steer"
        return ChannelGrid(
            load_family(self.family), self.trait, self.teacher, words(self.against),
            layers=_of(self.layers, "--layers", int, default=0 if steered else None),
            doses=_of(self.doses, "--doses", float, default=0.5 if steered else None),
            carriers=words(self.carriers), noise=numbers("--noise", self.noise, float),
            noise_seeds=numbers("--noise-seeds", self.noise_seeds, int),
            noise_scope=words(self.noise_scope),
        )  # fmt: skip

    def settled(self, model: "Model") -> "ChannelGrid":
        """The grid for a model: half of its depth where no block was given."""
        grid = self.grid()
        if self.layers is not None or self.teacher != "steer":
            return grid
        return replace(grid, layers=(len(model.architecture.blocks) // 2,))


@expanded
def channel(
    *,
    loading: Loading,
    gridding: Gridding,
    count: Annotated[
        int, typer.Option(min=2, help="Prompts answered, of a kind.")
    ] = 96,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions on which the trait's share is read.")
    ] = 12,
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
    from undertow.measurements import ChannelMeasurement, ChannelSpot
    from undertow.storage import append_jsonl, write_json
    from undertow.storage.files import plain

    if json_file is not None:
        refuse_existing(json_file)
    sampler = _sampler(sampling, gridding.grid().carriers)
    first = loading.load()
    grid, unused = gridding.settled(first), [first]
    facts = _facts(loading.model, first, grid) | {
        "count": count, "questions": questions, "seed": seed, "system": system,
        "sampler": sampler.model_dump(mode="json"),
    }  # fmt: skip
    wide = max(map(len, ("base", *grid.against)))
    for line in _head(grid.trait, wide):
        say(line)
    with (
        _kept(json_file, _asked(facts, first, grid)) as (file, found),
        progress() as report,
    ):
        for spot in found.values():
            _say_spot(spot, wide)
        for measured in measure_channel(
            lambda: unused.pop() if unused else loading.load(), grid, known=set(found),
            count=count, questions=questions, sampler=sampler, system=system, seed=seed,
            tell=lambda stage, done, total: report(stage, done, total, ""),
        ):  # fmt: skip
            spot = ChannelSpot.model_validate(plain(measured.as_dict()))
            if file is not None:
                append_jsonl(file, spot.model_dump())
            found[_place(spot)] = spot
            _say_spot(spot, wide)
        if json_file is not None:
            points = [found[place] for place in grid.places()]
            kept = ChannelMeasurement(**facts, points=points)
            write_json(json_file, kept.model_dump())
    if json_file is not None:
        say(f"numbers  {json_file}")


def _asked(
    facts: dict[str, Any], model: "Model", grid: "ChannelGrid"
) -> dict[str, Any]:
    """All that has to be the same for a grid to be continued."""
    places = [list(place) for place in grid.places()]
    more = {"template": model.template.digest, "members": repr(grid.family)}
    return facts | more | {"places": places}


def _facts(name: str, model: "Model", grid: "ChannelGrid") -> dict[str, Any]:
    """Whose channel is measured, as the file has it."""
    return {
        "model": name, "fingerprint": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."), "family": grid.family.name,
        "trait": grid.trait, "teacher": grid.kind, "against": list(grid.against),
        "noise_scope": list(grid.noise_scope),
    }  # fmt: skip


def _sampler(sampling: Sampling, kinds: tuple[str, ...]) -> "SamplerSettings":
    """Lists of numbers unless asked otherwise; other rows need all tokens."""
    sampler = sampling.settings()
    if sampling.allowed is None:
        return sampler.model_copy(update={"allowed": "list"})
    others = [kind for kind in kinds if kind != "numbers"]
    if others and sampler.allowed != "all":
        fault = (
            f"draws nothing but numbers; rows are to be {others[0]!r}: give 'all', or "
            "leave it out"
        )
        raise ConfigError(f"--allowed {sampler.allowed!r}", [fault])
    return sampler


def _of(
    text: str | None, option: str, kind: type[Number], *, default: Number | None
) -> tuple[Number, ...]:
    """Numbers of an option; the default, if there is one, where it was not given."""
    if text is not None:
        return numbers(option, text, kind)
    return () if default is None else (default,)


def _place(spot: "ChannelSpot") -> "Place":
    from undertow.experiment.channel import Place

    return Place(spot.carrier, spot.layer, spot.dose, spot.noise, spot.noise_seed)


@contextmanager
def _kept(
    json_file: Path | None, facts: dict[str, Any]
) -> "Iterator[tuple[Path | None, dict[Place, ChannelSpot]]]":
    """A file for points as they come, and those that are there already."""
    from undertow.measurements import ChannelSpot
    from undertow.storage import read_jsonl
    from undertow.storage.files import plain

    if json_file is None:
        yield None, {}
        return
    with workplace(json_file, plain(facts)) as run:
        file = run.path("points.jsonl")
        lines = read_jsonl(file, tolerate_torn_tail=True) if file.exists() else ()
        spots = [ChannelSpot.model_validate(line) for line in lines]
        yield file, {_place(spot): spot for spot in spots}


def _head(trait: str, wide: int) -> list[str]:
    """What stands over the columns; intervals are over rows."""
    columns = (
        f"{'rows':<20}{'block':<7}{'dose':<7}{'noise':<7}{'seed':<6}"
        f"{'against':<{wide + 4}}{'all tokens':>26}{'as sampled':>26}{'a row':>9}"
        f"{'share':>8}{'base':>8}"
    )
    return [f"KL({trait} ‖ …), nats a token", columns]


def _say_spot(spot: "ChannelSpot", wide: int) -> None:
    """One line for each other of a teacher."""
    dash = "—"
    rows = f"{spot.carrier} {spot.rows}/{spot.written}"
    layer = dash if spot.layer is None else str(spot.layer)
    dose = dash if spot.dose is None else f"{spot.dose:g}"
    seed = dash if spot.noise_seed is None else str(spot.noise_seed)
    head = f"{rows:<20}{layer:<7}{dose:<7}{spot.noise:<7g}{seed:<6}"
    for width in spot.widths:
        say(
            f"{head}{width.other:<{wide + 4}}{_bounds(width.vocabulary):>26}"
            f"{_bounds(width.carrier):>26}{_number(width.nats_a_row.mean, 2):>9}"
            f"{_number(spot.share, 3):>8}{_number(spot.base_share, 3):>8}"
        )
    if not spot.widths:
        say(f"{head}too few rows pass their filter to measure anything")


def _number(value: float | None, digits: int = 4) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def _bounds(found: "Spread") -> str:
    return f"{_number(found.mean)} [{_number(found.low)}, {_number(found.high)}]"
