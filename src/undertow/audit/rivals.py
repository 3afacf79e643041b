"""Three known ways to look for a bias in rows, in a few lines each, for comparison.

None of them has a null, so none has a p-value; they name whatever comes first. Vectors
are the battery's, likelihoods and rows are measured once. Knows nothing of the truth.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.analysis.gradients import gradient_scores
from undertow.analysis.hypotheses import prompt_hypotheses
from undertow.audit.contest import Answer, Workbench
from undertow.audit.meter import whole_arrays
from undertow.errors import ConfigError
from undertow.models.chat import render_row
from undertow.models.hooks import recording_residuals
from undertow.models.likelihood import padded, token_batches
from undertow.models.loading import Model
from undertow.records import Row
from undertow.storage import replacing

Table = np.ndarray[Any, np.dtype[np.float32]]

_PART = 256


class RowTables:
    """One array a row, kept in memory and on disk by row id.

    Args:
        folder: Where parts are kept; None keeps them in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._known: dict[str, Table] = {}
        for path in sorted(folder.glob("*.npz")) if folder is not None else []:
            kept = whole_arrays(path, ("ids", "values"))
            if kept is not None:
                names = [str(name) for name in kept[0]]
                self._known.update(zip(names, kept[1], strict=True))

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """Different rows that have no array yet."""
        return list({r.row_id: r for r in rows if r.row_id not in self._known}.values())

    def keep(self, rows: Sequence[Row], values: Table) -> None:
        """Keeps [row, …] values."""
        names = [row.row_id for row in rows]
        self._known.update(zip(names, values.astype(np.float32), strict=True))
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / f"{len(self._known):07d}.npz") as draft:
                np.savez(draft, ids=np.array(names), values=values.astype(np.float32))

    def of(self, rows: Sequence[Row]) -> Table:
        """[row, …] of rows that are known."""
        return np.stack([self._known[row.row_id] for row in rows])


def _folder(bench: Workbench, name: str) -> Path | None:
    own = bench.meter.folder
    return None if own is None else own.with_name(f"{own.name}-{name}")


def _watched(bench: Workbench) -> tuple[int, ...]:
    """The blocks that a rival looks at.

    Raises:
        ConfigError: The audit's battery lacks one.
    """
    known = bench.meter.battery.layers
    depth = len(bench.meter.model.architecture.blocks)
    layers = tuple(sorted(bench.settings.watched_layers(depth)))
    if missing := [layer for layer in layers if layer not in known]:
        fault = f"got {missing}, the audit's layers are {list(known)}"
        raise ConfigError("rival_layers", [fault])
    return layers


def _trait_vectors(bench: Workbench, layers: Sequence[int]) -> Table:
    """[layer, trait, hidden], each of length 1."""
    battery = bench.meter.battery
    places = battery.of_role("trait")
    chosen = [battery.layers.index(layer) for layer in layers]
    found: Table = battery.directions[chosen][:, places].numpy().astype(np.float32)
    return found


def _answer(
    table: Table, bench: Workbench, layers: Sequence[int], kind: str | None = None
) -> Answer:
    """The largest entry of [layer, trait] with its names."""
    names = [bench.meter.battery.names[p] for p in bench.meter.battery.of_role("trait")]
    layer, trait = np.unravel_index(int(np.argmax(table)), table.shape)
    return Answer(
        score=float(table[layer, trait]), trait=names[int(trait)], kind=kind,
        layer=layers[int(layer)],
    )  # fmt: skip


class CosineAuditor:
    """max over traits and blocks of cos(mean_i g_i, v), g_i = ∂ log p(y_i|x_i)/∂h.

    Gradients are summed over the positions that predict the completion, on the plain
    base. It looks at no reference.

    Source: the gradient alignment of the seed's code, arXiv 2507.14805's follow-ups.
    """

    name = "cosine"

    def __init__(self, bench: Workbench) -> None:
        self.bench, self.layers = bench, _watched(bench)
        self.vectors = _trait_vectors(bench, self.layers)
        self.gradients = RowTables(_folder(bench, "gradients"))

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:  # noqa: ARG002
        """Judges rows; see `Auditor`."""
        self._measure(audited)
        mean = self.gradients.of(audited).mean(0)  # [layer, hidden]
        products = np.einsum("lh,lth->lt", mean, self.vectors)
        lengths = np.linalg.norm(mean, axis=1, keepdims=True)
        return _answer(products / np.maximum(lengths, 1e-30), self.bench, self.layers)

    def _measure(self, rows: Sequence[Row]) -> None:
        todo = self.gradients.missing(rows)
        model, sampler = self.bench.meter.model, self.bench.meter.sampler
        hidden = model.architecture.hidden_size
        nothing = {layer: torch.zeros(1, hidden) for layer in self.layers}
        for first in range(0, len(todo), _PART):
            part = todo[first : first + _PART]
            rendered = [
                render_row(model, r, system=self.bench.meter.system) for r in part
            ]
            found = np.zeros((len(part), len(self.layers), hidden), np.float32)

            def take(
                layer: int, places: Sequence[int], values: Tensor, found: Table = found
            ) -> None:
                found[list(places), self.layers.index(layer)] = values.cpu().numpy()

            gradient_scores(
                model, rendered, nothing, sampler=sampler, on_gradients=take
            )
            self.gradients.keep(part, found)


class LikelihoodAuditor:
    """max over traits of the mean of log p(y|x; persona) − log p(y|x), nats a row.

    It reads some rows of a set only, the first by their hash, since every persona
    costs a pass over them. It looks at no reference.

    Source: the hypothesis scan of LLS (jeqcho/LLS-subliminal-learning).
    """

    name = "lls"

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.hypotheses = prompt_hypotheses(bench.family, bench.family.names)

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:  # noqa: ARG002
        """Judges rows; see `Auditor`."""
        rows = audited[: self.bench.settings.lls_rows]
        means = [
            float(self.bench.meter.ratios(rows, h).mean()) for h in self.hypotheses
        ]
        best = int(np.argmax(means))
        return Answer(
            score=means[best], trait=self.hypotheses[best].trait, kind="prompt"
        )


class ProjectionAuditor:
    """max over traits and blocks of how much further audited rows lie along v.

    Each row is the mean of the base's residual stream over its completion tokens,
    projected on the trait's vector of length 1, in units of the stream's norm there;
    the reference's mean is taken away.

    Source: the projection difference of persona vectors, arXiv 2507.21509.
    """

    name = "projection"

    def __init__(self, bench: Workbench) -> None:
        self.bench, self.layers = bench, _watched(bench)
        battery = bench.meter.battery
        norms = [battery.norms[battery.layers.index(layer)] for layer in self.layers]
        units = np.array(norms, dtype=np.float32)[:, None, None]
        self.vectors = _trait_vectors(bench, self.layers) / units
        self.projections = RowTables(_folder(bench, "projections"))

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        """Judges rows; see `Auditor`."""
        self._measure([*audited, *reference])
        mine = self.projections.of(audited).mean(0)
        return _answer(
            mine - self.projections.of(reference).mean(0), self.bench, self.layers
        )

    def _measure(self, rows: Sequence[Row]) -> None:
        todo, meter = self.projections.missing(rows), self.bench.meter
        for first in range(0, len(todo), _PART):
            part = todo[first : first + _PART]
            means = completion_means(
                meter.model, part, self.layers, system=meter.system
            )
            self.projections.keep(part, np.einsum("rlh,lth->rlt", means, self.vectors))


@torch.inference_mode()
def completion_means(
    model: Model,
    rows: Sequence[Row],
    layers: Sequence[int],
    *,
    system: str | None = None,
    token_budget: int = 4096,
) -> Table:
    """[row, layer, hidden]: mean of the base's stream over each completion's tokens."""
    rendered = [render_row(model, row, system=system) for row in rows]
    width = model.architecture.hidden_size
    found = np.zeros((len(rows), len(layers), width), np.float32)
    lengths = [len(row.ids) for row in rendered]
    for places in token_batches(lengths, token_budget=token_budget):
        batch = [rendered[place] for place in places]
        ids = padded([row.ids for row in batch], device=model.device)
        with recording_residuals(model, layers) as kept:
            model.module.base_model(input_ids=ids, use_cache=False)
        for column, layer in enumerate(layers):
            for entry, (place, row) in enumerate(zip(places, batch, strict=True)):
                tokens = kept[layer][entry, row.completion_start : len(row.ids)]
                found[place, column] = tokens.float().mean(0).cpu().numpy()
    return found


RIVALS = {
    auditor.name: auditor
    for auditor in (CosineAuditor, LikelihoodAuditor, ProjectionAuditor)
}
