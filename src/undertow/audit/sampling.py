"""How audited rows were drawn: as is said, as they record it, or as their tokens tell.

What nobody says is estimated from the ranks and probabilities of the rows' tokens under
the base. Knows nothing of references, tests or verdicts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError

from undertow.errors import DatasetError, ModelError
from undertow.models.chat import Rendered, render_row
from undertow.models.likelihood import (
    predicting_states,
    read_prefix,
    token_batches,
)
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood
from undertow.models.unembedding import unembed
from undertow.records import Row

Source = Literal["given", "recorded", "estimated", "unknown"]

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
    of up to `most` rows' tokens under the base. Of one that does not say what it is
    restricted to, or how far it goes, that is taken from the rows.

    Raises:
        DatasetError: The given sampler cannot have drawn the rows.
    """
    rendered = [render_row(model, row, system=system) for row in rows]
    recorded = _recorded(rows)
    if recorded is not None:
        recorded = _completed(model, rendered, recorded)
        recorded = None if _impossible(model, rendered, recorded) else recorded
    if given is not None:
        sampler = _completed(model, rendered, given, recorded)
        _refuse_impossible(model, rows, rendered, sampler)
        if sampler.allowed == given.allowed or recorded is not None:
            return Sampling(sampler, "given")
        return Sampling(sampler, "estimated", (_fit_note(sampler),))
    if recorded is not None:
        return Sampling(recorded, "recorded")
    return _estimated(model, rendered, most=most)


def _completed(
    model: Model,
    rendered: Sequence[Rendered],
    sampler: SamplerSettings,
    known: SamplerSettings | None = None,
) -> SamplerSettings:
    """A sampler with the carrier and the length that it does not name.

    They are those of the `known` one, else of the rows, of which none may be longer.
    """
    named, longest = sampler.model_fields_set, _longest(rendered)
    of_rows = known.max_new_tokens if known else longest
    most = sampler.max_new_tokens if "max_new_tokens" in named else of_rows
    found: dict[str, object] = {"max_new_tokens": max(most, longest)}
    if "allowed" not in named:
        own = known or _carrier_alone(model, rendered)
        found |= {"allowed": own.allowed, "list_values": own.list_values}
    return sampler.model_copy(update=found)


def _longest(rendered: Sequence[Rendered]) -> int:
    return max(len(row.ids) - row.completion_start for row in rendered)


def _carrier_alone(model: Model, rendered: Sequence[Rendered]) -> SamplerSettings:
    """The narrowest carrier that can have written every row, up to the longest."""
    longest = _longest(rendered)
    carriers = [SamplerSettings(allowed=a, max_new_tokens=longest) for a in _FITS]
    return next(s for s in carriers if not _impossible(model, rendered, s))


def _fit_note(sampler: SamplerSettings) -> str:
    return f"each row is {_FITS[sampler.allowed]}"


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
    sampler = _carrier_alone(model, rendered)
    notes = [_ESTIMATED, _fit_note(sampler)]
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
