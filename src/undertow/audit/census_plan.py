"""What has to be settled before rows are summed: sampler, battery, grid.

All of it comes from a pilot of a few hundred rows, drawn by their content, and is kept on
disk: a census that goes on, and every process that helps, rounds to the same grid. Knows
nothing of the sums.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from undertow.analysis.gradients import gradient_scores
from undertow.audit.census_settings import CensusSettings
from undertow.audit.partners import draw_partners
from undertow.audit.reference import GREEDY, Filter, Passing, find_filter
from undertow.audit.sampling import Sampling, Source, find_sampler
from undertow.audit.shard_sums import Measuring, finite_rows
from undertow.audit.shards import Survey
from undertow.audit.signals import Battery, make_battery
from undertow.audit.sums import Grid
from undertow.audit.sums_files import sound_arrays
from undertow.errors import DatasetError, RunError
from undertow.findings import Role, Tier
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import Rendered, render_rows
from undertow.models.loading import Model
from undertow.models.reloading import ModelFacts
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood
from undertow.records import Row
from undertow.storage import file_sha256, read_json, replacing, write_json
from undertow.traits import load_family

PLAN, ARRAYS = "plan.json", "plan.npz"
_PERSONA_PROMPTS = 16
_FEWEST = 2


@dataclass(frozen=True)
class Plan:
    """Everything that is the same for all rows.

    Attributes:
        measuring: How each row is measured.
        names: Of the directions.
        roles: Of the directions.
        norms: [layer], median norm of the stream, the unit of doses.
        source: How the sampler is known.
        notes: What is to be said of it.
    """

    measuring: Measuring
    names: tuple[str, ...]
    roles: tuple[Role, ...]
    norms: tuple[float, ...]
    source: Source
    notes: tuple[str, ...]


class _Pilot(NamedTuple):
    rows: list[Row]
    rendered: list[Rendered]


def make_plan(
    model: Model,
    seen: Survey,
    trusted: Survey | None,
    *,
    facts: ModelFacts,
    settings: CensusSettings,
    vectors: Sequence[SteeringVector] = (),
    tell: Callable[[str, int, int, str], None],
) -> Plan:
    """Settles sampler, tier, battery and grid on the pilot.

    Args:
        model: The base.
        seen: The audited rows' survey.
        trusted: The reference rows' survey, if there are any.
        facts: How other processes find the model.
        settings: Of the census.
        vectors: Further directions.
        tell: Told of (stage, done, in all, note).

    Raises:
        DatasetError: No pilot row can be used, or the base's answers never pass.
    """
    pilot = _rendered(model, seen.pilot, settings)
    if len(pilot.rows) < _FEWEST and trusted is None:
        pilot = _Pilot(pilot.rows * _FEWEST, pilot.rendered * _FEWEST)
    sampling = find_sampler(
        model, pilot.rows, system=settings.system, given=settings.sampler
    )
    sampling = _roomy(model, pilot, sampling, settings.sampler)
    tier = _tier(sampling, trusted, settings)
    greedy = tier == "C" and sampling.sampler.temperature == 0
    passed = find_filter(pilot.rows) if settings.filter == "auto" else settings.filter
    passing = _passing(model, seen, sampling.sampler, tier, passed)
    tell("pilot", 0, 3, "")
    other = _reference(model, pilot, trusted, sampling, passing, tier, settings)
    tell("pilot", 1, 3, "")
    battery = make_battery(
        model, load_family(settings.family), decoys=load_family(settings.decoy_family),
        pilot=_possible(model, other[0], sampling)[:32],
        prompts=[r.messages[-1].content for r in pilot.rows[:_PERSONA_PROMPTS]],
        sampler=sampling.sampler, given=vectors, layers=settings.layers,
        system=settings.system, seed=settings.seed,
    )  # fmt: skip
    tell("pilot", 2, 3, "")
    grid = _grid(model, battery, sampling, other)
    tell("pilot", 3, 3, "")
    measuring = Measuring(
        model=facts, tier=tier, layers=battery.layers,
        directions=battery.directions.float().numpy(),
        named=tuple(battery.of_role("trait", "given")), grid=grid,
        sampler=sampling.sampler, passing=passing, system=settings.system,
        seed=settings.seed, flips=settings.flips, top=settings.top,
    )  # fmt: skip
    return Plan(
        measuring, battery.names, battery.roles, battery.norms, sampling.source,
        (*sampling.notes, *((GREEDY,) if greedy else ())),
    )  # fmt: skip


def _rendered(model: Model, rows: Sequence[Row], settings: CensusSettings) -> _Pilot:
    found = render_rows(model, rows, system=settings.system)
    fine = [
        (row, ids)
        for row, ids in zip(rows, found, strict=True)
        if isinstance(ids, Rendered)
    ]
    if not fine:
        raise DatasetError(
            f"none of {len(rows)} rows that stand for all can be measured: "
            f"{next(why.reason for why in found if not isinstance(why, Rendered))}; "
            "check the data, or take a model with a longer context"
        )
    return _Pilot([row for row, _ in fine], [ids for _, ids in fine])


def _roomy(
    model: Model, pilot: _Pilot, sampling: Sampling, given: SamplerSettings | None
) -> Sampling:
    """With room for rows that are longer than the pilot's, if the limit is a guess.

    Where rows are recorded as cut, the longest of them were cut at the limit itself.
    """
    is_cut = any(row.finish == "length" for row in pilot.rows)
    is_named = given is None or "max_new_tokens" in given.model_fields_set
    answer = max(len(row.ids) - row.completion_start for row in pilot.rendered)
    taken = sampling.source == "given" and not is_named
    of_pilot = taken and sampling.sampler.max_new_tokens == answer
    if is_cut or not (sampling.source == "estimated" or of_pilot):
        return sampling
    longest = max(row.completion_start for row in pilot.rendered)
    most = min(2 * sampling.sampler.max_new_tokens, model.context - longest)
    most = max(most, sampling.sampler.max_new_tokens)
    sampler = sampling.sampler.model_copy(update={"max_new_tokens": most})
    return Sampling(sampler, sampling.source, sampling.notes)


def _tier(sampling: Sampling, trusted: Survey | None, settings: CensusSettings) -> Tier:
    if trusted is not None:
        return "B"
    alone = settings.reference == "none" or sampling.sampler.temperature == 0
    return "C" if alone else "A"


def _passing(
    model: Model, seen: Survey, sampler: SamplerSettings, tier: Tier, passed: Filter
) -> Passing:
    if tier == "A":
        return Passing.like(
            passed, most_tokens=sampler.max_new_tokens, cut=seen.cut,
            recorded=seen.recorded, empty=seen.empty,
        )  # fmt: skip
    return Passing("none", model.context, cut=True, empty=True)


def _reference(
    model: Model,
    pilot: _Pilot,
    trusted: Survey | None,
    sampling: Sampling,
    passing: Passing,
    tier: Tier,
    settings: CensusSettings,
) -> tuple[list[Rendered], list[Rendered]]:
    """Rows that the grid is made for, and in tier A whom they stand against."""
    if trusted is not None:
        found = _rendered(model, trusted.pilot, settings).rendered
        return (found * _FEWEST if len(found) < _FEWEST else found), []
    if tier == "C":
        return pilot.rendered, []
    room = model.context - sampling.sampler.max_new_tokens
    fits = [i for i, ids in enumerate(pilot.rendered) if ids.completion_start <= room]
    drawn = draw_partners(
        model, [pilot.rows[i] for i in fits],
        [pilot.rendered[i].ids[: pilot.rendered[i].completion_start] for i in fits],
        sampler=sampling.sampler, passing=passing, seed=settings.seed,
    )  # fmt: skip
    pairs = [(i, row) for i, row in zip(fits, drawn, strict=True) if row is not None]
    ids = render_rows(model, [row for _, row in pairs], system=settings.system)
    fine = [
        (found, pilot.rendered[i])
        for (i, _), found in zip(pairs, ids, strict=True)
        if isinstance(found, Rendered)
    ]
    if not fine:
        raise DatasetError(
            f"the base has no answer to any of {len(fits)} prompts that passes the "
            f"filter {passing.filter!r} within {passing.most_tokens} tokens; give rows "
            "that you trust (--reference FILE), or set filter and sampler"
        )
    return [one for one, _ in fine], [other for _, other in fine]


def _possible(
    model: Model, rows: Sequence[Rendered], sampling: Sampling
) -> list[Rendered]:
    """Rows that the sampler can have drawn."""
    likelihood = DrawLikelihood(model, sampling.sampler)
    return [row for row in rows if likelihood.drawn(row).is_possible]


def _grid(
    model: Model,
    battery: Battery,
    sampling: Sampling,
    pilot: tuple[list[Rendered], list[Rendered]],
) -> Grid:
    mine, others = pilot
    if others:
        possible = set(map(id, _possible(model, [*mine, *others], sampling)))
        kept = [
            i for i, pair in enumerate(zip(mine, others, strict=True))
            if possible.issuperset(map(id, pair))
        ]  # fmt: skip
        mine, others = [mine[i] for i in kept], [others[i] for i in kept]
    else:
        mine = _possible(model, mine, sampling)
    if not mine:
        raise DatasetError(
            "reference: none of the rows that stand for all can come from the sampler "
            f"of the audited rows (allowed={sampling.sampler.allowed!r}); give rows of "
            "the same format, or name the sampler that wrote both"
        )
    found = gradient_scores(
        model, [*mine, *others], battery.by_layer(), sampler=sampling.sampler,
    ).scores  # fmt: skip
    count = len(mine)
    fine = finite_rows(found)
    if not others:
        return Grid.of_pilot(found[fine])
    both = fine[:count] & fine[count:]
    own, other = found[:count][both], found[count:][both]
    return Grid.of_pilot(own, other - own)


# ---- on disk


def write_plan(plan: Plan, folder: Path) -> None:
    """Writes a plan, its arrays first.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    measuring = plan.measuring
    grid = measuring.grid
    with replacing(folder / ARRAYS) as draft:
        np.savez(
            draft, directions=measuring.directions, centre=grid.centre,
            spread=grid.spread, step=grid.step, pair_step=grid.pair_step,
        )  # fmt: skip
    write_json(folder / PLAN, {
        "model": asdict(measuring.model), "tier": measuring.tier,
        "layers": measuring.layers, "named": measuring.named,
        "sampler": measuring.sampler.model_dump(mode="json"),
        "passing": asdict(measuring.passing), "system": measuring.system,
        "seed": measuring.seed, "flips": measuring.flips, "top": measuring.top,
        "names": plan.names, "roles": plan.roles, "norms": plan.norms,
        "source": plan.source, "notes": plan.notes,
    })  # fmt: skip


def plan_digest(folder: Path) -> str:
    """16 digits of all that stands in a plan: sums of other plans do not add to its."""
    content = "".join(file_sha256(folder / name) for name in (PLAN, ARRAYS))
    return hashlib.sha256(content.encode("ascii")).hexdigest()[:16]


def read_plan(folder: Path) -> Plan:
    """The plan that `write_plan` wrote.

    Raises:
        RunError: It is damaged.
    """
    try:
        facts: Mapping[str, Any] = read_json(folder / PLAN)
        arrays = sound_arrays(folder / ARRAYS)
        directions = arrays.pop("directions")
        measuring = Measuring(
            model=ModelFacts(**facts["model"]), tier=facts["tier"],
            layers=tuple(facts["layers"]), directions=directions,
            named=tuple(facts["named"]), grid=Grid(**arrays),
            sampler=SamplerSettings(**facts["sampler"]),
            passing=Passing(**facts["passing"]), system=facts["system"],
            seed=facts["seed"], flips=facts["flips"], top=facts["top"],
        )  # fmt: skip
        return Plan(
            measuring, tuple(facts["names"]), tuple(facts["roles"]),
            tuple(facts["norms"]), facts["source"], tuple(facts["notes"]),
        )  # fmt: skip
    except (ValueError, LookupError, TypeError, DatasetError, RunError) as error:
        raise RunError(
            f"{folder / PLAN}: the plan of this census is damaged: {error}; choose a new "
            "directory"
        ) from error
