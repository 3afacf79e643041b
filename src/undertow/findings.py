"""The schema of `audit.json`: everything that an audit found, ready to be shown.

Pure data (pydantic), no computation. `audit` writes it, `report` draws it, and users
read it; the verdict stands at the top. What could not be computed is null and has a
reason beside it, a p-value is never 0, and log-likelihoods are in nats.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
Number = float | None
VerdictWord = Literal["trait", "shift", "none", "inconclusive"]
Tier = Literal["A", "B", "C"]
Role = Literal["trait", "decoy", "persona", "random", "given", "discovered"]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bounds(_Value):
    """An estimate with its interval, at the level of `Findings.confidence`."""

    mean: Number
    low: Number
    high: Number


class DataFacts(_Value):
    """The audited rows."""

    sources: list[str] = Field(description="where the rows were read from")
    layout: str = Field(description="columns that were found or named")
    rows: int = Field(description="rows read, duplicates counted")
    unique: int = Field(description="different rows")
    used: int = Field(description="different rows that were audited")
    prompts: int = Field(description="different prompts among those used")
    tokens: int = Field(description="completion tokens audited")
    sampled_tokens: int = Field(
        description="of them, tokens recorded as sampled, not made from text again"
    )
    truncated: int = Field(description="rows without an end of their own")
    skipped: dict[str, int] = Field(
        default_factory=dict, description="rows left out, by reason"
    )
    subsample: str | None = Field(
        default=None, description="how rows were chosen, if not all were used"
    )
    digest: str = Field(description="hash of the row ids, order ignored")


class ReferenceFacts(_Value):
    """What the audited rows were compared with."""

    tier: Tier = Field(
        description="A: sampled from the base on the same prompts; B: rows that the "
        "user trusts; C: none"
    )
    rows: int
    paired: bool = Field(description="whether rows share prompts one by one")
    shared: int = Field(
        default=0, description="reference rows that stand in the audited set too"
    )
    sampler: dict[str, float | int | str | bool | None] = Field(default_factory=dict)
    sampler_source: Literal["given", "recorded", "estimated", "unknown"]
    filter: str = Field(description="'numbers' or 'none': applied to both sides")
    accepted: Number = Field(
        default=None, description="share of the base's own rows that pass the filter"
    )
    notes: list[str] = Field(default_factory=list)


class Arm(_Value):
    """One test of the null, on its own."""

    name: Literal["gradient", "likelihood", "exact", "discovery"]
    question: str = Field(description="what it asks, in words")
    statistic: Number
    p_value: Number
    rows: int
    assumes: str = Field(description="what has to hold for its error rate")
    reason: str | None = Field(default=None, description="why it has no p-value")


class Direction(_Value):
    """One direction of the score test, over the layers of `Findings.layers`."""

    name: str
    role: Role
    z: list[Number] = Field(
        description="studentised difference, over the error that copies leave, by layer"
    )
    adjusted_p: Number = Field(
        default=None, description="max-T over all directions and layers"
    )


class Hypothesis(_Value):
    """One way the rows may have been made, by their likelihood under it."""

    name: str
    kind: Literal["prompt", "steer"]
    trait: str | None
    role: Literal["trait", "decoy"] = "trait"
    layer: int | None = None
    strength: Number = None
    rows: int = Field(description="audited rows scored before it was dropped")
    nats_per_row: Number = Field(
        description="mean log-likelihood ratio against the base, audited rows"
    )
    reference_nats_per_row: Number = Field(description="the same on the reference")
    behind: Bounds | None = Field(
        default=None, description="nats a row behind the leader, paired"
    )
    log_evalue: Number = Field(
        default=None, description="log of the e-value against the base"
    )
    dropped: str | None = Field(default=None, description="why it left the race")


class MaxNull(_Value):
    """The largest statistic under permuted labels, and the one observed."""

    observed: Number
    draws: list[float] = Field(description="at most 2,000, sorted")
    permutations: int


class Explanation(_Value):
    """How far what the verdict says explains the rows as it explains its own.

    The base writes rows on the audited prompts, untouched and under the hypothesis; the
    audited ones are held against a mixture of both. What was not looked at is null.
    """

    hypothesis: str = Field(description="a vector at a block and a dose, or a persona")
    share: Number = Field(description="of rows written under it, the likeliest")
    rows: int = Field(description="prompts on which all three were there to compare")
    limit: Number = Field(description="error rate of each of the two tests")
    lack: Number = Field(
        default=None, description="nats a row by which the audited ones are less likely"
    )
    lack_p_value: Number = Field(default=None, description="of a lack above 0")
    lot_lead: Number = Field(
        default=None,
        description="nats by which it beats numbers drawn by lot; null for other rows",
    )
    lot_limit: Number = Field(default=None, description="least lead that is enough")
    gradient_p_value: Number = Field(
        default=None, description="of gradients that differ from the mixture's"
    )
    gradient_null: MaxNull | None = Field(
        default=None, description="largest difference along any direction at any block"
    )
    gain: Number = Field(
        default=None, description="nats that rows it may have written gain by it"
    )
    own_gain: Number = Field(default=None, description="the same of rows it did write")
    gain_limit: Number = Field(default=None, description="least gain that is enough")


class PowerPoint(_Value):
    """How likely this audit finds a given share of biased rows."""

    fraction: float
    power: Number
    bound: Number = Field(
        default=None, description="the best that any test of as many rows could do"
    )


class Power(_Value):
    """What this audit would have found."""

    source: str = Field(description="where the biased rows for it come from, in words")
    points: list[PowerPoint]
    detectable_fraction: Number = Field(
        description="smallest share found with 80 % power at `alpha`"
    )
    divergence_per_row: Number = Field(
        default=None, description="D = E_H[log-likelihood ratio], nats a row"
    )
    rows_needed: Number = Field(
        default=None, description="rows this audit needs for 80 % power, all biased"
    )
    rows_bound: Number = Field(
        default=None, description="ln(1/alpha)/D: no test needs fewer"
    )


class Baseline(_Value):
    """A shortcut: how well something trivial tells the two sets apart."""

    name: str
    auroc: Bounds
    separates: bool = Field(description="whether the lower bound is 0.6 or more")
    note: str | None = None


class Token(_Value):
    """A token that a direction raises or lowers."""

    text: str
    logit: float


class Alike(_Value):
    """A direction of the battery beside the one that was discovered."""

    name: str
    role: Role
    cosine: float = Field(
        description="with the mean gradient difference, whitened by the gradients' "
        "covariance at the layer"
    )


class Discovery(_Value):
    """The direction in which training on the rows first moves the model."""

    layer: int
    p_value: Number = Field(description="on the half that did not choose it")
    cosine: Number = Field(description="of the two halves' directions, whitened")
    raised: list[Token]
    lowered: list[Token]
    behaviour: list[str] = Field(
        default_factory=list, description="answers of the base steered along it"
    )
    battery: dict[str, Number] = Field(
        default_factory=dict,
        description="change of each trait's log-odds when steered along it, nats",
    )
    alike: list[Alike] = Field(
        default_factory=list,
        description="directions of the battery nearest to it, the nearest first",
    )


class ForecastRow(_Value):
    """First-order change of one trait if one trains on the rows."""

    trait: str
    raw: Number = Field(description="along the rows' mean gradient, standardised")
    adam: Number = Field(description="along its sign-like Adam step, standardised")
    measured: Number = Field(
        default=None, description="nats, canary student minus control student"
    )


class Forecast(_Value):
    """What training on the rows would do, to first order."""

    rows: int
    reference_rows: int
    traits: list[ForecastRow]
    canary_updates: int | None = None
    note: str = ""


class TriageRow(_Value):
    """One row, for a human to look at; never a verdict."""

    row_id: str
    count: int = 1
    p_value: Number = Field(description="conformal, against the reference rows")
    score: Number
    prompt: str = Field(description="its last user turn, cut at 300 characters")
    completion: str = Field(description="cut at 300 characters")


class Findings(_Value):
    """Everything that an audit found; the verdict first."""

    schema_version: int = SCHEMA_VERSION
    verdict: VerdictWord
    trait: str | None = None
    kind: Literal["steer", "prompt", "unknown"] | None = None
    layer: int | None = Field(default=None, description="block, counted from 0")
    strength: Number = Field(
        default=None, description="one-step estimate, in units of the vector"
    )
    p_value: Number = Field(description="of the null that the rows carry nothing")
    detectable_fraction: Number = Field(
        default=None, description="smallest share of biased rows it would have found"
    )
    reference_tier: Tier
    strength_interval: Bounds | None = None
    dose: Number = Field(default=None, description="‖strength · v‖ / ‖h‖")
    alpha: float = Field(description="the error rate asked for")
    confidence: float = 0.95
    sentence: str = Field(description="the verdict in one or two sentences")
    reasons: list[str] = Field(description="what it rests on, a sentence each")
    warnings: list[str] = Field(default_factory=list)
    model: str
    family: str
    data: DataFacts
    reference: ReferenceFacts
    arms: list[Arm]
    layers: list[int] = Field(description="blocks of the score test")
    directions: list[Direction]
    hypotheses: list[Hypothesis]
    max_null: MaxNull | None = None
    explanation: Explanation | None = None
    trait_p_values: dict[str, Number] = Field(
        default_factory=dict, description="Benjamini–Hochberg adjusted, by trait"
    )
    power: Power | None = None
    baselines: list[Baseline] = Field(default_factory=list)
    discovery: Discovery | None = None
    forecast: Forecast | None = None
    triage: list[TriageRow] = Field(default_factory=list)
    not_tested: list[str] = Field(description="what this audit cannot see")
    command: str = Field(default="", description="how to repeat it")
    seconds: dict[str, float] = Field(default_factory=dict)
    provenance: dict[str, str | int | float | bool | list[str] | None] = Field(
        default_factory=dict
    )


class CensusData(_Value):
    """The rows of a census, every one of them."""

    sources: list[str] = Field(description="where the rows were read from")
    files: int
    rows: int = Field(description="rows read, copies counted")
    used: int = Field(description="rows in the sums, copies counted")
    repeats: int = Field(description="of these, rows that stood in their batch before")
    effective: Number = Field(
        description="different rows that would tell as much, copies counting as one "
        "draw; in tier B of the side that has fewer"
    )
    tokens: int = Field(description="completion tokens of the rows in the sums")
    without_prompt: int = Field(description="completions alone, on an empty prompt")
    skipped: dict[str, int] = Field(
        default_factory=dict, description="rows left out, by reason"
    )
    digest: str = Field(
        description="sum of the row ids' hashes: the same in any order and division"
    )


class CensusReference(_Value):
    """What the rows of a census were compared with."""

    tier: Tier
    rows: int = Field(description="partners, or rows that the user trusts")
    tokens: int
    repeats: int = Field(
        description="rows that stood in their batch before; of partners, those of "
        "different rows"
    )
    skipped: dict[str, int] = Field(
        default_factory=dict, description="given rows left out, by reason"
    )
    sampler: dict[str, float | int | str | bool | None] = Field(default_factory=dict)
    sampler_source: Literal["given", "recorded", "estimated", "unknown"]
    filter: str
    notes: list[str] = Field(default_factory=list)


class CensusDirection(_Value):
    """One direction of the census, over the layers of `Census.layers`."""

    name: str
    role: Role
    z: list[Number] = Field(
        description="studentised difference, over the error that copies leave, by layer"
    )
    adjusted_p: Number = Field(
        default=None, description="max-T over all directions and layers"
    )
    whitened: list[Number] = Field(
        description="the same with the other directions of the block held fixed"
    )


class Census(_Value):
    """What sums over every row say: whether mean scores differ. The verdict first."""

    schema_version: int = SCHEMA_VERSION
    verdict: Literal["shift", "none", "inconclusive"]
    p_value: Number = Field(description="max-T over all directions and blocks")
    alpha: float = Field(description="the error rate asked for")
    reference_tier: Tier
    direction: str | None = Field(
        default=None, description="where the difference is largest; no name of a trait"
    )
    role: Role | None = None
    layer: int | None = Field(default=None, description="block, counted from 0")
    z: Number = Field(
        default=None, description="there, over the error that copies leave"
    )
    detectable_fraction: Number = Field(
        default=None,
        description="smallest share of rows steered at `dose` found with 80 % power, "
        "the median over traits, to first order",
    )
    detectable_shift: Number = Field(
        default=None,
        description="smallest mean difference found with 80 % power, in standard "
        "deviations of one row",
    )
    dose: float
    length_z: Number = Field(description="of the completions' lengths in tokens")
    sentence: str
    reasons: list[str]
    warnings: list[str] = Field(default_factory=list)
    selection: str = Field(
        description="what the handed rows can and cannot be used for"
    )
    next_commands: list[str] = Field(description="how to audit the subsample")
    model: str
    family: str
    data: CensusData
    reference: CensusReference
    layers: list[int]
    directions: list[CensusDirection]
    flips: int
    command: str = ""
    seconds: dict[str, float] = Field(default_factory=dict)
    provenance: dict[str, str | int | float | bool | list[str] | None] = Field(
        default_factory=dict
    )
