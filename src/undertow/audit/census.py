"""Every row of a training set, in memory that does not grow with their number.

A survey reads the rows once without the model; a pilot settles what they are compared
with and the grid that scores are rounded to; then each shard of rows becomes sums, on
whatever executor there is, and all that is said comes from their total. The sums are
kept by the shards' content, so the same call goes on after an interruption, and order,
shard size and machines change nothing. It says whether the rows' mean scores differ from
the reference's: what rows carry is said by an audit of those that are handed on.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from undertow.audit.census_findings import Handed, audit_command, findings_of
from undertow.audit.census_plan import (
    PLAN,
    Plan,
    make_plan,
    plan_digest,
    read_plan,
    write_plan,
)
from undertow.audit.census_settings import CensusSettings
from undertow.audit.census_verdict import CensusTest, judge_sums, largest
from undertow.audit.shard_sums import Measuring, ShardTask, sum_shard
from undertow.audit.shards import Survey, cut_shards, list_files, rows_at, survey
from undertow.audit.sums import EVIDENCE, Sums, Top
from undertow.audit.sums_files import SumsFolder
from undertow.errors import RunError
from undertow.execution.executor import Executor, Needs
from undertow.execution.local import Here
from undertow.findings import Census
from undertow.interventions.steering import SteeringVector, check_vector, save_vector
from undertow.models.loading import Model
from undertow.models.reloading import ModelFacts, remember_model
from undertow.records import Row
from undertow.runs import Run, open_run
from undertow.storage import read_rows, write_json, write_rows
from undertow.storage.remote import without_secrets
from undertow.storage.sources import File, file_size
from undertow.traits import load_family

Progress = Callable[[str, int, int, str], None]

CENSUS, TOP_ROWS = "census.json", "top_rows.jsonl"
_SUBSAMPLES = {"rows": "subsample.jsonl", "reference": "subsample-reference.jsonl"}


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class _Side:
    """One of the two sets that are summed: its files, what they hold, its sums."""

    name: str
    files: tuple[File, ...]
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
    """Whether the rows' mean scores differ from the reference's, at a stated error rate.

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

    Cost: rows are read thrice, to survey, to sum and to show the largest; 4·N operations
    a token of a completion (tier A: twice that, and 2·N more to draw the partner). Memory for one shard and
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
        findings = findings_of(
            model, plan, test, sums, sides[0].seen, settings=settings,
            sources=[without_secrets(str(name)) for name in sources], files=len(files), command=command,
            next_command=_next(plan, sides, settings, vectors, run),
            seconds=round(time.monotonic() - began, 3),
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
    free = {"alpha", "dose"}  # of what is said of the sums; all else decides them
    facts = {
        "sources": sorted(without_secrets(str(name)) for name in sources),
        "reference": sorted(without_secrets(str(name)) for name in reference),
        "columns": None if columns is None else dict(columns),
        "split": split,
        "vectors": [
            [
                v.trait,
                v.method,
                list(v.layers),
                v.n,
                _digest(v.directions.numpy().tobytes()),
            ]
            for v in vectors
        ],
        "settings": settings.model_dump(mode="json", exclude=free)
        | {"decoys": settings.decoy_family},
        "families": [
            _digest(repr(load_family(name)).encode("utf-8", "surrogatepass"))
            for name in (settings.family, settings.decoy_family)
        ],
    }
    return yaml.safe_dump(facts, sort_keys=False)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _surveyed(
    files: tuple[File, ...],
    trusted: tuple[File, ...],
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
    # This layout holds whatever was read, a prompt that ends with an answer too.
    for place, rows in ((f"pilot-{name}.jsonl", seen.pilot),
                        (_SUBSAMPLES[name], seen.subsample)):  # fmt: skip
        write_rows(run.path(place), rows, layout="messages")
    names = {f.name for f in fields(seen)} - {"pilot", "subsample"}
    payload = {key: getattr(seen, key) for key in sorted(names)}
    run.finish(f"survey-{name}", payload)


def _recalled(run: Run, name: str, files: Sequence[File]) -> Survey:
    kept = run.payload(f"survey-{name}")
    sizes = tuple(map(file_size, files))
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
    for place, vector in enumerate(vectors):
        save_vector(vector, _vector_file(run, place))
    run.finish("plan", _model_facts(model))
    return plan


def _vector_file(run: Run, place: int) -> Path:
    return run.path("vectors", f"{place}.safetensors")


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
    # Sums of another plan, as of another model, say nothing here.
    place = run.path("sums", plan_digest(run.path(PLAN).parent))
    for side in sides:
        folder = SumsFolder(place / side.name, plan.measuring.nothing())
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
                "standard_deviations": round(int(top.value[i]) / EVIDENCE, 2),
            })  # fmt: skip
    write_rows(run.path(TOP_ROWS), written.values(), layout="messages")


def _next(
    plan: Plan,
    sides: Sequence[_Side],
    settings: CensusSettings,
    vectors: Sequence[SteeringVector],
    run: Run,
) -> str:
    """The audit of the rows that were handed on, told all that the census was."""
    rows, *trusted = (run.path(_SUBSAMPLES[side.name]) for side in sides)
    handed = Handed(
        rows, trusted[0] if trusted else None,
        tuple(_vector_file(run, place) for place in range(len(vectors))),
        run.directory / "audit-subsample",
    )  # fmt: skip
    return audit_command(plan.measuring.model, settings, handed)
