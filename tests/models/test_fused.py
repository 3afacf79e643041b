"""Kernels compute what PyTorch's operations do, forward and backward, and no more."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from undertow.models import fused
from undertow.models.attention import fast_attention, fast_operations
from undertow.models.fused import (
    adapted,
    can_adapt,
    can_fuse,
    fused_operations,
    fused_softmax,
)
from undertow.models.kernels import Built, kernels
from undertow.models.loading import Model, wrap
from undertow.models.tiny import FAMILIES, Family, tiny_model

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="there is no gcc, so there are no kernels"
)


def _numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (scale * drawn).bfloat16()


def _gradients(
    work: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The result, then gradients of its product with fixed numbers."""
    own = [x.detach().to(dtype).requires_grad_() for x in inputs]
    result = work(*own)
    weights = _numbers(*result.shape, seed=9).to(dtype)
    return (result, *torch.autograd.grad(result, own, weights))


def _apply(function: Any, *inputs: Any) -> Tensor:
    result: Tensor = function.apply(*inputs)
    return result


def _close(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """Within a few roundings of bfloat16 of what float32 gives."""
    for mine, true in zip(found, wanted, strict=True):
        gap = (mine.float() - true.float()).norm() / true.float().norm()
        assert float(gap.detach()) < 6e-3


def test_there_are_kernels_where_there_is_a_compiler() -> None:
    assert kernels().library is not None, kernels().reason


@pytest.mark.parametrize("width", [8, 576, 577])
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("norm", [LlamaRMSNorm, Gemma3RMSNorm])
def test_a_norm_and_its_gradient(norm: type[nn.Module], rows: int, width: int) -> None:
    module: Any = norm(width).to(torch.bfloat16).requires_grad_(requires_grad=False)
    module.weight.copy_(_numbers(width, seed=3))
    stand_in = fused._norm_of(module)
    assert stand_in is not None
    x = _numbers(2, rows, width, scale=3.0)
    exact = norm(width)
    assert isinstance(exact.weight, Tensor)
    exact.weight.data.copy_(module.weight)
    _close(
        _gradients(stand_in, [x], torch.bfloat16), _gradients(exact, [x], torch.float32)
    )
    assert float((stand_in(x) != module(x)).float().mean()) < 0.01


@pytest.mark.parametrize("shape", [(1, 1), (3, 1536), (40, 1537)])
@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_a_gated_activation_and_its_gradient(name: str, shape: tuple[int, int]) -> None:
    activation: Any = {
        "silu": nn.functional.silu,
        "gelu": lambda x: nn.functional.gelu(x, approximate="tanh"),
    }[name]

    def plain(gate: Tensor, up: Tensor) -> Tensor:
        product: Tensor = activation(gate) * up
        return product

    def mine(gate: Tensor, up: Tensor) -> Tensor:
        result: Tensor = _apply(fused._Gated, gate, up, int(name == "gelu"))
        return result

    inputs = [_numbers(*shape, scale=4.0), _numbers(*shape, seed=1)]
    _close(
        _gradients(mine, inputs, torch.bfloat16),
        _gradients(plain, inputs, torch.float32),
    )
    # torch's GELU adds 1 to a tanh near −1, and loses digits that the kernel keeps.
    allowed = 0.01 if name == "silu" else 0.2
    assert float((mine(*inputs) != plain(*inputs)).float().mean()) < allowed


def test_activations_of_large_and_missing_numbers() -> None:
    gate = torch.tensor([-3e38, -200.0, 200.0, 3e38, torch.nan, torch.inf]).bfloat16()
    up = torch.ones_like(gate)
    for place, plain in enumerate((nn.SiLU(), nn.GELU(approximate="tanh"))):
        found = _apply(fused._Gated, gate, up, place)[1:5]
        torch.testing.assert_close(found, plain(gate)[1:5], equal_nan=True)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_rotation_and_its_gradient(rows: int) -> None:
    # As they come from a projection: tokens before heads.
    q, k = (_numbers(2, 7, h, 16, seed=h).transpose(1, 2) for h in (6, 3))
    cosine, sine = (_numbers(rows, 7, 16, seed=s) for s in (4, 5))
    rotated = fused._rotating(apply_rotary_pos_emb)
    for place, x in enumerate((q, k)):

        def plain(x: Tensor, place: int = place) -> Tensor:
            both = [q.to(x.dtype), k.to(x.dtype)]
            both[place] = x
            angles = [cosine.to(x.dtype), sine.to(x.dtype)]
            turned: Tensor = apply_rotary_pos_emb(*both, *angles)[place]
            return turned

        def mine(x: Tensor, place: int = place) -> Tensor:
            both = [q, k]
            both[place] = x
            turned: Tensor = rotated(*both, cosine, sine)[place]
            return turned

        _close(
            _gradients(mine, [x], torch.bfloat16), _gradients(plain, [x], torch.float32)
        )
        assert torch.equal(mine(x), plain(x))


def _masks(rows: int, queries: int, tokens: int) -> dict[str, Tensor | None]:
    causal = torch.ones(queries, tokens, dtype=torch.bool).tril(tokens - queries)
    some = torch.rand(rows, 1, queries, tokens, generator=torch.Generator()) > 0.4
    some[..., 0] = True
    return {
        "none": None,
        "of all": causal[None, None],
        "expanded": causal.expand(rows, 1, queries, tokens),
        "own": some,
        "one query": some[:, :, :1],
    }


@pytest.mark.parametrize("which", ["none", "of all", "expanded", "own", "one query"])
@pytest.mark.parametrize(("queries", "tokens"), [(1, 9), (7, 7), (5, 40)])
def test_a_softmax_over_what_is_seen(which: str, queries: int, tokens: int) -> None:
    scores, mask = (
        _numbers(3, 4, queries, tokens, scale=9.0),
        _masks(3, queries, tokens)[which],
    )
    causal = torch.ones(queries, tokens, dtype=torch.bool).tril(tokens - queries)
    seen = causal if mask is None else mask

    def plain(x: Tensor) -> Tensor:
        return (x * 0.25).masked_fill(~seen, -torch.inf).softmax(-1)

    found = _gradients(
        lambda x: fused_softmax(x, mask, scale=0.25), [scores], torch.bfloat16
    )
    _close(found, _gradients(plain, [scores], torch.float32))
    assert bool((found[0][~seen.expand_as(scores)] == 0).all())


def test_who_sees_nothing_looks_at_all_alike_and_a_nan_stays_one() -> None:
    scores = _numbers(1, 1, 3, 4)
    scores[0, 0, 1] = torch.nan
    mask = torch.ones(1, 1, 3, 4, dtype=torch.bool)
    mask[0, 0, 0] = False
    found = fused_softmax(scores, mask, scale=1.0)[0, 0]
    assert found[0].tolist() == [0.25] * 4
    assert bool(found[1].isnan().all())
    assert float(found[2].float().sum()) == pytest.approx(1.0, abs=0.01)


def test_a_nan_stays_one_in_norms() -> None:
    x, weight = _numbers(2, 8), torch.ones(8).bfloat16()
    x[0, 3] = torch.nan
    found = _apply(fused._Norm, x, weight, 1e-6, 0.0)
    assert bool(found[0].isnan().all())
    assert not bool(found[1].isnan().any())


def _half(family: Family) -> Model:
    plain = tiny_model(family)
    return wrap("half", plain.module.bfloat16(), plain.tokenizer, reason="test")


def _pass(model: Model, embedded: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of their squares with respect to what is put in."""
    x = embedded.detach().requires_grad_()
    logits = model.module(inputs_embeds=x, use_cache=False).logits.float()
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), gradient.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_pass_and_gradient_are_as_before(family: Family) -> None:
    model = _half(family)
    x = model.module.get_input_embeddings()(torch.tensor([[7, 50, 9, 120, 33, 2]]))
    plain = _pass(model, x)
    with fast_operations(model):
        fast = _pass(model, x)
    after = _pass(model, x)
    for mine, theirs in zip(fast, plain, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 0.05
    assert all(torch.equal(a, b) for a, b in zip(after, plain, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_draws_rows_is_the_same_with_and_without_kernels(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _half(family)
    x = model.module.get_input_embeddings()(torch.tensor([[7, 50, 9, 120, 33, 2]]))
    with fast_attention(model):
        there = _pass(model, x)
    monkeypatch.setattr(fused, "kernels", lambda: Built(None, "none"))
    with fast_attention(model):
        missing = _pass(model, x)
    with fast_operations(model):
        also = _pass(model, x)
    for mine, theirs, third in zip(there, missing, also, strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(mine, third)


def test_what_is_replaced_and_put_back() -> None:
    model = _half("llama")
    blocks = len(model.architecture.blocks)
    norms = [m for m in model.module.modules() if isinstance(m, LlamaRMSNorm)]
    assert len(norms) == 2 * blocks + 1
    with fused_operations(model):
        changed = [m for m in model.module.modules() if "forward" in m.__dict__]
        assert len(changed) == len(norms) + blocks
        assert modeling_llama.apply_rotary_pos_emb is not apply_rotary_pos_emb
        with fused_operations(model):  # once more inside: no harm
            pass
        assert all("forward" in m.__dict__ for m in changed)
    assert not any("forward" in m.__dict__ for m in model.module.modules())
    assert modeling_llama.apply_rotary_pos_emb is apply_rotary_pos_emb


def _fails() -> None:
    raise ValueError("inside")


def test_a_fault_inside_puts_everything_back() -> None:
    model = _half("llama")
    with pytest.raises(ValueError, match="inside"), fused_operations(model):
        _fails()
    assert not any("forward" in m.__dict__ for m in model.module.modules())
    assert modeling_llama.apply_rotary_pos_emb is apply_rotary_pos_emb


def test_a_forward_that_somebody_else_put_there_stays() -> None:
    model = _half("llama")
    norm = model.architecture.final_norm
    norm.forward = lambda x: x
    own = norm.forward
    with fused_operations(model):
        assert norm.forward is own
    assert norm.forward is own


def test_float32_and_other_modules_are_left_alone() -> None:
    full = tiny_model("llama")
    with fused_operations(full):
        assert not any("forward" in m.__dict__ for m in full.module.modules())
        assert modeling_llama.apply_rotary_pos_emb is apply_rotary_pos_emb
    assert not can_fuse(torch.zeros(2))
    assert fused._norm_of(nn.LayerNorm(8).bfloat16()) is None
    doubled = LlamaRMSNorm(8).bfloat16()
    doubled.__class__ = type(
        "Doubled",
        (LlamaRMSNorm,),
        {"forward": lambda self, x: 2 * LlamaRMSNorm.forward(self, x)},
    )
    assert fused._norm_of(doubled) is None


class _Mlp(nn.Module):
    """A gated MLP with something more in it."""

    def __init__(self, act_fn: nn.Module, more: float) -> None:
        super().__init__()
        self.gate_proj = self.up_proj = self.down_proj = nn.Identity()
        self.act_fn, self.more = act_fn, more

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return gated * self.more


class _Plain(_Mlp):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return found


def test_only_mlps_that_do_just_this_are_replaced() -> None:
    assert fused._gated_of(_Mlp(nn.SiLU(), 2.0)) is None
    assert fused._gated_of(_Plain(nn.SiLU(), 1.0)) is not None
    assert fused._gated_of(_Plain(nn.GELU(approximate="tanh"), 1.0)) is not None
    assert fused._gated_of(_Plain(nn.Tanh(), 1.0)) is None


def test_a_rotation_that_is_another_is_not_replaced() -> None:
    def other(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return q * cos[:, None], k * sin[:, None]

    def odd(q: Any) -> Any:
        return q

    assert fused._does_rotate(apply_rotary_pos_emb)
    assert not fused._does_rotate(other)
    assert not fused._does_rotate(odd)
    once = fused._rotating(other)
    assert fused._rotating(once) is once


def test_trainable_norms_keep_their_own_way() -> None:
    module = LlamaRMSNorm(8).bfloat16()
    stand_in = fused._norm_of(module)
    assert stand_in is not None
    result = stand_in(_numbers(2, 8))
    (gradient,) = torch.autograd.grad(result.float().sum(), module.weight)
    assert gradient.shape == (8,)


def _layer(inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias).requires_grad_(requires_grad=False)
    layer.weight.copy_(_numbers(outputs, inputs, seed=1, scale=inputs**-0.5))
    if bias:
        layer.bias.copy_(_numbers(outputs, seed=2))
    return layer.bfloat16()


@pytest.mark.parametrize("rows", [1, 17, 70])
@pytest.mark.parametrize(
    ("inputs", "outputs", "rank"), [(16, 48, 8), (576, 1536, 8), (1600, 32, 24)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_an_adapter_and_its_gradients(
    inputs: int, outputs: int, rank: int, rows: int, bias: bool
) -> None:
    layer = _layer(inputs, outputs, bias=bias)
    x = _numbers(2, rows, inputs, seed=3).requires_grad_()
    a = nn.Parameter(_numbers(rank, inputs, seed=4, scale=inputs**-0.5).float())
    b = nn.Parameter(_numbers(outputs, rank, seed=5).float())
    weights = _numbers(2, rows, outputs, seed=6)
    assert can_adapt(layer, x, a, b)
    y = adapted(layer, x, a, b, 1.5)
    found = torch.autograd.grad(y, (x, a, b), weights)
    wide = x.detach().float().requires_grad_()
    exact = wide @ layer.weight.float().t() + 1.5 * (wide @ a.t()) @ b.t()
    if bias:
        exact = exact + layer.bias.float()
    wanted = torch.autograd.grad(exact, (wide, a, b), weights.float())
    _close((y, *found), (exact, *wanted))
    for mine, true in zip(found[1:], wanted[1:], strict=True):  # summed in float32
        assert float((mine - true).norm() / true.norm()) < 1e-5


def test_an_adapter_is_divided_among_threads_and_adds_up() -> None:
    layer = _layer(64, 64)
    a, b = (nn.Parameter(_numbers(*s, seed=7).float()) for s in ((8, 64), (64, 8)))
    x, weights = _numbers(50, 64, seed=8), _numbers(50, 64, seed=9)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 64):  # the last with parts that hold no row
            torch.set_num_threads(threads)
            y = adapted(layer, x, a, b, 0.5)  # x needs no gradient: the first block's
            found.append((y, *torch.autograd.grad(y, (a, b), weights)))
    finally:
        torch.set_num_threads(before)
    for several in found[1:]:
        for one, other in zip(several, found[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_adapters_are_fused_in_training_alone_and_where_they_fit() -> None:
    layer, x = _layer(16, 32), _numbers(3, 16)
    a, b = nn.Parameter(torch.ones(8, 16)), nn.Parameter(torch.ones(32, 8))
    assert can_adapt(layer, x, a, b)
    with torch.no_grad():  # so rows that a student draws hang on no compiler
        assert not can_adapt(layer, x, a, b)
    assert not can_adapt(layer, x, a.detach(), b.detach())
    assert not can_adapt(layer, x.float(), a, b)
    assert not can_adapt(layer, x, a[:4], b[:, :4])
    assert not can_adapt(
        _layer(20, 32), _numbers(3, 20), nn.Parameter(torch.ones(8, 20)), b
    )
    assert not can_adapt(nn.Identity(), x, a, b)
    handle = layer.register_forward_hook(lambda *_: None)
    assert not can_adapt(layer, x, a, b)
    handle.remove()
    layer.requires_grad_(requires_grad=True)
    assert not can_adapt(layer, x, a, b)
