"""The decode engine: token prompts in, sampled completions out.

Every draw belongs to a row, not to a batch: token t of a row is found by inverting
the cumulative distribution at the t-th uniform of the row's own stream, so batch
size, order, padding and resume change nothing but speed. Prompts share the cache of
their common prefix, the cache is allocated once, and a row that has ended makes room
for the next one. Knows nothing of chat templates, traits or filters; steering and adapters act
through the model's own modules.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers.cache_utils import Cache

from undertow.errors import DatasetError, ModelError
from undertow.models.attention import fast_attention
from undertow.models.cache import SlotCache, bytes_a_token, new_cache, resized
from undertow.models.carrier import Carrier, list_carrier, numbers_carrier
from undertow.models.fixed_steps import FixedSteps
from undertow.models.hooks import completion_positions
from undertow.models.likelihood import common_prefix, padded
from undertow.models.loading import Model
from undertow.models.memory import OutOfMemory, attempted
from undertow.models.recording import is_recordable
from undertow.models.unembedding import unembed
from undertow.records import Finish
from undertow.seeding import generator

UniformDraws = Float[Tensor, " step"]


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
    """One completion: its tokens (end token included), how it ended, its nats.

    Who is decoded beside it moves the last bits of the nats, and nothing else.
    """

    ids: tuple[int, ...]
    finish: Finish
    total_logprob: float


# Rows whose distributions over the vocabulary are computed at a time.
_CPU_ROWS = 8


def truncated_logprobs(
    logits: Float[Tensor, "row vocab"], sampler: SamplerSettings
) -> Float[Tensor, "row vocab"]:
    """The sampler's own log-distribution: temperature, then top-k, then top-p."""
    scores = logits.float()
    if sampler.temperature not in (0, 1):
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
    """Tokens at the given uniforms, and their log-probabilities.

    A processor takes a few rows at a time, whose distributions its caches can hold.
    """
    size = _CPU_ROWS if logits.device.type == "cpu" else len(logits)
    parts = zip(torch.split(logits, size), torch.split(uniforms, size), strict=True)
    drawn = [_draw_part(scores, draws, sampler) for scores, draws in parts]
    return torch.cat([ids for ids, _ in drawn]), torch.cat([nats for _, nats in drawn])


def _draw_part(
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
        total = cumulative[:, -1:].contiguous()
        target = uniforms.to(cumulative.dtype)[:, None] * total
        picked = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        # A uniform next to 1 can round past the last token that has any mass.
        last = torch.searchsorted(cumulative, total).squeeze(-1)
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


class _Prompts:
    """Reads prompts, group by group; what all of them share is computed once."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.shared = common_prefix(prompts) if len(prompts) > 1 else 0
        self.prefix = new_cache(model, self.shared)
        if self.shared:
            self._forward([prompts[0][: self.shared]], self.prefix, 0)

    def read(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "row hidden"], Cache]:
        """Normed states at the last token of each prompt, and the prompts' cache.

        Shorter prompts are padded on the right, where nothing looks at the padding.
        """
        width, shared = max(len(prompt) for prompt in prompts), self.shared
        cache = resized(self.prefix, width) if shared else new_cache(self.model, width)
        tails = [prompt[shared:] for prompt in prompts]
        hidden = self._forward(tails, cache, shared)
        rows = torch.arange(len(tails), device=hidden.device)
        last = torch.tensor([len(tail) - 1 for tail in tails], device=hidden.device)
        return hidden[rows, last], cache

    def _forward(
        self, tokens: Sequence[Sequence[int]], cache: Cache, start: int
    ) -> Float[Tensor, "row token hidden"]:
        ids = padded(tokens, device=self.model.device)
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        return _states(self.model, ids, positions[None], None, cache, completion=False)


def _states(
    model: Model,
    ids: Int[Tensor, "row token"],
    positions: Int[Tensor, "one_or_row token"],
    mask: Tensor | None,
    cache: Cache,
    *,
    completion: bool,
) -> Float[Tensor, "row token hidden"]:
    flags = torch.full_like(ids, completion, dtype=torch.bool)
    with completion_positions(model, flags):
        states: Tensor = model.module.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )[0]
    return states


# Memory for keys and values if nobody says how many rows are decoded together.
_CACHE_BYTES = 8 * 2**30
# Tokens of prompts that an accelerator reads at a time.
_JOINING = 32768
# Columns beyond the longest row: fewer mean that the cache is shifted more often,
# more mean that every step reads more columns that are masked.
_SLACK = 32


class _Decoder:
    """Rows that are decoded side by side, each in a slot of one cache.

    A row joins when slots are free and leaves when it ends. The longest prompts come
    first, so the column that all rows write to is never too small for a later one.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        uniforms: Callable[[int], UniformDraws],
        sampler: SamplerSettings,
        batch_size: int,
    ) -> None:
        self.model, self.sampler = model, sampler
        self.prompts, self.uniforms_of = prompts, uniforms
        self.waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        self.ids: list[list[int]] = [[] for _ in prompts]
        self.nats = [0.0] * len(prompts)
        self.rows = min(batch_size, len(prompts))
        self.group = max(1, self.rows // 8)
        longest = max(map(len, prompts))
        accelerated = model.device.type != "cpu"
        self.most = max(self.group, _JOINING // longest if accelerated else 0)
        self.ends = torch.tensor(model.end_ids, device=model.device)
        carrier = carrier_of(model, sampler)
        self.carrier = None if carrier is None else carrier.to(model.device)
        self.count = 0
        slack = _SLACK if len(prompts) > self.rows else 0
        self._allocate(longest + sampler.max_new_tokens + slack)

    def _allocate(self, capacity: int) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(
                (self.rows, *shape), dtype=dtype, device=self.model.device
            )

        # One entry a slot: the caller's row, its tokens so far and those of them that
        # were drawn, the carrier's state, the last token, uniforms, columns in use.
        self.place, self.length, self.drawn = zeros(), zeros(), zeros()
        self.state, self.token = zeros(), zeros()
        self.uniforms = zeros(self.sampler.max_new_tokens, dtype=torch.float32)
        self.mask = zeros(capacity, dtype=torch.bool)
        self.logits = torch.empty(0)  # of the slots in use, once there are some
        self.reader: _Prompts | None = None
        self.cache: SlotCache | None = None
        self.fixed: FixedSteps | None = None

    @property
    def busy(self) -> bool:
        """Whether a row is still to be ended."""
        return bool(self.waiting) or self.count > 0

    @torch.inference_mode()
    def advance(self) -> list[int]:
        """Decodes until some rows have ended; returns their places."""
        ended: list[int] = []
        with fast_attention(self.model):
            while self.busy and len(ended) < self.group:
                wanted = min(self.group, len(self.waiting))
                free = self.rows - self.count
                if wanted and free >= wanted:
                    self._join(min(free, len(self.waiting), self.most))
                else:
                    ended += self._step()
        return ended

    def _join(self, count: int) -> None:
        """Reads the next prompts and gives each of them a slot."""
        places = [self.waiting.pop() for _ in range(count)]
        lengths = [len(self.prompts[place]) for place in places]
        if self.reader is None:
            self.reader = _Prompts(self.model, self.prompts)
        states, prompts = self.reader.read([self.prompts[place] for place in places])
        if self.cache is None:
            self.cache = SlotCache(prompts, rows=self.rows, capacity=self.mask.shape[1])
            self.cache.column = max(lengths)
            if is_recordable(self.model, capacity=self.mask.shape[1]):
                self.fixed = FixedSteps(
                    self.model, self.cache, token=self.token, length=self.length,
                    mask=self.mask, ids=None if self.carrier is None else self.carrier.ids,
                )  # fmt: skip
        logits = self._unembed(states)
        self.logits = torch.cat([self.logits, logits]) if self.count else logits
        self.cache.join(prompts, lengths, first=self.count)
        slots, column = slice(self.count, self.count + count), self.cache.column
        self.place[slots] = torch.tensor(places)
        self.length[slots] = torch.tensor(lengths)
        self.drawn[slots], self.state[slots] = 0, 0
        draws = torch.stack([self.uniforms_of(place) for place in places])
        self.uniforms[slots] = draws.to(self.uniforms)
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        first = column - self.length[slots, None]
        self.mask[slots] = (columns >= first) & (columns < column)
        self.count += count

    def _unembed(self, states: Tensor) -> Float[Tensor, "row vocab"]:
        ids = None if self.carrier is None else self.carrier.ids
        return unembed(self.model, states, ids=ids)

    def _step(self) -> list[int]:
        """Draws one token for every row and feeds back those of the rows that go on."""
        logits, count = self.logits, self.count
        state, drawn = self.state[:count], self.drawn[:count]
        if self.carrier is not None:
            refused = ~self.carrier.allowed[state]
            logits = logits.masked_fill(refused, -torch.inf)
        uniforms = self.uniforms[:count].gather(1, drawn[:, None]).squeeze(1)
        picked, nats = _draw(logits, uniforms, self.sampler)
        if self.carrier is not None:
            self.state[:count] = self.carrier.following[state, picked]
            picked = self.carrier.ids[picked]
        places = self.place[:count].tolist()
        for place, token, value in zip(
            places, picked.tolist(), nats.tolist(), strict=True
        ):
            self.ids[place].append(token)
            self.nats[place] += value
        self.token[:count] = picked
        self.drawn[:count] += 1
        steps = self.sampler.max_new_tokens
        ending = torch.isin(picked, self.ends) | (self.drawn[:count] == steps)
        ended: list[int] = self.place[:count][ending].tolist()
        if ended:
            self._leave(ending)
        if self.count:
            self._feed()
        return ended

    def _leave(self, ending: Bool[Tensor, " row"]) -> None:
        """Gives the slots of rows that have ended to the last of the others."""
        assert self.cache is not None
        going = (~ending).nonzero().squeeze(1)
        self.count = len(going)
        target = ending[: self.count].nonzero().squeeze(1)
        source = going[going >= self.count]
        for entries in (
            self.place, self.length, self.drawn, self.state,
            self.token, self.uniforms, self.mask,
        ):  # fmt: skip
            entries[target] = entries[source]
        self.cache.move(target, source)

    def _feed(self) -> None:
        """Passes the tokens drawn last through the model, for the next logits."""
        assert self.cache is not None
        count, cache = self.count, self.cache
        if cache.column == self.mask.shape[1]:
            self._shift()
        # Slots that are read in vain look at themselves: none is free of numbers.
        reads = count if self.fixed is None else self.fixed.size(count)
        self.mask[:reads, cache.column] = True
        if self.fixed is not None:
            self.logits = self.fixed(count)
        else:
            states = _states(
                self.model, self.token[:count, None], self.length[:count, None],
                self.mask[:count], cache.cache, completion=True,
            )  # fmt: skip
            self.logits = self._unembed(states[:, -1])
        cache.column += 1
        self.length[:count] += 1

    def _shift(self) -> None:
        """Drops columns that no row uses and none to come will need."""
        assert self.cache is not None
        needed = int(self.length[: self.count].max())
        if self.waiting:
            needed = max(needed, len(self.prompts[self.waiting[-1]]))
        dropped = self.cache.column - needed
        self.cache.shift(dropped, rows=self.count)
        self.mask[:, :needed] = self.mask[:, dropped:].clone()
        self.mask[:, needed:] = False

    def result(self, place: int) -> Sampled:
        """The completion of a row that has ended."""
        ids = self.ids[place]
        finish: Finish = "stop" if ids[-1] in set(self.model.end_ids) else "length"
        return Sampled(ids=tuple(ids), finish=finish, total_logprob=self.nats[place])


def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    keys: Sequence[tuple[int | str, ...]],
    seed: int,
    sampler: SamplerSettings | None = None,
    batch_size: int | None = None,
    on_done: Callable[[list[tuple[int, Sampled]]], None] | None = None,
) -> list[Sampled]:
    """Samples one completion for each prompt.

    Args:
        model: The model, with whatever steering or adapter is attached.
        prompts: Token ids, each ending where the answer begins.
        keys: One name a prompt; with `seed` it alone decides the row's randomness.
        seed: The run's seed.
        sampler: Temperature, truncation, allowed tokens, longest completion.
        batch_size: Rows decoded together; changes speed and memory only. None: what
            suits the device.
        on_done: Called with (place, completion) pairs whenever some rows have ended.

    Returns:
        Completions in the order of `prompts`.

    Raises:
        DatasetError: A prompt is empty or does not fit into the context.
        ModelError: A prompt by itself does not fit into memory.

    Cost: about 2·N operations a token, N the number of weights; the cache holds
    batch_size × (longest prompt + max_new_tokens + 32) positions.
    """
    sampler = sampler or SamplerSettings()
    _check(model, prompts, sampler.max_new_tokens)
    if not prompts:
        return []

    def uniforms(place: int) -> UniformDraws:
        stream = generator(seed, "sampling", *keys[place])
        return torch.from_numpy(stream.random(sampler.max_new_tokens))

    size = batch_size or usual_rows(
        model, positions=max(map(len, prompts)) + sampler.max_new_tokens
    )
    found: dict[int, Sampled] = {}

    def decode(todo: list[int], size: int) -> None:
        decoder = _Decoder(
            model,
            [prompts[i] for i in todo],
            lambda i: uniforms(todo[i]),
            sampler,
            size,
        )
        while decoder.busy:
            ended = {todo[i]: decoder.result(i) for i in decoder.advance()}
            found.update(ended)
            if on_done is not None:
                on_done(list(ended.items()))

    while todo := [i for i in range(len(prompts)) if i not in found]:
        fault = attempted(partial(decode, todo, size))
        if isinstance(fault, OutOfMemory):
            size = _fewer(min(size, len(todo)), fault)
    return [found[i] for i in range(len(prompts))]


def usual_rows(model: Model, *, positions: int) -> int:
    """Rows decoded together if nobody says.

    A processor gains nothing by more than 128; an accelerator takes 512, or as many as
    its share of memory holds.

    Args:
        model: Where it runs.
        positions: Longest row, prompt and completion.
    """
    if model.device.type == "cpu":
        return 128
    return max(1, min(512, _CACHE_BYTES // (bytes_a_token(model) * positions)))


def _fewer(size: int, fault: OutOfMemory) -> int:
    """Half as many rows; what had not ended begins anew, with the same draws."""
    if size == 1:
        raise ModelError(
            f"memory ran out on one row by itself ({fault.fault}); free memory, shorten "
            "prompts or sampler.max_new_tokens, or take a smaller model or dtype"
        )
    size //= 2
    warnings.warn(
        f"memory ran out: {size} rows are decoded together from here on; results are "
        "the same, it takes longer",
        RuntimeWarning,
        stacklevel=3,
    )
    return size
