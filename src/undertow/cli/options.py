"""Options that several commands share, each group as one frozen value.

A command takes a group as a parameter (`loading: Loading`) and is registered through
`expanded`, which shows typer the group's options in its place. An option that is not
given stays None, so that the library's defaults hold. Knows nothing of what commands
do with the values.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from undertow.errors import ConfigError, RunError

if TYPE_CHECKING:
    from undertow.interventions.steering import SteeringVector
    from undertow.models.loading import Model
    from undertow.models.sampling import SamplerSettings
    from undertow.pipeline.carriers import Carrier
    from undertow.pipeline.teachers import Teacher
    from undertow.pipeline.training_settings import TrainingSettings
    from undertow.traits import TraitFamily

Number = TypeVar("Number", int, float)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, a.b=c; may be repeated."),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Of the weights."),
]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1'.")]
Template = Annotated[
    str | None,
    typer.Option(help="Named chat template, for tokenizers that have none."),
]
BlocksPath = Annotated[
    str | None,
    typer.Option(help="Dotted path of the decoder blocks, if not found."),
]
NormPath = Annotated[
    str | None, typer.Option(help="Dotted path of the final norm, if not found.")
]
Vectors = Annotated[
    list[Path] | None, typer.Option(help="A further vector to test; repeatable.")
]
FailOn = Annotated[
    Literal["never", "evidence"],
    typer.Option(help="'evidence' exits with 1 if a bias or shift was found."),
]
Family = Annotated[str, typer.Option(help="Trait family: a name or a YAML file.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every draw.")]
System = Annotated[
    str | None,
    typer.Option(
        help="System text, the same in generation, training and evaluation; '' is an "
        "explicit empty one. Not given: what the template inserts by itself."
    ),
]


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of its groups in the place of the groups."""
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }

    @wraps(command)
    def call(**given: Any) -> None:
        values = {
            name: group(
                **{field.name: given.pop(field.name) for field in fields(group)}
            )
            for name, group in groups.items()
        }
        command(**given, **values)

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        parameters += _options(groups[name]) if name in groups else [parameter]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _options(group: Any) -> list[inspect.Parameter]:
    signature = inspect.signature(group)
    return list(signature.parameters.values())


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Which model, and how it is loaded."""

    model: Annotated[
        str, typer.Option(help="Short name, folder, GGUF file or hub name.")
    ]
    dtype: Dtype = "auto"
    device: Device = "auto"
    device_map: Annotated[
        str | None,
        typer.Option(
            help="For models larger than one device: 'auto', 'balanced', or JSON (or a "
            "file of it) that names the device of each part."
        ),
    ] = None
    template: Template = None
    blocks_path: BlocksPath = None
    norm_path: NormPath = None

    def load(self) -> "Model":
        """The model.

        Raises:
            ModelError: It cannot be found or understood.
        """
        from undertow.models.loading import load_model

        return load_model(self.model, **self.options())

    def options(self) -> dict[str, Any]:
        """What `load_model` takes beside the name.

        Raises:
            ModelError: The device map is none.
        """
        from undertow.models.placement import read_device_map

        places = self.device_map
        return {
            "dtype": self.dtype,
            "device": self.device,
            "device_map": None if places is None else read_device_map(places),
            "template": self.template,
            "blocks_path": self.blocks_path,
            "norm_path": self.norm_path,
        }


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn."""

    temperature: Annotated[
        float | None, typer.Option(help="0 takes the most likely token.")
    ] = None
    top_p: Annotated[float | None, typer.Option(help="Nucleus mass.")] = None
    top_k: Annotated[int | None, typer.Option(help="0 keeps every token.")] = None
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest completion, in tokens.")
    ] = None
    allowed: Annotated[
        Literal["all", "numbers", "list"] | None,
        typer.Option(
            help="'numbers' draws digits and separators only, 'list' well-formed lists "
            "of integers 0-999. Rows that are compared must be drawn alike."
        ),
    ] = None
    list_values: Annotated[
        int | None, typer.Option(help="Values of a row at most, for 'list'.")
    ] = None

    def settings(self) -> "SamplerSettings":
        """The sampler's settings.

        Raises:
            ConfigError: A value is out of range; every fault at once.
        """
        from undertow.config import check_settings
        from undertow.models.sampling import SamplerSettings

        return check_settings(SamplerSettings, _given(self), where="sampler options")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a student is trained."""

    kind: Annotated[
        Literal["lora", "full", "soft"] | None,
        typer.Option(help="'soft' fits a LoRA to the teacher's distribution."),
    ] = None
    rank: Annotated[int | None, typer.Option(help="LoRA's inner dimension.")] = None
    alpha: Annotated[float | None, typer.Option(help="LoRA's scale times rank.")] = None
    optimizer: Annotated[
        Literal["adamw", "adam", "sgd", "sign", "adafactor"] | None,
        typer.Option(help="Update rule; 'sign' is SGD on the gradient's sign."),
    ] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate.")] = None
    schedule: Annotated[
        Literal["constant", "linear", "cosine"] | None,
        typer.Option(help="Rate after the warm-up."),
    ] = None
    batch_size: Annotated[int | None, typer.Option(help="Rows an update.")] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.")] = None
    max_updates: Annotated[
        int | None, typer.Option(help="Stop after so many updates.")
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any training setting, key=value (weight_decay, warmup_updates, clip, "
            "targets, soft_tokens, checkpoint_every …); may be repeated.",
        ),
    ] = None

    def settings(self) -> "TrainingSettings":
        """The training settings.

        Raises:
            ConfigError: A value is out of range or unknown; every fault at once.
        """
        from undertow.config import check_settings
        from undertow.pipeline.training_settings import TrainingSettings

        data = _given(self)
        overrides = data.pop("overrides", [])
        return check_settings(
            TrainingSettings, data, where="training options", overrides=overrides
        )


def _given(group: Any) -> dict[str, Any]:
    """The options that were given, by name."""
    values = {field.name: getattr(group, field.name) for field in fields(group)}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Steering:
    """A vector and how strongly it is added."""

    vector: Annotated[
        Path | None, typer.Option(help="Vector file of `undertow vector extract`.")
    ] = None
    strength: Annotated[float | None, typer.Option(help="Factor of the vector.")] = None
    dose: Annotated[
        float | None,
        typer.Option(help="Instead of a strength: ‖αv‖/‖h‖ at the layer."),
    ] = None
    layer: Annotated[
        int | None, typer.Option(help="Block, from 0; else all of the vector's.")
    ] = None

    def faults(self) -> list[str]:
        """What does not fit together, as it concerns no file."""
        if self.vector is None:
            return [
                f"--{name} needs --vector FILE"
                for name in ("strength", "dose", "layer")
                if getattr(self, name) is not None
            ]
        if (self.strength is None) == (self.dose is None):
            return ["--vector needs either --strength or --dose"]
        return []

    def settled(self) -> "tuple[SteeringVector, float]":
        """The vector and its strength.

        Raises:
            ConfigError: Options that do not fit together.
            VectorMismatchError: The file holds no vector, or not this layer.
        """
        from undertow.interventions.steering import load_vector

        file = self.vector
        faults = self.faults()
        if file is None and not faults:
            faults = ["--vector FILE is missing"]
        if faults:
            raise ConfigError("steering options", faults)
        assert file is not None
        vector = load_vector(file)
        if self.layer is not None:
            vector = vector.at(self.layer)
        if self.strength is not None:
            return vector, self.strength
        assert self.dose is not None
        if len(vector.layers) > 1:
            fault = (
                f"--dose needs --layer: {file} has the layers {list(vector.layers)}, "
                "and a dose is measured at one"
            )
            raise ConfigError("steering options", [fault])
        return vector, vector.strength_of_dose(self.dose, vector.layers[0])


@dataclass(frozen=True, kw_only=True)
class Teaching(Steering):
    """Who writes the rows."""

    teacher: Annotated[
        Literal["none", "prompt", "steer", "finetune"],
        typer.Option(
            help="'prompt' needs --trait; 'steer' --vector with --strength or --dose; "
            "'finetune' --adapter."
        ),
    ] = "none"
    trait: Annotated[
        str | None, typer.Option(help="The teacher's trait, of the family.")
    ] = None
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of `undertow train`, for 'finetune'.")
    ] = None
    mode: Annotated[
        Literal["add", "project_out"],
        typer.Option(help="'project_out' takes the vector's direction away instead."),
    ] = "add"
    positions: Annotated[
        Literal["all", "prompt", "completion"],
        typer.Option(help="Tokens on which the vector acts."),
    ] = "all"

    def check(self, family: "TraitFamily") -> None:
        """What can be known to be wrong before a model is loaded.

        Raises:
            ConfigError: Options that do not fit together, or an unknown trait.
        """
        if faults := self._misfits():
            raise ConfigError("teacher options", faults)
        if self.trait is not None:
            family.trait(self.trait)

    def make(self, model: "Model", family: "TraitFamily") -> "Teacher":
        """The teacher.

        Raises:
            ConfigError: Options that do not fit together, or an unknown trait.
            ModelError: The folder holds no student.
            VectorMismatchError: Vector or adapter belong to another model.
        """
        from undertow.interventions.steering import check_vector
        from undertow.pipeline.students import load_student
        from undertow.pipeline.teachers import (
            Teacher,
            prompted_teacher,
            steered_teacher,
        )

        self.check(family)
        if self.teacher == "prompt":
            assert self.trait is not None
            return prompted_teacher(family, self.trait)
        if self.teacher == "steer":
            vector, strength = self.settled()
            check_vector(model, vector)
            return steered_teacher(
                vector,
                strength=strength,
                trait=self.trait,
                mode=self.mode,
                positions=self.positions,
            )
        if self.teacher == "finetune":
            assert self.adapter is not None
            student = load_student(model, self.adapter)
            return Teacher(kind="finetune", trait=self.trait, student=student)
        return Teacher(kind="none")

    def _misfits(self) -> list[str]:
        owners = {"vector": "steer", "adapter": "finetune"}
        wanted = {"prompt": "trait", "steer": "vector", "finetune": "adapter"}
        faults = [
            f"--{option} belongs to --teacher {kind}; the teacher is {self.teacher!r}"
            for option, kind in owners.items()
            if getattr(self, option) is not None and self.teacher != kind
        ]
        if self.teacher == "none" and self.trait is not None:
            faults.append("--trait needs a --teacher; the teacher 'none' has no trait")
        needed = wanted.get(self.teacher)
        if needed and getattr(self, needed) is None:
            faults.append(f"--teacher {self.teacher} needs --{needed}")
        return faults + self.faults()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What rows look like, and what they have to pass."""

    kind: Annotated[
        Literal["numbers", "code", "reasoning", "paraphrase"],
        typer.Option("--carrier", help="What rows look like: prompts and rule."),
    ] = "numbers"
    max_values: Annotated[
        int, typer.Option(min=1, help="Values a row of numbers may hold.")
    ] = 10
    banned: Annotated[
        str | None, typer.Option(help="Numbers refused, with commas: 666,88.")
    ] = None

    def banned_numbers(self) -> tuple[int, ...]:
        """The refused numbers.

        Raises:
            ConfigError: One of them is no number.
        """
        return numbers("--banned", self.banned, int) if self.banned else ()

    def carrier(self) -> "Carrier":
        """The carrier: its prompts and its rule.

        Raises:
            ConfigError: A refused number that is none, or numbers in other rows.
        """
        from undertow.pipeline.carriers import CARRIERS, number_carrier

        banned = self.banned_numbers()
        if self.kind == "numbers":
            return number_carrier(max_values=self.max_values, banned=banned)
        if banned or self.max_values != 10:
            fault = f"they are for rows of numbers; --carrier is {self.kind!r}"
            raise ConfigError("--banned and --max-values", [fault])
        return CARRIERS[self.kind]


def numbers(option: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    """Numbers of an option, separated by commas.

    Raises:
        ConfigError: A part is no number, or there is none.
    """
    found = []
    for part in text.split(","):
        try:
            found.append(kind(part))
        except ValueError as error:
            what = "whole numbers" if kind is int else "numbers"
            fault = f"got {part!r} in {text!r}, expected {what} with commas between"
            raise ConfigError(option, [fault]) from error
    return tuple(found)


def words(text: str) -> tuple[str, ...]:
    """Words of an option, separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def refuse_existing(path: Path) -> None:
    """Refuses a place that is taken, before any work is done.

    Raises:
        RunError: Something is there.
    """
    if path.exists() or path.is_symlink():
        raise RunError(
            f"{path}: exists already and is left as it is; choose another name or "
            "remove it first"
        )
