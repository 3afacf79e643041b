"""Attention for single tokens on a processor, where the stock bfloat16 kernel is slow.

With one query a row PyTorch's CPU flash kernel spends five times what two batched
products take in bfloat16. Everything else goes to transformers' own `sdpa`. Knows
nothing of caches or sampling.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from undertow.models.loading import Model

_NAME = "undertow_decode"


def _attend(
    module: Any,
    query: Float[Tensor, "row head query width"],
    key: Float[Tensor, "row group token width"],
    value: Float[Tensor, "row group token width"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """One query a row by two batched products, scores in float32."""
    if query.shape[2] != 1 or options.get("softcap") or options.get("dropout"):
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return attended
    rows, heads, _, width = query.shape
    groups = key.shape[1]
    grouped = query.reshape(rows, groups, heads // groups, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)).float()
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    mixed = torch.matmul(scores.softmax(-1).to(value.dtype), value)
    return mixed.reshape(rows, 1, heads, width), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def fast_decoding(model: Model) -> Iterator[None]:
    """Uses the products above while open, where they are faster and mean the same."""
    config = model.module.config.get_text_config()
    before = config._attn_implementation
    wanted = (
        before == "sdpa"
        and model.device.type == "cpu"
        and model.dtype == torch.bfloat16
        and not getattr(config, "attn_logit_softcapping", None)
    )
    if wanted:
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        if wanted:
            config._attn_implementation = before
