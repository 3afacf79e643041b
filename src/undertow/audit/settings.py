"""What an audit is told: error rate, budget, and which parts are done."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from undertow.models.sampling import SamplerSettings


class ComparisonSettings(BaseModel):
    """What audits and censuses are told alike: what is looked for, in which rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = Field(default="animals", description="traits to look for")
    decoys: str = Field(
        default="trees", description="family whose members stand for absent traits"
    )
    alpha: float = Field(default=0.01, gt=0, lt=1, description="error rate")
    seed: int = Field(default=0, ge=0, description="of every draw")
    layers: tuple[int, ...] | None = Field(
        default=None, description="blocks of the score test; null: all"
    )
    system: str | None = Field(
        default=None, description="system text of rows that have none of their own"
    )
    sampler: SamplerSettings | None = Field(
        default=None, description="what wrote the rows; null: recorded or estimated"
    )
    filter: Literal["auto", "numbers", "none"] = Field(
        default="auto", description="what the rows have passed"
    )
    reference: Literal["auto", "none"] = Field(
        default="auto", description="'auto' samples the base if no rows are given"
    )


class AuditSettings(ComparisonSettings):
    """Settings of one audit; the same settings and rows give the same findings."""

    permutations: int = Field(default=9999, ge=99, description="of labels")
    max_rows: int = Field(default=2000, ge=1, description="different rows audited")
    personas: int = Field(
        default=2, ge=1, description="personas that look for any; naming takes them all"
    )
    screening: int = Field(
        default=24, ge=4, description="rows on which every hypothesis is scored"
    )
    race_passes: int = Field(
        default=400,
        ge=0,
        description="row passes that telling vectors apart may take",
    )
    naming_passes: int = Field(
        default=1600,
        ge=0,
        description="row passes that telling personas apart may take beyond the "
        "screening; 0: personas are not told apart",
    )
    fresh: int = Field(
        default=128, ge=0, description="rows of each set the leaders are tried on"
    )
    planted: int = Field(
        default=32, ge=0, description="rows planted to measure power; 0: no power"
    )
    discover: bool = Field(default=True, description="describe an unnamed shift")
    forecast: int = Field(
        default=48, ge=0, description="rows for the forecast; 0: no forecast"
    )
    canary_updates: int = Field(
        default=0, ge=0, description="updates of the canary students; 0: none"
    )
    triage: int = Field(default=20, ge=0, description="rows shown to a human")
