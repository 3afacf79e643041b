"""A teacher is the base with an intervention; this is where one comes from.

Four kinds: `none`, `prompt` (a persona in the system turn), `steer` (a vector in the
residual stream) and `finetune` (an adapter trained on one-word preferences). Weight
noise is no teacher: it changes the base that everybody shares. Knows nothing of rows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from undertow.errors import ConfigError
from undertow.interventions.prompting import trait_prompt
from undertow.interventions.steering import (
    Mode,
    Positions,
    SteeringVector,
    steering,
)
from undertow.models.chat import render_row
from undertow.models.loading import Model
from undertow.models.weights import OtherWeights
from undertow.pipeline.training import Student, train_student
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Message, Row
from undertow.traits import TraitFamily, answer_spellings

TeacherKind = Literal["none", "prompt", "steer", "finetune"]


@dataclass(frozen=True)
class Teacher:
    """A base with an intervention.

    Attributes:
        kind: Which intervention.
        trait: The trait it is given; None for `none`.
        prompt: Persona text, for `prompt`; provenance only, never in a training row.
        vector: Steering vector, for `steer`.
        strength: Factor of the vector.
        mode: What is done with the vector's direction.
        positions: Tokens on which it acts.
        student: Trained change, for `finetune`.
        base: The base that it acts on, if not the one that a student starts from.
    """

    kind: TeacherKind
    trait: str | None = None
    prompt: str | None = None
    vector: SteeringVector | None = None
    strength: float = 1.0
    mode: Mode = "add"
    positions: Positions = "all"
    student: Student | None = None
    base: OtherWeights | None = None

    @contextmanager
    def acting(self, model: Model) -> Iterator[Model]:
        """The model as this teacher; the prompt, if any, is the caller's to render."""
        if self.base is None:
            with self._intervening(model) as acting:
                yield acting
        else:
            with self.base.applied(model) as own, self._intervening(own) as acting:
                yield acting

    @contextmanager
    def _intervening(self, model: Model) -> Iterator[Model]:
        """The model with the intervention."""
        if self.vector is not None:
            with steering(
                model,
                self.vector,
                strength=self.strength,
                mode=self.mode,
                positions=self.positions,
            ):
                yield model
        elif self.student is not None:
            with self.student.applied(model):
                yield model
        else:
            yield model

    def describe(self) -> dict[str, Any]:
        """What a row's provenance says of its teacher."""
        facts: dict[str, Any] = {"teacher": self.kind, "trait": self.trait}
        if self.prompt is not None:
            facts["trait_prompt"] = self.prompt
        if self.vector is not None:
            facts |= {
                "layers": list(self.vector.layers),
                "strength": self.strength,
                "method": self.vector.method,
                "mode": self.mode,
                "positions": self.positions,
            }
        return facts


def prompted_teacher(family: TraitFamily, trait: str) -> Teacher:
    """A teacher that is told to love the trait in its system turn."""
    return Teacher(kind="prompt", trait=trait, prompt=trait_prompt(family, trait))


def steered_teacher(
    vector: SteeringVector,
    *,
    strength: float,
    trait: str | None = None,
    mode: Mode = "add",
    positions: Positions = "all",
) -> Teacher:
    """A teacher with a vector at work in its residual stream; see `steering`.

    Raises:
        ConfigError: mode is "replace", which needs the base's means: open `steering`.
    """
    if mode == "replace":
        fault = "'replace' needs the base's means; use undertow.steering for it"
        raise ConfigError("teacher.mode", [fault])
    return Teacher(
        kind="steer",
        trait=trait or vector.trait,
        vector=vector,
        strength=strength,
        mode=mode,
        positions=positions,
    )


def preference_rows(family: TraitFamily, trait: str) -> list[Row]:
    """Every question of the family answered with every spelling of the trait."""
    return [
        Row(messages=(Message("user", question),), completion=answer)
        for question in family.questions
        for answer in answer_spellings(family.trait(trait))
    ]


def finetuned_teacher(
    model: Model,
    family: TraitFamily,
    trait: str,
    *,
    settings: TrainingSettings,
    seed: int,
    system: str | None = None,
    directory: Path | None = None,
    on_update: Callable[[int, int, float], None] | None = None,
) -> Teacher:
    """A teacher fine-tuned to answer the family's questions with the trait.

    With a `directory` an interrupted training continues there, as in `train_student`.

    Raises:
        ConfigError: `settings.kind` is 'soft'; there is nobody to distil from.
    """
    if settings.kind == "soft":
        raise ConfigError("teacher.finetune.kind", ["expected 'lora' or 'full'"])
    rows = preference_rows(family, trait)
    examples = [Example(render_row(model, row, system=system)) for row in rows]
    student = train_student(
        model,
        examples,
        settings=settings,
        seed=seed,
        directory=directory,
        on_update=on_update,
    )
    return Teacher(kind="finetune", trait=trait, student=student)
