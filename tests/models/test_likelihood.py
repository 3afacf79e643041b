"""Log-probabilities against the library's own loss and full forward passes."""

from collections.abc import Sequence

import pytest
import torch

from undertow.models import likelihood
from undertow.models.chat import Rendered
from undertow.models.hooks import current_completion_positions, editing_residuals
from undertow.models.likelihood import (
    can_pack,
    common_prefix,
    completion_logprobs,
    packed_states,
    padded,
    predicting_states,
    read_prefix,
    token_batches,
)
from undertow.models.loading import wrap
from undertow.models.tiny import FAMILIES, Family, tiny_model

ROWS = [
    Rendered([7, 50, 9, 120, 33, 81], 3),
    Rendered([7, 50, 9, 121], 3),
    Rendered([60, 61, 62, 63, 64, 65, 66, 67, 68], 1),
    Rendered([9, 9, 200, 201, 2], 2),
]
PROMPT = [7, 50, 9, 120]
# One token, several, a shared head, one that continues another, and a double.
ANSWERS = [[33], [33, 34], [33, 34, 35], [40, 41, 42, 43], [40, 41, 50], [33]]


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_score_as_in_the_library_s_loss(family: Family) -> None:
    model = tiny_model(family)
    found = completion_logprobs(model, ROWS)
    for row, nats in zip(ROWS, found, strict=True):
        ids = torch.tensor([row.ids])
        labels = ids.clone()
        labels[0, : row.completion_start] = -100
        with torch.no_grad():
            loss = float(model.module(input_ids=ids, labels=labels).loss)
        count = len(row.ids) - row.completion_start
        assert nats == pytest.approx(-loss * count, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 12, 4096])
def test_batches_change_nothing(family: Family, budget: int) -> None:
    model = tiny_model(family)
    alone = [completion_logprobs(model, [row])[0] for row in ROWS]
    together = completion_logprobs(model, ROWS, token_budget=budget)
    assert together == pytest.approx(alone, abs=1e-4)
    turned = completion_logprobs(model, ROWS[::-1], token_budget=budget)
    assert turned[::-1] == pytest.approx(alone, abs=1e-4)


def test_no_rows_have_no_scores() -> None:
    assert completion_logprobs(tiny_model("llama"), []) == []


def test_the_states_are_those_before_the_completion_s_tokens() -> None:
    model = tiny_model("llama")
    states, targets = predicting_states(model, ROWS[:2])
    assert targets.tolist() == [120, 33, 81, 121]
    with torch.no_grad():
        hidden = model.module.base_model(torch.tensor([ROWS[0].ids]))[0][0]
    torch.testing.assert_close(states[:3], hidden[2:5], rtol=0, atol=1e-5)


def test_batches_keep_within_their_budget_and_lose_nobody() -> None:
    lengths = [5, 1, 9, 3, 3, 20, 2]
    batches = token_batches(lengths, token_budget=10)
    assert sorted(place for batch in batches for place in batch) == list(range(7))
    for batch in batches:
        longest = max(lengths[place] for place in batch)
        assert len(batch) == 1 or longest * len(batch) <= 10
    assert batches == [[1, 6, 3], [4, 0], [2], [5]]
    assert token_batches([], token_budget=10) == []


def test_padding_is_on_the_right() -> None:
    ids = padded([[5, 6, 7], [8]], device=torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]


# ── what all rows begin with ─────────────────────────────────────────────────────


def _with_head(head: Sequence[int]) -> list[Rendered]:
    """The rows behind a head, whose prompts still differ."""
    return [
        Rendered([*head, *row.ids], len(head) + row.completion_start) for row in ROWS
    ]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_prefix_that_is_read_once_changes_nothing(family: Family) -> None:
    model = tiny_model(family)
    rows = _with_head([3 + (7 * i) % 190 for i in range(20)])
    prefix = read_prefix(model, rows)
    assert prefix is not None
    assert prefix.length == 20
    wanted, targets = predicting_states(model, rows)
    for batch in (rows, rows[2:], rows[:1]):  # the same prefix for every batch
        found, tokens = predicting_states(model, batch, prefix=prefix)
        alone, same = predicting_states(model, batch)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
        assert tokens.tolist() == same.tolist()
    assert (
        len(wanted)
        == len(targets)
        == sum(len(r.ids) - r.completion_start for r in rows)
    )


@torch.inference_mode()
def test_a_prefix_longer_than_the_sliding_window_changes_nothing() -> None:
    model = tiny_model("gemma3", layers=2)
    model.module.config.sliding_window = 16
    layers = model.module.base_model.layers
    for layer in layers:
        layer.self_attn.sliding_window = 16
    assert "sliding_attention" in model.module.config.layer_types
    rows = _with_head([3 + (7 * i) % 190 for i in range(40)])
    prefix = read_prefix(model, rows)
    assert prefix is not None
    found, _ = predicting_states(model, rows, prefix=prefix)
    whole, _ = predicting_states(model, rows)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    # The window does cut: without it the states are others.
    model.module.config.sliding_window = 4096
    wide, _ = predicting_states(model, rows)
    assert float((wide - whole).abs().max()) > 1e-3


def test_a_prefix_ends_before_the_state_that_predicts_a_completion() -> None:
    """Here the rows share the whole prompt and the first token of the answer."""
    model = tiny_model("llama")
    head = list(range(30, 50))
    rows = [Rendered([*head, 7, 8], 20), Rendered([*head, 7, 9, 2], 20)]
    prefix = read_prefix(model, rows)
    assert prefix is not None
    assert prefix.length == 19


@pytest.mark.parametrize("rows", [ROWS, [Rendered(list(range(5, 40)), 30)], []])
def test_a_short_prefix_is_not_read(rows: list[Rendered]) -> None:
    assert read_prefix(tiny_model("llama"), rows) is None


def test_edits_see_the_prefix_once_and_as_prompt() -> None:
    model = tiny_model("llama")
    seen: list[tuple[tuple[int, ...], int]] = []

    def look(hidden: torch.Tensor) -> torch.Tensor:
        mask = current_completion_positions()
        assert mask is not None
        seen.append((tuple(mask.shape), int(mask.sum())))
        return hidden

    rows = _with_head(list(range(30, 50)))
    with editing_residuals(model, {0: look}), torch.inference_mode():
        prefix = read_prefix(model, rows)
        predicting_states(model, rows, prefix=prefix)
    tokens = sum(len(row.ids) - row.completion_start for row in rows)
    assert seen == [((1, 20), 0), ((4, 9), tokens)]


def test_a_common_prefix_leaves_a_token_of_each() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1, 2, 3], [1]]) == 0
    assert common_prefix([[5, 2], [6, 2]]) == 0


# A head of fifteen tokens, and one whose completion begins right behind it.
HEADED = [
    *(Rendered([*range(20, 35), *row.ids], row.completion_start + 15) for row in ROWS),
    Rendered([*range(20, 36), 5], 16),
]


@pytest.mark.parametrize("rows", [ROWS, HEADED, HEADED[:1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_one_behind_another_are_as_side_by_side(
    family: Family, rows: list[Rendered], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    if family == "gemma2":  # its attention has a soft cap
        assert not can_pack(model, longest=24)
        return
    assert can_pack(model, longest=24)
    wanted, targets = predicting_states(model, rows)
    read: list[int] = []

    def seen(hidden: torch.Tensor) -> torch.Tensor:
        read[:] = hidden.shape[1:2]
        return hidden

    for longest in (512, 8):  # longer rows do not share their head
        monkeypatch.setattr(likelihood, "LONGEST", longest)
        with editing_residuals(model, {0: seen}):
            states, others = packed_states(model, rows)
        together = 15 * (len(rows) - 1) if rows is not ROWS and longest > 8 else 0
        assert read == [sum(len(row.ids) for row in rows) - together]
        assert torch.equal(others, targets)
        torch.testing.assert_close(states, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("rows", [ROWS, HEADED])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_so_are_their_gradients_in_bfloat16(
    family: Family, rows: list[Rendered]
) -> None:
    plain = tiny_model(family)
    model = wrap("half", plain.module.bfloat16(), plain.tokenizer, reason="test")
    assert can_pack(model, longest=24)
    found = []
    for read in (predicting_states, packed_states):
        bias = torch.zeros(model.architecture.hidden_size, requires_grad=True)

        def add(hidden: torch.Tensor, bias: torch.Tensor = bias) -> torch.Tensor:
            return hidden + bias.to(hidden)

        with torch.enable_grad(), editing_residuals(model, {0: add}):
            states, _ = read(model, rows)
            (gradient,) = torch.autograd.grad(states.float().pow(3).sum(), bias)
        found.append((states.detach().float(), gradient))
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm() / one.norm()) < 0.03


def test_rows_longer_than_a_window_are_padded() -> None:
    model = tiny_model("mistral")
    window = model.module.config.sliding_window
    assert can_pack(model, longest=window)
    assert not can_pack(model, longest=window + 1)
    model.module.config.attention_chunk_size = 8  # as Llama 4 has it
    assert not can_pack(model, longest=9)


def test_a_layer_that_carries_something_over_is_found_out() -> None:
    """As a recurrent one does: what stands before a row would change it."""
    model = tiny_model("llama")

    def carry(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        return output + 0.01 * output.cumsum(1)

    handle = model.architecture.blocks[1].register_forward_hook(carry)
    assert not can_pack(model, longest=9)
    handle.remove()
    assert not can_pack(model, longest=9)  # it is tried out once
    assert can_pack(tiny_model("llama"), longest=9)


def test_so_is_a_model_that_takes_no_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    inner = model.module.base_model
    real = inner.forward

    def forward(position_ids: object = None, **rest: object) -> object:
        return real(**rest)

    monkeypatch.setattr(inner, "forward", forward)
    assert not can_pack(model, longest=9)
