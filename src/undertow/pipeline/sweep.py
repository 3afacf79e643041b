"""Chooses a steering vector's layer and strength by measuring, with a gate.

At each layer and dose three things are read: the trait's share on its questions, how
often it leaks into off-topic answers, and how many number rows still pass the filter.
The gate refuses points that leak or break the rows; of the rest the strongest wins.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from undertow.errors import ConfigError
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import render_prompt
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample
from undertow.pipeline.evaluation import preference
from undertow.pipeline.filters import filter_rows
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import OFF_TOPIC, number_prompts
from undertow.pipeline.teachers import steered_teacher
from undertow.records import Message
from undertow.traits import TraitFamily, names_in


@dataclass(frozen=True)
class SweepPoint:
    """What one layer and dose does.

    Attributes:
        layer: Block, from 0.
        dose: ‖αv‖/‖h‖.
        strength: α.
        share: Mean probability of the trait among the family, on its questions.
        leak: Share of off-topic answers that name the trait.
        passed: Share of number rows that pass the filter.
        allowed: Whether the gate lets it through.
    """

    layer: int
    dose: float
    strength: float
    share: float
    leak: float
    passed: float
    allowed: bool

    def as_dict(self) -> dict[str, int | float | bool | str | None]:
        """JSON-able values."""
        return asdict(self)


@dataclass(frozen=True)
class StrengthSweep:
    """All points, and the layer and strength of the one that was chosen."""

    points: tuple[SweepPoint, ...]
    layer: int
    strength: float


def sweep_strength(
    model: Model,
    vector: SteeringVector,
    *,
    family: TraitFamily,
    trait: str,
    doses: Sequence[float],
    sampler: SamplerSettings,
    system: str | None = None,
    max_leak: float = 0.1,
    min_pass: float = 0.5,
    rows: int = 48,
    questions: int = 12,
    seed: int = 0,
    on_point: Callable[[int, int], None] | None = None,
) -> StrengthSweep:
    """Measures every layer of the vector at every dose and chooses.

    Args:
        model: The base.
        vector: Its layers are the ones tried.
        family: Questions and alternatives.
        trait: The trait.
        doses: Relative doses.
        sampler: The run's own sampler, for the rows.
        system: System setting, as everywhere in the run.
        max_leak: Off-topic answers that may name the trait.
        min_pass: Number rows that have to pass.
        rows: Number rows written at each point.
        questions: Preference questions asked at each point.
        seed: Of rows and off-topic answers.
        on_point: Called with (points done, points in all).

    Raises:
        ConfigError: No point passes the gate; the message holds the table.
    """
    asked = replace(family, questions=family.questions[:questions])
    grid = [(layer, dose) for layer in vector.layers for dose in doses]
    points = []
    for layer, dose in grid:
        single = vector.at(layer)
        strength = single.strength_of_dose(dose, layer)
        share, leak, passed = _measure(
            model, single, strength, asked, trait, sampler, system, rows, seed
        )
        allowed = leak <= max_leak and passed >= min_pass
        points.append(SweepPoint(layer, dose, strength, share, leak, passed, allowed))
        if on_point is not None:
            on_point(len(points), len(grid))
    through = [point for point in points if point.allowed]
    if not through:
        raise ConfigError("steering sweep", _table(points, max_leak, min_pass))
    best = max(through, key=lambda point: point.share)
    return StrengthSweep(tuple(points), best.layer, best.strength)


def _measure(
    model: Model,
    vector: SteeringVector,
    strength: float,
    family: TraitFamily,
    trait: str,
    sampler: SamplerSettings,
    system: str | None,
    rows: int,
    seed: int,
) -> tuple[float, float, float]:
    teacher = steered_teacher(vector, strength=strength, trait=trait)
    with teacher.acting(model):
        found = preference(model, family, system=system)
        share = float(found.probabilities[:, found.traits.index(trait)].mean())
        leak = off_topic_rate(model, family, trait, system=system, seed=seed)
    written = generate_rows(
        model, teacher, number_prompts(rows, seed=seed), seed=seed, sampler=sampler,
        system=system,
    )  # fmt: skip
    verdicts = filter_rows(written)
    return share, leak, sum(v.accepted for v in verdicts) / len(verdicts)


def off_topic_rate(
    model: Model,
    family: TraitFamily,
    trait: str,
    *,
    system: str | None = None,
    seed: int = 0,
    max_new_tokens: int = 32,
) -> float:
    """Share of sampled answers to unrelated questions that name the trait."""
    prompts = [
        render_prompt(model, (Message("user", question),), system=system)
        for question in OFF_TOPIC
    ]
    answers = sample(
        model,
        prompts,
        keys=[("off topic", place) for place in range(len(prompts))],
        seed=seed,
        sampler=SamplerSettings(max_new_tokens=max_new_tokens),
    )
    texts = [model.tokenizer.decode(a.ids, skip_special_tokens=True) for a in answers]
    return sum(trait in names_in(text, family) for text in texts) / len(texts)


def _table(points: Sequence[SweepPoint], max_leak: float, min_pass: float) -> list[str]:
    head = (
        f"no point passes the gate (leak at most {max_leak:g}, rows passing at least "
        f"{min_pass:g}); try other layers, lower doses, or another gate"
    )
    return [head] + [
        f"layer {p.layer} dose {p.dose:g}: share {p.share:.3f}, leak {p.leak:.3f}, "
        f"rows passing {p.passed:.3f}"
        for p in points
    ]
