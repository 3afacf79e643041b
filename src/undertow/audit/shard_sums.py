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

from undertow.analysis.batches import usual_tokens
from undertow.analysis.gradients import GradientScores, gradient_scores
from undertow.audit.partners import Passing, draw_partners
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
from undertow.errors import DatasetError
from undertow.findings import Tier
from undertow.models.chat import Rendered, completion_tokens, render_prompt
from undertow.models.loading import Model
from undertow.models.reloading import ModelFacts, same_model
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood
from undertow.records import Message, Row

Flags = np.ndarray[Any, np.dtype[np.bool_]]

_HIDDEN = 576  # of the model for which `usual_tokens` of a processor is right
_MOST_TOKENS = 8192


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
    parts = [sum_batch(model, measuring, task.file, b) for b in task.batches if b]
    nothing = measuring.nothing()
    unread = Sums(
        nothing.own, nothing.partner, nothing.compared, nothing.top, 0, task.skipped
    )
    return task.key, reduce(add, parts, unread)


def sum_batch(
    model: Model, measuring: Measuring, file: int, batch: Sequence[PlainRow]
) -> Sums:
    """The sums of rows that are measured together."""
    usable = usable_plain(model, measuring, batch)
    read = ids_digest([row.row_id for row in batch], [1] * len(batch))
    nothing = measuring.nothing()
    kept, partners = with_partners(model, measuring, usable)
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
    return _summed(measuring, file, kept, found, rows, bool(partners), read, skipped)


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
            grid.whole(theirs), counts, found.tokens[count + rows].tolist()
        )
        compared = grid.whole_pairs(mine, theirs)
        difference = lengths - found.tokens[count + rows]
    signs = row_signs(names, flips=measuring.flips, seed=measuring.seed)
    return Sums(
        own=Side.of(own, counts, lengths.tolist()),
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
    model: Model, measuring: Measuring, batch: Sequence[PlainRow]
) -> Usable:
    """The different rows that can be measured, and why not the others."""
    different: dict[tuple[str, tuple[int, ...] | None], list[PlainRow]] = {}
    for plain in batch:
        different.setdefault((plain.row_id, plain.completion_ids), []).append(plain)
    ordered = sorted(different.items(), key=lambda item: (item[0][0], item[0][1] or ()))
    rows = [copies[0].row() for _, copies in ordered]
    rendered = render_rows(model, rows, system=measuring.system)
    likelihood = DrawLikelihood(model, measuring.sampler)
    usable = Usable([], [], [], [], [], Counter())
    for (name, copies), row, found in zip(
        ((key[0], copies) for key, copies in ordered), rows, rendered, strict=True
    ):
        why = found if isinstance(found, str) else _refusal(
            likelihood, measuring.passing, row, found
        )  # fmt: skip
        if isinstance(found, str) or why is not None:
            usable.skipped[str(why)] += len(copies)
            continue
        usable.rows.append(row)
        usable.rendered.append(found)
        usable.names.append(name)
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


def render_rows(
    model: Model, rows: Sequence[Row], *, system: str | None
) -> list[Rendered | str]:
    """As `render_row` each, or why not; each prompt is rendered once.

    Texts are tokenised together, which takes a tenth of the time.
    """
    prompts: dict[tuple[Message, ...], list[int] | str] = {}
    fine = [_is_unicode([*(m.content for m in r.messages), r.completion]) for r in rows]
    texts = [i for i, r in enumerate(rows) if r.completion_ids is None and fine[i]]
    prefix = model.template.answer_prefix
    plain = [rows[i].completion for i in texts]
    said = [t if t.startswith(prefix) else prefix + t for t in plain]
    ids = model.tokenizer(said, add_special_tokens=False)["input_ids"] if said else []
    completions = dict(zip(texts, ids, strict=True))
    found: list[Rendered | str] = []
    for place, row in enumerate(rows):
        if not fine[place]:
            found.append("text that is not Unicode")
            continue
        if row.messages not in prompts:
            prompts[row.messages] = _prompt(model, row.messages, system)
        answer = completions.get(place)
        if answer is None:
            answer = completion_tokens(model, row)
        elif row.finish != "length":
            answer = [*answer, model.end_ids[0]]
        found.append(_whole(model, prompts[row.messages], answer, row))
    return found


def _is_unicode(texts: Sequence[str]) -> bool:
    """Whether no lone surrogates stand in the texts: tokenizers take none."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _prompt(
    model: Model, messages: Sequence[Message], system: str | None
) -> list[int] | str:
    try:
        return render_prompt(model, messages, system=system)
    except DatasetError:
        return "cannot be rendered"


def _whole(
    model: Model, prompt: list[int] | str, answer: list[int], row: Row
) -> Rendered | str:
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        return "no prompt"
    if not answer or (row.completion_ids is None and not row.completion):
        return "empty completion"
    if len(prompt) + len(answer) > model.context:
        return "longer than the context"
    return Rendered(prompt + answer, len(prompt))


def with_partners(
    model: Model, measuring: Measuring, usable: Usable
) -> tuple[Usable, list[Rendered]]:
    """The rows that have a partner, and those; as it is where nothing is drawn."""
    if measuring.tier != "A" or not usable.rows:
        return usable, []
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
    likelihood = DrawLikelihood(model, measuring.sampler)
    fine = [
        (i, found)
        for (i, row), found in zip(pairs, partners, strict=True)
        # Read from its text again, an answer has to pass as its row did.
        if isinstance(found, Rendered)
        and _refusal(likelihood, measuring.passing, row, found) is None
    ]
    places = [i for i, _ in fine]
    skipped = Counter(usable.skipped)
    lost = sum(usable.counts) - sum(usable.counts[i] for i in places)
    if lost:
        skipped["no answer of the base passed for it"] += lost
    kept = Usable(
        [usable.rows[i] for i in places], [usable.rendered[i] for i in places],
        [usable.names[i] for i in places], [usable.counts[i] for i in places],
        [usable.numbers[i] for i in places], skipped,
    )  # fmt: skip
    return kept, [found for _, found in fine]


def scores_of(
    model: Model, measuring: Measuring, rendered: Sequence[Rendered]
) -> GradientScores:
    """Scores of rows along the directions, at all blocks; prompts are read anew."""
    directions = torch.from_numpy(measuring.directions)
    return gradient_scores(
        model, rendered, dict(zip(measuring.layers, directions, strict=True)),
        sampler=measuring.sampler, prompts=None, token_budget=batch_tokens(model),
    )  # fmt: skip


def batch_tokens(model: Model) -> int:
    """Tokens of a pass: the narrower the stream, the more a processor's caches hold."""
    usual = usual_tokens(model, with_graph=True)
    if model.device.type != "cpu":
        return usual
    width = model.architecture.hidden_size
    return max(usual, min(_MOST_TOKENS, usual * _HIDDEN // width))
