"""Completions behind prompts that are read once, against passes over whole rows."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from undertow.models import completions
from undertow.models.cache import bytes_a_token
from undertow.models.chat import Rendered
from undertow.models.completions import (
    Prompts,
    completion_batches,
    completion_states,
    prompt_of,
    read_head,
)
from undertow.models.hooks import current_completion_positions, editing_residuals
from undertow.models.likelihood import predicting_states
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model

# Three prompts of different lengths, two of them with several completions.
TAILS = [
    ([50, 9, 120], [33, 81, 2]),
    ([50, 9, 120], [34]),
    ([60, 61, 62, 63, 64, 65, 66, 67], [70, 71, 72, 73, 2]),
    ([9], [200, 201, 2]),
    ([50, 9, 120], [33, 2]),
]


def _rows(head: Sequence[int]) -> list[Rendered]:
    return [
        Rendered([*head, *prompt, *answer], len(head) + len(prompt))
        for prompt, answer in TAILS
    ]


def _head(length: int) -> list[int]:
    return [3 + (7 * i) % 190 for i in range(length)]


@torch.no_grad()
def _whole(model: Model, rows: Sequence[Rendered]) -> Tensor:
    """Each row by itself, without caches or padding."""
    return torch.cat([predicting_states(model, [row])[0] for row in rows])


def _states(model: Model, rows: Sequence[Rendered]) -> Tensor:
    """Behind prompts that are read for these rows."""
    kept = Prompts(model)
    kept.read(rows)
    return completion_states(model, rows, prompts=kept)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [0, 20])
@torch.no_grad()
def test_states_are_those_of_whole_rows(family: Family, length: int) -> None:
    model, rows = tiny_model(family), _rows(_head(length))
    assert (read_head(model, rows) is not None) == (length == 20)
    for batch in (rows, rows[3:4]):
        found = _states(model, batch)
        torch.testing.assert_close(found, _whole(model, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "mistral"])
@torch.no_grad()
def test_sliding_windows_reach_over_padding(family: Family) -> None:
    """A window of 16, over a head of 20 and prompts of 1 to 8 tokens."""
    model, rows = tiny_model(family, layers=2), _rows(_head(20))
    wide = _whole(model, rows)
    model.module.config.sliding_window = 16
    wanted = _whole(model, rows)
    assert float((wanted - wide).abs().max()) > 1e-3  # the window does cut
    torch.testing.assert_close(_states(model, rows), wanted, rtol=0, atol=1e-5)
    alone = torch.cat([_states(model, [row]) for row in rows])  # without a head
    torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("length", [0, 20])
@torch.no_grad()
def test_prompts_that_are_kept_are_those_read_anew(family: Family, length: int) -> None:
    model, rows = tiny_model(family), _rows(_head(length))
    kept = Prompts(model)
    kept.read(rows)
    for batch in (rows, rows[2:4], rows[3:4]):
        found = completion_states(model, batch, prompts=kept)
        torch.testing.assert_close(found, _whole(model, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_was_read_before_changes_no_bit(family: Family) -> None:
    model, rows = tiny_model(family), _rows(_head(20))
    fresh, kept = Prompts(model), Prompts(model)
    fresh.read(rows[1:])
    for before in (rows, rows[2:3], rows[1:3], rows[1:]):
        kept.read(before)
        kept.read(rows[1:])
        prompts = [prompt_of(row) for row in rows[1:]]
        found, wanted = kept.together(prompts)[0], fresh.together(prompts)[0]
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_gradients_reach_the_states_that_predict(family: Family) -> None:
    """And are those of whole rows there, whatever stands beside."""
    model, rows = tiny_model(family), _rows(_head(20))
    weights = torch.randn(13 + 1, 32, generator=torch.Generator().manual_seed(0))

    def gradient(states: Tensor, leaf: Tensor, part: Tensor) -> Tensor:
        (found,) = torch.autograd.grad((states * part).sum(), leaf)
        return found

    kept: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return hidden
        kept.append(hidden.detach().requires_grad_())
        return kept[-1]

    with torch.enable_grad(), editing_residuals(model, {1: keep}):
        states = _states(model, rows)
        (leaf,) = kept
        together = gradient(states, leaf, weights[: len(states)])
        start = 0
        for place, row in enumerate(rows):
            kept.clear()
            count = len(row.ids) - row.completion_start
            alone, _ = predicting_states(model, [row])
            own = gradient(alone, kept[0], weights[start : start + count])
            wanted = own[0, row.completion_start - 1 : -1]
            torch.testing.assert_close(
                together[place, :count],
                wanted,
                rtol=0,
                atol=1e-4 * float(wanted.abs().max()),
            )
            assert float(together[place, count:].abs().sum()) == 0
            start += count


def test_every_prompt_is_read_once() -> None:
    model, rows = tiny_model("llama"), _rows(_head(20))
    seen: list[tuple[tuple[int, ...], int]] = []

    def look(hidden: Tensor) -> Tensor:
        mask = current_completion_positions()
        assert mask is not None
        seen.append((tuple(hidden.shape[:2]), int(mask.sum())))
        return hidden

    with editing_residuals(model, {0: look}), torch.no_grad():
        _states(model, rows)
    # The head; three prompts without their last tokens; five completions with those.
    assert seen == [((1, 19), 0), ((3, 8), 0), ((5, 6), 14)]


@pytest.mark.parametrize(
    "rows",
    [
        _rows(_head(20))[:1],
        _rows(_head(5)),
        [Rendered([5, 6], 1), Rendered([5, 7], 1)],
        [],
    ],
)
def test_a_short_head_is_not_read(rows: list[Rendered]) -> None:
    assert read_head(tiny_model("llama"), rows) is None


def test_parts_keep_prompts_together_and_within_memory() -> None:
    model, rows = tiny_model("llama"), _rows(_head(20))
    kept = Prompts(model)
    assert kept.parts(rows) == [[3, 0, 1, 4, 2]]  # one prompt side by side
    assert kept.parts(rows, most_rows=2) == [[3, 0], [1, 4], [2]]
    assert kept.parts([]) == []
    small = Prompts(model, most_mib=0)
    assert small.parts(rows) == [[3], [0, 1, 4], [2]]  # one by itself always has room


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_token_takes_is_foretold(family: Family) -> None:
    model, rows = tiny_model(family), _rows(_head(20))
    kept = Prompts(model)
    kept.read(rows[:1])
    contents, _ = kept.together([prompt_of(rows[0])])
    size = sum(t.numel() * t.element_size() for layer in contents for t in layer)
    assert size == (rows[0].completion_start - 1) * bytes_a_token(model)


def test_a_part_s_prompts_are_not_read_twice_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows = tiny_model("llama"), _rows(_head(20))
    kept, real, sizes = Prompts(model), completions._read_prompts, []

    def count(model: Model, prompts: Sequence[Sequence[int]], head: Any) -> Any:
        sizes.append(len(prompts))
        return real(model, prompts, head)

    monkeypatch.setattr(completions, "_read_prompts", count)
    for part in (rows, rows, rows[:3], rows[:3], rows):
        kept.read(part)
    assert sizes == [3, 2, 3]


def test_batches_keep_within_their_budget_and_lose_nobody() -> None:
    rows = _rows(_head(4))
    for budget in (1, 10, 14, 4096):
        batches = completion_batches(rows, token_budget=budget)
        assert sorted(place for batch in batches for place in batch) == [0, 1, 2, 3, 4]
        for batch in batches:
            answer = max(len(rows[i].ids) - rows[i].completion_start for i in batch)
            assert len(batch) == 1 or len(batch) * (answer + 1) <= budget
    assert completion_batches(rows, token_budget=4096) == [[1, 4, 0, 3, 2]]
    assert completion_batches([], token_budget=10) == []


def test_fewer_prompts_at_a_time_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows = tiny_model("llama"), _rows(_head(20))
    wanted, found = Prompts(model), Prompts(model)
    wanted.read(rows)
    real, sizes = completions._read_prompts, []

    def short(model: Model, prompts: Sequence[Sequence[int]], head: Any) -> Any:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(prompts))
        return real(model, prompts, head)

    monkeypatch.setattr(completions, "_read_prompts", short)
    with pytest.warns(RuntimeWarning, match="memory ran out: goes on with"):
        found.read(rows)
    assert sizes == [1, 1, 1]
    prompts = [prompt_of(row) for row in rows]
    one, other = (kept.together(prompts)[0] for kept in (wanted, found))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
