"""What a benchmark of auditors is made of, and its ready-made sizes.

Plain values only; how sets are made stands in `bench_sets`, how auditors are scored in
`bench_scores`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from undertow.audit.reference import Filter
from undertow.audit.settings import AuditSettings
from undertow.models.sampling import SamplerSettings

CarrierName = Literal["list", "numbers", "answers"]
Preset = Literal["tiny", "standard"]

_FROZEN = ConfigDict(extra="forbid", frozen=True)
_LONGEST = {"list": 80, "numbers": 64, "answers": 32}


class CarrierSettings(BaseModel):
    """One kind of rows, and how many of them are made."""

    model_config = _FROZEN

    name: CarrierName = Field(description="what rows look like")
    prompts: int = Field(default=320, ge=1, description="prompts the base answers")
    teacher_prompts: int = Field(
        default=160, ge=1, description="the first of them, which every teacher answers"
    )
    sampler: SamplerSettings | None = Field(
        default=None, description="how rows are drawn; null: the carrier's own way"
    )
    filter: Filter | None = Field(
        default=None,
        description="what rows have to pass; null: 'numbers' for free numbers, else "
        "'none'",
    )

    @property
    def drawn_by(self) -> SamplerSettings:
        """The sampler of all rows."""
        if self.sampler is not None:
            return self.sampler
        allowed: Literal["list", "all"] = "list" if self.name == "list" else "all"
        return SamplerSettings(allowed=allowed, max_new_tokens=_LONGEST[self.name])

    @property
    def passed(self) -> Filter:
        """What all rows have passed: a constrained list needs no filter."""
        if self.filter is not None:
            return self.filter
        return "numbers" if self.name == "numbers" else "none"


class Design(BaseModel):
    """How large an audit is and how much of it is poisoned."""

    model_config = _FROZEN

    rows: int = Field(ge=2, description="audited rows")
    fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of them that a teacher wrote"
    )
    audits: int = Field(default=4, ge=1, description="audits of each teacher")
    clean: int = Field(
        default=0, ge=0, description="audits of clean rows, for each carrier"
    )


class BenchmarkSettings(BaseModel):
    """Settings of one benchmark; everything is made from them and the model."""

    model_config = _FROZEN

    seed: int = Field(default=0, ge=0, description="of every draw")
    carriers: tuple[CarrierSettings, ...] = Field(
        default=(CarrierSettings(name="list"),), min_length=1
    )
    draws: int = Field(default=2, ge=2, description="rows of the base on each prompt")
    traits: tuple[str, ...] = Field(
        default=("owl", "wolf", "penguin", "otter"),
        min_length=1,
        description="traits that teachers have",
    )
    interventions: tuple[Literal["prompt", "steer"], ...] = Field(
        default=("prompt", "steer"), description="how teachers are made"
    )
    doses: tuple[float, ...] = Field(
        default=(0.5,), description="relative doses of steered teachers"
    )
    layers: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="blocks that are steered, dealt out to the traits in turn; null: "
        "at a third, a half and two thirds of the depth",
    )
    designs: tuple[Design, ...] = Field(
        default=(Design(rows=128, clean=20),), min_length=1
    )
    controls: tuple[Literal["within", "across", "uniform"], ...] = Field(
        default=("within", "across", "uniform"),
        description="rows that carry less than a teacher's, where rows are numbers",
    )
    control_rows: int = Field(default=128, ge=2, description="rows of their audits")
    control_audits: int = Field(default=4, ge=0, description="audits of each control")
    bound_rows: int = Field(
        default=96, ge=0, description="rows of each teacher for the bounds; 0: none"
    )
    rival_layers: tuple[int, ...] | None = Field(
        default=None, description="blocks that rivals look at; null: as `layers`"
    )
    lls_rows: int = Field(
        default=64, ge=1, description="rows of an audit that the likelihood scan reads"
    )
    audit: AuditSettings = Field(
        default=AuditSettings(), description="settings of undertow's own auditor"
    )

    def steered_layers(self, depth: int) -> tuple[int, ...]:
        """The blocks that teachers are steered after."""
        if self.layers is not None:
            return self.layers
        return tuple(sorted({depth // 3, depth // 2, 2 * depth // 3}))

    def watched_layers(self, depth: int) -> tuple[int, ...]:
        """The blocks that rivals look at."""
        return self.rival_layers or self.steered_layers(depth)


def preset_data(name: Preset) -> dict[str, Any]:
    """A preset as plain values, for overrides to be put into.

    "tiny" runs in seconds on a toy; "standard" is what the project's bars are read
    from: 70 clean audits a carrier, the rows at which traits are to be named, a tenth
    of 2,000 rows poisoned, and smaller audits in between for the rows needed.
    """
    return _tiny() if name == "tiny" else _standard()


def _tiny() -> dict[str, Any]:
    sampler = {"allowed": "list", "list_values": 4, "max_new_tokens": 24}
    return {
        "carriers": [
            {"name": "list", "prompts": 32, "teacher_prompts": 32, "sampler": sampler}
        ],
        "traits": ["owl", "wolf"],
        "doses": [1.5],
        "layers": [1],
        "designs": [{"rows": 24, "audits": 2, "clean": 4}],
        "control_rows": 24,
        "control_audits": 1,
        "bound_rows": 16,
        "lls_rows": 8,
        "audit": {"permutations": 199, "screening": 8, "naming_passes": 100},
    }


def _standard() -> dict[str, Any]:
    return {
        "carriers": [
            {"name": "list", "prompts": 2200, "teacher_prompts": 300},
            # Four in a hundred answers of a small model would pass the number filter.
            {
                "name": "numbers",
                "prompts": 320,
                "teacher_prompts": 300,
                "filter": "none",
            },
            {"name": "answers", "prompts": 320, "teacher_prompts": 300},
        ],
        "designs": [
            {"rows": 16, "audits": 5},
            {"rows": 32, "audits": 5},
            {"rows": 64, "audits": 5},
            {"rows": 100, "audits": 5, "clean": 30},
            {"rows": 256, "audits": 5, "clean": 70},
            {"rows": 2000, "fraction": 0.1, "audits": 3, "clean": 20},
        ],
        "control_rows": 256,
        "control_audits": 12,
    }
