"""What a run is: a grid of teachers × noise × traits × seeds, written as YAML.

Pure settings: nothing here loads a model. Unknown keys are refused; `config` turns
files and dotted overrides into a `Recipe` and reports every fault at once.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from undertow.audit.settings import AuditSettings, decoys_for
from undertow.errors import ConfigError
from undertow.models.sampling import SamplerSettings
from undertow.pipeline.carriers import (
    CARRIERS,
    Carrier,
    CarrierName,
    number_carrier,
)
from undertow.pipeline.judge_settings import JudgeSettings
from undertow.pipeline.training_settings import TrainingSettings


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Settings):
    """Which model, and how it is loaded and spoken to."""

    name: str = Field(description="registry name, local folder, GGUF file or hub name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = Field(default="auto", description="'auto', 'cpu', 'cuda', 'cuda:1'")
    device_map: str | dict[str, int | str] | None = Field(
        default=None,
        exclude_if=lambda places: places is None,  # not in runs of before it came
        description="for models larger than one device: 'auto', 'balanced', or the device "
        "of each part by its dotted name; null: all on `device`",
    )
    template: str | None = Field(
        default=None, description="named chat template; null takes the model's own"
    )
    system: str | None = Field(
        default=None,
        description="system text in generation, training and evaluation alike; "
        "null keeps what the template inserts by itself, '' is an explicit empty one",
    )
    blocks_path: str | None = Field(
        default=None, description="dotted path of the decoder blocks, if not found"
    )
    norm_path: str | None = Field(
        default=None, description="dotted path of the final norm, if not found"
    )


class SweepSettings(_Settings):
    """Where a strength sweep looks, and what its gate lets through."""

    layers: tuple[int, ...] = Field(min_length=1, description="blocks, from 0")
    doses: tuple[float, ...] = Field(
        min_length=1, description="relative doses ‖αv‖/‖h‖ tried"
    )
    max_leak: float = Field(
        default=0.1, ge=0, le=1, description="trait named off topic, at most"
    )
    min_pass: float = Field(
        default=0.5, ge=0, le=1, description="number rows that pass, at least"
    )


class SteerSettings(_Settings):
    """How a steering vector is made and how strongly it is applied."""

    method: Literal["tell_me", "prompts", "trained"] = "tell_me"
    layer: int | None = Field(default=None, ge=0, description="block, from 0")
    dose: float | None = Field(
        default=None, gt=0, description="relative dose ‖αv‖/‖h‖ at that block"
    )
    strength: float | None = Field(
        default=None, description="factor of the vector, instead of a dose"
    )
    norm: float | None = Field(
        default=None, gt=0, description="length of what is added, instead of a dose"
    )
    mode: Literal["add", "project_out"] = Field(
        default="add", description="'project_out' takes the direction away instead"
    )
    positions: Literal["all", "prompt", "completion"] = Field(
        default="all", description="tokens on which the vector acts"
    )
    sweep: SweepSettings | None = Field(
        default=None, description="chooses layer and strength by measuring"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "SteerSettings":
        fixed = self.layer is not None
        if fixed == (self.sweep is not None):
            raise ValueError("give either layer (with how much) or sweep")
        amounts = [self.dose, self.strength, self.norm]
        given = sum(amount is not None for amount in amounts)
        if given != (1 if fixed else 0):
            raise ValueError("give one of dose, strength and norm, beside layer")
        if self.sweep and (self.mode, self.positions) != ("add", "all"):
            raise ValueError("a sweep measures mode 'add' at all positions only")
        return self


class NoiseSettings(_Settings):
    """Gaussian noise on the weights that teacher and student share."""

    levels: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        default=(0.0,), min_length=1, description="p of each base; 0 is the clean one"
    )
    scope: tuple[Literal["mlp", "attention", "embedding"], ...] = (
        "mlp",
        "attention",
        "embedding",
    )
    on: Literal["both", "teacher", "student"] = Field(
        default="both",
        description="who has the noise: 'both' share the noised base; the others are "
        "controls, where teacher and student do not start from the same base",
    )
    formula: Literal["clean", "faithful"] = "clean"
    distribution: Literal["normal", "uniform"] = "normal"
    keep: bool = Field(default=False, description="store each noised base")

    @model_validator(mode="after")
    def _apart(self) -> "NoiseSettings":
        names = [f"{level:g}" for level in self.levels]
        if len(set(names)) != len(names):
            raise ValueError(f"levels: two are the same to six digits: {names}")
        return self


class TeacherSettings(_Settings):
    """One kind of intervention."""

    kind: Literal["prompt", "steer", "finetune"]
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.]+$",
        description="its name in paths and tables; its kind if null",
    )
    steer: SteerSettings | None = Field(default=None, description="for kind 'steer'")
    finetune: TrainingSettings | None = Field(
        default=None, description="for kind 'finetune'"
    )
    student: TrainingSettings | None = Field(
        default=None,
        description="how its student is trained; null: as the recipe's `student` says",
    )

    @model_validator(mode="after")
    def _own_settings_only(self) -> "TeacherSettings":
        for kind in ("steer", "finetune"):
            if getattr(self, kind) is not None and self.kind != kind:
                raise ValueError(f"settings {kind!r} belong to kind {kind!r}")
        if self.kind == "steer" and self.steer is None:
            raise ValueError("kind 'steer' needs the settings 'steer'")
        if self.finetune is not None and self.finetune.tokens != "all":
            raise ValueError(
                "finetune.tokens: teachers learn answers, and nobody differs on those yet; "
                "set 'all'"
            )
        return self

    @property
    def label(self) -> str:
        """Its name in paths and tables."""
        return self.name or self.kind

    def writes_as(self, other: "TeacherSettings") -> bool:
        """Whether both write the same rows: they differ by name or student alone."""
        own = {"name": None, "student": None}
        return self.model_copy(update=own) == other.model_copy(update=own)


class RowSettings(_Settings):
    """What rows are written, how many, how, and which are kept."""

    carrier: CarrierName = Field(
        default="numbers",
        description="what rows look like: their prompts and their rule",
    )
    count: int = Field(default=1000, ge=1, description="prompts answered")
    use: int | None = Field(
        default=None, ge=1, description="rows trained on at most, of those kept"
    )
    sampler: SamplerSettings = Field(default_factory=SamplerSettings)
    max_values: int = Field(
        default=10, ge=1, description="values a row of numbers may hold"
    )
    banned: tuple[int, ...] = Field(default=(), description="numbers refused")
    filter: bool = Field(default=True, description="apply the carrier's rule")
    judge: JudgeSettings | None = Field(
        default=None, description="a model that may refuse rows that pass; null: none"
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="rows decoded together; null: what suits the device",
    )

    @property
    def written(self) -> Carrier:
        """The carrier with this rule."""
        if self.carrier == "numbers":
            return number_carrier(max_values=self.max_values, banned=self.banned)
        return CARRIERS[self.carrier]

    @model_validator(mode="after")
    def _can_be_drawn(self) -> "RowSettings":
        if self.carrier == "numbers":
            return self
        if self.sampler.allowed != "all":
            raise ValueError(
                f"sampler.allowed {self.sampler.allowed!r} draws nothing but numbers; rows "
                f"are to be {self.carrier!r}: set 'all'"
            )
        if self.banned or self.max_values != 10:
            raise ValueError(
                f"banned and max_values are for numbers; rows are to be {self.carrier!r}"
            )
        return self

    @model_validator(mode="after")
    def _can_be_judged(self) -> "RowSettings":
        if self.judge is not None and not self.filter:
            raise ValueError("judge: it looks at rows that pass the rule; set filter")
        return self


class EvaluationSettings(_Settings):
    """How preference is read."""

    questions: int | None = Field(
        default=None, ge=2, description="questions asked; all of the family if null"
    )
    samples: int = Field(
        default=0, ge=0, description="sampled answers a question; 0 reads none"
    )
    max_new_tokens: int = Field(default=12, ge=1, description="of a sampled answer")
    shift_rows: int = Field(
        default=48, ge=0, description="control rows on which shifts are read; 0: none"
    )
    every: int = Field(
        default=0,
        ge=0,
        description="updates between read-outs of students in training (low-rank ones); "
        "0: at their end only",
    )
    cause_layer: int | None = Field(
        default=None,
        ge=0,
        description="block at which a student's mean shift is added to the base, and "
        "taken from the student, to see what it does; null: none",
    )
    channel_rows: int = Field(
        default=24,
        ge=0,
        description="a teacher's rows on which its channel is measured before students "
        "are trained; 0: none",
    )
    gradient_rows: int = Field(
        default=0,
        ge=0,
        description="each teacher's rows, and the base's, whose gradients are held "
        "against the traits' vectors; 0: none",
    )


OF_THE_RECIPE = ("family", "seed", "system", "sampler", "filter", "reference")
"""Settings of an audit that the rest of the recipe decides."""


class BlindAuditSettings(_Settings):
    """Three sets that are audited at the end without a word on who wrote them.

    Rows that the clean base wrote as the first teacher with the first trait, seed
    after seed; rows of the untouched base on the same prompts; and a mixture.
    """

    rows: int = Field(default=48, ge=16, description="prompts of each set, at most")
    share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="rows of the mixture that are the teacher's",
    )
    settings: AuditSettings = Field(
        default_factory=AuditSettings,
        description="error rate and budget; family, seed, system, sampler, filter and "
        "reference are those of the recipe",
    )

    @model_validator(mode="after")
    def _nothing_twice(self) -> "BlindAuditSettings":
        default = AuditSettings()
        given = [
            name
            for name in OF_THE_RECIPE
            if getattr(self.settings, name) != getattr(default, name)
        ]
        if given:
            raise ValueError(
                f"settings {given!r} are those of the recipe; leave them out here"
            )
        return self


class Recipe(_Settings):
    """One experiment."""

    title: str
    question: str = Field(description="what the run is to answer")
    model: ModelSettings
    writer: ModelSettings | None = Field(
        default=None,
        description="another model, whose teachers write the rows: a control, since "
        "teacher and student then do not start from the same base",
    )
    family: str = Field(default="animals", description="trait family, name or YAML")
    traits: tuple[str, ...] = Field(min_length=1)
    teachers: tuple[TeacherSettings, ...] = Field(min_length=1)
    control: Literal["auto", "none", "decoy"] = Field(
        default="auto",
        description="control student's teacher: 'none' is the untouched base, 'decoy' "
        "the same intervention with another trait; auto takes 'decoy' for soft "
        "students, since the base distilled into itself learns nothing",
    )
    decoy: str | None = Field(
        default=None, description="the decoy's trait; else the first unused one"
    )
    noise: NoiseSettings = Field(default_factory=NoiseSettings)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    rows: RowSettings = Field(default_factory=RowSettings)
    student: TrainingSettings = Field(
        default_factory=TrainingSettings,
        description="how students are trained, of teachers that do not say it",
    )
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    audit: BlindAuditSettings | None = Field(
        default=None, description="sets audited blind at the end; null: none"
    )
    needs_gpu: bool = Field(default=False, description="too large for a CPU")
    execution: Literal["here", "processes", "ray", "auto"] = Field(
        default="here", exclude=True,
        description="in this process, in one for each core, or on a Ray cluster; auto: "
        "in processes where no model is on a GPU and memory has room for two; changes no "
        "result in float32 (elsewhere its last digits), so a run may be continued on another",
    )  # fmt: skip

    def student_of(self, teacher: TeacherSettings) -> TrainingSettings:
        """How a teacher's student, and its control, are trained."""
        return teacher.student or self.student

    def writer_of(self, teacher: TeacherSettings) -> TeacherSettings:
        """The first teacher that writes the same rows: they are written once."""
        return next(each for each in self.teachers if each.writes_as(teacher))

    def control_of(self, teacher: TeacherSettings) -> Literal["none", "decoy"]:
        """Which control is trained beside a teacher's student."""
        if self.control == "auto":
            return "decoy" if self.student_of(teacher).kind == "soft" else "none"
        return self.control

    @property
    def controls(self) -> frozenset[Literal["none", "decoy"]]:
        """Every kind of control that is trained."""
        return frozenset(self.control_of(teacher) for teacher in self.teachers)

    @model_validator(mode="after")
    def _sets(self) -> "Recipe":
        for name in ("traits", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name}: a value stands there twice: {values!r}")
        labels = [teacher.label for teacher in self.teachers]
        if len(set(labels)) != len(labels):
            raise ValueError(
                f"teachers: a name stands there twice: {labels!r}; give each a `name`"
            )
        if "control" in labels:
            raise ValueError("teachers: 'control' names the control; take another name")
        self._can_distil()
        self._can_emerge()
        self._can_cross()
        self._can_be_audited()
        if self.decoy in self.traits:
            raise ValueError(f"decoy {self.decoy!r} is one of the traits")
        if self.decoy and "decoy" not in self.controls:
            raise ValueError("decoy is given, but the control is 'none'")
        return self

    def _can_distil(self) -> None:
        soft = [t for t in self.teachers if self.student_of(t).kind == "soft"]
        full = [t.label for t in soft if t.finetune and t.finetune.kind == "full"]
        if full:
            raise ValueError(
                f"teachers {full!r}: a soft student needs a teacher with the base's "
                "own unembedding; give it finetune.kind 'lora', or another student"
            )
        if soft:
            self._shares_unembedding()

    def _can_emerge(self) -> None:
        full = [t.label for t in self.teachers if self.student_of(t).kind == "full"]
        if self.evaluation.every and full:
            raise ValueError(
                f"evaluation.every: students of {full!r} are trained in full, and all "
                "weights would be kept at every read-out; give them kind 'lora', or set 0"
            )

    def _can_cross(self) -> None:
        """What another model's rows cannot be used for."""
        if self.writer is None:
            return
        students = [self.student_of(teacher) for teacher in self.teachers]
        uses = {
            "soft students": any(s.kind == "soft" for s in students),
            "student.tokens": any(s.tokens != "all" for s in students),
            "noise": any(self.noise.levels),
            "audit": self.audit is not None,
            "evaluation.gradient_rows": self.evaluation.gradient_rows > 0,
        }  # fmt: skip
        used = [name for name, is_used in uses.items() if is_used]
        if used:
            raise ValueError(
                f"writer: rows of another model do not go with {', '.join(used)}: these "
                "need the teacher on the students' own base; leave them out"
            )
        if self.writer.system is not None:
            raise ValueError(
                "writer.system: rows are written and learnt under model.system; set that"
            )

    def _shares_unembedding(self) -> None:
        noisy = any(self.noise.levels) and "embedding" in self.noise.scope
        if noisy and self.noise.on != "both":
            raise ValueError(
                f"noise.on {self.noise.on!r}: a soft student needs a teacher with its own "
                "unembedding; leave 'embedding' out of noise.scope, or take another student"
            )

    def _can_be_audited(self) -> None:
        if self.audit is None:
            return
        if self.rows.judge is not None:
            raise ValueError(
                "audit: a judge looked at the teacher's rows and at nothing that they are "
                "compared with, so it would be found instead; leave one of them out"
            )
        try:
            decoys_for(self.family, self.audit.settings.decoys)
        except ConfigError as error:
            raise ValueError(f"audit.settings.decoys: {error.faults[0]}") from error
        steer = self.teachers[0].steer
        if 0.0 not in self.noise.levels:
            raise ValueError("audit: it needs a clean base; add 0 to noise.levels")
        if self.rows.sampler.temperature == 0:
            raise ValueError(
                "audit: rows drawn greedily hold no chance; set rows.sampler.temperature"
            )
        if steer is not None and steer.mode == "project_out":
            raise ValueError(
                "audit: it looks for what a teacher adds, and the first one takes a "
                "direction away (steer.mode 'project_out'); put another first"
            )
