"""Adapters against PEFT, both ways, and against their own merged weights."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from undertow.errors import ModelError, VectorMismatchError
from undertow.models.adapters import (
    LoraAdapter,
    attached,
    linear_modules,
    load_adapter,
    merge_adapter,
    new_adapter,
    save_adapter,
)
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model

IDS = torch.tensor([[7, 50, 9, 120, 33, 81], [7, 51, 9, 121, 34, 82]])


@torch.no_grad()
def _logits(module: Any) -> Tensor:
    logits: Tensor = module(input_ids=IDS).logits
    return logits


def _trained(model: Model, *, targets: tuple[str, ...] | None = None) -> LoraAdapter:
    """An adapter with a B that is not zero."""
    adapter = new_adapter(model, rank=3, alpha=6.0, targets=targets, seed=0)
    draw = torch.Generator().manual_seed(1)
    for _, b in adapter.pairs.values():
        b.data.copy_(torch.randn(b.shape, generator=draw) * 0.1)
    return adapter


def _peft_reads(model: Model, folder: Path) -> Any:
    with warnings.catch_warnings():
        # PEFT mends fan_in_fan_out of GPT-2's layers by itself and says so.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        return PeftModel.from_pretrained(model.module, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_what_we_write(family: Family, tmp_path: Path) -> None:
    model = tiny_model(family)
    plain = _logits(model.module)
    adapter = _trained(model)
    with attached(model, adapter):
        ours = _logits(model.module)
    assert not torch.allclose(ours, plain, atol=1e-3)
    save_adapter(adapter, tmp_path / "adapter")
    theirs = _logits(_peft_reads(model, tmp_path / "adapter"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_we_read_what_peft_writes(family: Family, tmp_path: Path) -> None:
    targets = {"llama": ["q_proj", "down_proj"], "gpt_neox": ["query_key_value"],
               "gpt2": ["c_attn", "c_proj"]}[family]  # fmt: skip
    model = tiny_model(family)
    config = LoraConfig(
        r=4, lora_alpha=10, target_modules=targets, fan_in_fan_out=family == "gpt2",
        init_lora_weights=False,
    )  # fmt: skip
    wrapped = get_peft_model(tiny_model(family).module, config)
    theirs = _logits(wrapped)
    wrapped.save_pretrained(str(tmp_path))
    adapter = load_adapter(model, tmp_path)
    assert (adapter.rank, adapter.scale) == (4, 2.5)
    with attached(model, adapter):
        torch.testing.assert_close(_logits(model.module), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_nothing_and_detaching_restores_every_bit(
    family: Family,
) -> None:
    model = tiny_model(family)
    plain = _logits(model.module)
    names = [name for name, _ in model.module.named_modules()]
    with attached(model, new_adapter(model, rank=2, alpha=4.0, seed=0)):
        assert torch.equal(_logits(model.module), plain)
    with pytest.raises(RuntimeError, match="y"), attached(model, _trained(model)):
        raise RuntimeError("y")
    assert torch.equal(_logits(model.module), plain)
    assert [name for name, _ in model.module.named_modules()] == names


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_equals_attaching(family: Family) -> None:
    model = tiny_model(family)
    adapter = _trained(model)
    with attached(model, adapter):
        wanted = _logits(model.module)
    assert merge_adapter(model, adapter) is model
    torch.testing.assert_close(_logits(model.module), wanted, rtol=0, atol=2e-5)


def test_the_product_by_hand() -> None:
    model = tiny_model("llama")
    name = "model.layers.0.mlp.down_proj"
    adapter = _trained(model, targets=("down_proj",))
    a, b = adapter.pairs[name]
    linear = model.module.get_submodule(name)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = linear(x) + 2.0 * (x @ a.t() @ b.t())  # alpha / rank = 6 / 3
        with attached(model, adapter):
            got = model.module.get_submodule(name)(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_adapters_are_drawn_by_seed_and_module() -> None:
    model = tiny_model("llama")
    one, same, other = (
        new_adapter(model, rank=4, alpha=4.0, seed=seed) for seed in (0, 0, 1)
    )
    few = new_adapter(model, rank=4, alpha=4.0, targets=("up_proj",), seed=0)
    name = "model.layers.2.mlp.up_proj"
    assert torch.equal(one.pairs[name][0], same.pairs[name][0])
    assert torch.equal(one.pairs[name][0], few.pairs[name][0])
    assert not torch.equal(one.pairs[name][0], other.pairs[name][0])
    a, b = one.pairs[name]
    assert (a.shape, b.shape) == ((4, 32), (64, 4))
    assert a.dtype == torch.float32
    assert float(a.detach().abs().max()) <= 32**-0.5  # Kaiming uniform as PEFT draws it
    assert float(a.detach().abs().max()) > 0.9 * 32**-0.5
    assert float(b.detach().abs().max()) == 0
    assert len(one.parameters()) == 2 * 7 * 4


def test_targets_are_last_names() -> None:
    model = tiny_model("llama")
    assert linear_modules(model, ["q_proj"]) == [
        f"model.layers.{layer}.self_attn.q_proj" for layer in range(4)
    ]
    assert len(linear_modules(model)) == 28
    with pytest.raises(ModelError) as caught:
        linear_modules(model, ["c_attn"])
    assert (
        "'tiny-llama': no linear layer of its blocks matches the targets 'c_attn'"
        in (str(caught.value))
    )


def test_saving_and_loading_gives_the_same_numbers(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    adapter = _trained(model)
    loaded = load_adapter(model, save_adapter(adapter, tmp_path / "a"))
    assert loaded.pairs.keys() == adapter.pairs.keys()
    for name, (a, b) in adapter.pairs.items():
        assert torch.equal(loaded.pairs[name][0], a)
        assert torch.equal(loaded.pairs[name][1], b)
    assert (loaded.rank, loaded.alpha, loaded.base_name) == (3, 6.0, "tiny-qwen3")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    small, wide = tiny_model("llama"), tiny_model("llama", hidden=48)
    save_adapter(_trained(small), tmp_path / "a")
    with pytest.raises(VectorMismatchError) as caught:
        load_adapter(wide, tmp_path / "a")
    assert "_proj' has the shape (" in str(caught.value)
    assert "use the base model that the adapter was trained on" in str(caught.value)
    with pytest.raises(VectorMismatchError, match="which 'tiny-gpt2' has not"):
        load_adapter(tiny_model("gpt2"), tmp_path / "a")


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="no adapter in PEFT's format here"):
        load_adapter(model, tmp_path)
    save_adapter(_trained(model), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="no adapter in PEFT's format here"):
        load_adapter(model, tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("peft_type", "IA3", "adapter of kind 'IA3'"),
        ("use_dora", True, "it uses 'use_dora'"),
        ("use_rslora", True, "it uses 'use_rslora'"),
        ("alpha_pattern", {"q_proj": 32}, "it uses 'alpha_pattern'"),
        ("rank_pattern", {"q_proj": 2}, "it uses 'rank_pattern'"),
        ("modules_to_save", ["lm_head"], "it uses 'modules_to_save'"),
        ("bias", "all", "it uses 'bias'"),
    ],
)
def test_adapters_that_are_more_than_lora_are_refused(
    tmp_path: Path, option: str, value: object, said: str
) -> None:
    """Read as plain LoRA they would act with the wrong strength, silently."""
    model = tiny_model("llama")
    save_adapter(_trained(model), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), option: value}))
    with pytest.raises(ModelError) as caught:
        load_adapter(model, tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "adapter of kind None"),
        ({"r": None}, "damaged: got r None and lora_alpha 6.0"),
        ({"r": 0}, "damaged: got r 0"),
        ({"r": "three"}, "damaged: got r 'three'"),
        ({"r": 4}, "damaged: r is 4, 'model.layers.0.mlp.up_proj' has rank 3"),
        ({"lora_alpha": float("inf")}, "lora_alpha inf"),
        ({"lora_alpha": 1e138}, "lora_alpha 1e+138"),
        ({"lora_alpha": [1]}, r"lora_alpha [1]"),
        ({"lora_alpha": 10**400}, "lora_alpha 1000"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(
    tmp_path: Path, config: object, said: str
) -> None:
    model = tiny_model("llama")
    save_adapter(_trained(model, targets=("up_proj",)), tmp_path)
    path = tmp_path / "adapter_config.json"
    if isinstance(config, dict):
        config = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_adapter(model, tmp_path)
    assert said in str(caught.value)


UP = "base_model.model.model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{UP}.lora_A.weight": torch.ones(4, 32)}, "has an A of (4, 32) and a B of"),
        ({f"{UP}.lora_A.weight": torch.ones(3)}, "has an A of (3,) and a B of"),
        ({f"{UP}.lora_B.weight": torch.full((64, 3), torch.nan)}, "no finite numbers"),
        ({"x.lora_B.weight": torch.ones(2, 2)}, "damaged: 9 matrices for 4 modules"),
        (None, "damaged: 0 matrices for 0 modules"),
    ],
)
def test_matrices_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, change: dict[str, Tensor] | None, said: str
) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_model("llama")
    save_adapter(_trained(model, targets=("up_proj",)), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({} if change is None else load_file(path) | change, path)
    with pytest.raises(ModelError) as caught:
        load_adapter(model, tmp_path)
    assert said in str(caught.value)


def test_an_adapter_without_its_second_half_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_model("llama")
    save_adapter(_trained(model, targets=("up_proj",)), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors.pop("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        ModelError, match=r"lora_B is missing for 'model\.layers\.0\.mlp"
    ):
        load_adapter(model, tmp_path)


def test_an_adapter_outside_the_blocks_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapter = new_adapter(model, rank=2, alpha=2.0, seed=0)
    width, vocabulary = model.architecture.hidden_size, model.architecture.vocab_size
    head = (
        nn.Parameter(torch.zeros(2, width)),
        nn.Parameter(torch.zeros(vocabulary, 2)),
    )
    save_adapter(replace(adapter, pairs={"lm_head": head}), tmp_path)
    with pytest.raises(ModelError, match="'lm_head', which is not inside a block"):
        load_adapter(model, tmp_path)
