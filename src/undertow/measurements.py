"""The schema of the files that `--json` of a measurement writes, for `undertow report`.

Pure data (pydantic), no computation: `channel`, `analyze vector` and `analyze
entanglement` write them, `report` draws them. Numbers that could not be computed, and
bounds that are infinite, are null.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from undertow.findings import Discovery

Number = float | None


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(_Value):
    """A mean with its 95 % interval over `n` clusters."""

    mean: Number
    low: Number
    high: Number
    n: int


class DrawnBy(_Value):
    """How completions were drawn, as the options of every command have it."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    allowed: Literal["all", "numbers", "list"]
    list_values: int


class ChannelWidth(_Value):
    """KL(teacher ‖ other) over the teacher's rows; intervals are over rows."""

    other: str = Field(description="'base', or the trait of another teacher like it")
    vocabulary: Spread = Field(description="nats a token, over all tokens")
    carrier: Spread = Field(description="nats a token, over what the sampler may draw")
    nats_a_row: Spread = Field(description="of `carrier`, summed over a row")


class ChannelSpot(_Value):
    """One teacher on one base, and rows of one kind."""

    carrier: str = Field(description="kind of the rows")
    layer: int | None = Field(description="block of the vector; null for a prompt")
    dose: Number = Field(description="‖αv‖/‖h‖ there; null for a prompt")
    noise: float = Field(description="size of the base's weight noise; 0 is none")
    noise_seed: int | None = Field(description="its seed; null without any")
    trait: str = Field(description="the teacher's")
    share: Number = Field(description="mean probability of the trait, asked of it")
    base_share: Number = Field(description="the same without the intervention")
    written: int = Field(description="rows that it wrote")
    rows: int = Field(description="of them, rows that pass and are measured")
    tokens: int = Field(description="of their completions")
    widths: list[ChannelWidth] = Field(description="empty if no two rows passed")


class ChannelMeasurement(_Value):
    """`undertow channel --json`: a teacher's channel over a grid."""

    format: Literal[1] = 1
    measurement: Literal["channel"] = "channel"
    model: str
    fingerprint: str = Field(description="of the base without noise")
    dtype: str
    family: str
    trait: str
    teacher: Literal["prompt", "steer"]
    against: list[str] = Field(description="traits of the other teachers")
    noise_scope: list[str] = Field(
        default=["mlp", "attention", "embedding"],
        description="kinds of matrix that have the noise",
    )
    count: int = Field(description="prompts of a kind that were answered")
    questions: int = Field(description="on which the shares were read")
    seed: int
    system: str | None
    sampler: DrawnBy = Field(
        description="of numbers; rows of another kind may hold any token"
    )
    points: list[ChannelSpot]


class VectorSet(_Value):
    """How well a vector explained one set of rows."""

    set: Literal["rows", "control"]
    count: int = Field(description="rows")
    dose: Number = Field(description="‖v‖/‖h‖ at its block")
    losses: list[Number] = Field(description="nats a token, update by update")


class VectorMeasurement(_Value):
    """`undertow analyze vector --json`: the vector that rows would teach."""

    format: Literal[1] = 1
    measurement: Literal["vector"] = "vector"
    model: str
    fingerprint: str
    dtype: str
    family: str
    rows: str = Field(description="the file")
    control: str | None = Field(description="the control's file")
    use: int = Field(description="rows of a set at most")
    steps: int = Field(description="updates")
    batch_size: int = Field(description="rows of an update")
    learning_rate: float
    sampler: DrawnBy = Field(description="how the rows are taken to be drawn")
    system: str | None
    seed: int
    layer: int = Field(description="block after which it acts, from 0")
    cosines: dict[str, Number] = Field(description="with each trait's own vector")
    sets: list[VectorSet]
    says: Discovery


class ToldNumber(_Value):
    """A number that the model was told to love."""

    number: int
    group: Literal["raised", "lowered", "random"]
    change: Number = Field(description="of its log-probability under the persona, nats")
    effect: Number = Field(
        description="on the trait when it was told, nats of log-odds"
    )


class RankSpread(Spread):
    """A rank correlation."""

    p_value: Number


class ToldComparison(_Value):
    """Effects of the groups, and what the first has beyond the last."""

    raised: Spread
    lowered: Spread
    random: Spread
    difference: Spread = Field(description="raised − random, in pairs")
    p_value: Number = Field(description="of the difference")
    correlation: RankSpread = Field(description="of change and effect over the told")


class RowOccurrence(_Value):
    """How often raised numbers stand in rows, and in the reference."""

    found: int
    numbers: int
    reference_found: int
    reference_numbers: int
    ratio: Spread


class EntanglementMeasurement(_Value):
    """`undertow analyze entanglement --json`: numbers that come and go with a trait."""

    format: Literal[1] = 1
    measurement: Literal["entanglement"] = "entanglement"
    model: str
    fingerprint: str
    dtype: str
    rows: str | None = Field(description="file in which raised numbers were counted")
    reference: str | None = Field(description="file that they were compared with")
    top: int = Field(description="numbers told of each group")
    seed: int
    system: str | None
    trait: str
    family: str
    questions: list[str]
    numbers: list[int] = Field(description="all that were looked at")
    base: list[Number] = Field(description="log-probability of each, nats")
    changes: list[Number] = Field(description="of each under the persona, nats")
    beginnings: int = Field(description="different first tokens among the raised")
    base_preference: Number = Field(description="log-odds of the trait, nats")
    told: list[ToldNumber]
    comparison: ToldComparison
    occurrence: RowOccurrence | None


Measurement = ChannelMeasurement | VectorMeasurement | EntanglementMeasurement
NAMES = ("channel", "vector", "entanglement")
"""What `measurement` may say."""
_ANY: TypeAdapter[Measurement] = TypeAdapter(
    Annotated[Measurement, Field(discriminator="measurement")]
)


def parse(value: Any) -> Measurement:
    """The measurement that a JSON file holds.

    Raises:
        pydantic.ValidationError: It holds none, or one of another version.
    """
    return _ANY.validate_python(value)
