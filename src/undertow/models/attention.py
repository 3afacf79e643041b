"""Attention as two products, for where PyTorch's stock kernels are slow.

On a processor in bfloat16 two batched products and a softmax are three to five times as
fast as the CPU flash kernel, most of all backward and for single tokens; queries that
share a key head go through one product. Where nothing is drawn, softmaxes and what lies
between the other products go through `fused` too. Everything else goes to transformers'
own `sdpa`. Knows nothing of caches, sampling or training.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from undertow.models.fused import WIDEST, can_fuse, fused_operations, fused_softmax
from undertow.models.loading import Model
from undertow.models.packing import Packing, apart, joined

_NAME, _FUSED, _CAUSAL = "undertow_products", "undertow_fused", "undertow_causal"
_PACKED = "undertow_packed"
_packing: ContextVar[Packing] = ContextVar("packing")
# The products keep every score; beyond this many tokens that is too much memory.
LONGEST = 512


def _attend(
    module: Any,
    query: Float[Tensor, "row head query width"],
    key: Float[Tensor, "row group token width"],
    value: Float[Tensor, "row group token width"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    fused: bool = False,
    before: int = 0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Two batched products, with the softmax in float32 inside its kernel.

    `before`: how many of the keys are before the first query, where there is no mask.
    """
    rows, heads, count, width = query.shape
    groups, tokens = key.shape[1:3]
    causal = attention_mask is None and count > 1
    if (
        (causal and before + count != tokens)
        or (count > 1 and tokens > LONGEST)
        or options.get("softcap")
        or options.get("dropout")
    ):
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return attended
    scale = width**-0.5 if scaling is None else scaling
    fused = fused and can_fuse(query, key) and tokens <= WIDEST
    grouped = query.reshape(rows, groups, -1, width)
    scores = torch.matmul(grouped if fused else grouped * scale, key.transpose(2, 3))
    scores = scores.view(rows, heads, count, tokens)
    if fused:
        weights = fused_softmax(scores, attention_mask, scale=scale)
    else:
        weights = _seen(scores, attention_mask).softmax(-1)
    mixed = torch.matmul(weights.view(rows, groups, -1, tokens), value)
    return mixed.view(rows, heads, count, width).transpose(1, 2), None


def _seen(
    scores: Float[Tensor, "row head query token"],
    mask: Bool[Tensor, "row 1 query token"] | None,
) -> Float[Tensor, "row head query token"]:
    """Scores without those of tokens that a query does not look at."""
    if mask is not None:  # true where one looks
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if scores.shape[2] == 1:
        return scores
    count, tokens = scores.shape[2:]
    later = scores.new_full((count, tokens), -torch.inf).triu(1 + tokens - count)
    return scores + later


def _attend_packed(
    module: Any,
    query: Float[Tensor, "copy head token width"],
    key: Float[Tensor, "copy group token width"],
    value: Float[Tensor, "copy group token width"],
    attention_mask: None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The same for rows one behind another, each of which sees itself alone.

    Copies of a packing lie side by side: to attention they are more heads.
    """
    copies, heads = query.shape[:2]
    packing, fused = _packing.get(), can_fuse(query)

    def mixed(q: Tensor, k: Tensor, v: Tensor, before: int) -> Tensor:
        found, _ = _attend(
            module, q, k, v, attention_mask, scaling, fused=fused, before=before,
            **options,
        )  # fmt: skip
        return found.transpose(1, 2)

    q, k, v = (x.reshape(1, -1, *x.shape[2:]) for x in (query, key, value))
    first, rows = zip(
        apart(q, packing, with_head=False), apart(k, packing, with_head=True),
        apart(v, packing, with_head=True), strict=True,
    )  # fmt: skip
    head = mixed(*first, 0) if packing.head else first[0]
    found = joined(head, mixed(*rows, packing.head), packing)
    return found.view(copies, heads, *found.shape[2:]).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """For rows that begin at the first column: causal kernels need no more."""


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
AttentionInterface.register(_FUSED, partial(_attend, fused=True))
AttentionMaskInterface.register(_FUSED, sdpa_mask)
AttentionInterface.register(_PACKED, _attend_packed)
AttentionMaskInterface.register(_PACKED, _no_mask)
AttentionInterface.register(_CAUSAL, sdpa_attention_forward)
AttentionMaskInterface.register(_CAUSAL, _no_mask)


@contextmanager
def fast_attention(model: Model) -> Iterator[None]:
    """Uses the products above while open, where they are faster and mean the same.

    Without kernels of our own: rows are the same whether there is a compiler or not.
    """
    with products_attention(model) if _is_slow(model) else nullcontext():
        yield


@contextmanager
def fast_operations(model: Model) -> Iterator[None]:
    """The same, with kernels of our own between the products; not for drawing rows."""
    if not _is_slow(model):
        yield
        return
    with _instead(model, _FUSED), fused_operations(model):
        yield


@contextmanager
def packed_operations(model: Model, packing: Packing) -> Iterator[None]:
    """The same for a pass over rows one behind another, where `can_see_rows_apart`.

    Args:
        model: On a processor.
        packing: How the rows lie; with a head none is longer than `LONGEST`.
    """
    with ExitStack() as stack:
        stack.enter_context(_instead(model, _PACKED))
        if _is_slow(model):
            stack.enter_context(fused_operations(model))
        token = _packing.set(packing)
        stack.callback(_packing.reset, token)
        yield


def can_see_rows_apart(model: Model, *, longest: int) -> bool:
    """Whether attention can be told of rows: not with a soft cap, or a window they pass."""
    config = model.module.config.get_text_config()
    limits = ("sliding_window", "attention_chunk_size")
    window = min(getattr(config, name, None) or longest for name in limits)
    return (
        model.device.type == "cpu"
        and config._attn_implementation == "sdpa"
        and not getattr(config, "attn_logit_softcapping", None)
        and longest <= window
    )


def _is_slow(model: Model) -> bool:
    """Whether PyTorch's own kernels are: in bfloat16 on a processor."""
    return model.device.type == "cpu" and model.dtype == torch.bfloat16


@contextmanager
def products_attention(model: Model) -> Iterator[None]:
    """Uses the products above while open, wherever they mean the same.

    On a GPU they are for steps of one token: queries that share a key head read it once.
    """
    with _instead(model, _NAME):
        yield


@contextmanager
def causal_attention(model: Model) -> Iterator[None]:
    """Uses transformers' `sdpa` without looking for packed rows, which asks the device.

    For passes without a cache over rows padded on the right, no wider than a window.
    """
    with _instead(model, _CAUSAL):
        yield


@contextmanager
def _instead(model: Model, name: str) -> Iterator[None]:
    """Another name for `sdpa` while open, unless the model needs what it cannot do."""
    config = model.module.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa" and not getattr(config, "attn_logit_softcapping", None):
        config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
