"""The schema of `results.json`: everything that a run measured, ready to be shown.

Pure data (pydantic), no computation. `experiment` writes it, `report` draws it, and
users read it. Numbers that could not be computed are null, never 0. All preferences
are in nats of log-odds against the other members of the family unless the field
says `rate`. An interval is [low, high] at the level of `Results.confidence`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1
Number = float | None


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Value):
    """A mean with its interval; `clusters` says over what it was taken."""

    mean: Number
    low: Number
    high: Number
    n: int = Field(description="number of clusters the interval rests on")
    clusters: str = Field(description="'question', 'seed', 'seed and question', …")


class RowCounts(_Value):
    """How many rows a teacher wrote and how many the filter kept."""

    generated: int
    kept: int
    used: int
    reasons: dict[str, int] = Field(description="rows refused, by reason")


class Readout(_Value):
    """One model's answers to one trait's questions."""

    role: Literal["base", "teacher", "control", "student"]
    preference: Estimate = Field(description="log-odds of the trait, nats")
    probability: Estimate = Field(description="probability among the alternatives")
    sampled_rate: Estimate | None = Field(
        default=None, description="share of sampled answers that name the trait"
    )
    valid_rate: Estimate | None = Field(
        default=None,
        description="share of sampled answers that name any member of the family",
    )
    by_question: list[Number] = Field(
        default_factory=list, description="log-odds per question, in question order"
    )


class ShiftByLayer(_Value):
    """cos(student − base, teacher's vector) after each block, and the control's."""

    layers: list[int]
    vector_layer: int
    student: list[Number]
    control: list[Number]


class ShiftShape(_Value):
    """How a student's shift is made, after each block, over completion tokens."""

    layers: list[int]
    size: list[Number] = Field(
        description="root mean square of the shift, relative to the base's stream"
    )
    constancy: list[Number] = Field(
        description="share of its energy in the mean: 1 if every token moved alike"
    )
    first: list[Number] = Field(
        description="share of its energy in the first singular direction"
    )
    spectrum: list[list[Number]] = Field(
        default_factory=list,
        description="share in each of the first eight, by block; not in runs of before it "
        "came",
    )


class Causes(_Value):
    """What the student's mean shift does at one block, nats of the trait's log-odds."""

    layer: int
    whole: Estimate = Field(description="student − base: what is to be explained")
    sufficient: Estimate = Field(description="base with the shift − base")
    necessary: Estimate = Field(description="student − student without the shift")


class Emergence(_Value):
    """A student beside its control while both were trained; update 0 is the base."""

    updates: list[int]
    transfer: list[Estimate] = Field(description="student − control, nats")
    student: list[Number] = Field(description="student − base, nats, mean")
    control: list[Number] = Field(description="control − base, nats, mean")
    cosine: list[Number] = Field(
        description="cos(student − base, teacher's vector) at the vector's block; null "
        "where there is no vector, or nothing has moved"
    )


class Channel(_Value):
    """KL(teacher ‖ base) on the teacher's rows: what a student of them is offered."""

    vocabulary: Estimate = Field(
        description="nats a token, over all tokens: what soft students see"
    )
    carrier: Estimate = Field(
        description="nats a token, over what the sampler may draw: what rows can carry"
    )
    nats_a_row: Estimate = Field(description="of what the sampler may draw, a row")


class TrainingTrace(_Value):
    """Loss of one training run, thinned to at most 200 points."""

    updates: list[int]
    loss: list[Number]


class Condition(_Value):
    """One cell of the grid: a teacher, a noise level, a trait, a seed."""

    key: str
    teacher: str = Field(description="its name in the recipe, else its kind")
    noise: float
    trait: str
    seed: int
    student: str = Field(description="'lora', 'full' or 'soft'")
    rows: RowCounts
    control_rows: RowCounts
    readouts: list[Readout]
    transfer: Estimate = Field(description="student − control, nats, by question")
    transfer_from_base: Estimate = Field(description="student − base, nats")
    all_traits: dict[str, Number] = Field(
        description="student − control for every trait of the family, nats"
    )
    channel: Channel | None = Field(
        default=None, description="null if the recipe asked for none"
    )
    divergent_share: Number = Field(
        default=None,
        description="of the rows' tokens: those at which teachers with other traits "
        "would write another token; null if no student is trained by them",
    )
    shift: ShiftByLayer | None = None
    shape: ShiftShape | None = Field(default=None, description="of the student's shift")
    control_shape: ShiftShape | None = None
    causes: Causes | None = Field(
        default=None, description="null if the recipe names no block"
    )
    emergence: Emergence | None = Field(
        default=None, description="null if students were read at their end only"
    )
    training: TrainingTrace | None = None
    control_training: TrainingTrace | None = None
    notes: list[str] = Field(default_factory=list)


class Transfer(_Value):
    """Transfer of one teacher × noise × trait (or all traits), over its seeds."""

    teacher: str
    noise: float
    trait: str
    student: str = Field(default="lora", description="'lora', 'full' or 'soft'")
    way: str = Field(
        default="", description="how its students were trained otherwise than others"
    )
    transfer: Estimate
    from_base: Estimate | None = Field(
        default=None,
        description="student − base, nats: what remains if the control moved as well",
    )
    specific: Estimate = Field(
        description="transfer minus the mean shift of the other traits, nats"
    )
    shift_cosine: Estimate | None = None
    control_cosine: Estimate | None = None
    shift_size: Number = Field(
        default=None,
        description="of the student's shift after the last block, relative to the "
        "base's stream, mean over seeds",
    )
    channel: Channel | None = Field(
        default=None, description="its means over seeds, or of the only one over rows"
    )


class NoiseFactor(_Value):
    """Mean transfer with noise over mean transfer without, and the channel's own ratio."""

    teacher: str
    noise: float
    ratio: Estimate
    channel: Estimate | None = Field(
        default=None,
        description="mean channel with noise over mean channel without, of what this "
        "kind of student sees",
    )


class Prediction(_Value):
    """Whether a wider channel goes with more transfer, over the cells of the grid.

    Students that were trained in different ways are not put together.
    """

    student: str = Field(default="lora", description="'lora', 'full' or 'soft'")
    way: str = Field(default="", description="as in `transfers`")
    scope: Literal["vocabulary", "carrier"] = Field(description="which channel")
    of: Literal["transfer", "from_base", "shift_size", "shift_cosine"] = Field(
        description="which measure of the student, as in `transfers`"
    )
    correlation: Estimate = Field(description="Spearman's rank correlation over cells")
    p_value: Number = Field(description="permutation p, two-sided; never 0")


class Alignment(_Value):
    """Gradients of one teacher's rows on the plain base, against the traits' vectors."""

    teacher: str | None = Field(description="its name; null: the untouched base")
    kind: Literal["none", "prompt", "steer", "finetune"]
    trait: str | None
    noise: float
    seed: int
    rows: int
    vectors: list[str] = Field(description="traits; their vectors are 'tell_me'")
    layers: list[int]
    cosines: list[list[Number]] = Field(
        description="[layer][vector]: cos(mean gradient, vector)"
    )
    nats: list[list[Number]] = Field(
        description="[layer][vector]: mean slope of a row's log-likelihood by the "
        "relative dose of the vector, nats"
    )
    nats_sd: list[list[Number]] = Field(description="[layer][vector]: its sd over rows")
    vector_layer: int | None = Field(description="block of the teacher's own vector")
    dose: Number = Field(description="of that vector, ‖αv‖/‖h‖; 0 for the base")


class AlignmentFit(_Value):
    """What the alignments mean at one block: own vectors against others', and by dose."""

    noise: float
    layer: int
    own: Estimate | None = Field(
        description="cosine of rows steered here with their own trait's vector"
    )
    other: Estimate | None = Field(description="and with other traits' vectors")
    difference: Estimate | None = Field(
        description="of the two, set of rows by set of rows"
    )
    unsteered: Estimate | None = Field(
        description="cosine of rows of teachers with a trait but no vector, with that "
        "trait's vector"
    )
    untouched: Estimate | None = Field(description="cosine of the base's own rows")
    slope: Estimate = Field(
        description="nats a row per dose, by the dose of the teacher's vector: mean of "
        "each trait's own line"
    )
    correlation: Estimate = Field(description="Pearson's r of the two, likewise")
    curvature: Estimate = Field(
        description="of a parabola instead of the line, likewise; holding zero, no bend "
        "is shown"
    )


class Confusion(_Value):
    """Lift of student i (row) on trait j (column) against the control, and λ."""

    teacher: str
    noise: float
    traits: list[str]
    lift: list[list[Number]]
    diagonal: Estimate = Field(description="λ of lift ~ student + trait + is_diagonal")
    p_value: Number = Field(description="permutation p of λ; never 0")
    permutations: int


class Sweep(_Value):
    """The strength sweep of one steering vector and the point that was chosen."""

    trait: str
    noise: float | None = None
    seed: int | None = None
    points: list[dict[str, float | bool | str | None]]
    layer: int
    strength: float


class AuditTruth(_Value):
    """Who wrote the rows of an audited set; the auditor was not told."""

    words: str = Field(description="the truth in a few words")
    kind: Literal["none", "prompt", "steer", "finetune"] = Field(
        description="the teacher's intervention; 'none': the untouched base wrote all"
    )
    trait: str | None = None
    layer: int | None = Field(default=None, description="block of the teacher's vector")
    share: float = Field(description="share of the rows that the teacher wrote")


class AuditOutcome(_Value):
    """One set of rows that was audited blind, and whether the verdict is true of it."""

    name: str = Field(description="'biased', 'clean' or 'mixture'")
    truth: AuditTruth
    rows: int = Field(description="rows audited")
    reference_rows: int = Field(description="rows of the base they were compared with")
    verdict: Literal["trait", "shift", "none", "inconclusive"]
    trait: str | None = Field(description="the trait named")
    kind: Literal["steer", "prompt", "unknown"] | None = Field(
        description="the kind of intervention named"
    )
    layer: int | None = Field(description="the block named, counted from 0")
    p_value: Number = Field(description="of the null that the rows carry nothing")
    detectable_fraction: Number = Field(
        description="smallest share of biased rows it would have found"
    )
    sentence: str = Field(description="the verdict in one or two sentences")
    right: bool | None = Field(
        description="whether something was found just where a teacher wrote rows, and "
        "every trait and kind that was named is that teacher's; null if inconclusive"
    )
    report: str = Field(
        pattern=r"^audits/[a-z]+/report\.html$",
        description="the audit's own report, in the run's directory",
    )


class Results(_Value):
    """Everything that a run measured."""

    @model_validator(mode="before")
    @classmethod
    def _one_kind_of_student(cls, data: Any) -> Any:
        """Transfers did not name their kind of student when a run had one kind only."""
        if not isinstance(data, dict):
            return data
        conditions = data.get("conditions")
        first = conditions[0] if isinstance(conditions, list) and conditions else None
        kind = first.get("student") if isinstance(first, dict) else None
        old = {"student": kind} if isinstance(kind, str) else {}
        known = {
            name: [old | each if isinstance(each, dict) else each for each in values]
            for name in ("transfers", "predictions")
            if isinstance(values := data.get(name), list)
        }
        return data | known

    schema_version: int = SCHEMA_VERSION
    title: str
    question: str
    model: str
    confidence: float = 0.95
    headline: str = Field(description="the answer in one or two sentences")
    conditions: list[Condition]
    transfers: list[Transfer]
    noise_factors: list[NoiseFactor] = Field(default_factory=list)
    predictions: list[Prediction] = Field(
        default_factory=list, description="of the channel, where there are enough cells"
    )
    confusions: list[Confusion] = Field(default_factory=list)
    alignments: list[Alignment] = Field(
        default_factory=list, description="gradients of rows, if the recipe asks"
    )
    alignment_fits: list[AlignmentFit] = Field(default_factory=list)
    sweeps: list[Sweep] = Field(default_factory=list)
    audits: list[AuditOutcome] = Field(
        default_factory=list, description="sets of rows that were audited blind"
    )
    limits: list[str] = Field(default_factory=list, description="what was not tested")
    seconds: dict[str, float] = Field(
        default_factory=dict, description="wall-clock seconds of every stage"
    )
    provenance: dict[str, str | int | float | bool | list[str] | None] = Field(
        default_factory=dict
    )
