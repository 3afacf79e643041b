"""What the gradients of a run's rows mean together.

Reads what the stage "gradients" has left; loads no model. The figures to set beside
them are those of the paper's score: cosines of rows with their own teacher's vector,
with others', and how they grow with the dose.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from undertow.experiment.alignment import UNTOUCHED, stage_of
from undertow.experiment.estimates import estimate
from undertow.experiment.recipe import Recipe
from undertow.results import Alignment, AlignmentFit, Estimate
from undertow.runs import Run
from undertow.stats import Interval, clustered_interval, linear_fit, mean_interval


def alignments(recipe: Recipe, run: Run) -> list[Alignment]:
    """Every set of rows whose gradients were taken, in the order of the grid."""
    names = [
        (teacher.label, f"{teacher.label}-{trait}")
        for teacher in recipe.teachers
        if recipe.writer_of(teacher) is teacher
        for trait in recipe.traits
    ]
    return [
        Alignment(
            teacher=label,
            noise=noise,
            seed=seed,
            **run.payload(stage_of(f"noise-{noise:g}/seed-{seed}", name)),
        )
        for noise in recipe.noise.levels
        for seed in recipe.seeds
        for label, name in [*names, (None, UNTOUCHED)]
        if run.is_done(stage_of(f"noise-{noise:g}/seed-{seed}", name))
    ]


def alignment_fits(found: Sequence[Alignment]) -> list[AlignmentFit]:
    """One fit for each noise level and block at which a teacher was steered."""
    places = {
        (each.noise, each.vector_layer)
        for each in found
        if each.vector_layer is not None
    }
    return [
        _fit(noise, layer, [each for each in found if each.noise == noise])
        for noise, layer in sorted(places)
    ]


def _fit(noise: float, layer: int, found: Sequence[Alignment]) -> AlignmentFit:
    here = [each for each in found if each.vector_layer == layer]
    personal = [
        each
        for each in found
        if each.kind in ("prompt", "finetune") and each.trait in each.vectors
    ]
    base = [each for each in found if each.kind == "none"]
    lines = [linear_fit(*points) for points in _by_dose(here, base, layer)]
    return AlignmentFit(
        noise=noise,
        layer=layer,
        own=_over_traits(here, layer, own=True),
        other=_over_traits(here, layer, own=False),
        difference=_difference(here, layer),
        unsteered=_over_traits(personal, layer, own=True),
        untouched=_untouched(base, layer),
        slope=_over(line.slope for line in lines),
        correlation=_mean_correlation([line.correlation for line in lines]),
        curvature=_over(line.curvature for line in lines),
    )


def _cosines(each: Alignment, layer: int) -> dict[str, float]:
    """By vector; NaN where there was none."""
    row = each.cosines[each.layers.index(layer)]
    return {
        name: np.nan if value is None else value
        for name, value in zip(each.vectors, row, strict=True)
    }


def _over_traits(
    found: Sequence[Alignment], layer: int, *, own: bool
) -> Estimate | None:
    """Mean cosine, with an interval over the traits of the rows."""
    values, traits = [], []
    for each in found:
        for name, value in _cosines(each, layer).items():
            if (name == each.trait) == own:
                values.append(value)
                traits.append(str(each.trait))
    return estimate(clustered_interval(values, traits), "trait") if values else None


def _difference(found: Sequence[Alignment], layer: int) -> Estimate | None:
    """Own cosine minus the others' mean of each set, with an interval over traits."""
    values, traits = [], []
    for each in found:
        cosines = _cosines(each, layer)
        own = cosines.pop(str(each.trait), np.nan)
        if cosines:
            values.append(own - float(np.mean(list(cosines.values()))))
            traits.append(str(each.trait))
    return estimate(clustered_interval(values, traits), "trait") if values else None


def _untouched(base: Sequence[Alignment], layer: int) -> Estimate | None:
    """Mean cosine of the base's rows, with an interval over vectors."""
    found = [pair for each in base for pair in _cosines(each, layer).items()]
    names, values = [name for name, _ in found], [value for _, value in found]
    return estimate(clustered_interval(values, names), "vector") if found else None


def _over(values: Iterable[float]) -> Estimate:
    """Mean of the traits' own lines, with an interval over traits."""
    return estimate(mean_interval(list(values)), "trait")


def _mean_correlation(values: Sequence[float]) -> Estimate:
    """Over traits too, as means of Fisher's z, so that bounds stay within 1."""
    with np.errstate(divide="ignore"):
        found = mean_interval(np.arctanh(np.array(values, dtype=np.float64)))
    mean, low, high = np.tanh([found.mean, found.low, found.high]).tolist()
    return estimate(Interval(mean, low, high, found.n), "trait")


def _by_dose(
    here: Sequence[Alignment], base: Sequence[Alignment], layer: int
) -> Iterable[tuple[list[float], list[float]]]:
    """(doses, nats along the own vector) of each trait; the base's rows stand at 0."""
    for trait in dict.fromkeys(each.trait for each in here):
        own = [each for each in here if each.trait == trait]
        doses, nats = [], []
        for each in (*own, *base):
            value = each.nats[each.layers.index(layer)][each.vectors.index(str(trait))]
            doses.append(np.nan if each.dose is None else each.dose)
            nats.append(np.nan if value is None else value)
        yield doses, nats
