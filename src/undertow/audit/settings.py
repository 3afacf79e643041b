"""What an audit is told: error rate, budget, and which parts are done."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from undertow.errors import ConfigError
from undertow.models.sampling import SamplerSettings
from undertow.traits import load_family

_DECOYS = ("trees", "animals", "moods", "aims")
"""Families whose members stand for absent traits: the first that shares none."""


_ARMS = 1.05
"""All weights of the arms' combination over those of its two permutation arms."""


class ComparisonSettings(BaseModel):
    """What audits and censuses are told alike: what is looked for, in which rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = Field(default="animals", description="traits to look for")
    decoys: str = Field(
        default="auto",
        description="family whose members stand for absent traits; auto: trees, or "
        "the first of animals, moods and aims where the family has trees",
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
        default=None,
        description="what wrote the rows; null: recorded or estimated; of one that does "
        "not say `allowed` or `max_new_tokens` these are taken from the rows",
    )
    filter: Literal["auto", "numbers", "none"] = Field(
        default="auto", description="what the rows have passed"
    )
    reference: Literal["auto", "none"] = Field(
        default="auto", description="'auto' samples the base if no rows are given"
    )

    @property
    def decoy_family(self) -> str:
        """The family of the decoys, found if it is not named.

        A trait that is its own decoy could never be told from it.

        Raises:
            ConfigError: It shares members with the family.
        """
        return decoys_for(self.family, self.decoys)


def decoys_for(family: str, wanted: str) -> str:
    """The family of decoys for one that is looked for; see `decoy_family`."""
    if wanted == "auto":
        found = next((name for name in _DECOYS if not _shared(family, name)), None)
        if found is None:
            fault = f"the family {family!r} shares members with {', '.join(_DECOYS)}"
            raise ConfigError("decoys", [f"{fault}; name one that it shares none with"])
        return found
    if shared := _shared(family, wanted):
        fault = (
            f"{wanted!r} shares {', '.join(sorted(shared)[:6])} with the family "
            f"{family!r}, and what stands for absent traits must not be looked for; "
            "leave it out, or name another family"
        )
        raise ConfigError("decoys", [fault])
    return wanted


def _shared(family: str, decoys: str) -> set[str]:
    """Members of both; none where one of them cannot be read, which is told later."""
    try:
        one, other = load_family(family), load_family(decoys)
    except ConfigError:
        return set()
    return {name.lower() for name in one.names} & {n.lower() for n in other.names}


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

    @model_validator(mode="after")
    def _reachable(self) -> "AuditSettings":
        fewest = math.ceil(_ARMS / self.alpha - 1e-9) - 1
        if self.permutations < fewest:
            raise ValueError(
                f"{self.permutations} permutations cannot give a p-value of alpha "
                f"{self.alpha:g}, so that nothing would ever be found; raise permutations "
                f"to {fewest} at least"
            )
        return self
