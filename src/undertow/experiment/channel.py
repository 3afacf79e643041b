"""How wide the channel of a teacher is, over noise, blocks, doses and kinds of row.

A teacher writes rows, and at every token its distribution is held against the base's
and against other traits' teachers: what it says beyond the base, and beyond any trait
like it. Beside it stands how far the trait still shows. Nothing is trained, and nothing
is known here of students.
"""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

from undertow.analysis.channel import Divergence, Speaker, divergences
from undertow.errors import ConfigError
from undertow.interventions.extraction import extract_vector
from undertow.interventions.noise import KINDS, add_weight_noise
from undertow.models.chat import render_row
from undertow.models.loading import Model, fingerprint
from undertow.models.sampling import SamplerSettings
from undertow.pipeline.carriers import CARRIERS, carrier_verdicts
from undertow.pipeline.evaluation import preference
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.teachers import Teacher, prompted_teacher, steered_teacher
from undertow.records import Row
from undertow.stats import Interval, mean_interval
from undertow.traits import TraitFamily, trait_words

BASE = "base"
_FEWEST = 2
"""Rows that an interval over rows takes."""
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Width:
    """KL(teacher ‖ other), nats a token; intervals over rows.

    Attributes:
        other: "base", or the trait of another teacher of the same kind.
        vocabulary: Over all tokens, at temperature 1.
        carrier: Over what the sampler may draw, as it draws it.
        nats_a_row: Of the carrier, summed over a row: what one row offers on average.
    """

    other: str
    vocabulary: Interval
    carrier: Interval
    nats_a_row: Interval


@dataclass(frozen=True)
class ChannelPoint:
    """One teacher on one base, and rows of one kind.

    Attributes:
        carrier: The kind of its rows.
        layer: Block of the vector; None for a prompt.
        dose: ‖αv‖/‖h‖ there; None for a prompt.
        noise: Size of the weight noise that the base has; 0 is none.
        noise_seed: Of that noise; None without any.
        trait: The teacher's.
        share: Mean probability of the trait among its family, asked of the teacher.
        base_share: The same of the base without the intervention.
        written: Rows that it wrote.
        rows: Of them, those that pass the carrier's rule: what is measured.
        tokens: Of their completions.
        widths: Against the base, and against other traits; none if no two rows passed.
    """

    carrier: str
    layer: int | None
    dose: float | None
    noise: float
    noise_seed: int | None
    trait: str
    share: float
    base_share: float
    written: int
    rows: int
    tokens: int
    widths: tuple[Width, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        facts = asdict(self)
        for own, width in zip(facts["widths"], self.widths, strict=True):
            own |= {
                key: getattr(width, key)._asdict()
                for key in ("vocabulary", "carrier", "nats_a_row")
            }
        return facts


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


class Place(NamedTuple):
    """Where a point stands in its grid."""

    carrier: str
    layer: int | None
    dose: float | None
    noise: float
    noise_seed: int | None


@dataclass(frozen=True)
class ChannelGrid:
    """A teacher, and where its channel is measured.

    Attributes:
        family: Holds all traits.
        trait: The teacher's.
        kind: How it is given the trait.
        against: Traits of other teachers of this kind.
        layers: Blocks of the vector, one after the other; none for a prompt.
        doses: ‖αv‖/‖h‖ there; none for a prompt.
        carriers: Kinds of row. Numbers are drawn as the sampler says and all measured;
            rows of another kind are drawn from all tokens, and those measured that pass
            its rule, as they alone would be trained on.
        noise: Sizes of weight noise; each above 0 is drawn once for every seed.
        noise_seeds: Of the noise.
        noise_scope: Kinds of matrix that have it.

    Raises:
        ConfigError: Every fault at once: an unknown trait or carrier, the trait against
            itself, a value twice or out of range, a block or dose of a prompt.
    """

    family: TraitFamily
    trait: str
    kind: Literal["prompt", "steer"]
    against: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    doses: tuple[float, ...] = ()
    carriers: tuple[str, ...] = ("numbers",)
    noise: tuple[float, ...] = (0.0,)
    noise_seeds: tuple[int, ...] = (0,)
    noise_scope: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        """Looks for faults."""
        for name in (self.trait, *self.against):
            self.family.trait(name)
        faults = list(self._faults())
        if faults:
            raise ConfigError("the grid of a channel", faults)

    def _faults(self) -> Iterator[str]:
        if self.trait in self.against:
            yield f"against: {self.trait!r} is the teacher's own trait"
        of_vectors = {"layers", "doses"}
        needed = {"carriers", "noise", "noise_seeds", "noise_scope"}
        needed |= of_vectors if self.kind == "steer" else set()
        for name in ("against", *sorted(of_vectors | needed)):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                yield f"{name}: a value stands there twice: {values!r}"
            if name in needed and not values:
                yield f"{name}: empty; give one value or more"
            if name in of_vectors - needed and values:
                given = ", ".join(f"{value:g}" for value in values)
                yield f"{name}: a prompted teacher has none; leave {given} out"
        unknown = [name for name in self.carriers if name not in CARRIERS]
        if unknown:
            yield f"carriers: {unknown[0]!r} is none; there are {', '.join(CARRIERS)}"
        if odd := [kind for kind in self.noise_scope if kind not in KINDS]:
            yield f"noise_scope: {odd[0]!r} is none; there are {', '.join(KINDS)}"
        for name in ("doses", "noise"):
            wrong = [v for v in getattr(self, name) if not 0 <= v < math.inf]
            if wrong:
                yield f"{name}: expected numbers of 0 or more, got {wrong[0]!r}"

    def places(self) -> list[Place]:
        """Every point in order: carriers within doses within layers within bases."""
        bases = [
            (level, seed)
            for level in self.noise
            for seed in (self.noise_seeds if level else (None,))
        ]
        ways: list[tuple[int | None, float | None]] = [
            (layer, dose) for layer in self.layers for dose in self.doses
        ]
        return [
            Place(carrier, layer, dose, level, seed)
            for level, seed in bases
            for layer, dose in ways or [(None, None)]
            for carrier in self.carriers
        ]


@dataclass(frozen=True)
class _Asking:
    """What is the same for every point of one base."""

    model: Model
    grid: ChannelGrid
    count: int
    questions: int
    sampler: SamplerSettings
    system: str | None
    seed: int


def measure_channel(
    load: Callable[[], Model],
    grid: ChannelGrid,
    *,
    known: Container[Place] = (),
    count: int = 96,
    questions: int = 12,
    sampler: SamplerSettings,
    system: str | None = None,
    seed: int = 0,
    tell: Tell = _silent,
) -> Iterator[ChannelPoint]:
    """The channel of one trait's teacher over a grid, in the order of `ChannelGrid.places`.

    Vectors are extracted ("tell_me") on each base, at whose block they then act. Each
    point is given when it is measured.

    Args:
        load: Gives the base, untouched, each time it is called.
        grid: The teacher, and where it is measured.
        known: Places that are left out, since they were measured before.
        count: Prompts of a carrier that the teacher answers.
        questions: The first of the family's, on which the trait's share is read.
        sampler: How rows of numbers are drawn; other kinds from all tokens.
        system: System setting.
        seed: Of prompts and draws.
        tell: Told of (stage, done, in all).

    Raises:
        VectorMismatchError: A layer that the model has not.
    """
    left = [place for place in grid.places() if place not in known]
    for (level, noise_seed), there in groupby(left, lambda p: (p.noise, p.noise_seed)):
        model = load()
        if noise_seed is not None:
            model = _noised(model, grid, level, noise_seed)
        asking = _Asking(model, grid, count, questions, sampler, system, seed)
        yield from _of_base(asking, list(there), tell)


def _of_base(
    asking: _Asking, places: Sequence[Place], tell: Tell
) -> Iterator[ChannelPoint]:
    """Points of one base, its vectors extracted once."""
    grid, layers = asking.grid, sorted({p.layer for p in places if p.layer is not None})
    vectors = {
        name: extract_vector(
            asking.model, method="tell_me", family=grid.family, trait=name,
            layers=tuple(layers), system=asking.system,
        )
        for name in (grid.trait, *grid.against) if layers
    }  # fmt: skip
    base_share = _share(asking, Teacher(kind="none"))
    for (layer, dose), there in groupby(places, lambda p: (p.layer, p.dose)):
        if layer is None or dose is None:
            names = (grid.trait, *grid.against)
            teachers = {name: prompted_teacher(grid.family, name) for name in names}
        else:
            teachers = {
                name: steered_teacher(
                    vector.at(layer), strength=vector.strength_of_dose(dose, layer)
                )
                for name, vector in vectors.items()
            }
        share = _share(asking, teachers[grid.trait])
        for place in there:
            point = _point(asking, teachers, place, partial(_told, tell, place))
            yield replace(point, share=share, base_share=base_share)


def _told(tell: Tell, place: Place, stage: str, done: int, total: int) -> None:
    words = [f"noise {place.noise:g}"]
    if place.noise_seed is not None:
        words[0] += f" seed {place.noise_seed}"
    if place.layer is not None:
        words.append(f"block {place.layer}, dose {place.dose:g}")
    if place.carrier != "numbers":
        words.append(place.carrier)
    tell(f"{', '.join(words)}: {stage}", done, total)


def _noised(model: Model, grid: ChannelGrid, level: float, seed: int) -> Model:
    kinds = [kind for kind in KINDS if kind in grid.noise_scope]
    add_weight_noise(model, p=level, seed=seed, scope=kinds)
    return replace(model, fingerprint=fingerprint(model.module))


def _point(
    asking: _Asking, teachers: dict[str, Teacher], place: Place, tell: Tell
) -> ChannelPoint:
    """The first of the teachers and its rows of one kind, without its shares."""
    model, grid, sampler = asking.model, asking.grid, asking.sampler
    if place.carrier != "numbers":
        sampler = sampler.model_copy(update={"allowed": "all"})
    written = generate_rows(
        model, teachers[grid.trait],
        CARRIERS[place.carrier].prompts(asking.count, seed=asking.seed),
        seed=asking.seed, sampler=sampler, system=asking.system,
        on_rows=lambda done, total, _: tell("rows", done, total),
    )  # fmt: skip
    rows = written
    if place.carrier != "numbers":
        rows = _passing(grid.family, place.carrier, written)
    others = {BASE: Teacher(kind="none"), **teachers}
    del others[grid.trait]
    found = {} if len(rows) < _FEWEST else divergences(
        model, speaker(model, teachers[grid.trait], rows, system=asking.system),
        {name: speaker(model, who, rows, system=asking.system)
         for name, who in others.items()},
        sampler=sampler, on_rows=lambda done, total: tell("divergence", done, total),
    )  # fmt: skip
    return ChannelPoint(
        **place._asdict(), trait=grid.trait, share=math.nan, base_share=math.nan,
        written=len(written), rows=len(rows),
        tokens=int(found[BASE].tokens.sum()) if found else 0,
        widths=tuple(_width(name, each) for name, each in found.items()),
    )  # fmt: skip


def _passing(family: TraitFamily, carrier: str, rows: Sequence[Row]) -> list[Row]:
    found = carrier_verdicts(CARRIERS[carrier], rows, words=trait_words(family))
    return [row for row, own in zip(rows, found, strict=True) if own.accepted]


def speaker(
    model: Model, who: Teacher, rows: Sequence[Row], *, system: str | None
) -> Speaker:
    """Somebody with a teacher's intervention, before whom the rows are laid."""
    rendered = [
        render_row(model, row, system=system, trait_prompt=who.prompt) for row in rows
    ]
    return Speaker(rendered, partial(who.acting, model))


def _share(asking: _Asking, who: Teacher) -> float:
    """Mean probability of the grid's trait, asked of somebody."""
    grid = asking.grid
    with who.acting(asking.model):
        asked = preference(
            asking.model, grid.family, system=asking.system, trait_prompt=who.prompt,
            questions=grid.family.questions[: asking.questions],
        )  # fmt: skip
    return float(asked.probabilities[:, asked.traits.index(grid.trait)].mean())


def _width(name: str, found: Divergence) -> Width:
    tokens = float(found.tokens.mean())
    return Width(
        other=name,
        vocabulary=mean_interval(found.vocabulary / tokens),
        carrier=mean_interval(found.carrier / tokens),
        nats_a_row=mean_interval(found.carrier),
    )
