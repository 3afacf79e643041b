"""The cache gives what a whole pass gives, also for a prefix that many rows share."""

import pytest
import torch
from torch import Tensor

from undertow.models.cache import new_cache
from undertow.models.tiny import FAMILIES, Family, tiny_model

IDS = torch.tensor([[7, 50, 9, 120, 33, 81, 90], [7, 50, 9, 61, 62, 63, 64]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [(3, 4), (3, 1, 1, 2), (7,)])
@torch.no_grad()
def test_parts_give_what_the_whole_gives(
    family: Family, steps: tuple[int, ...]
) -> None:
    model = tiny_model(family)
    wanted = model.module(IDS, use_cache=False).logits
    cache, start = new_cache(model, 7), 0
    parts: list[Tensor] = []
    for step in steps:
        part = IDS[:, start : start + step]
        parts.append(model.module(part, past_key_values=cache).logits)
        start += step
        assert cache.get_seq_length() == start
    torch.testing.assert_close(torch.cat(parts, dim=1), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_prefix_is_read_once_for_all_rows(family: Family) -> None:
    model = tiny_model(family)
    wanted = model.module(IDS, use_cache=False).logits
    cache = new_cache(model, 9)
    model.module(IDS[:1, :3], past_key_values=cache)
    found = model.module(IDS[:, 3:], past_key_values=cache).logits
    torch.testing.assert_close(found, wanted[:, 3:], rtol=0, atol=2e-5)


def test_an_unused_cache_is_empty() -> None:
    cache = new_cache(tiny_model("llama", layers=3), 5)
    assert len(cache.layers) == 3
    assert cache.get_seq_length() == 0
