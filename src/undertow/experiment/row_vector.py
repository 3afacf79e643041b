"""The one vector that rows would teach, and what it is like and says.

Puts together what is elsewhere: the training, the vectors of a family, and the words of a
direction. Knows nothing of tests: whether there is anything is an audit's question.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch.nn.functional import cosine_similarity

from undertow.analysis.trained_vector import TrainedVector, train_vector
from undertow.audit.discovery import describe_direction
from undertow.findings import Discovery
from undertow.interventions.extraction import family_vectors
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import render_row
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.records import Row
from undertow.traits import TraitFamily

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RowVector:
    """A vector that was trained on rows, less the control's.

    Attributes:
        vector: Of one layer.
        sets: The vector and losses of each set, "rows" and "control".
        cosines: With the 'tell_me' vector of each trait, the largest first.
        says: Tokens, answers, and how far it moves each trait.
    """

    vector: SteeringVector
    sets: Mapping[str, TrainedVector]
    cosines: Mapping[str, float]
    says: Discovery

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layer": self.vector.layers[0],
            "cosines": dict(self.cosines),
            "sets": [
                {"set": name, "count": each.vector.n, "dose": each.dose,
                 "losses": list(each.losses)}
                for name, each in self.sets.items()
            ],
            "says": self.says.model_dump(mode="json"),
        }  # fmt: skip


def measure_row_vector(
    model: Model,
    family: TraitFamily,
    rows: Sequence[Row],
    control: Sequence[Row] | None = None,
    *,
    layer: int | None = None,
    sampler: SamplerSettings | None = None,
    steps: int = 100,
    batch_size: int = 16,
    learning_rate: float = 0.01,
    seed: int = 0,
    system: str | None = None,
    tell: Tell,
) -> RowVector:
    """Trains a vector on rows and says what it is.

    Args:
        model: The base.
        family: Gives vectors to be like, questions and the battery.
        rows: Of unknown origin.
        control: Rows that carry nothing: what they teach as well is taken off.
        layer: The block after which it acts; None takes half of the depth.
        sampler: As `train_vector` takes it, and so are the next four.
        steps: Updates.
        batch_size: Rows of an update.
        learning_rate: Of AdamW.
        seed: Of the order of rows.
        system: System setting, as everywhere in the run.
        tell: Told of (set, updates done, in all).

    Raises:
        DatasetError: Not one row of a set can be drawn.
        TrainingError: A loss is not finite.
        VectorMismatchError: Unknown layer, or nothing is left of the vector.
    """
    block = len(model.architecture.blocks) // 2 if layer is None else layer

    def trained(name: str, own: Sequence[Row]) -> TrainedVector:
        return train_vector(
            model, [render_row(model, row, system=system) for row in own], block,
            sampler=sampler, steps=steps, batch_size=batch_size,
            learning_rate=learning_rate, seed=seed, on_step=partial(tell, name),
        )  # fmt: skip

    sets = {"rows": trained("rows", rows)}
    vector = sets["rows"].vector
    if control is not None:
        sets["control"] = trained("control", control)
        less = vector.directions - sets["control"].vector.directions
        vector = replace(vector, directions=less)
    says = describe_direction(
        model, family, vector.directions[0], block,
        residual_norm=vector.residual_norms[0], system=system,
    )  # fmt: skip
    known = family_vectors(model, family, layers=(block,), system=system)
    return RowVector(vector, sets, _cosines(vector, known, block), says)


def _cosines(
    vector: SteeringVector, known: Mapping[str, SteeringVector], layer: int
) -> dict[str, float]:
    """With each of the known ones, the largest first."""
    own = vector.directions[0].double()
    found = {
        name: float(cosine_similarity(own, each.direction(layer).double(), dim=0))
        for name, each in known.items()
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
