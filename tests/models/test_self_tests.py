"""Self-tests pass on every known family, and fail on models that are broken on purpose."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undertow.models import self_tests as module
from undertow.models.adapters import attached
from undertow.models.chat import ChatTemplate
from undertow.models.checks import Found
from undertow.models.loading import Model, load_model
from undertow.models.self_tests import TOLERANCE, self_tests
from undertow.models.tiny import FAMILIES, Family, tiny_model

NAMES = {
    "parts", "template", "end tokens", "hooks at strength 0", "hooks that edit",
    "residual streams", "batch", "adapters", "greedy sampling",
}  # fmt: skip


def found(model: Model) -> dict[str, Found]:
    return {check.name: check.found for check in self_tests(model)}


@pytest.fixture
def llama() -> Model:
    return tiny_model("llama", hidden=16)


def not_ok(model: Model) -> dict[str, str]:
    return {name: f.status for name, f in found(model).items() if f.status != "ok"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_and_is_left_as_it_was(family: Family) -> None:
    model = tiny_model(family, hidden=16)
    weights = {name: p.clone() for name, p in model.module.named_parameters()}
    checks = found(model)
    assert set(checks) == NAMES
    assert {f.status for f in checks.values()} == {"ok"}
    assert not any(f.advice for f in checks.values())
    after = dict(model.module.named_parameters())
    assert after.keys() == weights.keys()
    assert all(bool((after[name] == p).all()) for name, p in weights.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_a_tolerance_of_its_own(
    llama: Model, dtype: torch.dtype
) -> None:
    half = replace(llama, module=llama.module.to(dtype), dtype=dtype)
    checks = found(half)
    assert {f.status for f in checks.values()} == {"ok"}
    assert f"at most {TOLERANCE[dtype]:g}" in checks["batch"].measured


def test_a_lost_hook_is_noticed(llama: Model) -> None:
    class Nothing:
        def remove(self) -> None: ...

    block: Any = llama.architecture.blocks[2]
    block.register_forward_hook = lambda *_, **__: Nothing()
    checks = found(llama)
    assert not_ok(llama) == dict.fromkeys(
        ("hooks at strength 0", "hooks that edit", "residual streams"), "failed"
    )
    assert checks["hooks at strength 0"].measured == (
        "hooks after blocks [2] were never called"
    )
    assert checks["hooks that edit"].measured == "edits after blocks [2] change nothing"
    assert "blocks [2] were not recorded" in checks["residual streams"].measured


def test_blocks_that_give_something_else_than_the_stream_are_noticed(
    llama: Model,
) -> None:
    blocks: Any = llama.architecture.blocks
    inner = nn.ModuleList(block.mlp for block in blocks)
    other = replace(llama, architecture=replace(llama.architecture, blocks=inner))
    checks = found(other)
    assert checks["parts"].status == "failed"
    assert "--blocks-path" in checks["parts"].advice
    assert checks["residual streams"].status == "failed"
    assert "differ from output_hidden_states after blocks 0:" in (
        checks["residual streams"].measured
    )


def test_blocks_that_return_no_tensor_fail_with_a_message(llama: Model) -> None:
    block: Any = llama.architecture.blocks[1]
    forward = block.forward
    block.forward = lambda *args, **options: {"stream": forward(*args, **options)}
    checks = found(llama)
    assert checks["hooks at strength 0"].status == "failed"
    assert "Error: " in checks["hooks at strength 0"].measured


def test_a_model_that_looks_at_its_neighbours_is_noticed(llama: Model) -> None:
    norm: Any = llama.architecture.final_norm
    forward = norm.forward

    def leaky(hidden: Tensor) -> Tensor:
        mixed: Tensor = forward(hidden) * (1 + 0.1 * (hidden.shape[0] - 1))
        return mixed

    norm.forward = leaky
    assert not_ok(llama) == {"batch": "failed"}


def test_numbers_that_are_none_are_no_agreement(llama: Model) -> None:
    llama.module.model.norm.weight.data[0] = float("nan")
    checks = found(llama)
    assert checks["parts"].status == "failed"
    assert "no finite numbers" in checks["parts"].measured
    assert checks["batch"].status == "failed"
    assert "nan" in checks["batch"].measured


def test_a_tokenizer_that_is_larger_than_the_model_is_noticed(llama: Model) -> None:
    llama.tokenizer.add_tokens(["<one>", "<two>"])
    checks = found(llama)
    assert checks["parts"].status == "failed"
    assert "the tokenizer has 263 tokens" in checks["parts"].measured


def test_an_adapter_that_stays_is_noticed(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_open = []

    @contextmanager
    def stays(model: Model, adapter: Any) -> Iterator[Model]:
        left_open.append(attached(model, adapter))
        yield left_open[-1].__enter__()

    monkeypatch.setattr(module, "attached", stays)
    checks = found(llama)
    assert checks["adapters"].status == "failed"
    assert "does not come off again" in checks["adapters"].measured


def test_other_tokens_than_those_of_generate_are_noticed(llama: Model) -> None:
    generate = llama.module.generate

    def other(*args: Any, **options: Any) -> Tensor:
        tokens: Tensor = generate(*args, **options).clone()
        tokens[0, -1] = 7
        return tokens

    llama.module.generate = other
    assert not_ok(llama) == {"greedy sampling": "failed"}
    said = found(llama)["greedy sampling"].measured
    assert said.startswith("leaves generate at token 15: [")
    assert said.endswith("nats apart")


def test_two_tokens_that_are_equally_likely_are_a_tie(llama: Model) -> None:
    weight = llama.architecture.unembedding.weight
    assert isinstance(weight, Tensor)
    generate = llama.module.generate

    def other(*args: Any, **options: Any) -> Tensor:
        tokens: Tensor = generate(*args, **options).clone()
        weight.data[7] = weight.data[int(tokens[0, -1])]
        tokens[0, -1] = 7
        return tokens

    llama.module.generate = other
    assert found(llama)["greedy sampling"].measured.endswith(": a tie in float32")


def templated(model: Model, text: str) -> Model:
    return replace(model, template=ChatTemplate(name="own", text=text, system="native"))


def test_a_template_that_begins_answers_otherwise_is_advice(llama: Model) -> None:
    asking = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    text = llama.template.text.replace(
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", asking
    )
    assert text != llama.template.text
    other = templated(llama, text)
    assert not_ok(other) == {"template": "advice"}
    assert "a whole row leaves its prompt at character" in (
        found(other)["template"].measured
    )


def test_a_template_that_raises_is_a_failed_check(llama: Model) -> None:
    other = templated(llama, "{{ raise_exception('no turns here') }}")
    checks = found(other)
    assert checks["template"].status == "failed"
    assert "no turns here" in checks["template"].measured


def test_an_end_token_that_the_template_does_not_write_is_advice(llama: Model) -> None:
    other = replace(llama, end_ids=(1,))
    assert not_ok(other) == {"end tokens": "advice"}
    said = found(other)["end tokens"].measured
    assert said.startswith(
        "1 '<|im_start|>'; the template ends an answer with '<|im_end|>"
    )


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model_passes() -> None:
    checks = found(load_model("smollm2-135m", dtype="float32"))
    assert {f.status for f in checks.values()} == {"ok"}
