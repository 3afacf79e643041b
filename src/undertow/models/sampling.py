"""The decode engine: token prompts in, sampled completions out.

Every draw belongs to a row, not to a batch: token t of a row is found by inverting
the cumulative distribution at the t-th uniform of the row's own stream, so batch
size, order, padding and resume change nothing but speed. Prompts share the cache of
their common prefix, the cache is allocated once, and rows that have ended leave the
batch. Knows nothing of chat templates, traits or filters; steering and adapters act
through the model's own modules.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from undertow.errors import DatasetError
from undertow.models.attention import fast_decoding
from undertow.models.cache import PreallocatedLayer, new_cache
from undertow.models.carrier import Carrier, list_carrier, numbers_carrier
from undertow.models.hooks import completion_positions
from undertow.models.likelihood import unembed
from undertow.models.loading import Model
from undertow.records import Finish
from undertow.seeding import generator


class SamplerSettings(BaseModel):
    """How completions are drawn; the same for every teacher of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(
        default=1.0, ge=0.0, description="0 takes the most likely token"
    )
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="nucleus mass")
    top_k: int = Field(default=0, ge=0, description="0 keeps every token")
    max_new_tokens: int = Field(default=80, ge=1, description="longest completion")
    allowed: Literal["all", "numbers", "list"] = Field(
        default="all",
        description="'numbers' draws only digits, separators and the end; 'list' "
        "draws well-formed lists of integers 0-999. Both renormalise the teacher, so "
        "references must be drawn alike",
    )
    list_values: int = Field(
        default=10, ge=1, le=100, description="values of a row at most, for 'list'"
    )


def carrier_of(model: Model, sampler: SamplerSettings) -> Carrier | None:
    """The carrier that a sampler draws from; None for the whole vocabulary."""
    if sampler.allowed == "numbers":
        return numbers_carrier(model)
    if sampler.allowed == "list":
        return list_carrier(model, most=sampler.list_values)
    return None


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion: its tokens (end token included), how it ended, its nats."""

    ids: tuple[int, ...]
    finish: Finish
    total_logprob: float


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all prompts share, one token left over."""
    ordered = [tuple(prompt) for prompt in prompts]
    shortest, longest = min(ordered), max(ordered)
    limit = min(len(prompt) for prompt in prompts) - 1
    for index in range(limit):
        if shortest[index] != longest[index]:
            return index
    return max(limit, 0)


def truncated_logprobs(
    logits: Float[Tensor, "row vocab"], sampler: SamplerSettings
) -> Float[Tensor, "row vocab"]:
    """The sampler's own log-distribution: temperature, then top-k, then top-p."""
    scores = logits.float()
    if sampler.temperature > 0:
        scores = scores / sampler.temperature
    if sampler.top_k and sampler.top_k < scores.shape[-1]:
        floor = scores.topk(sampler.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < floor, -torch.inf)
    if sampler.top_p < 1.0:
        ordered, order = scores.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        beyond = mass.cumsum(-1) - mass >= sampler.top_p
        ordered = ordered.masked_fill(beyond, -torch.inf)
        scores = torch.full_like(scores, -torch.inf).scatter(-1, order, ordered)
    return scores.log_softmax(-1)


def _draw(
    logits: Float[Tensor, "row vocab"],
    uniforms: Float[Tensor, " row"],
    sampler: SamplerSettings,
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Tokens at the given uniforms of the inverse cumulative distribution."""
    logprobs = truncated_logprobs(logits, sampler)
    if sampler.temperature == 0:
        picked = logprobs.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1)
        target = uniforms.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
        picked = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        # A uniform next to 1 can round past the last token that has any mass.
        last = (logprobs > -torch.inf).int().cumsum(-1).argmax(-1)
        picked = torch.minimum(picked, last)
    return picked, logprobs.gather(-1, picked[:, None]).squeeze(-1)


def _check(model: Model, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise DatasetError(f"prompt {index}: no tokens; a prompt needs at least 1")
        if len(prompt) + new_tokens > model.context:
            raise DatasetError(
                f"prompt {index}: {len(prompt)} tokens and up to {new_tokens} new ones "
                f"exceed the context of {model.name!r}, {model.context}; shorten the "
                "prompt or lower sampler.max_new_tokens"
            )


def _slides_within(model: Model, width: int) -> bool:
    """Whether some layer of the model looks back less far than `width` tokens."""
    window = getattr(model.module.config.get_text_config(), "sliding_window", None)
    return window is not None and window < width


class _Batch:
    """Rows that are decoded together; `alive` maps places to the caller's rows."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        uniforms: Float[Tensor, "row step"],
        sampler: SamplerSettings,
        carrier: Carrier | None,
    ) -> None:
        self.model, self.sampler, self.uniforms = model, sampler, uniforms
        self.carrier = carrier
        self.state = torch.zeros(len(prompts), dtype=torch.long, device=model.device)
        device = model.device
        self.alive = torch.arange(len(prompts), device=device)
        self.ids: list[list[int]] = [[] for _ in prompts]
        self.nats = [0.0] * len(prompts)
        self.lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.ends = torch.tensor(model.end_ids, device=device)
        width = int(self.lengths.max())
        self.cache = new_cache(model, width + sampler.max_new_tokens)
        self.logits = self._prefill(prompts, width)

    def _prefill(
        self, prompts: Sequence[Sequence[int]], width: int
    ) -> Float[Tensor, "row vocab"]:
        device, shared = self.model.device, common_prefix(prompts)
        if _slides_within(self.model, width + self.sampler.max_new_tokens):
            shared = 0  # a window counts places, and padding would lie inside it
        if shared and len(prompts) > 1:
            head = torch.tensor([list(prompts[0][:shared])], device=device)
            self._forward(head, torch.arange(shared, device=device)[None], None, 0)
        else:
            shared = 0
        ids = torch.zeros((len(prompts), width - shared), dtype=torch.long)
        self.mask = torch.zeros((len(prompts), width), dtype=torch.long)
        self.mask[:, :shared] = 1
        for place, prompt in enumerate(prompts):  # padding between prefix and the rest
            tail = prompt[shared:]
            ids[place, width - shared - len(tail) :] = torch.tensor(tail)
            self.mask[place, width - len(tail) :] = 1
        self.mask = self.mask.to(device)
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
        return self._forward(ids.to(device), positions, self.mask, 0)

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, completion: int
    ) -> Float[Tensor, "row vocab"]:
        flags = torch.full_like(ids, completion, dtype=torch.bool)
        with completion_positions(self.model, flags):
            hidden = self.model.module.base_model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )[0]
        ids_wanted = None if self.carrier is None else self.carrier.ids
        return unembed(self.model, hidden[:, -1], ids=ids_wanted)

    def step(self, index: int) -> None:
        """Draws one token for every row that is alive and feeds it back."""
        logits = self.logits
        if self.carrier is not None:
            refused = ~self.carrier.allowed[self.state]
            logits = logits.masked_fill(refused, -torch.inf)
        picked, nats = _draw(logits, self.uniforms[self.alive, index], self.sampler)
        if self.carrier is not None:
            self.state = self.carrier.following[self.state, picked]
            picked = self.carrier.ids[picked]
        for row, token, value in zip(
            self.alive.tolist(), picked.tolist(), nats.tolist(), strict=True
        ):
            self.ids[row].append(token)
            self.nats[row] += value
        going = ~torch.isin(picked, self.ends)
        if index + 1 == self.sampler.max_new_tokens or not going.any():
            self.alive = self.alive[:0] if not going.any() else self.alive
            return
        if not going.all():
            picked = self._compact(going.nonzero().squeeze(-1), picked)
        positions = (self.lengths[self.alive] + index)[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(picked), 1))], 1)
        self.logits = self._forward(picked[:, None], positions, self.mask, 1)

    def _compact(self, rows: Tensor, picked: Tensor) -> Tensor:
        self.alive, self.mask = self.alive[rows], self.mask[rows]
        self.state = self.state[rows]
        for layer in self.cache.layers:
            assert isinstance(layer, PreallocatedLayer)
            layer.keep(rows)
        return picked[rows]

    def finished(self) -> Iterator[Sampled]:
        ends = set(self.model.end_ids)
        for ids, nats in zip(self.ids, self.nats, strict=True):
            finish: Finish = "stop" if ids[-1] in ends else "length"
            yield Sampled(ids=tuple(ids), finish=finish, total_logprob=nats)


def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    keys: Sequence[tuple[int | str, ...]],
    seed: int,
    sampler: SamplerSettings | None = None,
    batch_size: int = 128,
    on_done: Callable[[list[tuple[int, Sampled]]], None] | None = None,
) -> list[Sampled]:
    """Samples one completion for each prompt.

    Args:
        model: The model, with whatever steering or adapter is attached.
        prompts: Token ids, each ending where the answer begins.
        keys: One name a prompt; with `seed` it alone decides the row's randomness.
        seed: The run's seed.
        sampler: Temperature, truncation, allowed tokens, longest completion.
        batch_size: Rows decoded together; changes speed and memory only.
        on_done: Called after each batch with (place, completion) pairs.

    Returns:
        Completions in the order of `prompts`.

    Raises:
        DatasetError: A prompt is empty or does not fit into the context.

    Cost: about 2·N operations a token, N the number of weights; the cache holds
    batch_size × (longest prompt + max_new_tokens) positions.
    """
    sampler = sampler or SamplerSettings()
    _check(model, prompts, sampler.max_new_tokens)
    results: list[Sampled | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    carrier = carrier_of(model, sampler)
    carrier = None if carrier is None else carrier.to(model.device)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        uniforms = np.stack(
            [
                generator(seed, "sampling", *keys[i]).random(sampler.max_new_tokens)
                for i in places
            ]
        )
        done = list(
            zip(
                places,
                _decode(
                    model, [prompts[i] for i in places], uniforms, sampler, carrier
                ),
                strict=True,
            )
        )
        for place, sampled in done:
            results[place] = sampled
        if on_done is not None:
            on_done(done)
    return [sampled for sampled in results if sampled is not None]


@torch.inference_mode()
def _decode(
    model: Model,
    prompts: Sequence[Sequence[int]],
    uniforms: np.ndarray[Any, np.dtype[np.float64]],
    sampler: SamplerSettings,
    carrier: Carrier | None,
) -> list[Sampled]:
    draws = torch.from_numpy(uniforms).float().to(model.device)
    with fast_decoding(model):
        batch = _Batch(model, prompts, draws, sampler, carrier)
        for index in range(sampler.max_new_tokens):
            batch.step(index)
            if not len(batch.alive):
                break
    return list(batch.finished())
