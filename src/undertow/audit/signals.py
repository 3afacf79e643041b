"""The battery of directions, and what one pass over rows measures along them.

Traits of the family, decoys of another one, the persona that all trait prompts share,
and random directions with the gradients' own covariance stand side by side: a score
means something only beside those. Knows nothing of nulls or verdicts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.analysis.batches import OnHalved
from undertow.analysis.gradients import gradient_scores
from undertow.errors import VectorMismatchError
from undertow.interventions.extraction import extract_vector, family_vectors
from undertow.interventions.steering import SteeringVector, check_vector
from undertow.models.chat import Rendered
from undertow.models.completions import Prompts
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.seeding import torch_generator
from undertow.traits import TraitFamily

Role = Literal["trait", "decoy", "persona", "random", "given"]
Array = np.ndarray[Any, np.dtype[np.float32]]

RANDOM = 5
"""Random directions in a battery."""
_ALIKE = 0.99  # cosine from which on two directions are one
_PERSONAS = 2
_PERSONA_PROMPTS = 8


@dataclass(frozen=True)
class Battery:
    """Directions of length 1 at every layer, with names and roles.

    Attributes:
        names: One a direction.
        roles: Of each.
        layers: The blocks.
        directions: [layer, direction, hidden], float32, each of length 1.
        norms: [layer]: median norm of the stream, the unit of doses.
        vectors: The traits' own vectors, by name, not normalised.
    """

    names: tuple[str, ...]
    roles: tuple[Role, ...]
    layers: tuple[int, ...]
    directions: Float[Tensor, "layer direction hidden"]
    norms: tuple[float, ...]
    vectors: dict[str, SteeringVector]

    def of_role(self, *roles: Role) -> list[int]:
        """Places of the directions with one of the roles."""
        return [i for i, role in enumerate(self.roles) if role in roles]

    def by_layer(self) -> dict[int, Tensor]:
        """Directions as `gradient_scores` takes them."""
        return dict(zip(self.layers, self.directions, strict=True))


@dataclass(frozen=True)
class RowSignals:
    """What one pass measured, row by row.

    Attributes:
        row_ids: Content hashes.
        scores: [row, layer, direction], nats per unit of length along each.
        total_logprobs: [row], nats, under the base and the rows' sampler.
        tokens: [row], completion tokens.
    """

    row_ids: tuple[str, ...]
    scores: Array
    total_logprobs: np.ndarray[Any, np.dtype[np.float64]]
    tokens: np.ndarray[Any, np.dtype[np.int64]]


def make_battery(
    model: Model,
    family: TraitFamily,
    *,
    decoys: TraitFamily | None,
    pilot: Sequence[Rendered] = (),
    prompts: Sequence[str] = (),
    sampler: SamplerSettings | None = None,
    given: Sequence[SteeringVector] = (),
    layers: Sequence[int] | None = None,
    system: str | None = None,
    seed: int = 0,
) -> Battery:
    """Directions to test rows along.

    Args:
        model: The base.
        family: Its members are the traits.
        decoys: A family whose members stand for traits that nobody put there.
        pilot: A few dozen rows whose gradients give random directions their
            covariance; without rows there are no random directions.
        prompts: User turns for the persona direction; without them there is none.
        sampler: What the pilot rows were drawn by.
        given: The user's own vectors; they need every layer that is tested. One that
            is in the battery already is not added again.
        layers: Blocks, taken in their order; None takes all.
        system: System setting.
        seed: Of the random directions.

    Raises:
        VectorMismatchError: A given vector is another model's, or lacks a layer.
    """
    count = len(model.architecture.blocks)
    chosen = tuple(sorted(set(range(count) if layers is None else layers)))
    vectors = family_vectors(model, family, layers=chosen, system=system)
    named: list[tuple[str, Role, Tensor]] = [
        (name, "trait", vector.directions) for name, vector in vectors.items()
    ]
    if decoys is not None:
        others = family_vectors(model, decoys, layers=chosen, system=system)
        named += [(name, "decoy", v.directions) for name, v in others.items()]
    if prompts:
        persona = _persona_direction(model, family, prompts, chosen, system)
        named.append(("persona", "persona", persona))
    for vector in given:
        name, role, tensor = _given(model, vector, chosen)
        if not any(_alike(tensor, other) for _, _, other in named):
            taken = sum(other.startswith(name) for other, _, _ in named)
            named.append((f"{name} {taken + 1}" if taken else name, role, tensor))
    if pilot:
        drawn = _covariant(model, pilot, chosen, sampler=sampler, seed=seed)
        named += [(f"random {i}", "random", each) for i, each in enumerate(drawn, 1)]
    directions = torch.stack([tensor.float() for _, _, tensor in named], dim=1)
    return Battery(
        names=tuple(name for name, _, _ in named),
        roles=tuple(role for _, role, _ in named),
        layers=chosen,
        directions=nn.functional.normalize(directions, dim=-1),
        norms=next(iter(vectors.values())).residual_norms,
        vectors=vectors,
    )


def _persona_direction(
    model: Model,
    family: TraitFamily,
    prompts: Sequence[str],
    layers: Sequence[int],
    system: str | None,
) -> Float[Tensor, "layer hidden"]:
    """What the trait prompts of several traits have in common."""
    found = [
        extract_vector(
            model, method="prompts", family=family, trait=trait, layers=layers,
            prompts=prompts[:_PERSONA_PROMPTS], system=system,
        ).directions
        for trait in family.names[:_PERSONAS]
    ]  # fmt: skip
    return torch.stack(found).mean(0)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two directions are the same at every layer: then one of them will do."""
    cosine = nn.functional.cosine_similarity(one.float(), other.float(), dim=-1)
    return bool((cosine > _ALIKE).all())


def _given(
    model: Model, vector: SteeringVector, layers: Sequence[int]
) -> tuple[str, Role, Tensor]:
    check_vector(model, vector)
    missing = [layer for layer in layers if layer not in vector.layers]
    if missing:
        raise VectorMismatchError(
            f"vector {vector.trait or vector.method!r}: it has layers "
            f"{list(vector.layers)}, the audit tests {list(layers)}; extract it for all "
            "of them, or name the layers to test (--set layers=[…])"
        )
    name = f"given {vector.trait or vector.method}"
    return name, "given", vector.at(*layers).directions


def _covariant(
    model: Model,
    pilot: Sequence[Rendered],
    layers: Sequence[int],
    *,
    sampler: SamplerSettings | None,
    seed: int,
) -> Float[Tensor, "direction layer hidden"]:
    """Random directions with the covariance of the pilot rows' gradients.

    A Gaussian combination of centred gradients has just their covariance. One set of
    weights serves all layers, so a random direction is one thing, as a trait is.
    """
    weights = torch.randn(
        RANDOM, len(pilot), generator=torch_generator(seed, "random directions")
    )
    weights -= weights.mean(1, keepdim=True)
    hidden = model.architecture.hidden_size
    drawn = torch.zeros(RANDOM, len(layers), hidden)

    def add(layer: int, places: Sequence[int], gradients: Tensor) -> None:
        drawn[:, layers.index(layer)] += weights[:, list(places)] @ gradients.cpu()

    nothing = {layer: torch.zeros(1, hidden) for layer in layers}
    gradient_scores(model, pilot, nothing, sampler=sampler, on_gradients=add)
    return drawn


def measure(
    model: Model,
    rows: Sequence[Rendered],
    row_ids: Sequence[str],
    battery: Battery,
    *,
    sampler: SamplerSettings,
    prompts: Prompts | None = None,
    token_budget: int | None = None,
    on_rows: Callable[[int, int], None] | None = None,
    on_halved: OnHalved | None = None,
) -> RowSignals:
    """One pass: scores along the battery at all its layers, and log-likelihoods."""
    found = gradient_scores(
        model, rows, battery.by_layer(), sampler=sampler, prompts=prompts,
        token_budget=token_budget, on_rows=on_rows, on_halved=on_halved,
    )  # fmt: skip
    return RowSignals(tuple(row_ids), found.scores, found.total_logprobs, found.tokens)
