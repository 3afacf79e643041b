"""The parts of eight real architectures, found and proved; wrong ones refused."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from undertow.errors import ModelError
from undertow.models.architecture import find_architecture, matrix_kind
from undertow.models.tiny import FAMILIES, Family, tiny_model

PATHS = {
    "gpt_neox": "gpt_neox.layers",
    "gpt2": "transformer.h",
}
# Matrices of attention and MLP in one block.
MATRICES = {"gpt_neox": (2, 2), "gpt2": (2, 2)}
TIED = ("gemma2", "gemma3", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_parts_found(family: Family) -> None:
    model = tiny_model(family, layers=3, hidden=32)
    parts = model.architecture
    assert parts.blocks_path == PATHS.get(family, "model.layers")
    assert len(parts.blocks) == 3
    assert parts.hidden_size == 32
    assert parts.vocab_size == len(model.tokenizer)
    assert parts.embedding is model.module.get_input_embeddings()
    assert parts.unembedding is model.module.get_output_embeddings()
    assert parts.family == model.module.config.model_type


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [0, 1])
def test_a_block_s_norm_is_no_final_norm(family: Family, block: int) -> None:
    model = tiny_model(family)
    blocks = model.architecture.blocks_path
    inner = {"gpt2": "ln_1"}.get(family, "input_layernorm")
    wrong = f"{blocks}.{block}.{inner}"
    with pytest.raises(ModelError) as caught:
        find_architecture(model.module, norm_path=wrong)
    message = str(caught.value)
    assert f"the final norm ({wrong})" in message
    assert "do not give the model's logits" in message
    assert "norm_path='…'" in message


class _Strange(nn.Module):
    """A causal language model whose parts have names of their own."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.trunk, self.head = inner.model, inner.lm_head
        self.config = inner.config

    def get_input_embeddings(self) -> Any:
        return self.trunk.embed_tokens

    def get_output_embeddings(self) -> Any:
        return self.head

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        hidden = self.trunk(input_ids=input_ids, **options)[0]

        class Output:
            logits = self.head(hidden)

        return Output()


def test_parts_under_other_names_are_asked_for_and_then_found() -> None:
    strange = _Strange(tiny_model("llama").module)
    with pytest.raises(ModelError) as caught:
        find_architecture(strange)
    message = str(caught.value)
    assert "_Strange: no list of decoder blocks found" in message
    assert "model.layers" in message
    assert "transformer.h" in message
    assert "the model's own parts are trunk, head" in message
    assert "blocks_path='…'" in message
    with pytest.raises(ModelError, match=r"no final norm found.*norm_path='…'"):
        find_architecture(strange, blocks_path="trunk.layers")
    found = find_architecture(
        strange, blocks_path="trunk.layers", norm_path="trunk.norm"
    )
    assert len(found.blocks) == 4


def test_a_wrong_blocks_path_is_named() -> None:
    module = tiny_model("llama").module
    with pytest.raises(ModelError, match=r"looked for model\.leyers;.*blocks_path"):
        find_architecture(module, blocks_path="model.leyers")
    with pytest.raises(ModelError, match=r"model\.norm: a LlamaRMSNorm, expected a li"):
        find_architecture(module, blocks_path="model.norm")


def test_a_model_without_unembedding_is_refused() -> None:
    strange: Any = _Strange(tiny_model("llama").module)
    strange.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match="only causal language models"):
        find_architecture(strange, blocks_path="trunk.layers", norm_path="trunk.norm")


def test_the_proof_leaves_no_hook_behind() -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError):
        find_architecture(model.module, norm_path="model.layers.0.input_layernorm")
    assert not any(block._forward_hooks for block in model.architecture.blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_has_its_kind(family: Family) -> None:
    model = tiny_model(family, layers=2)
    named = dict(model.module.named_parameters())
    kinds = {name: matrix_kind(name, model.module) for name in named}
    attention, mlp = MATRICES.get(family, (4, 3))
    counts = Counter(kinds.values())
    assert counts["attention"] == 2 * attention
    assert counts["mlp"] == 2 * mlp
    assert counts["embedding"] == 1
    embeddings = [name for name, kind in kinds.items() if kind == "embedding"]
    assert named[embeddings[0]] is model.module.get_input_embeddings().weight
    tied = model.module.get_output_embeddings().weight is named[embeddings[0]]
    assert tied == (family in TIED)
    assert all(kinds[n] is None for n, p in named.items() if p.ndim == 1)
    # What is left are norms, biases, an untied unembedding, and GPT-2's positions.
    rest = [n for n, k in kinds.items() if k is None and named[n].ndim == 2]
    positions = {"gpt2": ["transformer.wpe.weight"]}
    expected = positions.get(family, []) + ([] if tied else ["lm_head.weight"])
    assert rest == expected


def test_an_unknown_parameter_has_no_kind() -> None:
    assert matrix_kind("model.nothing.weight", tiny_model("llama").module) is None
