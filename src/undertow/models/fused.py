"""What lies between a block's products, done by kernels of our own while a pass runs.

Norms, gated activations and rotations of a model are found by what they do, not by
their names: a module that does not answer a probe as the kernel does keeps its own way.
On a processor in bfloat16 only; elsewhere, and in forward mode, nothing changes. Forward
results are those of PyTorch's operations but for the order of a norm's sum, the tails of
activations, and scales of attention that are no power of two; gradients are rounded once
instead of after each operation. Knows nothing of rows or losses.
"""

import copy
import ctypes
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from undertow.models.kernels import kernels
from undertow.models.loading import Model

Forward = Callable[..., Any]

WIDEST = 8192  # tokens that a softmax looks at: it keeps a row of them on its stack
_CLOSE = 2e-2  # of bfloat16 results that were rounded in another order
# What was found out by probes: of a model, and of functions that rotate.
_known: weakref.WeakKeyDictionary[nn.Module, list[tuple[nn.Module, Forward]]] = (
    weakref.WeakKeyDictionary()
)
_rotates: dict[Any, bool] = {}


def can_fuse(*tensors: Tensor) -> bool:
    """Whether kernels of our own can work on these: bfloat16, on a processor."""
    is_fit = all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in tensors)
    return is_fit and kernels().library is not None


class _Norm(torch.autograd.Function):
    """x / sqrt(mean x² + eps) times (more + w); more is 0 or 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, more: float) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y, inverse = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
        _call("norm_forward", x, weight, y, inverse, rows, width, eps, more)
        ctx.save_for_backward(x, weight, inverse)
        ctx.more = more
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, inverse = ctx.saved_tensors
        d, width = torch.empty_like(x), x.shape[-1]
        grad, rows = grad.contiguous(), x.numel() // width
        _call(
            "norm_backward", grad, x, weight, inverse, d, rows, width, ctx.more
        )  # fmt: skip
        return d, None, None, None


class _Gated(torch.autograd.Function):
    """SiLU(gate) · up, or GELU by tanh."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, gelu: int) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        _call("gated_forward", gate, up, y, gate.numel(), gelu)
        ctx.save_for_backward(gate, up)
        ctx.gelu = gelu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        to_gate, to_up, grad = (
            torch.empty_like(gate), torch.empty_like(up), grad.contiguous()
        )  # fmt: skip
        _call("gated_backward", grad, gate, up, to_gate, to_up, up.numel(), ctx.gelu)
        return to_gate, to_up, None


class _Rotated(torch.autograd.Function):
    """x·cos + (−x₂, x₁)·sin for x [row, head, token, width] = (x₁, x₂)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        y = x.new_empty(x.shape)
        return _rotate(x, cosine, sine, y, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        rows, heads, tokens, width = grad.shape
        # Tokens before heads, as the projection that gave x has them.
        d = grad.new_empty((rows, tokens, heads, width)).transpose(1, 2)
        return _rotate(grad, cosine, sine, d, back=True), None, None


def _rotate(
    x: Tensor, cosine: Tensor, sine: Tensor, y: Tensor, *, back: bool
) -> Tensor:
    if x.stride(-1) != 1:
        x = x.contiguous()
    shape, strides = ctypes.c_int64 * 4, ctypes.c_int64 * 3
    angles = cosine.stride(0) if cosine.shape[0] > 1 else 0
    _call(
        "rotate", x, cosine, sine, y, shape(*x.shape), strides(*x.stride()[:3]),
        strides(*y.stride()[:3]), angles, back,
    )  # fmt: skip
    return y


class _Softmax(torch.autograd.Function):
    """Softmax of scale · scores over the tokens that each query sees."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        scores = scores.contiguous()
        y = torch.empty_like(scores)
        shape, strides = ctypes.c_int64 * 4, ctypes.c_int64 * 2
        steps = (0, 0)
        if mask is not None:
            # A mask that is the same for all rows or queries has a step of 0.
            mask = mask.expand(scores.shape[0], 1, *scores.shape[2:])
            mask = mask if mask.stride(3) == 1 else mask.contiguous()
            steps = (mask.stride(0), mask.stride(2))
        first = scores.shape[3] - scores.shape[2]
        _call(
            "softmax_forward", scores, y, mask, shape(*scores.shape), strides(*steps),
            first, scale,
        )  # fmt: skip
        ctx.save_for_backward(y)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        d, tokens, grad = torch.empty_like(y), y.shape[-1], grad.contiguous()
        _call("softmax_backward", grad, y, d, y.numel() // tokens, tokens, ctx.scale)
        return d, None, None


class _Logprobs(torch.autograd.Function):
    """log softmax(scale · logits) at targets; the gradient takes the logits' place."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, scale: float, derive: int
    ) -> Tensor:
        logits, targets = logits.contiguous(), targets.contiguous()
        rows, width = logits.shape
        if rows and not 0 <= int(targets.min()) <= int(targets.max()) < width:
            raise IndexError(f"a target that is not among {width} logits")
        nats = logits.new_empty(rows, dtype=torch.float32)
        _call("logprobs_forward", logits, targets, nats, rows, width, scale, derive)
        if derive:
            ctx.save_for_backward(logits)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        if bool((grad != 1).any()):
            gradient = gradient * grad[:, None].to(gradient.dtype)
        return gradient, None, None, None


class _Adapted(torch.autograd.Function):
    """x·Wᵀ + bias + scale · x·Aᵀ·Bᵀ, with gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        flat, a, turned = (
            x.flatten(0, -2).contiguous(),
            a.contiguous(),
            b.t().contiguous(),
        )
        y = nn.functional.linear(flat, weight, bias)
        low = flat.new_empty((len(flat), len(a)), dtype=torch.float32)
        _call(
            "adapter_forward", flat, a, turned, y, low, *flat.shape, y.shape[1], len(a),
            scale,
        )  # fmt: skip
        ctx.save_for_backward(flat, weight, a, turned, low)
        ctx.scale = scale
        return y.view(*x.shape[:-1], y.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, turned, low = ctx.saved_tensors
        shape, grad = grad.shape[:-1], grad.flatten(0, -2).contiguous()
        d = grad @ weight if ctx.needs_input_grad[0] else None
        inputs, outputs, parts = a.shape[1], turned.shape[1], torch.get_num_threads()
        sums = low.new_zeros((parts, len(a), inputs + outputs))
        _call(
            "adapter_backward", grad, x, low, a, turned, d, sums, len(x), inputs, outputs,
            len(a), parts, ctx.scale,
        )  # fmt: skip
        to_a, to_b = sums.sum(0).split((inputs, outputs), dim=1)
        to_x = None if d is None else d.view(*shape, inputs)
        return to_x, None, None, to_a, to_b.t(), None


def _call(name: str, *arguments: Any) -> None:
    """Calls a kernel; tensors go as the addresses of their numbers."""
    library = kernels().library
    assert library is not None
    passed = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    getattr(library, name)(*passed)


def fused_softmax(
    scores: Float[Tensor, "row head query token"],
    mask: Tensor | None,
    *,
    scale: float,
) -> Float[Tensor, "row head query token"]:
    """softmax(scale · scores) over what is seen.

    Args:
        scores: Products of queries and keys.
        mask: Bool [row or 1, 1, query or 1, token], true where one looks; None: the last
            query sees all tokens, the one before it all but the last, and so on.
        scale: Factor of the scores.
    """
    found: Tensor = _Softmax.apply(scores, mask, scale)  # type: ignore[no-untyped-call]
    return found


def fused_logprobs(
    logits: Float[Tensor, "token vocab"],
    targets: Int[Tensor, " token"],
    *,
    scale: float,
) -> Float[Tensor, " token"]:
    """Log softmax(scale · logits) at each token's target, nats, float32.

    With gradients the logits are lost: theirs is written over them, already rounded.

    Args:
        logits: Nobody else's: no operation before may need them going backward.
        targets: Columns.
        scale: Factor of the logits.

    Raises:
        IndexError: A target that is no column.
    """
    derive = int(torch.is_grad_enabled() and logits.requires_grad)
    found: Tensor = _Logprobs.apply(logits, targets, scale, derive)  # type: ignore[no-untyped-call]
    return found


def can_adapt(
    inner: nn.Module, x: Tensor, a: Tensor, b: Tensor
) -> TypeGuard[nn.Linear]:
    """Whether a layer and its adapter go through a kernel: in training only."""
    return (
        torch.is_grad_enabled()
        and a.requires_grad
        and type(inner) is nn.Linear
        and "forward" not in vars(inner)
        and not (inner._forward_hooks or inner._forward_pre_hooks)
        and not inner.weight.requires_grad
        and can_fuse(x, inner.weight)
        and a.dtype == b.dtype == torch.float32
        and a.device == b.device == x.device
        and not (a.shape[0] % 8 or a.shape[1] % 16 or b.shape[0] % 16)
    )


def adapted(
    inner: nn.Linear, x: Float[Tensor, "*batch in"], a: Tensor, b: Tensor, scale: float
) -> Float[Tensor, "*batch out"]:
    """A frozen linear layer plus scale · x·Aᵀ·Bᵀ, of float32 A and B as they are.

    Args:
        inner: A layer of which `can_adapt` is true, as of what follows.
        x: What it gets.
        a: [rank, in].
        b: [out, rank].
        scale: Factor of the product.
    """
    found: Tensor = _Adapted.apply(x, inner.weight, inner.bias, a, b, scale)  # type: ignore[no-untyped-call]
    return found


@contextmanager
def fused_operations(model: Model) -> Iterator[None]:
    """Lets the model's norms, activations and rotations go through the kernels.

    Modules that somebody has given another `forward` keep it.
    """
    changed: list[nn.Module] = []
    home, plain = _rotations(model)
    try:
        for module, forward in _replacements(model):
            if "forward" not in module.__dict__:
                module.__dict__["forward"] = forward
                changed.append(module)
        if home is not None:
            home.apply_rotary_pos_emb = _rotating(plain)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]
        if home is not None:
            home.apply_rotary_pos_emb = plain


def _replacements(model: Model) -> list[tuple[nn.Module, Forward]]:
    """Modules that the kernels can stand in for, and what stands in for them."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return []
    if kernels().library is None:
        return []
    if model.module not in _known:
        found = []
        for module in model.module.modules():
            stand_in = _norm_of(module) or _gated_of(module)
            if stand_in is not None:
                found.append((module, stand_in))
        _known[model.module] = found
    return _known[model.module]


@torch.no_grad()
def _norm_of(module: nn.Module) -> Forward | None:
    """What stands in for a norm without centring; None if the module is none."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        not isinstance(weight, Tensor)
        or set(module._parameters) != {"weight"}
        or not isinstance(eps, float)
        or weight.dim() != 1
        or not can_fuse(weight)
        or not weight.is_contiguous()
    ):
        return None
    probed = copy.copy(module)  # with weights of its own: noise may change the module's
    probed._parameters = {"weight": nn.Parameter(_probe(1, len(weight))[0])}
    x, weight = _probe(3, len(weight)), probed._parameters["weight"]
    try:
        wanted = type(module).forward(probed, x)
    except Exception:  # it takes something else
        return None
    for more in (0.0, 1.0):
        if _alike(_Norm.apply(x, weight, eps, more), wanted):  # type: ignore[no-untyped-call]
            return _norm_forward(module, eps, more=more)
    return None


def _norm_forward(module: nn.Module, eps: float, *, more: float) -> Forward:
    owner, plain = weakref.ref(module), type(module).forward

    def forward(x: Tensor) -> Tensor:
        own = owner()
        assert own is not None
        weight = own.weight
        assert isinstance(weight, Tensor)
        if not can_fuse(x, weight) or (
            weight.requires_grad and torch.is_grad_enabled()
        ):
            return plain(own, x)  # type: ignore[no-any-return]
        return _Norm.apply(x, weight, eps, more)  # type: ignore[no-any-return, no-untyped-call]

    return forward


class _Parts:
    """What an MLP's `forward` asks its module for, with products left out."""

    def __init__(self, act_fn: Any) -> None:
        self.act_fn = act_fn
        self.down_proj = self.gate_proj = lambda x: x
        self.up_proj = lambda x: x.flip(-1)


@torch.no_grad()
def _gated_of(module: nn.Module) -> Forward | None:
    """What stands in for a gated MLP; None if the module is none, or does more."""
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in names):
        return None
    x = _probe(3, 64)
    try:
        wanted = type(module).forward(_Parts(module.act_fn), x)
    except Exception:  # it asks for more than these parts
        return None
    for gelu in (0, 1):
        if _alike(_Gated.apply(x, x.flip(-1), gelu), wanted):  # type: ignore[no-untyped-call]
            return _gated_forward(module, gelu=gelu)
    return None


def _gated_forward(module: nn.Module, *, gelu: int) -> Forward:
    owner, plain = weakref.ref(module), type(module).forward

    def forward(x: Tensor) -> Tensor:
        own: Any = owner()
        if not can_fuse(x):
            return plain(own, x)  # type: ignore[no-any-return]
        gated = _Gated.apply(own.gate_proj(x), own.up_proj(x), gelu)  # type: ignore[no-untyped-call]
        return own.down_proj(gated)  # type: ignore[no-any-return]

    return forward


def _rotations(model: Model) -> tuple[Any, Any]:
    """The module of the model's code that rotates queries and keys, and its function.

    Twice None where there is none, or it does something else.
    """
    attention = getattr(model.architecture.blocks[0], "self_attn", None)
    home = sys.modules.get(type(attention).__module__)
    plain = getattr(home, "apply_rotary_pos_emb", None)
    if not _replacements(model) or plain is None:
        return None, None
    if plain not in _rotates:
        _rotates[plain] = _does_rotate(plain)
    return (home, plain) if _rotates[plain] else (None, None)


@torch.no_grad()
def _does_rotate(plain: Any) -> bool:
    q, k, angles = (_probe(2, n, 3, 8) for n in (4, 2, 2))
    cosine, sine = angles[:, 0].contiguous(), angles[:, 1].contiguous()
    try:
        wanted = plain(q, k, cosine, sine)
    except Exception:  # it takes something else
        return False
    found = _rotating(plain)(q, k, cosine, sine)
    return all(_alike(a, b) for a, b in zip(found, wanted, strict=True))


def _rotating(plain: Any) -> Forward:
    """What stands in for transformers' `apply_rotary_pos_emb`."""
    if getattr(plain, "is_fused", False):
        return plain  # type: ignore[no-any-return]

    def rotated(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        if rest or more or not _can_rotate(q, k, cos, sin):
            return plain(q, k, cos, sin, *rest, **more)  # type: ignore[no-any-return]
        cos, sin = cos.contiguous(), sin.contiguous()
        return tuple(_Rotated.apply(x, cos, sin) for x in (q, k))  # type: ignore[no-untyped-call]

    rotated.is_fused = True  # type: ignore[attr-defined]
    return rotated


def _can_rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    return (
        can_fuse(q, k, cos, sin)
        and cos.dim() == 3
        and cos.shape[-1] == q.shape[-1]
        and cos.shape[0] in (1, q.shape[0])
        and cos.shape == sin.shape
    )


def _probe(*shape: int) -> Tensor:
    """Numbers of both signs, always the same."""
    count = torch.tensor(shape).prod()
    return (3 * torch.sin(torch.arange(int(count)) * 0.7)).view(shape).bfloat16()


def _alike(found: Any, wanted: Any) -> bool:
    return (
        isinstance(wanted, Tensor)
        and found.shape == wanted.shape
        and torch.allclose(found.float(), wanted.float(), rtol=_CLOSE, atol=_CLOSE)
    )
