"""Measures rows with one model, once each: scores along the battery, likelihoods.

What was measured is kept by row id, so the race, the permutations and many audits of
the same rows ask as often as they like; kept on disk too, an interrupted audit goes
on. Knows nothing of which rows are audited and which are reference.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.analysis.hypotheses import RowHypothesis, hypothesis_logprobs
from undertow.analysis.many_vectors import row_logprobs
from undertow.audit.reference import Filter, Reference, sampled_reference
from undertow.audit.signals import Battery, RowSignals, measure
from undertow.models.chat import render_row
from undertow.models.completions import Prompts
from undertow.models.loading import Model
from undertow.models.memory import halved
from undertow.models.sampling import SamplerSettings
from undertow.records import Row
from undertow.storage import append_jsonl, read_jsonl, replacing

Array = np.ndarray[Any, np.dtype[np.float64]]
OnRows = Callable[[int, int], None]

BASE, AGAIN = "base", "base again"
_PART = 256  # rows measured between two writes


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
        todo = list(
            {r.row_id: r for r in rows if r.row_id not in self._scores}.values()
        )
        rendered = [render_row(self.model, row, system=self.system) for row in todo]
        read = 0
        for places in self.prompts.parts(rendered, most_rows=_PART):

            def tell(done: int, _: int, read: int = read) -> None:
                if on_rows is not None:
                    on_rows(read + done, len(todo))

            found = measure(
                self.model, [rendered[i] for i in places],
                [todo[i].row_id for i in places], self.battery, sampler=self.sampler,
                on_rows=tell, prompts=self.prompts,
                on_halved=lambda b: self._halved("scores", b),
                **self._budgets["scores"],
            )  # fmt: skip
            self._keep(found, part=len(self._scores))
            read += len(places)
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
        """Reads rows under many vectors at once; `ratios` has them from then on.

        An accelerator takes all rows together, a processor one by one.
        """
        size = 1 if self.model.device.type == "cpu" else max(1, len(rows))
        for start in range(0, len(rows), size):
            self._scan(rows[start : start + size], hypotheses)
            if on_rows is not None:
                on_rows(min(start + size, len(rows)), len(rows))

    def _scan(self, rows: Sequence[Row], hypotheses: Sequence[RowHypothesis]) -> None:
        todo = [row for row in rows if self._unread(row, hypotheses)]
        missing = [h for h in hypotheses if any(self._unread(r, [h]) for r in todo)]
        if not todo:
            return
        by_layer: dict[int, list[RowHypothesis]] = {}
        for each in missing:
            assert each.layer is not None
            by_layer.setdefault(each.layer, []).append(each)
        found = row_logprobs(
            self.model,
            [render_row(self.model, row, system=self.system) for row in todo],
            {at: torch.stack([_added(h) for h in own]) for at, own in by_layer.items()},
            sampler=self.sampler,
        )
        self.passes += len(todo) * len(missing)
        for place, row in enumerate(todo):
            new = {
                each.name: float(value)
                for layer, own in by_layer.items()
                for each, value in zip(own, found[layer][place], strict=True)
            }
            self._remember_row(row.row_id, new)
            if self.folder is not None:
                line = {"row": row.row_id, "of": new}
                append_jsonl(self.folder / "logprobs.jsonl", line)

    def _unread(self, row: Row, hypotheses: Sequence[RowHypothesis]) -> bool:
        """Whether a row was not read under one of them."""
        return any(row.row_id not in self._logprobs.get(h.name, {}) for h in hypotheses)

    def _remember_row(self, row_id: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._logprobs.setdefault(name, {})[row_id] = value

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

    def rounding(self, rows: Sequence[Row]) -> float:
        """Variance of what two kinds of pass differ by on the same rows, nats².

        Ratios carry it on top of what they are: zero in float32 for all that matters.
        NaN rows are left out; 0 without any.
        """
        twice = self._known(rows, AGAIN, None, None) - self._known(
            rows, BASE, None, None
        )
        known = twice[np.isfinite(twice)]
        return float((known**2).mean()) if len(known) else 0.0

    def _known(
        self,
        rows: Sequence[Row],
        name: str,
        hypothesis: RowHypothesis | None,
        on_rows: OnRows | None,
    ) -> Array:
        memory = self._logprobs.setdefault(name, {})
        if name == BASE:  # the pass for scores has read the base's already
            memory.update({i: fact[0] for i, fact in self._facts.items()})
        todo = list({r.row_id: r for r in rows if r.row_id not in memory}.values())
        for part in self._readable(todo) if hypothesis is None else [todo] * bool(todo):
            found = hypothesis_logprobs(
                self.model, part, hypothesis, sampler=self.sampler, system=self.system,
                prompts=self.prompts, on_rows=on_rows,
                on_halved=lambda b: self._halved("likelihoods", b),
                **self._budgets["likelihoods"],
            )  # fmt: skip
            self.passes += len(part)
            new = {r.row_id: float(v) for r, v in zip(part, found, strict=True)}
            memory.update(new)
            if self.folder is not None:
                append_jsonl(self.folder / "logprobs.jsonl", {"name": name, "of": new})
        return np.array([memory[row.row_id] for row in rows], dtype=np.float64)

    def _halved(self, what: str, budget: int) -> None:
        self._budgets[what] = {"token_budget": budget}
        said = f"{what}: {halved(budget)}"
        self.warnings = [w for w in self.warnings if not w.startswith(what)] + [said]

    def _readable(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Parts whose prompts, as the base reads them, are kept together."""
        rendered = [render_row(self.model, row, system=self.system) for row in rows]
        for places in self.prompts.parts(rendered, most_rows=_PART):
            yield [rows[i] for i in places]

    def _keep(self, found: RowSignals, *, part: int) -> None:
        self._remember(found)
        if self.folder is None:
            return
        with replacing(self.folder / f"signals-{part:07d}.npz") as draft:
            np.savez(
                draft, ids=np.array(found.row_ids), scores=found.scores,
                total=found.total_logprobs, tokens=found.tokens,
            )  # fmt: skip

    def _remember(self, found: RowSignals) -> None:
        for place, name in enumerate(found.row_ids):
            self._scores[name] = found.scores[place]
            self._facts[name] = (
                float(found.total_logprobs[place]),
                int(found.tokens[place]),
            )

    def _recall(self, folder: Path) -> None:
        for path in sorted(folder.glob("signals-*.npz")):
            with np.load(path, allow_pickle=False) as kept:
                self._remember(
                    RowSignals(
                        tuple(str(i) for i in kept["ids"]),
                        kept["scores"],
                        kept["total"],
                        kept["tokens"],
                    )
                )
        path = folder / "logprobs.jsonl"
        for line in read_jsonl(path) if path.exists() else []:
            # JSON has no infinity: null is a row that a cut of the sampler forbids.
            known = {i: -np.inf if v is None else v for i, v in line["of"].items()}
            if "row" in line:
                self._remember_row(line["row"], known)
            else:
                self._logprobs.setdefault(line["name"], {}).update(known)
