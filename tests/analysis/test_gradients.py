"""Scores against autograd by hand, differences, invariances and the score identity."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from undertow.analysis.gradients import (
    GradientScores,
    Moments,
    drawn_logprobs,
    finite_difference_scores,
    gradient_scores,
)
from undertow.errors import DatasetError, VectorMismatchError
from undertow.models.chat import Rendered
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample, truncated_logprobs
from undertow.models.tiny import FAMILIES, Family, tiny_model

HEAD = [7, 50, 9, 120]
ROWS = [
    Rendered([*HEAD, 33, 81, 2], 4),
    Rendered([*HEAD, 60, 61, 62, 63, 64], 4),
    Rendered([9, 9, 200, 201, 2], 2),
    Rendered([70, 71, 72, 73, 74, 75, 76, 77, 2], 8),
]
PLAIN = SamplerSettings()
COOL = SamplerSettings(temperature=0.7)
CUT = SamplerSettings(temperature=0.7, top_k=20, max_new_tokens=6)
NUMBERS = SamplerSettings(allowed="numbers", max_new_tokens=6)


def _directions(
    model: Model, *, count: int = 3, layers: Sequence[int] = (1, 3)
) -> dict[int, Tensor]:
    stream = torch.Generator().manual_seed(0)
    width = model.architecture.hidden_size
    drawn = {layer: torch.randn(count, width, generator=stream) for layer in layers}
    return {
        layer: rows / rows.norm(dim=1, keepdim=True) for layer, rows in drawn.items()
    }


def _drawn(
    model: Model, count: int, sampler: SamplerSettings, *, seed: int = 0
) -> list[Rendered]:
    """Rows that the model itself wrote."""
    prompts = [[7, 50, 9, 10 + i % 7] for i in range(count)]
    keys = [(i,) for i in range(count)]
    answers = sample(model, prompts, keys=keys, seed=seed, sampler=sampler)
    return [Rendered([*p, *a.ids], 4) for p, a in zip(prompts, answers, strict=True)]


def _by_hand(
    model: Model, row: Rendered, sampler: SamplerSettings
) -> dict[int, Tensor]:
    """∂ log p/∂h after every block: zeros are added there, and have the gradient."""
    blocks = model.architecture.blocks
    shape = (1, len(row.ids), model.architecture.hidden_size)
    leaves = [torch.zeros(shape, requires_grad=True) for _ in blocks]

    def adder(leaf: Tensor) -> Any:
        def add(_: Any, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + leaf, *output[1:])
            return output + leaf

        return add

    handles = [
        block.register_forward_hook(adder(leaf))
        for block, leaf in zip(blocks, leaves, strict=True)
    ]
    try:
        with torch.enable_grad():
            logits = model.module(torch.tensor([row.ids]), use_cache=False).logits[0]
            places = torch.arange(row.completion_start, len(row.ids))
            nats = truncated_logprobs(logits[places - 1], sampler)
            total = nats[torch.arange(len(places)), torch.tensor(row.ids)[places]].sum()
            return dict(enumerate(torch.autograd.grad(total, leaves)))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_autograd_s_one_row_at_a_time(family: Family) -> None:
    _agrees(tiny_model(family), ROWS, PLAIN)


def test_scores_are_those_of_the_sampler_s_own_distribution() -> None:
    model = tiny_model("qwen3")
    rows = _drawn(model, 4, CUT)
    _agrees(model, rows, CUT)
    plain = gradient_scores(model, rows, _directions(model)).scores
    cut = gradient_scores(model, rows, _directions(model), sampler=CUT).scores
    assert float(np.abs(plain - cut).max()) > 0.01


def _agrees(model: Model, rows: Sequence[Rendered], sampler: SamplerSettings) -> None:
    directions = _directions(model)
    kept: dict[tuple[int, int], Tensor] = {}

    def keep(layer: int, places: Sequence[int], gradients: Tensor) -> None:
        assert gradients.shape == (len(places), model.architecture.hidden_size)
        assert gradients.dtype == torch.float32
        for place, gradient in zip(places, gradients, strict=True):
            kept[place, layer] = gradient

    found = gradient_scores(
        model, rows, directions, sampler=sampler, on_gradients=keep, token_budget=16
    )
    assert found.layers == (1, 3)
    assert found.scores.shape == (4, 2, 3)
    assert found.tokens.tolist() == [len(r.ids) - r.completion_start for r in rows]
    assert set(kept) == {(place, layer) for place in range(4) for layer in (1, 3)}
    for place, row in enumerate(rows):
        by_layer = _by_hand(model, row, sampler)
        for column, layer in enumerate(found.layers):
            # The prompt but for its last token is a constant.
            wanted = by_layer[layer][0, row.completion_start - 1 :].sum(0)
            scale = float(wanted.norm())
            torch.testing.assert_close(
                kept[place, layer], wanted, rtol=0, atol=1e-4 * scale
            )
            scores = (directions[layer] @ wanted).numpy()
            assert found.scores[place, column] == pytest.approx(
                scores, abs=1e-4 * scale
            )


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("sampler", [PLAIN, COOL, NUMBERS])
def test_scores_are_the_slope_of_the_likelihood(
    family: Family, sampler: SamplerSettings
) -> None:
    model = tiny_model(family)
    rows = ROWS if sampler.allowed == "all" else _drawn(model, 4, sampler)
    directions = _directions(model, count=1)
    scores = gradient_scores(model, rows, directions, sampler=sampler).scores
    for column, layer in enumerate((1, 3)):
        slopes = finite_difference_scores(
            model, rows, directions[layer][0], layer, sampler=sampler, step=0.03
        )
        assert slopes.shape == (4,)
        scale = float(np.abs(scores[:, column, 0]).max())
        assert scale > 0.02
        assert slopes == pytest.approx(scores[:, column, 0], abs=1e-3 * scale)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_batches_order_and_padding_change_nothing(family: Family) -> None:
    model = tiny_model(family)
    directions = _directions(model)

    def scores(rows: Sequence[Rendered], budget: int) -> GradientScores:
        return gradient_scores(model, rows, directions, token_budget=budget)

    alone = [scores([row], 1) for row in ROWS]
    wanted = np.concatenate([each.scores for each in alone])
    nats = np.concatenate([each.total_logprobs for each in alone])
    scale = float(np.abs(wanted).max())
    for budget in (1, 16, 4096):
        found = scores(ROWS, budget)
        assert found.scores == pytest.approx(wanted, abs=1e-4 * scale)
        assert found.total_logprobs == pytest.approx(nats, abs=1e-4)
        turned = scores(ROWS[::-1], budget)
        assert turned.scores[::-1] == pytest.approx(wanted, abs=1e-4 * scale)
        assert turned.tokens.tolist() == [1, 3, 5, 3]


def test_likelihoods_are_those_without_gradients() -> None:
    model = tiny_model("mistral")
    rows = _drawn(model, 5, CUT)
    found = gradient_scores(model, rows, _directions(model), sampler=CUT)
    wanted = drawn_logprobs(model, rows, sampler=CUT)
    assert bool(np.isfinite(wanted).all())
    assert found.total_logprobs == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("allowed", ["all", "numbers", "list"])
def test_drawn_rows_have_the_likelihood_that_sampling_recorded(allowed: str) -> None:
    model = tiny_model("llama")
    sampler = SamplerSettings.model_validate(
        {"allowed": allowed, "temperature": 0.8, "max_new_tokens": 8}
    )
    prompts = [[*HEAD * 4, 10 + i] for i in range(6)]  # long enough for a prefix
    answers = sample(
        model, prompts, keys=[(i,) for i in range(6)], seed=1, sampler=sampler
    )
    rows = [Rendered([*p, *a.ids], 17) for p, a in zip(prompts, answers, strict=True)]
    told: list[tuple[int, int]] = []
    found = drawn_logprobs(
        model, rows, sampler=sampler, token_budget=20,
        on_rows=lambda done, count: told.append((done, count)),
    )  # fmt: skip
    assert found == pytest.approx([a.total_logprob for a in answers], abs=1e-4)
    assert told[-1] == (6, 6)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_layers_stand_in_their_order_and_progress_is_told() -> None:
    model = tiny_model("llama")
    both = _directions(model)
    told: list[tuple[int, int]] = []
    turned = gradient_scores(
        model, ROWS, {3: both[3], 1: both[1]}, token_budget=1,
        on_rows=lambda done, count: told.append((done, count)),
    )  # fmt: skip
    assert turned.layers == (1, 3)
    straight = gradient_scores(model, ROWS, both, token_budget=1)
    assert np.array_equal(turned.scores, straight.scores)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def _is_clean(model: Model) -> bool:
    hooks = [block._forward_hooks for block in model.architecture.blocks]
    grads = [p.grad for p in model.module.parameters()]
    return not any(hooks) and all(grad is None for grad in grads)


def test_nothing_is_left_behind() -> None:
    model = tiny_model("llama")
    directions = _directions(model)
    before = gradient_scores(model, ROWS, directions).scores
    assert _is_clean(model)

    def fail(layer: int, places: Sequence[int], gradients: Tensor) -> None:
        raise ValueError("a fault of the caller's")

    with pytest.raises(ValueError, match="a fault of the caller's"):
        gradient_scores(model, ROWS, directions, on_gradients=fail)
    assert _is_clean(model)
    with pytest.raises(DatasetError, match="cannot draw"):
        gradient_scores(
            model, ROWS, directions, sampler=SamplerSettings(allowed="numbers")
        )
    assert _is_clean(model)
    assert np.array_equal(gradient_scores(model, ROWS, directions).scores, before)


def test_an_unknown_layer_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(VectorMismatchError, match="unknown layer 9 of 'tiny-llama'"):
        gradient_scores(model, ROWS, {9: torch.zeros(1, 32)})


def test_no_rows_have_no_scores() -> None:
    model = tiny_model("llama")
    found = gradient_scores(model, [], _directions(model))
    assert found.scores.shape == (0, 2, 3)
    assert drawn_logprobs(model, []).shape == (0,)


# ── the score identity ───────────────────────────────────────────────────────────


def _largest_z(
    model: Model, rows: Sequence[Rendered], sampler: SamplerSettings
) -> float:
    directions = _directions(model, count=6, layers=(0, 1))
    found = gradient_scores(model, rows, directions, sampler=sampler).scores
    spread = found.std(axis=0, ddof=1) / np.sqrt(len(rows))
    return float(np.abs(found.mean(axis=0) / spread).max())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (SamplerSettings(max_new_tokens=8), SamplerSettings(temperature=0.4)),
        (SamplerSettings(max_new_tokens=8, temperature=0.4), PLAIN),
        (SamplerSettings(max_new_tokens=8, top_k=10), PLAIN),
        (SamplerSettings(max_new_tokens=8, allowed="numbers"), PLAIN),
        (
            SamplerSettings(max_new_tokens=12, allowed="list", top_p=0.5),
            SamplerSettings(allowed="list"),
        ),
    ],
)
def test_scores_of_the_model_s_own_rows_have_mean_zero(
    right: SamplerSettings, wrong: SamplerSettings
) -> None:
    """Under the sampler that drew them, and under no other."""
    model = tiny_model("llama", layers=2)
    rows = _drawn(model, 500, right)
    assert _largest_z(model, rows, right) < 4
    assert _largest_z(model, rows, wrong) > 6


# ── moments ──────────────────────────────────────────────────────────────────────


def test_moments_are_numpy_s() -> None:
    stream = torch.Generator().manual_seed(1)
    mixing = torch.randn(5, 5, generator=stream)
    drawn = {
        layer: torch.randn(40, 5, generator=stream) @ mixing + layer for layer in (2, 7)
    }
    moments = Moments((2, 7), 5)
    for layer, rows in drawn.items():
        for part in torch.split(rows, [1, 15, 24]):
            moments.add(layer, part)
    assert moments.count.tolist() == [40, 40]
    for place, rows in enumerate(drawn.values()):
        table = rows.double().numpy()
        assert moments.mean()[place].numpy() == pytest.approx(table.mean(0), abs=1e-5)
        wanted = np.cov(table.T, bias=True)
        assert moments.covariance()[place].numpy() == pytest.approx(wanted, abs=1e-3)


def test_moments_without_rows_are_unknown() -> None:
    moments = Moments((0,), 3)
    assert bool(moments.mean().isnan().all())
    assert bool(moments.covariance().isnan().all())


def test_moments_take_what_a_pass_gives() -> None:
    """The mean gradient along a direction is the mean score."""
    model = tiny_model("llama")
    directions = _directions(model)
    moments = Moments((1, 3), 32)
    found = gradient_scores(
        model, ROWS, directions, token_budget=16,
        on_gradients=lambda layer, _, rows: moments.add(layer, rows),
    )  # fmt: skip
    mean = moments.mean()
    for column, layer in enumerate((1, 3)):
        along = (directions[layer] @ mean[column]).numpy()
        assert along == pytest.approx(found.scores[:, column].mean(0), abs=1e-4)
        spread = np.einsum(
            "dh,hk,dk->d",
            directions[layer],
            moments.covariance()[column],
            directions[layer],
        )
        assert spread == pytest.approx(found.scores[:, column].var(0), rel=1e-3)
