"""All that an audit has in hand, as one value for those who write it up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from undertow.audit.judgement import Judgement
from undertow.audit.meter import Meter
from undertow.audit.reference import Filter, Reference
from undertow.audit.sampling import Sampling
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery
from undertow.findings import Baseline, Discovery, Forecast, Power
from undertow.models.loading import Model
from undertow.records import Row
from undertow.traits import TraitFamily


@dataclass(frozen=True)
class Origin:
    """What is known of the data beside its rows, for the findings.

    Attributes:
        sources: Names.
        layout: Columns.
        read: Rows read, duplicates counted.
        unique: Different ones.
        counts: How often each row stood in the data.
        skipped: Rows left out, by reason.
        subsample: How rows were chosen, if not all.
        command: How to repeat the audit.
    """

    sources: tuple[str, ...] = ("memory",)
    layout: str = "rows"
    read: int | None = None
    unique: int | None = None
    counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    skipped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    subsample: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Audited:
    """All that an audit has, for those who write it up.

    Attributes:
        model: The base.
        settings: What was asked.
        family: The traits.
        origin: Of the data.
        rows: Audited rows, sorted by id.
        skipped: Rows left out, by reason.
        reference: What they were compared with.
        sampling: How they were drawn.
        filter: What they passed.
        battery: Directions.
        meter: Measurements.
        judgement: The verdict.
        baselines: Shortcuts.
        power: What would have been found.
        discovery: An unnamed direction, described.
        forecast: What training would do.
        seconds: By stage.
        started: When.
    """

    model: Model
    settings: AuditSettings
    family: TraitFamily
    origin: Origin
    rows: tuple[Row, ...]
    skipped: Mapping[str, int]
    reference: Reference
    sampling: Sampling
    filter: Filter
    battery: Battery
    meter: Meter
    judgement: Judgement
    baselines: list[Baseline]
    power: Power | None
    discovery: Discovery | None
    forecast: Forecast | None
    seconds: dict[str, float]
    started: str
