"""Measures rows with one model, once each: scores along the battery, likelihoods.

What was measured is kept by row id, so the race, the permutations and many audits of
the same rows ask as often as they like; kept on disk too, an interrupted audit goes
on. Knows nothing of which rows are audited and which are reference.
"""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from undertow.analysis.hypotheses import RowHypothesis, hypothesis_logprobs
from undertow.analysis.many_vectors import RowStreams, read_streams, under_vectors
from undertow.audit.reference import Filter, Reference, sampled_reference
from undertow.audit.signals import Battery, RowSignals, measure
from undertow.audit.sums_files import sound_arrays
from undertow.errors import RunError
from undertow.models.chat import Rendered, render_row
from undertow.models.completions import Prompts
from undertow.models.loading import Model
from undertow.models.memory import halved
from undertow.models.sampling import SamplerSettings
from undertow.records import Row
from undertow.storage import append_jsonl, replacing
from undertow.storage.files import set_aside, whole_lines

Array = np.ndarray[Any, np.dtype[np.float64]]
OnRows = Callable[[int, int], None]

BASE, AGAIN = "base", "base again"
_PART = 256  # rows measured between two writes
TOGETHER = 16  # that a processor reads under many vectors between two writes
_KEPT = 16384  # tokens of rows whose streams are kept


def _added(hypothesis: RowHypothesis) -> Tensor:
    """What a vector hypothesis adds to every token."""
    assert hypothesis.vector is not None
    return hypothesis.strength * hypothesis.vector.directions[0]


class Meter:
    """One model, sampler and battery, with a memory of what was measured.

    Args:
        model: The base.
        battery: Directions of the score test.
        sampler: What all rows were drawn by.
        system: System setting of all rows.
        folder: Where measurements are kept; None keeps them in memory only.
    """

    def __init__(
        self,
        model: Model,
        battery: Battery,
        sampler: SamplerSettings,
        *,
        system: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model, self.battery, self.sampler = model, battery, sampler
        self.system, self.folder = system, folder
        self.prompts = Prompts(model)
        self._scores: dict[str, Any] = {}
        self._facts: dict[str, tuple[float, int]] = {}
        self._logprobs: dict[str, dict[str, float]] = {}
        self._streams: dict[tuple[str, ...], list[RowStreams]] = {}
        self._scanned_last: set[tuple[int | None, str]] = set()
        self.passes = 0
        self.warnings: list[str] = []
        # Once memory ran out, later passes begin with the batches that did fit.
        self._budgets: dict[str, dict[str, int]] = {"scores": {}, "likelihoods": {}}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._recall(folder)

    def signals(
        self,
        rows: Sequence[Row],
        *,
        on_rows: OnRows | None = None,
    ) -> RowSignals:
        """Scores and log-likelihoods of rows; those known are not measured again."""
        for found in self._measured(self._parts(rows, self._scores), on_rows):
            self._keep(found)
        ids = [row.row_id for row in rows]
        scores = np.zeros((len(ids), *self.battery.directions.shape[:2]), np.float32)
        for place, name in enumerate(ids):
            scores[place] = self._scores[name]
        return RowSignals(
            tuple(ids),
            scores,
            np.array([self._facts[i][0] for i in ids], dtype=np.float64),
            np.array([self._facts[i][1] for i in ids], dtype=np.int64),
        )

    def _parts(
        self,
        rows: Sequence[Row],
        known: Container[str],
        hypothesis: RowHypothesis | None = None,
    ) -> list[tuple[Row, ...]]:
        """Different rows that are not known yet, in parts that are read together.

        All rows are divided, known or not: who is read beside a row moves its last
        bits, and after an interruption they have to be the same.
        """
        different = tuple({row.row_id: row for row in rows}.values())
        if all(row.row_id in known for row in different):
            return []
        parts = self._divided(different, hypothesis)
        left = (tuple(r for r in part if r.row_id not in known) for part in parts)
        return [part for part in left if part]

    def _divided(
        self, rows: tuple[Row, ...], hypothesis: RowHypothesis | None
    ) -> list[tuple[Row, ...]]:
        """Parts whose prompts, as the base reads them, are kept together.

        Under a hypothesis prompts are read otherwise, and all rows are one part.
        """
        if hypothesis is not None:
            return [rows]
        places = self.prompts.parts(self._rendered(rows), most_rows=_PART)
        return [tuple(rows[i] for i in part) for part in places]

    def _rendered(self, rows: Sequence[Row]) -> list[Rendered]:
        return [render_row(self.model, row, system=self.system) for row in rows]

    def _measured(
        self, parts: Sequence[tuple[Row, ...]], on_rows: OnRows | None
    ) -> Iterator[RowSignals]:
        """Scores and likelihoods of rows, part by part."""
        read, total = 0, sum(map(len, parts))
        for part in parts:

            def tell(done: int, _: int, read: int = read) -> None:
                if on_rows is not None:
                    on_rows(read + done, total)

            rendered = self._rendered(part)
            self.prompts.read(rendered)
            yield measure(
                self.model, rendered, [row.row_id for row in part], self.battery,
                sampler=self.sampler, on_rows=tell, prompts=self.prompts,
                on_halved=lambda b: self._halved("scores", b),
                **self._budgets["scores"],
            )  # fmt: skip
            read += len(part)

    def logprobs(
        self,
        rows: Sequence[Row],
        hypothesis: RowHypothesis | None,
        *,
        on_rows: OnRows | None = None,
    ) -> Array:
        """[row]: log p(y|x; H), nats; None is the base, −inf what it cannot draw."""
        name = BASE if hypothesis is None else hypothesis.name
        return self._known(rows, name, hypothesis, on_rows)

    def ratios(
        self,
        rows: Sequence[Row],
        hypothesis: RowHypothesis,
        *,
        on_rows: OnRows | None = None,
    ) -> Array:
        """[row]: log p(y|x; H) − log p(y|x), nats; NaN where the base cannot draw it."""
        own = self.logprobs(rows, hypothesis, on_rows=on_rows)
        base = self.logprobs(rows, None)
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(base), own - base, np.nan)

    def scan(
        self,
        rows: Sequence[Row],
        hypotheses: Sequence[RowHypothesis],
        *,
        on_rows: OnRows | None = None,
    ) -> None:
        """Reads rows under many vectors at once; `ratios` has them from then on."""
        lacking: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            names = (h.name for h in hypotheses if not self._has_read(row, h))
            lacking.setdefault(tuple(names), []).append(row)
        lacking.pop((), None)
        done, total = 0, sum(map(len, lacking.values()))
        scanned = {(h.layer, row.row_id) for h in hypotheses for row in rows}
        if scanned != self._scanned_last:
            self._streams.clear()
        self._scanned_last = scanned
        for lacked, alike in lacking.items():
            missing = [h for h in hypotheses if h.name in lacked]
            for part in self._scanned(alike, missing):
                read = len(part[missing[0].name])
                self.passes += read * len(missing)
                self._remember(part)  # in one line: they were read together
                done += read
                if on_rows is not None:
                    on_rows(done, total)

    def _scanned(
        self,
        rows: Sequence[Row],
        hypotheses: Sequence[RowHypothesis],
    ) -> Iterator[dict[str, dict[str, float]]]:
        """Log-likelihoods by vector and row, part by part.

        An accelerator takes all rows together, a processor a few.
        """
        by_layer: dict[int, list[RowHypothesis]] = {}
        for each in hypotheses:
            assert each.layer is not None
            by_layer.setdefault(each.layer, []).append(each)
        added = {
            at: torch.stack([_added(h) for h in own]) for at, own in by_layer.items()
        }
        size = TOGETHER if self.model.device.type == "cpu" else max(1, len(rows))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            found = under_vectors(self.model, self._read_up_to(part, added), added)
            ids = [row.row_id for row in part]
            yield {
                each.name: dict(zip(ids, values.tolist(), strict=True))
                for layer, own in by_layer.items()
                for each, values in zip(own, found[layer].T, strict=True)
            }

    def _read_up_to(
        self, rows: Sequence[Row], vectors: Mapping[int, Tensor]
    ) -> Iterable[RowStreams]:
        """Streams after the blocks of vectors, to go on from.

        A processor keeps those of a few rows after one block until others are asked for:
        doses are tried one after another.
        """
        key = str(sorted(vectors)), *(row.row_id for row in rows)
        if key in self._streams:
            return self._streams[key]
        rendered = self._rendered(rows)
        read = read_streams(self.model, rendered, sorted(vectors), sampler=self.sampler)
        kept = [part.ids.numel() for own in self._streams.values() for part in own]
        tokens = sum(kept) + sum(len(row.ids) for row in rendered)
        if self.model.device.type != "cpu" or len(vectors) > 1 or tokens > _KEPT:
            return read
        return self._streams.setdefault(key, list(read))

    def _has_read(self, row: Row, hypothesis: RowHypothesis) -> bool:
        return row.row_id in self._logprobs.get(hypothesis.name, {})

    def _remember(self, read: Mapping[str, Mapping[str, float]]) -> None:
        """Log-likelihoods by hypothesis and row, which stand in a line of their own."""
        for name, values in read.items():
            self._logprobs.setdefault(name, {}).update(values)
        if self.folder is not None:
            append_jsonl(self.folder / "logprobs.jsonl", {"read": read})

    def written(
        self,
        prompts: Sequence[Row],
        hypothesis: RowHypothesis | None,
        *,
        passed: Filter,
        seed: int,
        on_rows: OnRows | None = None,
    ) -> Reference:
        """What the base writes on the rows' prompts under a hypothesis; None: untouched.

        Prompts on which nothing passes the filter have no partner.
        """
        name = BASE if hypothesis is None else hypothesis.name

        def tell(found: int, total: int, _: int) -> None:
            if on_rows is not None:
                on_rows(found, total)

        with nullcontext() if hypothesis is None else hypothesis.acting(self.model):
            return sampled_reference(
                self.model, prompts, sampler=self.sampler, filter=passed, seed=seed,
                purpose=f"written {name}", system=self.system,
                persona=None if hypothesis is None else hypothesis.persona,
                on_rows=tell,
            )  # fmt: skip

    def rounding(self, rows: Sequence[Row], *, error: float | None = None) -> float:
        """Variance of what two kinds of pass differ by on the same rows, nats².

        Those for scores and for likelihoods: one kind alone would err alike each time.
        Ratios carry it on top of what they are: zero in float32 for all that matters.
        NaN rows are left out; 0 without any.

        Args:
            rows: Read in both ways, if they were not.
            error: Not what was measured but a limit, above which the variance lies with
                this probability at most if the noise is normal.
        """
        scored = self.signals(rows).total_logprobs
        with np.errstate(invalid="ignore"):
            twice = self._known(rows, AGAIN, None, None) - scored
        squares = twice[np.isfinite(twice)] ** 2
        if not len(squares):
            return 0.0
        count = len(squares) if error is None else chi2.ppf(error, len(squares))
        return float(squares.sum() / count)

    def _known(
        self,
        rows: Sequence[Row],
        name: str,
        hypothesis: RowHypothesis | None,
        on_rows: OnRows | None,
    ) -> Array:
        memory = self._logprobs.setdefault(name, {})
        if name == BASE:  # the pass for scores may have read the base's already
            for row_id, (total, _) in self._facts.items():
                # What was used once stays: a later pass differs by rounding.
                memory.setdefault(row_id, total)
        parts = self._parts(rows, memory, hypothesis)
        for part, found in self._read(parts, name, hypothesis, on_rows):
            self.passes += len(part)
            ids = (row.row_id for row in part)
            self._remember({name: dict(zip(ids, found.tolist(), strict=True))})
        return np.array([memory[row.row_id] for row in rows], dtype=np.float64)

    def _read(
        self,
        parts: Sequence[tuple[Row, ...]],
        name: str,  # noqa: ARG002 (for those who do it otherwise)
        hypothesis: RowHypothesis | None,
        on_rows: OnRows | None,
    ) -> Iterator[tuple[tuple[Row, ...], Array]]:
        """Log-likelihoods of rows under a hypothesis, part by part."""
        for part in parts:
            if hypothesis is None:
                self.prompts.read(self._rendered(part))
            found = hypothesis_logprobs(
                self.model, part, hypothesis, sampler=self.sampler, system=self.system,
                prompts=self.prompts, on_rows=on_rows,
                on_halved=lambda b: self._halved("likelihoods", b),
                **self._budgets["likelihoods"],
            )  # fmt: skip
            yield part, np.asarray(found, dtype=np.float64)

    def _halved(self, what: str, budget: int) -> None:
        self._budgets[what] = {"token_budget": budget}
        said = f"{what}: {halved(budget)}"
        self.warnings = [w for w in self.warnings if not w.startswith(what)] + [said]

    def _keep(self, found: RowSignals) -> None:
        self.learn(found)
        if self.folder is None:
            return
        ids = "\n".join(sorted(found.row_ids)).encode()
        name = hashlib.sha256(ids).hexdigest()[:16]
        with replacing(self.folder / f"signals-{name}.npz", lasting=False) as draft:
            np.savez(
                draft, ids=np.array(found.row_ids), scores=found.scores,
                total=found.total_logprobs, tokens=found.tokens,
            )  # fmt: skip

    def learn(self, found: RowSignals) -> None:
        """Takes what was measured elsewhere, by the same battery and sampler."""
        for place, name in enumerate(found.row_ids):
            self._scores[name] = found.scores[place]
            self._facts[name] = (
                float(found.total_logprobs[place]),
                int(found.tokens[place]),
            )

    def _recall(self, folder: Path) -> None:
        for path in sorted(folder.glob("signals-*.npz")):
            kept = whole_arrays(path, ("ids", "scores", "total", "tokens"))
            if kept is not None:
                ids, scores, total, tokens = kept
                names = tuple(str(i) for i in ids)
                self.learn(RowSignals(names, scores, total, tokens))
        for line in whole_lines(folder / "logprobs.jsonl"):
            for name, values in line.get("read", {}).items():
                # JSON has no infinity: null is a row that a cut of the sampler forbids.
                known = {i: -np.inf if v is None else v for i, v in values.items()}
                self._logprobs.setdefault(name, {}).update(known)


def whole_arrays(path: Path, names: Sequence[str]) -> list[Any] | None:
    """Arrays of one length out of an .npz; a damaged file is set aside.

    Raises:
        RunError: The file cannot be renamed.
        DatasetError: It cannot be read now, which says nothing of what is in it.
    """
    try:
        kept = sound_arrays(path)
        found = [kept[name] for name in names]
        if len({len(array) for array in found}) == 1:
            return found
        why = "its arrays are not of one length"
    except RunError as error:
        why = f"{type(error.__cause__).__name__}: {error.__cause__}"
    except (LookupError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
    set_aside(path, why)
    return None
