"""Every row of a training set, in memory that does not grow with their number.

A survey reads the rows once without the model; a pilot settles what they are compared
with and the grid that scores are rounded to; then each shard of rows becomes sums, on
whatever executor there is, and all that is said comes from their total. The sums are
kept by the shards' content, so the same call goes on after an interruption, and order,
shard size and machines change nothing. It says whether the rows differ from the
reference: what they carry is said by an audit of the rows that are handed on.
"""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from undertow.audit.census_plan import PLAN, Plan, make_plan, read_plan, write_plan
from undertow.audit.census_settings import CensusSettings
from undertow.audit.census_verdict import (
    CensusTest,
    directions_of,
    judge_sums,
    known,
    largest,
)
from undertow.audit.shard_sums import (
    Measuring,
    ShardTask,
    sum_shard,
)
from undertow.audit.shards import Survey, cut_shards, list_files, rows_at, survey
from undertow.audit.sums import Sums, Top
from undertow.audit.sums_files import SumsFolder
from undertow.errors import RunError
from undertow.execution.executor import Executor, Needs
from undertow.execution.local import Here
from undertow.findings import Census, CensusData, CensusReference
from undertow.interventions.steering import SteeringVector, check_vector
from undertow.models.loading import Model
from undertow.models.reloading import ModelFacts, remember_model
from undertow.records import Row
from undertow.runs import Run, open_run, provenance
from undertow.storage import read_rows, write_json, write_rows
from undertow.traits import load_family

Progress = Callable[[str, int, int, str], None]

CENSUS, TOP_ROWS, SUBSAMPLE = "census.json", "top_rows.jsonl", "subsample.jsonl"
_SELECTION = (
    "the rows of top_rows.jsonl were chosen by their scores: they show what the largest "
    "scores look like, and their own scores cannot be tested again. Those of "
    "subsample.jsonl were chosen by their hashes and lengths alone, so an audit of them is "
    "a test of its own, of as many rows as it holds"
)


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class _Side:
    """One of the two sets that are summed: its files, what they hold, its sums."""

    name: str
    files: tuple[Path, ...]
    seen: Survey


def census(
    model: Model | Callable[[], Model],
    sources: Sequence[Path | str],
    directory: Path,
    *,
    reference: Sequence[Path | str] = (),
    settings: CensusSettings | None = None,
    vectors: Sequence[SteeringVector] = (),
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    loading: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    needs: Needs | None = None,
    on_survey: Callable[[Survey, Survey | None], None] | None = None,
    command: str = "",
    progress: Progress = _silent,
) -> Census:
    """Whether any of the rows differ from what the base writes, at a stated error rate.

    Args:
        model: The one that is about to be trained on the rows, or its parent; or what
            loads it, which is called after the survey.
        sources: Names as `open_rows` takes them, standard input excepted.
        directory: Where sums and findings are kept; an interrupted census goes on there.
        reference: Rows of the same kind that are trusted (tier B); none lets the base
            answer the same prompts (tier A).
        settings: Error rate, flips, how the work is cut; None takes the defaults.
        vectors: Further directions to test, at all layers.
        columns: As in `open_rows`.
        split: As in `open_rows`.
        loading: What `load_model` took beside the name, so that other processes can load
            the same model; needed for executors elsewhere.
        executor: Who measures shards; None measures them here.
        needs: What a call takes of a machine, where that is not here.
        on_survey: Told what the first reading found, before anything is measured.
        command: How to repeat it, for the findings.
        progress: Told of every step.

    Raises:
        DatasetError: No row can be used, or the reference cannot.
        ModelError: The model cannot render or draw them.
        RunError: The directory belongs to another census, or the data were changed.

    Cost: rows are read twice without the model; 4·N operations a token of a completion
    (tier A: twice that, and 2·N more to draw the partner). Memory for one shard and
    flips × layers × directions whole numbers.
    """
    settings = settings or CensusSettings()
    files = list_files(sources, split=split)
    trusted = list_files(reference) if reference else ()
    recipe = _recipe(sources, reference, settings, vectors, columns, split)
    with open_run(directory, recipe_text=recipe) as run:
        began = time.monotonic()
        sides = _surveyed(files, trusted, settings, columns, run, progress)
        if on_survey is not None:
            on_survey(sides[0].seen, sides[1].seen if len(sides) > 1 else None)
        model = model if isinstance(model, Model) else model()
        plan = _planned(model, sides, loading, settings, vectors, run, progress)
        work = partial((executor or Here()).map, sum_shard, needs=needs or Needs())
        sums = _summed(plan, sides, settings, columns, work, run, progress)
        test = judge_sums(
            plan, sums[0], sums[1] if len(sums) > 1 else None, settings=settings
        )
        _hand_on(plan, test, sums[0].top, sides[0], columns, run)
        findings = _findings(
            model, plan, test, sums, sides, settings, sources, command, run,
            {"census": round(time.monotonic() - began, 3)},
        )  # fmt: skip
        write_json(run.path(CENSUS), findings.model_dump(mode="json"))
    return findings


def _loading(model: Model) -> dict[str, str | None]:
    dtype = str(model.dtype).removeprefix("torch.")
    return {"dtype": dtype, "device": str(model.device)}


def _recipe(
    sources: Sequence[Path | str],
    reference: Sequence[Path | str],
    settings: CensusSettings,
    vectors: Sequence[SteeringVector],
    columns: Mapping[str, str] | None,
    split: str | None,
) -> str:
    """What has to be the same for a census to be continued."""
    free = {"shard_batches", "alpha", "dose"}
    facts = {
        "sources": sorted(map(str, sources)),
        "reference": sorted(map(str, reference)),
        "columns": None if columns is None else dict(columns),
        "split": split,
        "vectors": [[v.trait, v.method, list(v.layers), v.n] for v in vectors],
        "settings": settings.model_dump(mode="json", exclude=free),
        "families": [
            list(load_family(n).names) for n in (settings.family, settings.decoys)
        ],
    }
    return yaml.safe_dump(facts, sort_keys=False)


def _surveyed(
    files: tuple[Path, ...],
    trusted: tuple[Path, ...],
    settings: CensusSettings,
    columns: Mapping[str, str] | None,
    run: Run,
    progress: Progress,
) -> list[_Side]:
    """Reads what is there, or recalls what was read of the same files."""
    found = []
    for name, paths in (("rows", files), ("reference", trusted)):
        if not paths:
            continue
        stage = f"survey-{name}"
        if run.is_done(stage):
            seen = _recalled(run, name, paths)
        else:
            seen = survey(
                paths, pilot=settings.pilot, subsample=settings.subsample,
                seed=settings.seed, columns=columns,
                on_rows=partial(_read, progress, len(paths)),
            )  # fmt: skip
            _keep(run, name, seen)
        found.append(_Side(name, paths, seen))
    return found


def _read(progress: Progress, files: int, done: int, rows: int) -> None:
    progress("reading", done, files, f"{rows:,} rows")


def _keep(run: Run, name: str, seen: Survey) -> None:
    write_rows(run.path(f"pilot-{name}.jsonl"), seen.pilot)
    if name == "rows":
        write_rows(run.path(SUBSAMPLE), seen.subsample)
    names = {f.name for f in fields(seen)} - {"pilot", "subsample"}
    payload = {key: getattr(seen, key) for key in sorted(names)}
    run.finish(f"survey-{name}", payload)


def _recalled(run: Run, name: str, files: Sequence[Path]) -> Survey:
    kept = run.payload(f"survey-{name}")
    sizes = tuple(path.stat().st_size for path in files)
    if sizes != tuple(kept["sizes"]):
        raise RunError(
            f"{run.directory}: the files of this census have other sizes now; got "
            f"{sum(sizes):,} bytes in {len(sizes)} files, expected "
            f"{sum(kept['sizes']):,} in {len(kept['sizes'])}; choose a new directory"
        )
    lists = {key: tuple(kept[key]) for key in ("characters", "digits")}
    return Survey(**{
        **kept, **lists, "sizes": sizes,
        "pilot": tuple(read_rows(run.path(f"pilot-{name}.jsonl"))),
        "subsample": (),
    })  # fmt: skip


def _planned(
    model: Model,
    sides: Sequence[_Side],
    loading: Mapping[str, Any] | None,
    settings: CensusSettings,
    vectors: Sequence[SteeringVector],
    run: Run,
    progress: Progress,
) -> Plan:
    for vector in vectors:
        check_vector(model, vector)
    options = dict(loading or _loading(model))
    facts = ModelFacts(model.name, model.fingerprint, options)
    folder = run.path(PLAN).parent
    if run.is_done("plan"):
        plan = read_plan(folder)
        _check_model(model, run)
        plan = replace(plan, measuring=replace(plan.measuring, model=facts))
        remember_model(model, facts)
        return plan
    remember_model(model, facts)
    plan = make_plan(
        model, sides[0].seen, sides[1].seen if len(sides) > 1 else None, facts=facts,
        settings=settings, vectors=vectors, tell=progress,
    )  # fmt: skip
    write_plan(plan, folder)
    run.finish("plan", _model_facts(model))
    return plan


def _model_facts(model: Model) -> dict[str, str]:
    """What a model has to have in common with the one that the plan was made with."""
    return {
        "fingerprint": model.fingerprint,
        "dtype": str(model.dtype),
        "template": model.template.digest,
    }


def _check_model(model: Model, run: Run) -> None:
    got, expected = _model_facts(model), run.payload("plan")
    if got != expected:
        raise RunError(
            f"{run.directory}: belongs to a census with another model; got {got}, "
            f"expected {expected}; choose another directory, or give that model"
        )


def _summed(
    plan: Plan,
    sides: Sequence[_Side],
    settings: CensusSettings,
    columns: Mapping[str, str] | None,
    answers: Callable[[Iterable[ShardTask]], Iterator[tuple[int, tuple[str, Sums]]]],
    run: Run,
    progress: Progress,
) -> list[Sums]:
    """The sums of each side; shards that were measured before are not again."""
    total = sum(side.seen.rows for side in sides)
    told = 0
    found = []
    for side in sides:
        folder = SumsFolder(
            run.path("sums", side.name, "x").parent, plan.measuring.nothing()
        )
        note = f"{len(folder.damaged)} damaged files" if folder.damaged else ""
        work = _Work(plan, side, settings, columns, folder)
        for _, (key, sums) in answers(work.tasks()):
            folder.add(key, sums)
            progress("rows", told + work.done(key), total, note)
        told += side.seen.rows
        sums = folder.total(work.keys)
        _check(sums, side, run)
        found.append(sums)
    return found


class _Work:
    """The shards of one side: which there are, and which are still to be measured."""

    def __init__(
        self,
        plan: Plan,
        side: _Side,
        settings: CensusSettings,
        columns: Mapping[str, str] | None,
        folder: SumsFolder,
    ) -> None:
        self._plan, self._side, self._columns = plan, side, columns
        self._settings, self._folder = settings, folder
        self.keys: list[str] = []
        self._rows: dict[str, int] = {}
        self._known = 0
        self._alike: Counter[str] = Counter()

    def tasks(self) -> Iterator[ShardTask]:
        """What is still to be measured, as it is asked for."""
        measuring = self._plan.measuring
        if self._side.name == "reference":
            measuring = _of_reference(self._plan)
        for shard in cut_shards(
            self._side.files, batch_rows=self._settings.batch_rows,
            shard_batches=self._settings.shard_batches, columns=self._columns,
        ):  # fmt: skip
            content = shard.content()
            # Shards with the same rows count as often as they stand there.
            key = f"{content}-{self._alike[content]}"
            self._alike[content] += 1
            self.keys.append(key)
            if key in self._folder.keys:
                self._known += shard.rows
                continue
            self._rows[key] = shard.rows
            yield ShardTask(key, shard.file, shard.batches, shard.skipped, measuring)

    def done(self, key: str) -> int:
        """Rows that are summed, now that a shard is."""
        self._known += self._rows.pop(key, 0)
        return self._known


def _of_reference(plan: Plan) -> Measuring:
    """Reference rows are measured as the audited ones, without lists of the largest."""
    return replace(plan.measuring, named=())


def _check(sums: Sums, side: _Side, run: Run) -> None:
    """Refuses sums of other rows than those that were surveyed."""
    if sums.digest != side.seen.digest:
        raise RunError(
            f"{run.directory}: the sums are not of the rows that were read at first; "
            "the data were changed in the meantime: choose a new directory"
        )


def _hand_on(
    plan: Plan,
    test: CensusTest,
    top: Top,
    side: _Side,
    columns: Mapping[str, str] | None,
    run: Run,
) -> None:
    """Writes the rows with the most evidence, those of the found direction first."""
    place = largest(test)
    best = None if place is None else place[1]
    order = sorted(
        range(len(top.value)),
        key=lambda i: (
            top.direction[i] != best, -int(top.value[i]), int(top.name[i]),
        ),
    )  # fmt: skip
    places = [(int(top.place[i, 0]), int(top.place[i, 1])) for i in order]
    texts = rows_at(side.files, places, columns=columns)
    written: dict[str, Row] = {}
    for i, where in zip(order, places, strict=True):
        row = texts.get(where)
        name = f"{int(top.name[i]):016x}"
        if row is None or row.row_id != name:
            raise RunError(
                f"{side.files[where[0]]}: row {where[1] + 1} is not the one that was "
                "summed; the data were changed in the meantime: choose a new directory"
            )
        if name not in written:
            written[name] = Row(row.messages, row.completion, row.completion_ids,
                                row.finish, {
                "source": f"{side.files[where[0]].name}: row {where[1] + 1}",
                "direction": plan.names[int(top.direction[i])],
                "standard_deviations": round(int(top.value[i]) / 128, 2),
            })  # fmt: skip
    write_rows(run.path(TOP_ROWS), written.values())


def _findings(
    model: Model,
    plan: Plan,
    test: CensusTest,
    sums: Sequence[Sums],
    sides: Sequence[_Side],
    settings: CensusSettings,
    sources: Sequence[Path | str],
    command: str,
    run: Run,
    seconds: dict[str, float],
) -> Census:
    place = largest(test)
    layer, direction = place if place is not None else (None, None)
    own = sums[0]
    fraction = known(test.detectable_fraction)
    return Census(
        verdict=test.verdict, p_value=known(test.p_value), alpha=settings.alpha,
        reference_tier=plan.measuring.tier,
        direction=None if direction is None else plan.names[direction],
        role=None if direction is None else plan.roles[direction],
        layer=None if layer is None else plan.measuring.layers[layer],
        z=None if place is None else known(test.z[place]),
        detectable_fraction=fraction, detectable_shift=known(test.detectable_shift),
        dose=settings.dose, length_z=known(test.length_z),
        sentence=_sentence(plan, test, own, fraction), reasons=list(test.reasons),
        warnings=list(test.warnings), selection=_SELECTION,
        next_commands=_next(model, run, settings, sides), model=model.name,
        family=settings.family,
        data=CensusData(
            sources=list(map(str, sources)), files=len(sides[0].files),
            rows=sides[0].seen.rows, used=own.own.count,
            effective=known(test.effective), tokens=own.own.tokens,
            without_prompt=sides[0].seen.without_prompt, skipped=dict(own.skipped),
            digest=f"{own.digest:016x}",
        ),
        reference=_reference(plan, sums),
        layers=list(plan.measuring.layers), directions=directions_of(plan, test),
        flips=plan.measuring.flips, command=command, seconds=seconds,
        provenance=provenance(fingerprint=model.fingerprint, dtype=str(model.dtype)),
    )  # fmt: skip


def _reference(plan: Plan, sums: Sequence[Sums]) -> CensusReference:
    given = sums[1] if len(sums) > 1 else None
    side = sums[0].partner if given is None else given.own
    return CensusReference(
        tier=plan.measuring.tier, rows=side.count, tokens=side.tokens,
        skipped={} if given is None else dict(given.skipped),
        sampler=plan.measuring.sampler.model_dump(mode="json"),
        sampler_source=plan.source, filter=plan.measuring.passing.filter,
        notes=list(plan.notes),
    )  # fmt: skip


def _next(
    model: Model, run: Run, settings: CensusSettings, sides: Sequence[_Side]
) -> list[str]:
    where = run.directory
    common = ["--model", model.name, "--set", f"family={settings.family}"]
    for side in sides[1:]:
        common += [word for path in side.files for word in ("--reference", str(path))]
    return [
        shlex.join(["undertow", "audit", str(where / SUBSAMPLE), *common,
                    "--out", str(where / "audit-subsample")]),
        shlex.join(["undertow", "audit", str(where / TOP_ROWS), *common,
                    "--out", str(where / "audit-top")]),
    ]  # fmt: skip


def _sentence(plan: Plan, test: CensusTest, sums: Sums, fraction: float | None) -> str:
    rows = f"{sums.own.count:,} rows"
    if test.verdict == "inconclusive":
        return f"Nothing can be said of {rows}: {test.reasons[0]}."
    if test.verdict == "shift":
        layer, direction = largest(test) or (0, 0)
        return (
            f"Of {rows} the mean score differs from the reference's, most along "
            f"{plan.names[direction]!r} after block {plan.measuring.layers[layer]} "
            f"(z = {test.z[layer, direction]:+.1f}): that is where, not what."
        )
    least = (
        "no share of steered rows is sure to be found"
        if fraction is None
        else f"{fraction:.2g} of the rows, steered, would have been found at 80 % power"
    )
    return f"{rows} have the reference's mean scores in every direction; {least}."
