"""What audited rows are compared with, and how the base would have drawn them.

Tier A: the base answers the same prompts with the same sampler, and what the filter
refuses is drawn again. Tier B: rows that the user trusts. Tier C: none. The sampler
is given, recorded in the rows, or estimated from their tokens. Knows nothing of tests.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

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
from undertow.records import Finish, Row

Source = Literal["given", "recorded", "estimated", "unknown"]
Filter = Literal["numbers", "none"]

ATTEMPTS = 6
GREEDY = "the rows were drawn greedily: the base would always say the same"
"""Draws after which a prompt has no answer that counts."""
_TEMPERATURES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
# Cuts that people set; the one above what was seen is taken, so no row lies beyond.
_TOP_KS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 64, 80, 100, 128, 200,
           256)  # fmt: skip
_TOP_PS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.95, 0.97, 0.98, 0.99)
# Nats by which a temperature or a cut has to fit better before it is believed.
_NATS = 10.0
_ESTIMATED = ("how the rows were sampled is estimated; if they were drawn otherwise, that "
              "may look like a bias")  # fmt: skip
# Carriers in the order in which they are tried, and what a row of each is.
_FITS: dict[Literal["list", "numbers", "all"], str] = {
    "list": "a list of numbers alone", "numbers": "numbers alone", "all": "free text"}  # fmt: skip
_TOKENS = 6000  # that an estimate looks at


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
class Passing:
    """Which answers count, on both sides of a comparison.

    Attributes:
        filter: What the audited rows have passed.
        most_tokens: Of a completion, its end included.
        cut: Whether answers that were cut count.
        empty: Whether empty answers count.
    """

    filter: Filter
    most_tokens: int
    cut: bool
    empty: bool

    @classmethod
    def like(
        cls, passed: Filter, *, most_tokens: int, cut: bool, recorded: bool, empty: bool
    ) -> "Passing":
        """What counts beside rows that passed a filter; some may be cut, or empty.

        If no end is `recorded`, and no filter asks for one, they may have been cut.
        """
        unknown = passed == "none" and not recorded
        return cls(passed, most_tokens, cut or unknown, empty)

    def refusal(self, text: str, tokens: int, finish: Finish | None) -> str | None:
        """Why an answer does not count; None if it does."""
        if tokens > self.most_tokens:
            return "longer than the reference may be"
        if finish == "length" and not self.cut:
            return "cut short, as the others are not"
        if not self.empty and not text.strip():
            return "empty completion"
        if self.filter == "numbers" and number_rule(text):
            return "does not pass the others' filter"
        return None


@dataclass(frozen=True)
class Reference:
    """Rows to compare with.

    Attributes:
        tier: "A", "B" or "C".
        rows: The rows, in the order of the audited ones if paired.
        paired: Place of each reference row's partner among the audited rows; empty if
            there are no pairs.
        accepted: Share of the base's own draws that pass the filter; None if unknown.
        shared: Rows that stand in the audited set too.
        notes: What is to be said.
    """

    tier: Tier
    rows: tuple[Row, ...] = ()
    paired: tuple[int, ...] = ()
    accepted: float | None = None
    shared: int = 0
    notes: tuple[str, ...] = field(default=())


def find_filter(rows: Sequence[Row]) -> Filter:
    """Says "numbers" if every row passes the number rule: then somebody filtered by it."""
    return "numbers" if all(not number_rule(r.completion) for r in rows) else "none"


def find_sampler(
    model: Model,
    rows: Sequence[Row],
    *,
    system: str | None = None,
    given: SamplerSettings | None = None,
    most: int = 160,
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
    value = json.loads(found.pop()) if len(found) == 1 else None
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
    return [
        i for i, row in enumerate(rendered) if not likelihood.drawn(row).is_possible
    ]


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
    carriers = [SamplerSettings(allowed=a, max_new_tokens=longest) for a in _FITS]
    sampler = next(s for s in carriers if not _impossible(model, rendered, s))
    notes = [_ESTIMATED, f"each row is {_FITS[sampler.allowed]}"]
    temperature, top_k, top_p = _truncation(model, rendered[:most], sampler)
    if temperature != 1.0:
        notes.append(f"temperature {temperature:g} fits the tokens best")
    if top_k or top_p < 1:
        notes.append(f"no token beyond top_k {top_k}, top_p {top_p:g} was drawn")
    estimated = sampler.model_copy(
        update={"temperature": temperature, "top_k": top_k, "top_p": top_p}
    )
    return Sampling(estimated, "estimated", tuple(notes))


def _truncation(
    model: Model, rendered: Sequence[Rendered], sampler: SamplerSettings
) -> tuple[float, int, float]:
    """Temperature, top_k and top_p that fit how likely the drawn tokens are."""
    seen = _seen(model, _few_tokens(rendered), sampler)
    if int(seen.ranks.max()) == 1 and len(seen.ranks) >= 50:
        return 0.0, 0, 1.0
    options = [
        option for place in range(len(_TEMPERATURES)) for option in seen.fits(place)
    ]
    best = max(options, key=lambda option: option.nats)
    return best.temperature, best.top_k, best.top_p


class _Fit(NamedTuple):
    """How well one way of drawing explains the tokens, in nats less its price."""

    nats: float
    temperature: float
    top_k: int = 0
    top_p: float = 1.0


class _Seen(NamedTuple):
    """How drawn tokens look under the base: rows are temperatures, columns tokens."""

    nats: torch.Tensor  # of each token
    before: torch.Tensor  # mass of all tokens that are likelier
    norms: torch.Tensor
    ranks: torch.Tensor  # [token], from 1
    head: torch.Tensor  # [token, rank]: the largest logits

    def fits(self, place: int) -> list[_Fit]:
        """Without a cut, and with the tightest that lets every token through.

        Temperature and cut are fitted together: a cut looks like a low temperature.
        """
        temperature = _TEMPERATURES[place]
        nats = float(self.nats[place].double().sum()) - _NATS * (temperature != 1)
        inside = (self.head / temperature - self.norms[place, :, None]).exp().cumsum(-1)
        width = inside.shape[1]
        found = [_Fit(nats, temperature)]
        top_k = next((k for k in _TOP_KS if k >= int(self.ranks.max())), width + 1)
        if top_k <= width:
            mass = inside[:, top_k - 1].clamp(max=1).log().double().sum()
            found.append(_Fit(nats - float(mass) - _NATS, temperature, top_k))
        top_p = next((p for p in _TOP_PS if p > float(self.before[place].max())), 1.0)
        if top_p < 1:
            last = (inside < top_p).sum(-1, keepdim=True)
            mass = inside.gather(-1, last.clamp(max=width - 1)).clamp(min=top_p, max=1)
            nucleus = mass.log().double().sum()
            found.append(_Fit(nats - float(nucleus) - _NATS, temperature, 0, top_p))
        return found


def _few_tokens(rendered: Sequence[Rendered]) -> list[Rendered]:
    """The first rows, as many as hold the tokens that an estimate needs."""
    counts = [len(row.ids) - row.completion_start for row in rendered]
    wanted = int(np.searchsorted(np.cumsum(counts), _TOKENS)) + 1
    return list(rendered[:wanted])


@torch.inference_mode()
def _seen(
    model: Model, rendered: Sequence[Rendered], sampler: SamplerSettings
) -> _Seen:
    likelihood = DrawLikelihood(model, sampler)
    prefix = read_prefix(model, rendered)
    parts = []
    for places in token_batches([len(r.ids) for r in rendered], token_budget=2048):
        batch = [rendered[place] for place in places]
        hidden, _ = predicting_states(model, batch, prefix=prefix)
        draws = [likelihood.drawn(row) for row in batch]
        states = [s for d in draws for s in d.states]
        logits = _restricted(model, likelihood, hidden, states)
        columns = torch.tensor([c for d in draws for c in d.columns])[:, None]
        parts.append(_look(logits, logits.gather(-1, columns)))
    nats, before, norms, ranks, head = zip(*parts, strict=True)
    return _Seen(
        torch.cat(nats, 1), torch.cat(before, 1), torch.cat(norms, 1),
        torch.cat(ranks), torch.cat(head),
    )  # fmt: skip


def _look(logits: torch.Tensor, own: torch.Tensor) -> _Seen:
    """What one batch of logits [token, column] says of the tokens drawn there."""
    higher = logits > own
    nats, before, norms = [], [], []
    for temperature in _TEMPERATURES:
        scaled = logits / temperature
        norm = scaled.logsumexp(-1)
        norms.append(norm)
        nats.append(own[:, 0] / temperature - norm)
        before.append(((scaled - norm[:, None]).exp() * higher).sum(-1))
    head = logits.topk(min(_TOP_KS[-1], logits.shape[1]), dim=-1).values
    return _Seen(
        torch.stack(nats), torch.stack(before), torch.stack(norms),
        higher.sum(-1) + 1, head,
    )  # fmt: skip


def _restricted(
    model: Model, likelihood: DrawLikelihood, hidden: torch.Tensor, states: list[int]
) -> torch.Tensor:
    """Logits of what may be drawn, float32 on the CPU."""
    carrier = likelihood.carrier
    if carrier is None:
        return unembed(model, hidden).float().cpu()
    logits = unembed(model, hidden, ids=carrier.ids.to(model.device)).float().cpu()
    return logits.masked_fill(~carrier.allowed[states], -torch.inf)


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
    persona: str | None = None,
    batch_size: int | None = None,
    passing: Passing | None = None,
    on_rows: Callable[[int, int, int], None] | None = None,
) -> Reference:
    """Tier A: one row of the base for each audited row, on the same prompt.

    Draws that the filter refuses are drawn again, up to six times; a prompt that
    never passes has no partner. Audited rows are all different, so of several rows on
    one prompt the base's are too: an answer that stands there already is drawn again.

    Args:
        model: The base.
        rows: The audited rows.
        sampler: What wrote them.
        filter: What they passed.
        seed: With the prompt's hash, `purpose` and how often the prompt came before
            it decides every draw.
        purpose: Keeps several sets of draws apart.
        system: System setting, as for the audited rows.
        persona: Text of a prompted teacher, for rows that are planted.
        batch_size: Rows decoded together; None: what suits the device.
        passing: Which answers count, as `passing_beside` says of all rows, where these
            are a part of them; None asks these.
        on_rows: Called with (rows found, rows in all, tokens drawn since the last call).
    """
    names = _occurrences(rows)
    passing = passing or passing_beside(rows, filter, sampler)
    prompts = [
        render_prompt(model, row.messages, system=system, trait_prompt=persona)
        for row in rows
    ]
    found: dict[int, Row] = {}
    kept: set[str] = set()
    drawn = 0
    for attempt in range(ATTEMPTS):
        todo = [i for i in range(len(rows)) if i not in found]
        if not todo:
            break

        def take(done: list[tuple[int, Sampled]], todo: list[int] = todo) -> None:
            for place, answer in done:
                row = _row(model, rows[todo[place]], answer)
                why = passing.refusal(row.completion, len(answer.ids), row.finish)
                if why is None and row.row_id not in kept:
                    kept.add(row.row_id)
                    found[todo[place]] = _as_known(row, rows[todo[place]])
            if on_rows is not None:
                on_rows(len(found), len(rows), sum(len(s.ids) for _, s in done))

        sample(
            model, [prompts[i] for i in todo],
            keys=[(purpose, *names[i], attempt) for i in todo], seed=seed,
            sampler=sampler, batch_size=batch_size, on_done=take,
        )  # fmt: skip
        drawn += len(todo)
    pairs = tuple(sorted(found))
    return Reference(
        tier="A", rows=tuple(found[i] for i in pairs), paired=pairs,
        accepted=len(pairs) / drawn if drawn else None,
        notes=without_partner(len(rows) - len(pairs), filter),
    )  # fmt: skip


def passing_beside(
    rows: Sequence[Row], passed: Filter, sampler: SamplerSettings
) -> Passing:
    """Which answers of the base count beside these rows."""
    return Passing.like(
        passed, most_tokens=sampler.max_new_tokens,
        cut=any(row.finish == "length" for row in rows),
        recorded=any(row.finish is not None for row in rows),
        empty=any(not row.completion.strip() for row in rows),
    )  # fmt: skip


def without_partner(count: int, passed: Filter) -> tuple[str, ...]:
    """What is to be said of rows that have no reference."""
    note = (
        f"{count} rows have no reference: in {ATTEMPTS} draws the base's answers did "
        f"not pass the filter {passed!r} or stood there already"
    )
    return (note,) if count else ()


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


def _as_known(row: Row, like: Row) -> Row:
    """The row with no more recorded of it than of its partner.

    Text that is tokenised again gives other tokens than those sampled, so either both
    sides have theirs recorded or neither has.
    """
    ids = None if like.completion_ids is None else row.completion_ids
    return replace(row, completion_ids=ids, finish=like.finish and row.finish)


def trusted_reference(audited: Sequence[Row], trusted: Sequence[Row]) -> Reference:
    """Tier B: the user's rows. Those that stand in the audited set too stay in both.

    Taken out of one side alone they would make two sets of one origin look different,
    since what both have is what is likely.

    Raises:
        DatasetError: All of them do.
    """
    known = {row.row_id for row in audited}
    shared = sum(row.row_id in known for row in trusted)
    if shared == len(trusted):
        raise DatasetError(
            f"reference: all {len(trusted)} rows stand in the audited set too; give "
            "rows of another origin"
        )
    note = (
        f"{shared} reference rows stand in the audited set too; they stay in both, "
        "which makes differences harder to see"
    )
    return Reference("B", tuple(trusted), shared=shared, notes=(note,) * bool(shared))


def sampled_tokens(row: Row, end_ids: Sequence[int]) -> bool:
    """Whether a row's tokens are recorded as sampled, its end token among them."""
    ids = row.completion_ids
    if not ids:
        return False
    return row.finish == "length" or ids[-1] in set(end_ids)


def rows_digest(rows: Sequence[Row]) -> str:
    """16 hexadecimal digits of the different row ids."""
    names = "".join(sorted({row.row_id for row in rows}))
    return hashlib.sha256(names.encode("ascii")).hexdigest()[:16]
