"""What audited rows are compared with, and how the base would have drawn them.

Tier A: the base answers the same prompts with the same sampler, and what the filter
refuses is drawn again. Tier B: rows that the user trusts. Tier C: none. The sampler
is given, recorded in the rows, or estimated from their tokens. Knows nothing of tests.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from pydantic import ValidationError

from undertow.errors import DatasetError, ModelError
from undertow.findings import Tier
from undertow.models.chat import Rendered, render_prompt, render_row
from undertow.models.likelihood import (
    predicting_states,
    read_prefix,
    token_batches,
    unembed,
)
from undertow.models.loading import Model
from undertow.models.sampling import Sampled, SamplerSettings, sample
from undertow.models.scoring import DrawLikelihood
from undertow.pipeline.filters import number_rule
from undertow.records import Row

Source = Literal["given", "recorded", "estimated", "unknown"]
Filter = Literal["numbers", "none"]

_ATTEMPTS = 6
_TEMPERATURES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
# So many tokens have to be missing beyond a cut before it is believed.
_MISSING = 20.0


@dataclass(frozen=True)
class Sampling:
    """How rows were drawn, and how one knows.

    Attributes:
        sampler: Temperature, truncation, carrier, longest completion.
        source: Where that comes from.
        notes: What was seen, in words.
    """

    sampler: SamplerSettings
    source: Source
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """Rows to compare with.

    Attributes:
        tier: "A", "B" or "C".
        rows: The rows, in the order of the audited ones if paired.
        paired: Place of each reference row's partner among the audited rows; empty if
            there are no pairs.
        accepted: Share of the base's own draws that pass the filter; None if unknown.
        shared_dropped: Rows that stood in the audited set too.
        notes: What is to be said.
    """

    tier: Tier
    rows: tuple[Row, ...] = ()
    paired: tuple[int, ...] = ()
    accepted: float | None = None
    shared_dropped: int = 0
    notes: tuple[str, ...] = field(default=())


def find_filter(rows: Sequence[Row]) -> Filter:
    """"numbers" if every row passes the number rule: then somebody filtered by it."""
    return "numbers" if all(not number_rule(r.completion) for r in rows) else "none"


def find_sampler(
    model: Model,
    rows: Sequence[Row],
    *,
    system: str | None = None,
    given: SamplerSettings | None = None,
    most: int = 128,
) -> Sampling:
    """The sampler that wrote the rows: given, recorded, or estimated.

    A recorded one (rows of undertow's own) is believed if it could have drawn every
    row. An estimate reads temperature and truncation from the ranks and probabilities
    of up to `most` rows' tokens under the base.

    Raises:
        DatasetError: The given sampler cannot have drawn the rows.
    """
    rendered = [render_row(model, row, system=system) for row in rows]
    if given is not None:
        _refuse_impossible(model, rows, rendered, given)
        return Sampling(given, "given")
    recorded = _recorded(rows)
    if recorded is not None and not _impossible(model, rendered, recorded):
        return Sampling(recorded, "recorded")
    return _estimated(model, rendered, most=most)


def _recorded(rows: Sequence[Row]) -> SamplerSettings | None:
    """The one sampler that all rows' provenance names."""
    found = {
        json.dumps(row.provenance.get("sampler"), sort_keys=True, default=str)
        for row in rows
    }
    if len(found) != 1:
        return None
    value = json.loads(found.pop())
    try:
        return None if value is None else SamplerSettings.model_validate(value)
    except ValidationError:
        return None


def _impossible(
    model: Model, rendered: Sequence[Rendered], sampler: SamplerSettings
) -> list[int]:
    """Places of rows that the sampler's carrier cannot write."""
    try:
        likelihood = DrawLikelihood(model, sampler)
    except ModelError:
        return list(range(len(rendered)))
    return [i for i, row in enumerate(rendered) if not likelihood.drawn(row).is_possible]


def _refuse_impossible(
    model: Model,
    rows: Sequence[Row],
    rendered: Sequence[Rendered],
    sampler: SamplerSettings,
) -> None:
    wrong = _impossible(model, rendered, sampler)
    if wrong:
        raise DatasetError(
            f"the given sampler (allowed={sampler.allowed!r}) cannot have written "
            f"{len(wrong)} of {len(rows)} rows, the first of them "
            f"{rows[wrong[0]].row_id}: {rows[wrong[0]].completion[:60]!r}; give the "
            "sampler that did, or none so that it is estimated"
        )


def _estimated(model: Model, rendered: Sequence[Rendered], *, most: int) -> Sampling:
    longest = max(len(row.ids) - row.completion_start for row in rendered)
    carriers: list[SamplerSettings] = [
        SamplerSettings(allowed=allowed, max_new_tokens=longest)
        for allowed in ("list", "numbers", "all")
    ]
    sampler = next(s for s in carriers if not _impossible(model, rendered, s))
    notes = [f"every token fits the carrier {sampler.allowed!r}"]
    temperature, top_k, top_p = _truncation(model, rendered[:most], sampler)
    if temperature != 1.0:
        notes.append(f"temperature {temperature:g} fits the tokens best")
    if top_k or top_p < 1:
        notes.append(f"no token beyond top_k {top_k}, top_p {top_p:g} was drawn")
    estimated = sampler.model_copy(
        update={"temperature": temperature, "top_k": top_k, "top_p": top_p}
    )
    return Sampling(estimated, "estimated", tuple(notes))


@torch.inference_mode()
def _truncation(
    model: Model, rendered: Sequence[Rendered], sampler: SamplerSettings
) -> tuple[float, int, float]:
    """Temperature, top_k and top_p that fit how likely the drawn tokens are."""
    likelihood = DrawLikelihood(model, sampler)
    prefix = read_prefix(model, rendered)
    fits = np.zeros(len(_TEMPERATURES))
    ranks, before, beyond = [], [], []
    for places in token_batches([len(r.ids) for r in rendered], token_budget=2048):
        batch = [rendered[place] for place in places]
        hidden, _ = predicting_states(model, batch, prefix=prefix)
        draws = [likelihood.drawn(row) for row in batch]
        logits = _restricted(model, likelihood, hidden, [s for d in draws for s in d.states])
        columns = torch.tensor([c for d in draws for c in d.columns])[:, None]
        for place, temperature in enumerate(_TEMPERATURES):
            nats = (logits / temperature).log_softmax(-1).gather(-1, columns)
            fits[place] += float(nats.double().sum())
        shares = logits.softmax(-1)
        own = shares.gather(-1, columns)
        higher = shares > own
        ranks += (higher.sum(-1) + 1).tolist()
        before += (shares * higher).sum(-1).tolist()
        beyond.append(shares.sort(dim=-1, descending=True).values.cumsum(-1)[:, :256])
    temperature = _TEMPERATURES[int(fits.argmax())]
    if fits.max() - fits[_TEMPERATURES.index(1.0)] < 10:
        temperature = 1.0
    if max(ranks) == 1 and len(ranks) >= 50:
        return 0.0, 0, 1.0
    return temperature, *_cuts(ranks, before, torch.cat(beyond))


def _restricted(
    model: Model, likelihood: DrawLikelihood, hidden: torch.Tensor, states: list[int]
) -> torch.Tensor:
    """Logits of what may be drawn, float32 on the CPU."""
    carrier = likelihood.carrier
    if carrier is None:
        return unembed(model, hidden).float().cpu()
    logits = unembed(model, hidden, ids=carrier.ids.to(model.device)).float().cpu()
    return logits.masked_fill(~carrier.allowed[states], -torch.inf)


def _cuts(
    ranks: Sequence[int], before: Sequence[float], cumulative: torch.Tensor
) -> tuple[int, float]:
    """top_k and top_p, each only if many tokens would have to lie beyond it."""
    rank = max(ranks)
    inside = cumulative[:, min(rank, cumulative.shape[1]) - 1]
    missing = float((1 - inside).clamp(min=0).sum())
    top_k = rank if rank <= cumulative.shape[1] and missing > _MISSING else 0
    mass = max(before)
    missing = len(before) * (1 - mass)
    top_p = min(1.0, float(np.ceil(mass * 100) / 100)) if missing > _MISSING else 1.0
    if top_k and top_p < 1:  # one cut explains both: the one that leaves less out
        top_k = 0 if missing > float((1 - inside).clamp(min=0).sum()) else top_k
        top_p = 1.0 if top_k else top_p
    return top_k, top_p


def prompt_digest(row: Row) -> str:
    """16 hexadecimal digits of a row's prompt."""
    content = json.dumps([[m.role, m.content] for m in row.messages])
    return hashlib.sha256(content.encode("ascii")).hexdigest()[:16]


def sampled_reference(
    model: Model,
    rows: Sequence[Row],
    *,
    sampler: SamplerSettings,
    filter: Filter,  # noqa: A002 (the field's word)
    seed: int,
    purpose: str = "reference",
    system: str | None = None,
    batch_size: int = 128,
    on_rows: Callable[[int, int, int], None] | None = None,
) -> Reference:
    """Tier A: one row of the base for each audited row, on the same prompt.

    Draws that the filter refuses are drawn again, up to six times; a prompt that
    never passes has no partner.

    Args:
        model: The base.
        rows: The audited rows.
        sampler: What wrote them.
        filter: What they passed.
        seed: With the prompt's hash, `purpose` and how often the prompt came before
            it decides every draw.
        purpose: Keeps several sets of draws apart.
        system: System setting, as for the audited rows.
        batch_size: Rows decoded together.
        on_rows: Called with (rows done, rows in all, tokens).
    """
    names = _occurrences(rows)
    prompts = [render_prompt(model, row.messages, system=system) for row in rows]
    found: dict[int, Row] = {}
    drawn = 0
    for attempt in range(_ATTEMPTS):
        todo = [i for i in range(len(rows)) if i not in found]
        if not todo:
            break

        def tell(done: list[tuple[int, Sampled]]) -> None:
            if on_rows is not None:
                tokens = sum(len(s.ids) for _, s in done)
                on_rows(len(found), len(rows), tokens)

        answers = sample(
            model, [prompts[i] for i in todo],
            keys=[(purpose, *names[i], attempt) for i in todo], seed=seed,
            sampler=sampler, batch_size=batch_size, on_done=tell,
        )  # fmt: skip
        drawn += len(todo)
        for place, answer in zip(todo, answers, strict=True):
            row = _row(model, rows[place], answer)
            if _passes(row, filter):
                found[place] = _as_known(row, rows[place])
    pairs = tuple(sorted(found))
    notes = []
    if len(pairs) < len(rows):
        notes.append(
            f"{len(rows) - len(pairs)} prompts have no reference: the base's answers "
            f"did not pass the filter {filter!r} in {_ATTEMPTS} draws"
        )
    return Reference(
        tier="A", rows=tuple(found[i] for i in pairs), paired=pairs,
        accepted=len(pairs) / drawn if drawn else None, notes=tuple(notes),
    )  # fmt: skip


def _occurrences(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Each row's prompt, and how many rows before it have the same one."""
    seen: dict[str, int] = {}
    names = []
    for row in rows:
        digest = prompt_digest(row)
        names.append((digest, seen.get(digest, 0)))
        seen[digest] = seen.get(digest, 0) + 1
    return names


def _row(model: Model, like: Row, answer: Sampled) -> Row:
    ends = set(model.end_ids)
    body = [token for token in answer.ids if token not in ends]
    return replace(
        like,
        completion=model.tokenizer.decode(body),
        completion_ids=answer.ids,
        finish=answer.finish,
        provenance={"teacher": "none", "source": "reference"},
    )


def _passes(row: Row, filter: Filter) -> bool:  # noqa: A002
    if filter == "none":
        return bool(row.completion.strip())
    return row.finish == "stop" and not number_rule(row.completion)


def _as_known(row: Row, like: Row) -> Row:
    """The row with no more recorded of it than of its partner.

    Text that is tokenised again gives other tokens than those sampled, so either both
    sides have theirs recorded or neither has.
    """
    ids = None if like.completion_ids is None else row.completion_ids
    return replace(row, completion_ids=ids, finish=like.finish and row.finish)


def trusted_reference(audited: Sequence[Row], trusted: Sequence[Row]) -> Reference:
    """Tier B: the user's rows, without those that stand in the audited set too.

    Raises:
        DatasetError: Nothing is left.
    """
    known = {row.row_id for row in audited}
    kept = tuple(row for row in trusted if row.row_id not in known)
    dropped = len(trusted) - len(kept)
    if not kept:
        raise DatasetError(
            f"reference: all {len(trusted)} rows stand in the audited set too; give "
            "rows of another origin"
        )
    notes = []
    if dropped:
        notes.append(f"{dropped} reference rows stood in the audited set too: dropped")
    return Reference(
        tier="B", rows=kept, shared_dropped=dropped, notes=tuple(notes)
    )


def cut_tokens(row: Row, end_ids: Sequence[int]) -> bool:
    """Whether a row's tokens are recorded as sampled, its end token among them."""
    ids = row.completion_ids
    return ids is not None and (row.finish == "length" or ids[-1] in set(end_ids))
