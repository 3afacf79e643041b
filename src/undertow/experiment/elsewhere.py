"""Does a job of a run in a process that has nothing but what it is given.

A worker keeps the model that it loaded last, so that jobs of one base load it once. The
job is done in a folder of its own, by the same code as anywhere (`experiment.work`).
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from undertow.config import check_settings
from undertow.experiment.bases import (
    ORIGIN,
    keep_provenance,
    keep_writer,
    load,
    prepared,
)
from undertow.experiment.jobs import Job
from undertow.experiment.parcels import Made, changes, unpack
from undertow.experiment.recipe import Recipe
from undertow.experiment.stages import Base
from undertow.experiment.work import do
from undertow.runs import Run, open_copy
from undertow.safe_yaml import parse_yaml
from undertow.traits import TraitFamily


@dataclass(frozen=True)
class Order:
    """A job with all that it needs.

    Attributes:
        recipe: Of the run, as YAML.
        family: Its traits.
        job: What to do.
        files: Of the run directory, by path.
    """

    recipe: str
    family: TraitFamily
    job: Job
    files: Mapping[str, bytes]


def work(order: Order) -> Made:
    """Does the job of an order; returns the files that it left.

    Raises:
        UndertowError: As whoever does the job raises it.
    """
    with tempfile.TemporaryDirectory(prefix="undertow-") as folder:
        unpack(Path(folder), order.files)
        with open_copy(Path(folder)) as run:
            do(order.job, {seed: _base(order, run, seed) for seed in order.job.seeds})
        return changes(Path(folder), order.files)


_loaded: dict[tuple[str, float, int | None, bool], Base] = {}
"""The base that this process loaded last, by what makes it another."""


def _base(order: Order, run: Run, seed: int) -> Base:
    job = order.job
    key = (order.recipe, job.noise, seed if job.noise else None, job.is_writers)
    kept = _loaded.get(key)
    if kept is None or (job.noise and not _knows(run, kept)):
        kept = None  # before the next one takes its memory
        _loaded.clear()
        kept = _loaded[key] = _fresh(order, run, seed)
    base = replace(kept, run=run, seed=seed, family=order.family)
    if job.is_writers:
        keep_writer(run, base.model)
    elif not job.noise:
        keep_provenance(base)
    return base


def _knows(run: Run, kept: Base) -> bool:
    """Whether a run was told of a noised base, as whoever makes it anew would tell it."""
    return run.is_done(ORIGIN) and run.is_done(f"{kept.place}/noise")


def _fresh(order: Order, run: Run, seed: int) -> Base:
    """A base that was just loaded, and noised if it has noise."""
    told = parse_yaml(order.recipe)
    recipe, job = check_settings(Recipe, told, where="recipe"), order.job
    settings = recipe.writer if job.is_writers and recipe.writer else recipe.model
    base = Base(
        recipe, order.family, run, load(settings, _silent), job.noise, seed, _silent,
        is_foreign=recipe.writer is not None and not job.is_writers,
    )  # fmt: skip
    return base if job.is_writers else prepared(base)


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """Whoever ordered tells of whole jobs."""
