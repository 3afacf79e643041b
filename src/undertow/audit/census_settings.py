"""What a census is told: error rate, what is compared, how the work is cut."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from undertow.models.sampling import SamplerSettings


class CensusSettings(BaseModel):
    """Settings of one census; the same settings and rows give the same sums."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = Field(default="animals", description="traits to look for")
    decoys: str = Field(
        default="trees", description="family whose members stand for absent traits"
    )
    alpha: float = Field(default=0.01, gt=0, lt=1, description="error rate")
    seed: int = Field(default=0, ge=0, description="of partners, signs and samples")
    flips: int = Field(
        default=999, ge=99, le=9999, description="random signs that each row carries"
    )
    layers: tuple[int, ...] | None = Field(
        default=None, description="blocks of the scores; null: all"
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
    batch_rows: int = Field(
        default=1024,
        ge=1,
        description="rows of a file measured together; scores depend on it in their "
        "last digits, on nothing else in how the work is cut",
    )
    shard_batches: int = Field(
        default=4,
        ge=1,
        description="batches whose sums are one file; any gives the same",
    )
    pilot: int = Field(
        default=256, ge=8, description="rows that set sampler and grid beforehand"
    )
    top: int = Field(
        default=16, ge=0, description="rows kept of each trait for a human to look at"
    )
    subsample: int = Field(
        default=2000, ge=16, description="rows written out for an audit"
    )
    dose: float = Field(
        default=0.3, gt=0, description="relative dose that `detectable_fraction` is for"
    )

    @model_validator(mode="after")
    def _reachable(self) -> "CensusSettings":
        if 1 / (1 + self.flips) > self.alpha:
            raise ValueError(
                f"{self.flips} flips give no p-value below {1 / (1 + self.flips):.2g}; "
                f"got alpha {self.alpha:g}, expected at least that; raise flips"
            )
        return self
