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
from undertow.stats import clustered_interval, linear_fit, mean_interval


def alignments(recipe: Recipe, run: Run) -> list[Alignment]:
    """Every set of rows whose gradients were taken, in the order of the grid."""
    names = [
        (teacher.label, f"{teacher.label}-{trait}")
        for teacher in recipe.teachers
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
        if each.vector_layer is None and each.trait in each.vectors
    ]
    base = [each for each in found if each.kind == "none"]
    doses, nats = np.array(list(_by_dose(here, base, layer))).T
    line = linear_fit(doses, nats)
    return AlignmentFit(
        noise=noise,
        layer=layer,
        own=_over_traits(here, layer, own=True),
        other=_over_traits(here, layer, own=False),
        difference=_difference(here, layer),
        unsteered=_over_traits(personal, layer, own=True),
        untouched=_untouched(base, layer),
        slope=estimate(line.slope, "set of rows"),
        correlation=estimate(line.correlation, "set of rows"),
        curvature=estimate(line.curvature, "set of rows"),
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
    values = [v for each in base for v in _cosines(each, layer).values()]
    return estimate(mean_interval(values), "vector") if values else None


def _by_dose(
    here: Sequence[Alignment], base: Sequence[Alignment], layer: int
) -> Iterable[tuple[float, float]]:
    """(dose, nats along the own vector); the base's rows stand at dose 0 for each."""
    for each in (*here, *base):
        row = each.nats[each.layers.index(layer)]
        for name, nats in zip(each.vectors, row, strict=True):
            if each.kind == "none" or name == each.trait:
                known = each.dose is not None and nats is not None
                yield (each.dose, nats) if known else (np.nan, np.nan)  # type: ignore[misc]
