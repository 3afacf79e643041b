"""What a census is told: error rate, what is compared, how the work is cut."""

from pydantic import Field, model_validator

from undertow.audit.settings import ComparisonSettings


class CensusSettings(ComparisonSettings):
    """Settings of one census; the same settings and rows give the same sums."""

    flips: int = Field(
        default=999, ge=99, le=9999, description="random signs that each row carries"
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
        description="batches whose sums are one file; any gives the same in the end, but "
        "a census goes on with its own only",
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
