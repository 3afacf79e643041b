"""Tiny models: equal for equal arguments, and no two parts alike."""

from pathlib import Path

import pytest
import torch

from undertow.models.loading import load_model
from undertow.models.tiny import FAMILIES, Family, save_tiny, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_alone_decide_the_weights(family: Family) -> None:
    torch.manual_seed(1)
    one = tiny_model(family)
    after = torch.rand(1)
    torch.manual_seed(2)
    same = tiny_model(family)
    for a, b in zip(one.module.parameters(), same.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert tiny_model(family, seed=1).fingerprint != one.fingerprint
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # the global stream is left alone


def test_text_comes_back_from_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    text = "Owls, 17 – 🦉\n<|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text[: -len("<|im_end|>")]


def test_a_saved_tiny_model_is_that_model(tmp_path: Path) -> None:
    path = save_tiny("qwen2", tmp_path / "m", seed=2, layers=3, hidden=48)
    loaded = load_model(path)
    assert (
        loaded.fingerprint
        == tiny_model("qwen2", seed=2, layers=3, hidden=48).fingerprint
    )
    assert len(loaded.architecture.blocks) == 3
    assert loaded.architecture.hidden_size == 48
