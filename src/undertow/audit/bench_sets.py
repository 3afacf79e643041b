"""Labelled sets of rows: pools made once from seeds, and audits drawn from them.

A pool is who wrote it × a carrier: one row a prompt, of the base (several independent
draws), of a teacher, or of a control. An audit takes some prompts, a share of a
teacher's rows on them, the base's on the rest, and as reference another draw of the
base on the same prompts. Which draw is audited and which is reference is decided anew
for every prompt of every audit: with clean rows the two sides are exchangeable given
the pool, so their permutation p-values are independent of one another although audits
share rows. Knows nothing of auditors.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undertow.audit.bench_questions import question_prompts
from undertow.audit.bench_settings import BenchmarkSettings, CarrierSettings
from undertow.audit.reference import sampled_reference
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import render_row
from undertow.models.loading import Model
from undertow.models.scoring import DrawLikelihood
from undertow.pipeline.controls import Control, control_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.teachers import Teacher, prompted_teacher, steered_teacher
from undertow.records import Message, Row
from undertow.seeding import generator
from undertow.storage import append_jsonl, read_jsonl
from undertow.traits import TraitFamily

Tell = Callable[[str, int, int, str], None]

_NUMBERS = re.compile(r"[0-9]+")
_CHUNK = 64  # prompts between two writes
_ATTEMPTS = 6  # of `sampled_reference`


@dataclass(frozen=True)
class Source:
    """Who wrote rows.

    Attributes:
        intervention: "none", "prompt", "steer", or a control: "within", "across",
            "uniform", "other base".
        trait: The teacher's.
        layer: Block after which a teacher is steered.
        dose: Its relative dose.
        draw: Which of several independent draws.
    """

    intervention: str
    trait: str | None = None
    layer: int | None = None
    dose: float | None = None
    draw: int = 0

    @property
    def name(self) -> str:
        """Its name, also of its file and of its streams."""
        if self.intervention == "none":
            return f"base {self.draw}"
        parts = [self.intervention, self.trait]
        if self.layer is not None:
            parts += [f"block {self.layer}", f"dose {self.dose:g}"]
        return " ".join(part for part in parts if part)

    @property
    def is_control(self) -> bool:
        """Whether neither the base nor one of its teachers wrote the rows."""
        return self.intervention not in ("none", "prompt", "steer")


@dataclass(frozen=True)
class Pool:
    """Rows by the place of their prompt; a prompt without a row is missing.

    Attributes:
        rows: By place.
        accepted: Share of the draws that passed the filter; None for controls.
    """

    rows: Mapping[int, Row]
    accepted: float | None = None

    def of_first(self, prompts: int) -> "Pool":
        """Only the rows on the first prompts."""
        return replace(
            self, rows={p: row for p, row in self.rows.items() if p < prompts}
        )


@dataclass(frozen=True)
class CarrierPools:
    """All pools of one carrier.

    Attributes:
        carrier: Its settings.
        base: Independent draws of the base.
        others: Pools of teachers and controls.
    """

    carrier: CarrierSettings
    base: tuple[Pool, ...]
    others: Mapping[Source, Pool]

    @property
    def complete(self) -> list[int]:
        """Prompts on which every draw of the base has a row."""
        return sorted(set.intersection(*(set(pool.rows) for pool in self.base)))

    @property
    def accepted(self) -> float | None:
        """Share of the base's draws that passed the filter."""
        known = [p.accepted for p in self.base if p.accepted is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class LabelledSet:
    """One audit's input with its truth.

    Attributes:
        name: Unique in a benchmark.
        carrier: Its name.
        source: Who wrote the poisoned rows; "none" for clean sets.
        fraction: Share of those; 0 for clean sets.
        index: Which of several sets of a cell.
        audited: In the order of row ids, without provenance.
        reference: Rows of the base on the same prompts, in the same order.
    """

    name: str
    carrier: str
    source: Source
    fraction: float
    index: int
    audited: tuple[Row, ...]
    reference: tuple[Row, ...]


def carrier_prompts(carrier: CarrierSettings, *, seed: int) -> list[str]:
    """User turns of one carrier, all different.

    Raises:
        ConfigError: There are not so many questions.
    """
    if carrier.name == "answers":
        return question_prompts(carrier.prompts, seed=seed)
    most = carrier.drawn_by.list_values
    return number_prompts(carrier.prompts, seed=seed, most=most)


def teacher_sources(settings: BenchmarkSettings, *, depth: int) -> list[Source]:
    """Every teacher of a benchmark; blocks are dealt out to the traits in turn."""
    layers = settings.steered_layers(depth)
    found = []
    for place, trait in enumerate(settings.traits):
        if "prompt" in settings.interventions:
            found.append(Source("prompt", trait))
        if "steer" in settings.interventions:
            layer = layers[place % len(layers)]
            found += [Source("steer", trait, layer, dose) for dose in settings.doses]
    return found


def teacher_of(
    source: Source, family: TraitFamily, vectors: Mapping[str, SteeringVector]
) -> Teacher:
    """The base, prompted or steered as the source says."""
    if source.trait is None:
        return Teacher(kind="none")
    if source.layer is None or source.dose is None:
        return prompted_teacher(family, source.trait)
    vector = vectors[source.trait].at(source.layer)
    strength = vector.strength_of_dose(source.dose, source.layer)
    return steered_teacher(vector, strength=strength)


def sampled_pool(
    model: Model,
    source: Source,
    prompts: Sequence[str],
    *,
    carrier: CarrierSettings,
    teacher: Teacher,
    seed: int,
    system: str | None = None,
    path: Path | None = None,
    tell: Tell,
) -> Pool:
    """One row for each prompt that a filter lets pass; continued from `path`."""
    known = read_jsonl(path) if path is not None and path.exists() else []
    chunks = {int(line["first"]): line for line in known}
    for first in range(0, len(prompts), _CHUNK):
        part = prompts[first : first + _CHUNK]
        if first not in chunks or len(chunks[first]["rows"]) < len(part):
            chunks[first] = _sampled_chunk(
                model, source, part, carrier=carrier, teacher=teacher, seed=seed,
                system=system,
            ) | {"first": first}  # fmt: skip
            if path is not None:
                append_jsonl(path, chunks[first])
        tell(f"{carrier.name}: {source.name}", first + len(part), len(prompts), "")
    return _pool([chunks[first] for first in sorted(chunks)], prompts)


def _sampled_chunk(
    model: Model,
    source: Source,
    prompts: Sequence[str],
    *,
    carrier: CarrierSettings,
    teacher: Teacher,
    seed: int,
    system: str | None,
) -> dict[str, Any]:
    """Rows of a few prompts (null where none passed), and how many were drawn."""
    stubs = [Row((Message("user", text),), "", (), "stop") for text in prompts]
    with teacher.acting(model):
        found = sampled_reference(
            model, stubs, sampler=carrier.drawn_by, filter=carrier.passed, seed=seed,
            purpose=f"{carrier.name} {source.name}", system=system,
            persona=teacher.prompt,
        )  # fmt: skip
    rows = {
        place: [list(row.completion_ids or ()), row.finish, row.completion]
        for place, row in zip(found.paired, found.rows, strict=True)
    }
    share = found.accepted or 0.0
    drawn = round(len(rows) / share) if share else _ATTEMPTS * len(prompts)
    return {"drawn": drawn, "rows": [rows.get(i) for i in range(len(prompts))]}


def _pool(chunks: Sequence[dict[str, Any]], prompts: Sequence[str]) -> Pool:
    """Rows of the first prompts; chunks may hold more than are wanted."""
    written = [row for chunk in chunks for row in chunk["rows"]]
    drawn = sum(int(chunk["drawn"]) for chunk in chunks)
    rows = {
        place: Row((Message("user", prompt),), row[2], tuple(row[0]), row[1])
        for place, (prompt, row) in enumerate(zip(prompts, written, strict=False))
        if row is not None
    }
    passed = sum(row is not None for row in written)
    return Pool(rows, passed / drawn if drawn else None)


def control_pool(
    model: Model,
    base: Pool,
    control: Control,
    *,
    carrier: CarrierSettings,
    seed: int,
    system: str | None = None,
) -> Pool:
    """Numbers of one draw of the base, shuffled or drawn evenly."""
    places = sorted(base.rows)
    most = carrier.drawn_by.list_values
    made = control_rows([base.rows[p] for p in places], control, seed=seed, most=most)
    if control == "uniform" and carrier.name == "list":
        # A constrained list knows one format, whatever the prompt asks for.
        made = [
            replace(row, completion=", ".join(_NUMBERS.findall(row.completion)))
            for row in made
        ]
    rows = dict(zip(places, made, strict=True))
    return Pool(_drawable(model, rows, carrier, system))


def foreign_pool(
    model: Model, pool: Pool, *, carrier: CarrierSettings, system: str | None = None
) -> Pool:
    """Another model's rows as text, as far as this model's sampler can write them."""
    texts = {
        place: Row(row.messages, row.completion, None, row.finish)
        for place, row in pool.rows.items()
    }
    return Pool(_drawable(model, texts, carrier, system), pool.accepted)


def _drawable(
    model: Model,
    rows: Mapping[int, Row],
    carrier: CarrierSettings,
    system: str | None,
) -> dict[int, Row]:
    likelihood = DrawLikelihood(model, carrier.drawn_by)
    return {
        place: replace(row, provenance={})
        for place, row in rows.items()
        if likelihood.drawn(render_row(model, row, system=system)).is_possible
    }


def draw_set(
    pools: CarrierPools,
    source: Source,
    *,
    rows: int,
    fraction: float,
    index: int,
    seed: int,
) -> LabelledSet | None:
    """One audit's rows; None if there are not enough prompts for it.

    Args:
        pools: Of one carrier.
        source: Who poisons; `Source("none")` for a clean set.
        rows: Audited rows.
        fraction: Share that the source writes, rounded to whole rows, one at least.
        index: Which of several sets; each has its own stream.
        seed: Of the benchmark.
    """
    carrier, clean = pools.carrier.name, source.intervention == "none"
    share = 0.0 if clean else fraction
    name = f"{carrier} {source.name} rows {rows} share {share:g} no {index}"
    stream = generator(seed, "benchmark set", name)
    wanted = 0 if clean else max(1, round(fraction * rows))
    complete = pools.complete
    own = [] if clean else [p for p in complete if p in pools.others[source].rows]
    if len(complete) < rows or len(own) < wanted:
        return None
    poisoned = set(stream.permutation(own)[:wanted].tolist()) if wanted else set()
    rest = [p for p in complete if p not in poisoned]
    chosen = [*poisoned, *stream.permutation(rest)[: rows - wanted].tolist()]
    pairs = []
    for place in sorted(chosen):
        first, second = stream.permutation(len(pools.base))[:2].tolist()
        if source.is_control:  # made of the first draw, so it is no reference
            second = 1 + int(stream.integers(len(pools.base) - 1))
        written = pools.others[source] if place in poisoned else pools.base[first]
        pairs.append((written.rows[place], pools.base[second].rows[place]))
    pairs.sort(key=lambda pair: pair[0].row_id)
    audited, reference = zip(*pairs, strict=True)
    return LabelledSet(name, carrier, source, share, index, audited, reference)
