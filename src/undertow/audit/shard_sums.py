"""One shard measured: rows as plain values in, sums out, in any process.

Each batch is measured by itself, so its scores do not depend on what else the process
has read. Copies within a batch are measured once and count as often as they stand there.
The model is loaded once a process. Knows nothing of files, nor of what the sums are
tested for.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np
import torch

from undertow.analysis.gradients import GradientScores, gradient_scores
from undertow.audit.partners import draw_partners
from undertow.audit.reference import Passing
from undertow.audit.shards import PlainRow
from undertow.audit.sums import (
    Compared,
    Grid,
    Side,
    Sums,
    Top,
    ids_digest,
    row_signs,
)
from undertow.findings import Tier
from undertow.models.chat import Rendered, render_rows
from undertow.models.loading import Model
from undertow.models.reloading import ModelFacts, same_model
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood
from undertow.records import Row

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Measuring:
    """Everything that decides a row's sums.

    Attributes:
        model: Which one.
        tier: "A": every row is compared with the base's own answer.
        layers: The blocks.
        directions: [layer, direction, hidden], float32.
        named: Places of the directions that top rows are kept for.
        grid: What scores are rounded to.
        sampler: What wrote the rows.
        passing: Which rows count.
        system: System setting.
        seed: Of partners and signs.
        flips: Signs of each row.
        top: Rows kept of each named direction.
    """

    model: ModelFacts
    tier: Tier
    layers: tuple[int, ...]
    directions: np.ndarray[Any, np.dtype[np.float32]]
    named: tuple[int, ...]
    grid: Grid
    sampler: SamplerSettings
    passing: Passing
    system: str | None
    seed: int
    flips: int
    top: int

    def nothing(self) -> Sums:
        """The sums of no rows."""
        layers, directions = self.directions.shape[:2]
        return Sums.nothing(layers, directions, flips=self.flips, most=self.top)


class ShardTask(NamedTuple):
    """What one call is given.

    Attributes:
        key: The name of its answer.
        file: Place of the file, for the top rows.
        batches: Rows that are measured together.
        skipped: What could not be read.
        measuring: How.
    """

    key: str
    file: int
    batches: tuple[tuple[PlainRow, ...], ...]
    skipped: Mapping[str, int]
    measuring: Measuring


class Usable(NamedTuple):
    """Different rows of a batch that can be measured, sorted by id.

    Attributes:
        rows: The rows.
        rendered: Their tokens.
        names: Row ids.
        counts: How often each stands there.
        numbers: Of the first of its copies.
        skipped: The others, by reason.
    """

    rows: list[Row]
    rendered: list[Rendered]
    names: list[str]
    counts: list[int]
    numbers: list[int]
    skipped: Counter[str]


def sum_shard(task: ShardTask) -> tuple[str, Sums]:
    """The key of a shard and its sums.

    Raises:
        ModelError: The model cannot be loaded, is another one, or a row by itself does
            not fit into memory.
    """
    measuring = task.measuring
    model = same_model(measuring.model)
    likelihood = DrawLikelihood(model, measuring.sampler)
    parts = [
        sum_batch(model, measuring, task.file, batch, likelihood=likelihood)
        for batch in task.batches
        if batch
    ]
    nothing = measuring.nothing()
    unread = Sums(
        nothing.own, nothing.partner, nothing.compared, nothing.top, 0, task.skipped
    )
    return task.key, reduce(add, parts, unread)


def sum_batch(
    model: Model,
    measuring: Measuring,
    file: int,
    batch: Sequence[PlainRow],
    *,
    likelihood: DrawLikelihood,
) -> Sums:
    """The sums of rows that are measured together; `likelihood` is the sampler's."""
    usable = usable_plain(model, measuring, batch, likelihood=likelihood)
    read = ids_digest([row.row_id for row in batch], [1] * len(batch))
    nothing = measuring.nothing()
    kept, partners, repeats = with_partners(
        model, measuring, usable, likelihood=likelihood
    )
    if not kept.rows:
        return Sums(
            nothing.own, nothing.partner, nothing.compared, nothing.top, read,
            kept.skipped,
        )  # fmt: skip
    found = scores_of(model, measuring, [*kept.rendered, *partners])
    count = len(kept.rows)
    fine = finite_rows(found.scores)
    fine = fine[:count] & (fine[count:] if partners else True)
    rows = np.flatnonzero(fine)
    skipped = Counter(kept.skipped)
    lost = sum(kept.counts[i] for i in np.flatnonzero(~fine))
    if lost:
        skipped["outside what the sampler draws"] += lost
    return _summed(
        measuring, file, kept, found, rows, bool(partners), repeats, read, skipped
    )


def finite_rows(scores: np.ndarray[Any, np.dtype[np.float32]]) -> Flags:
    """[row]: whether all scores of a row are numbers."""
    found: Flags = np.isfinite(scores).reshape(len(scores), -1).all(axis=1)
    return found


def _summed(
    measuring: Measuring,
    file: int,
    kept: Usable,
    found: GradientScores,
    rows: np.ndarray[Any, np.dtype[np.int64]],
    paired: bool,  # noqa: FBT001 (beside six other values)
    repeats: int,
    read: int,
    skipped: Counter[str],
) -> Sums:
    """Sums of the measured rows at some places; partners stand behind all of them."""
    grid, count = measuring.grid, len(kept.rows)
    names = [kept.names[i] for i in rows]
    counts = [kept.counts[i] for i in rows]
    mine, lengths = found.scores[rows], found.tokens[rows]
    own = grid.whole(mine)
    partner, compared = measuring.nothing().partner, own
    difference = lengths
    if paired:
        theirs = found.scores[count + rows]
        partner = Side.of(
            grid.whole(theirs), counts, found.tokens[count + rows].tolist(),
            repeats=repeats,
        )  # fmt: skip
        compared = grid.whole_pairs(mine, theirs)
        difference = lengths - found.tokens[count + rows]
    signs = row_signs(names, flips=measuring.flips, seed=measuring.seed)
    return Sums(
        own=Side.of(
            own, counts, lengths.tolist(), repeats=sum(counts) - len(set(names))
        ),
        partner=partner,
        compared=Compared.of(compared, counts, difference.tolist(), signs),
        top=Top.of(
            grid.evidence(mine), measuring.named, names,
            [(file, kept.numbers[i]) for i in rows], most=measuring.top,
        ),
        digest=read,
        skipped=dict(skipped),
    )  # fmt: skip


def usable_plain(
    model: Model,
    measuring: Measuring,
    batch: Sequence[PlainRow],
    *,
    likelihood: DrawLikelihood,
) -> Usable:
    """The different rows that can be measured, and why not the others."""
    different: dict[tuple[Any, ...], list[PlainRow]] = {}
    for plain in batch:
        different.setdefault(plain.content(), []).append(plain)
    ordered = [copies for _, copies in sorted(different.items())]
    rows = [copies[0].row() for copies in ordered]
    rendered = render_rows(model, rows, system=measuring.system)
    usable = Usable([], [], [], [], [], Counter())
    for copies, row, found in zip(ordered, rows, rendered, strict=True):
        if not isinstance(found, Rendered):
            usable.skipped[found.reason] += len(copies)
            continue
        why = _refusal(likelihood, measuring.passing, row, found)
        if why is not None:
            usable.skipped[why] += len(copies)
            continue
        usable.rows.append(row)
        usable.rendered.append(found)
        usable.names.append(copies[0].row_id)
        usable.counts.append(len(copies))
        usable.numbers.append(min(plain.number for plain in copies))
    return usable


def _refusal(
    likelihood: DrawLikelihood, passing: Passing, row: Row, found: Rendered
) -> str | None:
    tokens = len(found.ids) - found.completion_start
    why = passing.refusal(row.completion, tokens, row.finish)
    if why is None and likelihood.carrier is not None:
        possible = likelihood.drawn(found).is_possible
        why = None if possible else "outside what the sampler draws"
    return why


def with_partners(
    model: Model, measuring: Measuring, usable: Usable, *, likelihood: DrawLikelihood
) -> tuple[Usable, list[Rendered], int]:
    """The rows that have a partner, those, and how many of them stood there before.

    As it is where nothing is drawn.
    """
    if measuring.tier != "A" or not usable.rows:
        return usable, [], 0
    starts = [row.completion_start for row in usable.rendered]
    room = model.context - measuring.sampler.max_new_tokens
    fits = [i for i, start in enumerate(starts) if start <= room]
    drawn = draw_partners(
        model, [usable.rows[i] for i in fits],
        [usable.rendered[i].ids[: starts[i]] for i in fits],
        sampler=measuring.sampler, passing=measuring.passing, seed=measuring.seed,
    )  # fmt: skip
    pairs = [(i, row) for i, row in zip(fits, drawn, strict=True) if row is not None]
    partners = render_rows(model, [r for _, r in pairs], system=measuring.system)
    fine = [
        (i, row, found)
        for (i, row), found in zip(pairs, partners, strict=True)
        # Read from its text again, an answer has to pass as its row did.
        if isinstance(found, Rendered)
        and _refusal(likelihood, measuring.passing, row, found) is None
    ]
    places = [i for i, _, _ in fine]
    skipped = Counter(usable.skipped)
    lost = sum(usable.counts) - sum(usable.counts[i] for i in places)
    if lost:
        skipped["no answer of the base passed for it"] += lost
    kept = Usable(
        [usable.rows[i] for i in places], [usable.rendered[i] for i in places],
        [usable.names[i] for i in places], [usable.counts[i] for i in places],
        [usable.numbers[i] for i in places], skipped,
    )  # fmt: skip
    # One of each different row: copies share their partner.
    said = {usable.names[i]: row.row_id for i, row, _ in fine}
    repeats = len(said) - len(set(said.values()))
    return kept, [found for _, _, found in fine], repeats


def scores_of(
    model: Model, measuring: Measuring, rendered: Sequence[Rendered]
) -> GradientScores:
    """Scores of rows along the directions, at all blocks; prompts are read anew."""
    directions = torch.from_numpy(measuring.directions)
    return gradient_scores(
        model, rendered, dict(zip(measuring.layers, directions, strict=True)),
        sampler=measuring.sampler,
    )  # fmt: skip
