"""The fast products for single tokens mean what transformers' own attention means."""

import pytest
import torch
from torch import Tensor

from undertow.models.attention import fast_attention
from undertow.models.cache import new_cache
from undertow.models.loading import Model, wrap
from undertow.models.tiny import FAMILIES, Family, tiny_model

PROMPT = torch.tensor([[7, 50, 9, 120, 33], [0, 0, 9, 61, 62]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
NEXT = torch.tensor([[64], [65]])


def _half(family: Family) -> Model:
    plain = tiny_model(family)
    return wrap("half", plain.module.bfloat16(), plain.tokenizer, reason="test")


@torch.no_grad()
def _decoded(model: Model, *, fast: bool) -> Tensor:
    """Logits of one more token after two prompts, one of them padded on the left."""
    positions = (MASK.cumsum(-1) - 1).clamp(min=0)
    cache = new_cache(model, 6)
    model.module(
        PROMPT, attention_mask=MASK, position_ids=positions, past_key_values=cache
    )
    step = {
        "attention_mask": torch.cat([MASK, torch.ones(2, 1, dtype=torch.long)], dim=1),
        "position_ids": positions[:, -1:] + 1,
        "past_key_values": cache,
    }
    if not fast:
        logits: Tensor = model.module(NEXT, **step).logits
        return logits.float()
    with fast_attention(model):
        logits = model.module(NEXT, **step).logits
    return logits.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_token_attends_as_in_transformers(family: Family) -> None:
    model = _half(family)
    slow, fast = _decoded(model, fast=False), _decoded(model, fast=True)
    # bfloat16 keeps 8 bits: a few roundings of logits of this size, and no more.
    scale = float(slow.abs().max())
    assert float((slow - fast).abs().max()) < 0.03 * scale
    exact = tiny_model(family)
    for parameter in exact.module.parameters():
        parameter.copy_(parameter.bfloat16())
    wanted = _decoded(exact, fast=True)
    assert float((fast - wanted).abs().max()) < 0.05 * scale


def test_the_attention_is_changed_only_while_open_and_only_where_it_helps() -> None:
    half, full = _half("llama"), tiny_model("llama")
    capped = _half("gemma2")
    for model in (half, full, capped):
        before = model.module.config._attn_implementation
        with fast_attention(model):
            inside = model.module.config._attn_implementation
        assert (inside != before) == (model is half)
        assert model.module.config._attn_implementation == before
    with pytest.raises(KeyError), fast_attention(half):
        raise KeyError("inside")
    assert half.module.config._attn_implementation == "sdpa"
