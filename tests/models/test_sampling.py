"""Sampling against a slow loop: same uniforms, same tokens, whatever the batch.

The reference reads the whole sequence anew for every token, one row at a time, without
cache or padding, and inverts the cumulative distribution in float64.
"""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from undertow.errors import DatasetError, ModelError
from undertow.models import sampling
from undertow.models.cache import SlotCache, bytes_a_token
from undertow.models.carrier import carrier_ids
from undertow.models.chat import Rendered
from undertow.models.likelihood import common_prefix, completion_logprobs
from undertow.models.loading import Model, wrap
from undertow.models.sampling import (
    Sampled,
    SamplerSettings,
    sample,
    truncated_logprobs,
    usual_rows,
)
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.seeding import generator

HEAD = [7, 50, 9, 120, 33, 81, 90, 91]
# A shared prefix, several lengths, and a double.
PROMPTS = [
    [*HEAD, 60],
    [*HEAD, 61, 62, 63],
    [*HEAD, 60, 70, 71, 72, 73, 74, 75, 76],
    HEAD,
    [*HEAD, 60],
    [*HEAD, 61, 62, 99, 98],
]
KEYS = [("row", i) for i in range(len(PROMPTS))]
SEED = 5
SHORT = SamplerSettings(max_new_tokens=12)


def _sample(
    model: Model, sampler: SamplerSettings = SHORT, **options: Any
) -> list[Sampled]:
    return sample(model, PROMPTS, keys=KEYS, seed=SEED, sampler=sampler, **options)


def _restless(model: Model) -> Model:
    """Many end tokens, so that rows end at different steps."""
    return replace(model, end_ids=(model.end_ids[0], *range(100, 125)))


@torch.no_grad()
def _slow(
    model: Model,
    prompt: Sequence[int],
    key: tuple[int | str, ...],
    sampler: SamplerSettings,
) -> list[int]:
    uniforms = generator(SEED, "sampling", *key).random(sampler.max_new_tokens)
    ids = list(prompt)
    for uniform in uniforms:
        logits = model.module(torch.tensor([ids]), use_cache=False).logits[0, -1:]
        scores = _warped(logits, sampler).double().softmax(-1)[0]
        ids.append(
            int(torch.searchsorted(scores.cumsum(0), float(uniform), right=True))
        )
        if ids[-1] in model.end_ids:
            break
    return ids[len(prompt) :]


def _warped(logits: Tensor, sampler: SamplerSettings) -> Tensor:
    """transformers' own processors, in its own order."""
    nothing: Any = None
    scores = TemperatureLogitsWarper(sampler.temperature)(nothing, logits.float())
    if sampler.top_k:
        scores = TopKLogitsWarper(sampler.top_k)(nothing, scores)
    if sampler.top_p < 1:
        scores = TopPLogitsWarper(sampler.top_p)(nothing, scores)
    assert isinstance(scores, Tensor)
    return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_a_slow_loop(family: Family) -> None:
    model = _restless(tiny_model(family))
    wanted = [_slow(model, p, k, SHORT) for p, k in zip(PROMPTS, KEYS, strict=True)]
    assert [list(s.ids) for s in _sample(model)] == wanted
    lengths = {len(ids) for ids in wanted}
    assert len(lengths) > 1  # rows did end at different steps


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_share_no_beginning(family: Family) -> None:
    model = tiny_model(family)
    prompts = [[40 + i, *PROMPTS[i]] for i in range(4)]
    found = sample(model, prompts, keys=KEYS[:4], seed=SEED, sampler=SHORT)
    wanted = [_slow(model, p, k, SHORT) for p, k in zip(prompts, KEYS, strict=False)]
    assert [list(s.ids) for s in found] == wanted


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "mistral"])
def test_a_sliding_window_means_the_same_under_the_cache(family: Family) -> None:
    plain = tiny_model(family)
    config = deepcopy(plain.module.config)
    config.sliding_window = 4
    classes: Any = AutoModelForCausalLM
    module = classes.from_config(config, dtype=torch.float32)
    module.load_state_dict(plain.module.state_dict())
    model = wrap("windowed", module, plain.tokenizer, reason="test")
    wanted = [_slow(model, p, k, SHORT) for p, k in zip(PROMPTS, KEYS, strict=True)]
    assert [list(s.ids) for s in _sample(model)] == wanted
    assert [list(s.ids) for s in _sample(plain)] != wanted  # the window did matter


@pytest.mark.parametrize(
    "sampler",
    [
        SamplerSettings(max_new_tokens=10, temperature=0.6),
        SamplerSettings(max_new_tokens=10, top_k=5),
        SamplerSettings(max_new_tokens=10, top_p=0.7),
        SamplerSettings(max_new_tokens=10, temperature=1.3, top_k=20, top_p=0.9),
    ],
)
def test_truncation_is_that_of_transformers(sampler: SamplerSettings) -> None:
    model = tiny_model("llama")
    wanted = [_slow(model, p, k, sampler) for p, k in zip(PROMPTS, KEYS, strict=True)]
    assert [list(s.ids) for s in _sample(model, sampler)] == wanted
    logits = torch.randn(50, 261, generator=torch.Generator().manual_seed(0)) * 3
    ours, theirs = truncated_logprobs(logits, sampler), _warped(logits, sampler)
    assert torch.equal(ours == -torch.inf, theirs == -torch.inf)
    torch.testing.assert_close(ours, theirs.log_softmax(-1), rtol=0, atol=1e-5)


def test_truncation_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = truncated_logprobs(logits, SamplerSettings(top_p=0.6)).exp()
    assert kept[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])  # 5/8, 3/8
    kept = truncated_logprobs(logits, SamplerSettings(top_k=3)).exp()
    assert kept[0].tolist() == pytest.approx([10 / 19, 6 / 19, 3 / 19, 0], abs=1e-6)
    kept = truncated_logprobs(logits, SamplerSettings(temperature=0.5)).exp()
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    assert kept[0].tolist() == pytest.approx(
        (squares / squares.sum()).tolist(), abs=1e-6
    )
    kept = truncated_logprobs(logits, SamplerSettings(top_p=1e-6)).exp()
    assert kept[0].tolist() == [1, 0, 0, 0]  # one token always stays


def test_temperature_zero_takes_the_most_likely_token() -> None:
    model = tiny_model("qwen2")
    greedy = SamplerSettings(max_new_tokens=8, temperature=0)
    found = _sample(model, greedy)
    for prompt, row in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            wanted = model.module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=8,
                do_sample=False,
            )
        assert list(row.ids) == wanted[0, len(prompt) :].tolist()
    again = sample(model, PROMPTS, keys=KEYS, seed=SEED + 1, sampler=greedy)
    assert again == found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_changes_nothing(family: Family, batch_size: int) -> None:
    model = _restless(tiny_model(family))
    wanted = _sample(model)
    found = _sample(model, batch_size=batch_size)
    assert [s.ids for s in found] == [s.ids for s in wanted]
    assert [s.finish for s in found] == [s.finish for s in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.total_logprob == pytest.approx(other.total_logprob, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("batch_size", [3, 17])
def test_rows_that_take_the_place_of_others_are_the_same(
    family: Family, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many more rows than slots: rows join late, and the cache is shifted."""
    shifts: list[int] = []
    shift = SlotCache.shift

    def counted(self: SlotCache, columns: int, *, rows: int) -> None:
        shifts.append(columns)
        shift(self, columns, rows=rows)

    monkeypatch.setattr(SlotCache, "shift", counted)
    model = _restless(tiny_model(family))
    prompts = [[*HEAD, *range(60, 61 + i % 7)] for i in range(60)]
    keys = [("row", i) for i in range(60)]
    found = sample(
        model, prompts, keys=keys, seed=SEED, sampler=SHORT, batch_size=batch_size
    )
    for prompt, key, row in zip(prompts, keys, found, strict=True):
        assert list(row.ids) == _slow(model, prompt, key, SHORT)
    assert shifts or batch_size == 17
    assert all(columns > 0 for columns in shifts)


@pytest.mark.parametrize("family", FAMILIES)
def test_order_and_resuming_change_nothing(family: Family) -> None:
    model = _restless(tiny_model(family))
    wanted = [s.ids for s in _sample(model)]
    order = [3, 5, 0, 2, 4, 1]
    turned = sample(
        model, [PROMPTS[i] for i in order], keys=[KEYS[i] for i in order],
        seed=SEED, sampler=SHORT,
    )  # fmt: skip
    assert [s.ids for s in turned] == [wanted[i] for i in order]
    rest = sample(model, PROMPTS[4:], keys=KEYS[4:], seed=SEED, sampler=SHORT)
    assert [s.ids for s in rest] == wanted[4:]


def test_the_tokenizer_s_padding_side_changes_nothing() -> None:
    model = tiny_model("llama")
    wanted = _sample(model)
    model.tokenizer.padding_side = "left"
    assert _sample(model) == wanted
    model.tokenizer.padding_side = "right"
    assert _sample(model) == wanted


def test_a_longer_limit_continues_the_same_rows() -> None:
    model = tiny_model("llama")
    short = _sample(model, SamplerSettings(max_new_tokens=5))
    for one, other in zip(short, _sample(model), strict=True):
        assert other.ids[: len(one.ids)] == one.ids


def test_the_seed_and_the_key_alone_decide() -> None:
    model = tiny_model("llama")
    twice = sample(
        model,
        [PROMPTS[0]] * 3,
        keys=[("a", 0), ("a", 1), ("a", 0)],
        seed=1,
        sampler=SHORT,
    )
    assert twice[0].ids == twice[2].ids
    assert twice[0].ids != twice[1].ids
    other = sample(model, [PROMPTS[0]], keys=[("a", 0)], seed=2, sampler=SHORT)
    assert other[0].ids != twice[0].ids


def test_the_distribution_is_the_model_s() -> None:
    model = tiny_model("llama", layers=1, hidden=16)
    prompt, draws = [7, 50, 9], 4000
    once = SamplerSettings(max_new_tokens=1, temperature=0.7)
    drawn = sample(
        model, [prompt] * draws, keys=[("d", i) for i in range(draws)], seed=0,
        sampler=once, batch_size=draws,
    )  # fmt: skip
    with torch.no_grad():
        logits = model.module(torch.tensor([prompt])).logits[0, -1].double()
    expected = (logits / 0.7).softmax(-1).numpy() * draws
    counts = np.bincount([s.ids[0] for s in drawn], minlength=len(expected))
    common = expected >= 5
    assert common.sum() > 50
    seen = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 0.001


@pytest.mark.parametrize("family", FAMILIES)
def test_nats_are_those_of_the_likelihood(family: Family) -> None:
    model = _restless(tiny_model(family))
    drawn = _sample(model)
    rows = [Rendered([*p, *s.ids], len(p)) for p, s in zip(PROMPTS, drawn, strict=True)]
    wanted = completion_logprobs(model, rows)
    assert [s.total_logprob for s in drawn] == pytest.approx(wanted, abs=1e-3)


def test_rows_end_with_an_end_token_or_at_the_limit() -> None:
    model = _restless(tiny_model("llama"))
    drawn = _sample(model)
    assert {s.finish for s in drawn} == {"stop", "length"}
    for row in drawn:
        ended = [token in model.end_ids for token in row.ids]
        assert not any(ended[:-1])
        assert ended[-1] == (row.finish == "stop")
        assert row.finish == "stop" or len(row.ids) == SHORT.max_new_tokens


def test_numbers_are_digits_and_separators_only() -> None:
    model = tiny_model("llama")
    sampler = SamplerSettings(max_new_tokens=30, allowed="numbers")
    drawn = _sample(model, sampler)
    allowed = set(carrier_ids(model))
    assert {token for row in drawn for token in row.ids} <= allowed
    for row in drawn:
        text = model.tokenizer.decode(row.ids, skip_special_tokens=True)
        assert re.fullmatch(r"[0-9 ,;\n\[\]().]*", text)
    assert len({row.ids for row in drawn}) == len(drawn)
    # The nats are those of the renormalised model.
    ids = sorted(allowed)
    with torch.no_grad():
        logits = model.module(torch.tensor([[*PROMPTS[0], *drawn[0].ids]])).logits[0]
    nats = logits[:, ids].log_softmax(-1)
    start = len(PROMPTS[0]) - 1
    total = sum(
        float(nats[start + i, ids.index(t)]) for i, t in enumerate(drawn[0].ids)
    )
    assert drawn[0].total_logprob == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("most", [1, 3, 10])
def test_lists_are_well_formed(most: int) -> None:
    model = tiny_model("gpt2")
    sampler = SamplerSettings(max_new_tokens=60, allowed="list", list_values=most)
    keys = [("list", i) for i in range(40)]
    drawn = sample(model, [HEAD] * 40, keys=keys, seed=0, sampler=sampler)
    ended = [row for row in drawn if row.finish == "stop"]
    assert len(ended) > 20
    counts = set()
    for row in ended:
        text = model.tokenizer.decode(row.ids, skip_special_tokens=True)
        assert re.fullmatch(r" ?(0|[1-9]\d{0,2})(, (0|[1-9]\d{0,2}))*", text)
        values = [int(part) for part in text.split(",")]
        assert len(values) <= most
        assert all(0 <= value <= 999 for value in values)
        counts.add(len(values))
    assert most == 1 or len(counts) > 1
    alone = sample(model, [HEAD] * 40, keys=keys, seed=0, sampler=sampler, batch_size=7)
    assert [s.ids for s in alone] == [s.ids for s in drawn]


def test_prompts_that_do_not_fit_are_refused() -> None:
    model = tiny_model("llama")
    fits = [5] * (2048 - 3)
    sampler = SamplerSettings(max_new_tokens=3)
    sample(model, [fits], keys=[("k", 0)], seed=0, sampler=sampler)
    with pytest.raises(DatasetError) as caught:
        sample(model, [HEAD, [*fits, 5]], keys=KEYS[:2], seed=0, sampler=sampler)
    assert (
        "prompt 1: 2046 tokens and up to 3 new ones exceed the context of "
        "'tiny-llama', 2048"
    ) in str(caught.value)
    with pytest.raises(DatasetError, match="prompt 0: no tokens"):
        sample(model, [[]], keys=[("k", 0)], seed=0, sampler=sampler)


def test_no_prompts_give_no_rows() -> None:
    assert sample(tiny_model("llama"), [], keys=[], seed=0) == []


def test_every_row_is_reported_once() -> None:
    model = tiny_model("llama")
    seen: list[tuple[int, Sampled]] = []
    found = _sample(model, batch_size=4, on_done=seen.extend)
    assert sorted(place for place, _ in seen) == list(range(6))
    assert [row for _, row in sorted(seen, key=lambda pair: pair[0])] == found


def test_sampling_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = {n: p.clone() for n, p in model.module.named_parameters()}
    attention = model.module.config._attn_implementation
    _sample(model)
    assert model.module.config._attn_implementation == attention
    after = dict(model.module.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(block._forward_hooks for block in model.architecture.blocks)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_bfloat16_rows_are_likely_under_the_likelihood(family: Family) -> None:
    """The bfloat16 path has an attention of its own; its nats must be the model's."""
    plain = tiny_model(family)
    model = wrap("half", plain.module.bfloat16(), plain.tokenizer, reason="test")
    drawn = _sample(model)
    rows = [Rendered([*p, *s.ids], len(p)) for p, s in zip(PROMPTS, drawn, strict=True)]
    wanted = np.array(completion_logprobs(model, rows))
    tokens = np.array([len(s.ids) for s in drawn])
    gaps = np.abs(np.array([s.total_logprob for s in drawn]) - wanted) / tokens
    assert gaps.max() < 0.1  # nats a token; a wrong mask or scale costs several


def test_common_prefix_leaves_a_token_to_each() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1, 2, 3], [1, 2]]) == 1
    assert common_prefix([[1], [1, 2]]) == 0
    assert common_prefix([[1, 2], [3, 2]]) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1},
     {"max_new_tokens": 0}, {"allowed": "words"}, {"beams": 4}],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SamplerSettings(**wrong)


def _short_of(monkeypatch: pytest.MonkeyPatch, *, most: int) -> list[int]:
    """Memory that runs out after the first rows, if more are decoded; sizes tried."""
    sizes: list[int] = []
    real = sampling._Decoder.advance

    def advance(self: Any) -> list[int]:
        begun = len(self.waiting) < len(self.prompts) or self.count
        if not begun:
            sizes.append(self.rows)
        elif self.rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self)

    monkeypatch.setattr(sampling._Decoder, "advance", advance)
    return sizes


def test_fewer_rows_at_a_time_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    prompts = [[7, 50, 9 + i] for i in range(24)]
    keys = [("rows", i) for i in range(24)]
    settings = SamplerSettings(max_new_tokens=60)
    wanted = sample(model, prompts, keys=keys, seed=0, sampler=settings)
    done: list[int] = []
    sizes = _short_of(monkeypatch, most=6)
    with pytest.warns(RuntimeWarning, match=r"memory ran out: \d+ rows are decoded"):
        found = sample(
            model, prompts, keys=keys, seed=0, sampler=settings,
            on_done=lambda ended: done.extend(place for place, _ in ended),
        )  # fmt: skip
    assert [row.ids for row in found] == [row.ids for row in wanted]
    assert sizes[0] == 24
    assert sizes[-1] <= 6 < sizes[-2] < 24
    assert sorted(done) == list(range(24))  # each of them told once


def test_one_row_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sampling._Decoder, "advance", short)
    with (
        pytest.warns(RuntimeWarning, match="memory ran out: 1 rows"),
        pytest.raises(ModelError, match=r"one row by itself \(CUDA out of memory\)"),
    ):
        sample(tiny_model("llama"), [[7], [8]], keys=[("a",), ("b",)], seed=0)


def test_rows_decoded_together_follow_the_device() -> None:
    model = tiny_model("llama")
    on_a_gpu = replace(model, device=torch.device("cuda"))
    assert usual_rows(model, positions=10**9) == 128
    assert usual_rows(on_a_gpu, positions=100) == 512
    each = bytes_a_token(model)
    assert usual_rows(on_a_gpu, positions=2**33 // (40 * each)) == 40
    assert usual_rows(on_a_gpu, positions=10**12) == 1
