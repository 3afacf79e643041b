"""How wide the channel of a teacher is, over noise, blocks, doses and kinds of row.

A teacher writes rows, and at every token its distribution is held against the base's
and against other traits' teachers: what it says beyond the base, and beyond any trait
like it. Beside it stands how far the trait still shows. Nothing is trained, and nothing
is known here of students.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from undertow.analysis.channel import Divergence, Speaker, divergences
from undertow.errors import ConfigError
from undertow.interventions.extraction import extract_vector
from undertow.interventions.noise import add_weight_noise
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


@dataclass(frozen=True)
class _Asking:
    """What is the same for every point of a grid."""

    family: TraitFamily
    count: int
    questions: int
    sampler: SamplerSettings
    system: str | None
    seed: int


class _Way(NamedTuple):
    """A teacher and its likes with other traits, by trait, the teacher first."""

    layer: int | None
    dose: float | None
    teachers: dict[str, Teacher]


def measure_channel(
    load: Callable[[], Model],
    *,
    family: TraitFamily,
    trait: str,
    kind: Literal["prompt", "steer"],
    against: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    doses: Sequence[float] = (0.5,),
    carriers: Sequence[str] = ("numbers",),
    noise: Sequence[float] = (0.0,),
    noise_seeds: Sequence[int] = (0,),
    count: int = 96,
    questions: int = 12,
    sampler: SamplerSettings,
    system: str | None = None,
    seed: int = 0,
    skip: int = 0,
    tell: Tell = _silent,
) -> Iterator[ChannelPoint]:
    """The channel of one trait's teacher: a grid of bases, blocks, doses and rows.

    Vectors are extracted ("tell_me") on each base, at whose block they then act. Each
    point is given when it is measured, carriers within doses within layers within bases.

    Args:
        load: Gives the base, untouched, each time it is called.
        family: Holds all traits.
        trait: The teacher's.
        kind: How it is given the trait.
        against: Traits of other teachers of this kind.
        layers: Blocks of the vector, one after the other; None: half of the depth.
        doses: ‖αv‖/‖h‖ there.
        carriers: Kinds of row. Numbers are drawn as the sampler says and all measured;
            rows of another kind are drawn from all tokens, and those measured that pass
            its rule, as they alone would be trained on.
        noise: Sizes of weight noise; each above 0 is drawn once for every seed.
        noise_seeds: Of the noise.
        count: Prompts of a carrier that the teacher answers.
        questions: The first of the family's, on which the trait's share is read.
        sampler: How.
        system: System setting.
        seed: Of prompts and draws.
        skip: Points at the beginning that are known already and not given again.
        tell: Told of (stage, done, in all).

    Raises:
        ConfigError: An unknown trait or carrier, the trait against itself, or noise
            below 0.
        VectorMismatchError: A layer that the model has not.
    """
    for name in (trait, *against):
        family.trait(name)
    if trait in against:
        raise ConfigError("against", [f"{trait!r} is the teacher's own trait"])
    unknown = [name for name in carriers if name not in CARRIERS]
    if unknown:
        known = ", ".join(CARRIERS)
        raise ConfigError("carriers", [f"{unknown[0]!r} is none; there are {known}"])
    asking = _Asking(family, count, questions, sampler, system, seed)
    ways = 1 if kind == "prompt" else len(doses) * len(layers or (None,))
    for level in noise:
        for noise_seed in noise_seeds if level else (None,):
            if skip >= ways * len(carriers):
                skip -= ways * len(carriers)
                continue
            model = load()
            if noise_seed is not None:
                model = _noised(model, level, noise_seed)
            base = f"noise {level:g}" + f" seed {noise_seed}" * (noise_seed is not None)
            for way in _ways(model, asking, (trait, *against), kind, layers, doses):
                left, skip = carriers[skip:], max(0, skip - len(carriers))
                for found in _points(model, asking, way, left, base, tell):
                    yield replace(found, noise=level, noise_seed=noise_seed)


def _noised(model: Model, level: float, seed: int) -> Model:
    add_weight_noise(model, p=level, seed=seed)
    return replace(model, fingerprint=fingerprint(model.module))


def _ways(
    model: Model,
    asking: _Asking,
    traits: Sequence[str],
    kind: Literal["prompt", "steer"],
    layers: Sequence[int] | None,
    doses: Sequence[float],
) -> Iterator[_Way]:
    """Teachers of all traits at every block and dose; a prompt has neither."""
    family = asking.family
    if kind == "prompt":
        told = {name: prompted_teacher(family, name) for name in traits}
        yield _Way(None, None, told)
        return
    at = tuple(layers) if layers else (len(model.architecture.blocks) // 2,)
    vectors = {
        name: extract_vector(
            model, method="tell_me", family=family, trait=name,
            layers=tuple(sorted(set(at))), system=asking.system,
        )
        for name in traits
    }  # fmt: skip
    for layer in at:
        for dose in doses:
            steered = {
                name: steered_teacher(
                    vector.at(layer), strength=vector.strength_of_dose(dose, layer)
                )
                for name, vector in vectors.items()
            }
            yield _Way(layer, dose, steered)


def _points(
    model: Model,
    asking: _Asking,
    way: _Way,
    carriers: Sequence[str],
    base: str,
    tell: Tell,
) -> Iterator[ChannelPoint]:
    """The first of the teachers on one base, a point for each kind of row."""
    if not carriers:
        return
    trait, teacher = next(iter(way.teachers.items()))
    share, base_share = (
        _share(model, asking, trait, who) for who in (teacher, Teacher(kind="none"))
    )
    at = "" if way.layer is None else f", block {way.layer}, dose {way.dose:g}"
    for carrier in carriers:
        rows = "" if carrier == "numbers" else f", {carrier}"

        def told(
            stage: str, done: int, total: int, where: str = base + at + rows
        ) -> None:
            tell(f"{where}: {stage}", done, total)

        written, passed, found = _measured(model, asking, way, carrier, told)
        yield ChannelPoint(
            carrier=carrier, layer=way.layer, dose=way.dose, noise=0.0, noise_seed=None,
            trait=trait, share=share, base_share=base_share, written=written,
            rows=passed, tokens=int(found[BASE].tokens.sum()) if found else 0,
            widths=tuple(_width(name, each) for name, each in found.items()),
        )  # fmt: skip


def _measured(
    model: Model, asking: _Asking, way: _Way, carrier: str, tell: Tell
) -> tuple[int, int, dict[str, Divergence]]:
    """Rows written, rows that pass, and how far the others are from their writer."""
    sampler, trait = asking.sampler, next(iter(way.teachers))
    if carrier != "numbers":
        sampler = sampler.model_copy(update={"allowed": "all"})
    written = generate_rows(
        model, way.teachers[trait],
        CARRIERS[carrier].prompts(asking.count, seed=asking.seed), seed=asking.seed,
        sampler=sampler, system=asking.system,
        on_rows=lambda done, total, _: tell("rows", done, total),
    )  # fmt: skip
    rows = (
        written if carrier == "numbers" else _passing(asking.family, carrier, written)
    )
    if len(rows) < _FEWEST:
        return len(written), len(rows), {}
    others = {BASE: Teacher(kind="none"), **way.teachers}
    del others[trait]
    found = divergences(
        model, speaker(model, way.teachers[trait], rows, system=asking.system),
        {name: speaker(model, who, rows, system=asking.system)
         for name, who in others.items()},
        sampler=sampler, on_rows=lambda done, total: tell("divergence", done, total),
    )  # fmt: skip
    return len(written), len(rows), found


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


def _share(model: Model, asking: _Asking, trait: str, who: Teacher) -> float:
    with who.acting(model):
        asked = preference(
            model, asking.family, system=asking.system, trait_prompt=who.prompt,
            questions=asking.family.questions[: asking.questions],
        )  # fmt: skip
    return float(asked.probabilities[:, asked.traits.index(trait)].mean())


def _width(name: str, found: Divergence) -> Width:
    tokens = float(found.tokens.mean())
    return Width(
        other=name,
        vocabulary=mean_interval(found.vocabulary / tokens),
        carrier=mean_interval(found.carrier / tokens),
        nats_a_row=mean_interval(found.carrier),
    )
