"""Noise on shared weights: its moments, its scope, and that a seed means one draw."""

import math

import pytest
import torch
from torch import Tensor

from undertow.errors import ConfigError
from undertow.interventions.noise import NoiseReport, add_weight_noise
from undertow.models.architecture import MatrixKind
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model

EMBEDDING = "model.embed_tokens.weight"


def _changes(
    model: Model, **options: object
) -> tuple[NoiseReport, dict[str, Tensor], dict[str, Tensor]]:
    """The report, the weights before, and what was added to each."""
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    report = add_weight_noise(model, seed=3, **options)  # type: ignore[arg-type]
    after = dict(model.module.named_parameters())
    return report, before, {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_the_change_has_the_std_that_was_asked_for(distribution: str) -> None:
    model = tiny_model("llama", hidden=128, layers=2)
    report, before, added = _changes(model, p=0.1, distribution=distribution)
    for matrix in report.matrices:
        change, count = added[matrix.name], added[matrix.name].numel()
        std = float(before[matrix.name].double().std(correction=0))
        assert matrix.std == pytest.approx(std)
        # Four standard errors of a mean, and of a std (normal), of `count` draws.
        assert abs(float(change.mean())) < 4 * 0.1 * std / math.sqrt(count)
        assert float(change.std()) == pytest.approx(
            0.1 * std, rel=4 / math.sqrt(2 * count)
        )
    if distribution == "uniform":
        change, std = added[EMBEDDING], report.matrices[0].std
        assert float(change.abs().max()) <= 0.1 * std * math.sqrt(3) * (1 + 1e-5)


def test_faithful_noise_adds_the_mean_too() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    clean, faithful = tiny_model("llama"), tiny_model("llama")
    for model in (clean, faithful):
        model.module.get_parameter(name).add_(0.5)
    _, before, one = _changes(clean, p=0.2)
    _, _, other = _changes(faithful, p=0.2, formula="faithful")
    mean = float(before[name].mean())
    assert mean == pytest.approx(0.5, abs=0.02)
    gap = other[name] - one[name]
    torch.testing.assert_close(gap, torch.full_like(gap, 0.2 * mean), rtol=0, atol=1e-6)


SCOPES: dict[MatrixKind, int] = {"attention": 4 * 4, "mlp": 4 * 3, "embedding": 1}


@pytest.mark.parametrize("kind", SCOPES)
def test_only_the_scope_changes(kind: MatrixKind) -> None:
    report, _, added = _changes(tiny_model("llama"), p=0.1, scope=(kind,))
    changed = {name for name, change in added.items() if bool(change.any())}
    assert changed == {matrix.name for matrix in report.matrices}
    assert {matrix.kind for matrix in report.matrices} == {kind}
    assert len(changed) == SCOPES[kind]


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_biases_and_an_untied_unembedding_stay(family: Family) -> None:
    model = tiny_model(family)
    report, before, added = _changes(model, p=0.1)
    changed = {name for name, change in added.items() if bool(change.any())}
    assert changed == {matrix.name for matrix in report.matrices}
    assert all(before[name].ndim == 2 for name in changed)
    unembedding = model.architecture.unembedding.get_parameter("weight")
    embedding = model.architecture.embedding.get_parameter("weight")
    tied = unembedding is embedding
    assert tied == (family in ("gemma2", "gemma3", "gpt2"))
    if not tied:
        assert "lm_head.weight" in before
        assert "lm_head.weight" not in changed


def test_a_tied_embedding_is_noised_once() -> None:
    model = tiny_model("gemma3", hidden=64)
    report, before, added = _changes(model, p=0.1, scope=("embedding",))
    assert [matrix.name for matrix in report.matrices] == [EMBEDDING]
    std = float(before[EMBEDDING].std(correction=0))
    assert float(added[EMBEDDING].std()) == pytest.approx(0.1 * std, rel=0.03)
    unembedding = model.architecture.unembedding.get_parameter("weight")
    assert torch.equal(unembedding, before[EMBEDDING] + added[EMBEDDING])


def test_a_seed_is_one_draw_and_scopes_do_not_disturb_each_other() -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    whole, again, part, other = (tiny_model("llama") for _ in range(4))
    add_weight_noise(whole, p=0.1, seed=0)
    add_weight_noise(again, p=0.1, seed=0)
    add_weight_noise(part, p=0.1, seed=0, scope=("mlp",))
    add_weight_noise(other, p=0.1, seed=1)
    wanted = whole.module.get_parameter(name)
    assert torch.equal(again.module.get_parameter(name), wanted)
    assert torch.equal(part.module.get_parameter(name), wanted)
    assert not torch.equal(other.module.get_parameter(name), wanted)


def test_the_order_of_scopes_does_not_matter() -> None:
    one, two = tiny_model("qwen2"), tiny_model("qwen2")
    add_weight_noise(one, p=0.1, seed=0)
    for kind in ("embedding", "mlp", "attention"):
        add_weight_noise(two, p=0.1, seed=0, scope=(kind,))
    for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_matrices_draw_independently() -> None:
    _, _, added = _changes(tiny_model("llama", hidden=64), p=0.1)
    gate, up = (added[f"model.layers.0.mlp.{n}_proj.weight"] for n in ("gate", "up"))
    pair = torch.stack([gate.flatten(), up.flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(gate.numel())


def test_twice_p_is_twice_the_change_and_none_is_none() -> None:
    _, _, one = _changes(tiny_model("llama"), p=0.1)
    _, _, two = _changes(tiny_model("llama"), p=0.2)
    _, _, none = _changes(tiny_model("llama"), p=0.0)
    torch.testing.assert_close(two[EMBEDDING], 2 * one[EMBEDDING], rtol=0, atol=1e-6)
    assert not any(bool(change.any()) for change in none.values())


def test_bfloat16_gets_the_same_draw_rounded() -> None:
    full, half = tiny_model("llama"), tiny_model("llama")
    for parameter in full.module.parameters():
        parameter.copy_(parameter.bfloat16())  # so that both start alike
    half.module.bfloat16()
    add_weight_noise(full, p=0.1, seed=0)
    add_weight_noise(half, p=0.1, seed=0)
    wanted = full.module.get_parameter(EMBEDDING).bfloat16()
    assert torch.equal(half.module.get_parameter(EMBEDDING), wanted)


@pytest.mark.parametrize("p", [-0.1, math.nan, math.inf])
def test_a_p_that_means_nothing_is_refused(p: float) -> None:
    with pytest.raises(ConfigError) as caught:
        add_weight_noise(tiny_model("llama"), p=p, seed=0, scope=())
    assert caught.value.faults == (
        f"p: got {p!r}, expected a number of 0 or more",
        "scope: got (), expected some of ('mlp', 'attention', 'embedding')",
    )
