"""How wide the channel of a teacher is, over noise, before anything is trained.

A teacher writes rows, and at every token its distribution is held against the base's
and against other traits' teachers: what it says beyond the base, and beyond any trait
like it. Beside it stands how far the trait still shows. Knows nothing of students.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from undertow.analysis.channel import Divergence, Speaker, divergences
from undertow.errors import ConfigError
from undertow.interventions.extraction import extract_vector
from undertow.interventions.noise import add_weight_noise
from undertow.models.chat import render_row
from undertow.models.loading import Model, fingerprint
from undertow.models.sampling import SamplerSettings
from undertow.pipeline.evaluation import preference
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.teachers import Teacher, prompted_teacher, steered_teacher
from undertow.records import Row
from undertow.stats import Interval, mean_interval
from undertow.traits import TraitFamily

BASE = "base"
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
    """One teacher on one base.

    Attributes:
        noise: Size of the weight noise that the base has; 0 is none.
        noise_seed: Of that noise; None without any.
        trait: The teacher's.
        share: Mean probability of the trait among its family, asked of the teacher.
        base_share: The same of the base without the intervention.
        rows: Rows that it wrote.
        tokens: Of their completions.
        widths: Against the base, and against other traits.
    """

    noise: float
    noise_seed: int | None
    trait: str
    share: float
    base_share: float
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


def measure_channel(
    load: Callable[[], Model],
    *,
    family: TraitFamily,
    trait: str,
    kind: Literal["prompt", "steer"],
    against: Sequence[str] = (),
    layer: int | None = None,
    dose: float = 0.5,
    noise: Sequence[float] = (0.0,),
    noise_seeds: Sequence[int] = (0,),
    count: int = 96,
    questions: int = 12,
    sampler: SamplerSettings,
    system: str | None = None,
    seed: int = 0,
    tell: Tell = _silent,
) -> Iterator[ChannelPoint]:
    """The channel of one trait's teacher on the base and on noised bases.

    Vectors are extracted ("tell_me") on each base, at whose block they then act. Each
    point is given when it is measured.

    Args:
        load: Gives the base, untouched, each time it is called.
        family: Holds all traits.
        trait: The teacher's.
        kind: How it is given the trait.
        against: Traits of other teachers of this kind.
        layer: Block of the vector; None: half of the depth.
        dose: ‖αv‖/‖h‖ there.
        noise: Sizes of weight noise; each above 0 is drawn once for every seed.
        noise_seeds: Of the noise.
        count: Number prompts that the teacher answers.
        questions: The first of the family's, on which the trait's share is read.
        sampler: How.
        system: System setting.
        seed: Of prompts and draws.
        tell: Told of (stage, done, in all).

    Raises:
        ConfigError: An unknown trait, the trait against itself, or noise below 0.
        VectorMismatchError: A layer that the model has not.
    """
    for name in (trait, *against):
        family.trait(name)
    if trait in against:
        raise ConfigError("against", [f"{trait!r} is the teacher's own trait"])
    for level in noise:
        for noise_seed in noise_seeds if level else (None,):
            model = load()
            if noise_seed is not None:
                model = _noised(model, level, noise_seed)
            teachers = {
                name: _teacher(model, family, name, kind, layer, dose, system)
                for name in (trait, *against)
            }
            label = f"noise {level:g}" + f" seed {noise_seed}" * (
                noise_seed is not None
            )
            point = _point(
                model, family, teachers, count=count, questions=questions,
                sampler=sampler, system=system,
                seed=seed, tell=partial(_told, tell, label),
            )  # fmt: skip
            yield replace(point, noise=level, noise_seed=noise_seed)


def _told(tell: Tell, where: str, stage: str, done: int, total: int) -> None:
    tell(f"{where}: {stage}", done, total)


def _noised(model: Model, level: float, seed: int) -> Model:
    add_weight_noise(model, p=level, seed=seed)
    return replace(model, fingerprint=fingerprint(model.module))


def _teacher(
    model: Model,
    family: TraitFamily,
    trait: str,
    kind: Literal["prompt", "steer"],
    layer: int | None,
    dose: float,
    system: str | None,
) -> Teacher:
    if kind == "prompt":
        return prompted_teacher(family, trait)
    at = len(model.architecture.blocks) // 2 if layer is None else layer
    vector = extract_vector(
        model, method="tell_me", family=family, trait=trait, layers=(at,), system=system
    )
    return steered_teacher(vector, strength=vector.strength_of_dose(dose, at))


def _point(
    model: Model,
    family: TraitFamily,
    teachers: dict[str, Teacher],
    *,
    count: int,
    questions: int,
    sampler: SamplerSettings,
    system: str | None,
    seed: int,
    tell: Tell,
) -> ChannelPoint:
    """The first of the teachers, against the base and the other ones."""
    trait, teacher = next(iter(teachers.items()))
    rows = generate_rows(
        model, teacher, number_prompts(count, seed=seed), seed=seed, sampler=sampler,
        system=system, on_rows=lambda done, total, _: tell("rows", done, total),
    )  # fmt: skip

    others = {BASE: Teacher(kind="none"), **teachers}
    del others[trait]
    found = divergences(
        model, speaker(model, teacher, rows, system=system),
        {name: speaker(model, who, rows, system=system) for name, who in others.items()},
        sampler=sampler, on_rows=lambda done, total: tell("divergence", done, total),
    )  # fmt: skip
    share, base_share = (
        _share(model, family, trait, who, system, family.questions[:questions])
        for who in (teacher, others[BASE])
    )
    return ChannelPoint(
        noise=0.0, noise_seed=None, trait=trait, share=share, base_share=base_share,
        rows=len(rows), tokens=int(found[BASE].tokens.sum()),
        widths=tuple(_width(name, each) for name, each in found.items()),
    )  # fmt: skip


def speaker(
    model: Model, who: Teacher, rows: Sequence[Row], *, system: str | None
) -> Speaker:
    """Somebody with a teacher's intervention, before whom the rows are laid."""
    rendered = [
        render_row(model, row, system=system, trait_prompt=who.prompt) for row in rows
    ]
    return Speaker(rendered, partial(who.acting, model))


def _share(
    model: Model,
    family: TraitFamily,
    trait: str,
    who: Teacher,
    system: str | None,
    questions: Sequence[str],
) -> float:
    with who.acting(model):
        asked = preference(
            model, family, system=system, trait_prompt=who.prompt, questions=questions
        )
    return float(asked.probabilities[:, asked.traits.index(trait)].mean())


def _width(name: str, found: Divergence) -> Width:
    tokens = float(found.tokens.mean())
    return Width(
        other=name,
        vocabulary=mean_interval(found.vocabulary / tokens),
        carrier=mean_interval(found.carrier / tokens),
        nats_a_row=mean_interval(found.carrier),
    )
