"""Answers after prompts, against full forward passes of their own."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from undertow.interventions.steering import Positions, SteeringVector, steering
from undertow.models import answers
from undertow.models.answers import (
    answer_logprobs,
    answer_logprobs_by_prompt,
    differentiable_answer_logprobs,
)
from undertow.models.chat import Rendered
from undertow.models.hooks import current_completion_positions, editing_residuals
from undertow.models.likelihood import completion_logprobs
from undertow.models.loading import Model, wrap
from undertow.models.tiny import FAMILIES, Family, tiny_model

PROMPT = [7, 50, 9, 120]
# One token, several, a shared head, one that continues another, and a double.
ANSWERS = [[33], [33, 34], [33, 34, 35], [40, 41, 42, 43], [40, 41, 50], [33]]
PROMPTS = [PROMPT, [60 + (7 * i) % 90 for i in range(40)], [9]]


@torch.no_grad()
def _by_hand(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """One plain pass, no cache and no padding, softmax in float64."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = model.module(input_ids=ids, use_cache=False).logits[0].double()
    nats = logits.log_softmax(-1)
    start = len(prompt) - 1
    return sum(float(nats[start + i, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_score_as_in_a_pass_of_their_own(family: Family) -> None:
    model = tiny_model(family)
    found = answer_logprobs(model, PROMPT, ANSWERS)
    assert found.dtype == torch.float64
    wanted = [_by_hand(model, PROMPT, answer) for answer in ANSWERS]
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    alone = [answer_logprobs(model, PROMPT, [answer]).item() for answer in ANSWERS]
    assert found.tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 4, 90])
def test_answers_in_one_pass_score_as_by_a_cache(family: Family, length: int) -> None:
    """Also where the prompt is longer than the window of layers that have one."""
    model = tiny_model(family)
    config = model.module.config.get_text_config()
    if getattr(config, "sliding_window", None):
        config.sliding_window = 16
        for module in model.module.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = 16
    prompt = (PROMPT * 30)[:length]
    found = differentiable_answer_logprobs(model, prompt, ANSWERS, copies=2)
    assert found.dtype == torch.float64
    wanted = [_by_hand(model, prompt, answer) for answer in ANSWERS]
    for copy in found.tolist():
        assert copy == pytest.approx(wanted, abs=1e-4)


def test_answers_in_one_pass_may_have_one_token_each() -> None:
    model = tiny_model("llama")
    found = differentiable_answer_logprobs(model, PROMPT, [[33], [34], [33]])
    wanted = answer_logprobs(model, PROMPT, [[33], [34], [33]])
    assert found[0].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)


def test_one_token_answers_are_a_distribution() -> None:
    model = tiny_model("llama")
    every = [[token] for token in range(model.architecture.vocab_size)]
    total = float(answer_logprobs(model, PROMPT, every).exp().sum())
    assert total == pytest.approx(1.0, abs=1e-5)


def test_both_ways_agree() -> None:
    model = tiny_model("qwen3")
    rows = [Rendered([*PROMPT, *answer], len(PROMPT)) for answer in ANSWERS]
    scored = completion_logprobs(model, rows)
    assert scored == pytest.approx(
        answer_logprobs(model, PROMPT, ANSWERS).tolist(), abs=1e-4
    )


def test_edits_are_told_where_answers_are() -> None:
    """The prompt's pass says "no completion", the answers' pass "completion"."""
    model = tiny_model("llama")
    seen: list[bool] = []

    def look(hidden: torch.Tensor) -> torch.Tensor:
        mask = current_completion_positions()
        assert mask is not None
        assert mask.shape == hidden.shape[:2]
        seen.append(bool(mask.all()))
        return hidden

    with editing_residuals(model, {0: look}):
        answer_logprobs(model, PROMPT, ANSWERS)
    assert seen == [False, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_are_read_together_score_as_each_alone(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    wanted = torch.stack([answer_logprobs(model, p, ANSWERS) for p in PROMPTS])
    sizes: list[tuple[int, ...]] = []

    def look(hidden: torch.Tensor) -> torch.Tensor:
        mask = current_completion_positions()
        assert mask is not None
        assert mask.shape == hidden.shape[:2]
        sizes.append((len(mask), *mask.sum(1).tolist()))
        return hidden

    assert answers._takes_trees(model, longest=45)
    with editing_residuals(model, {0: look}):
        found = answer_logprobs_by_prompt(model, PROMPTS, ANSWERS)
    assert sizes == [(3, 5, 5, 5)]  # 33, 34 and 40, 41, 42
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    monkeypatch.setattr(answers, "_CPU", 20)
    sizes.clear()
    with editing_residuals(model, {0: look}):
        few = answer_logprobs_by_prompt(model, PROMPTS, ANSWERS)
    assert [size for size, *_ in sizes] == [2, 1]
    torch.testing.assert_close(few, wanted, rtol=0, atol=2e-5)


def test_prompts_in_bfloat16_score_as_each_alone() -> None:
    plain = tiny_model("llama")
    model = wrap("half", plain.module.bfloat16(), plain.tokenizer, reason="test")
    assert answers._takes_trees(model, longest=45)
    wanted = torch.stack([answer_logprobs(model, p, ANSWERS) for p in PROMPTS])
    found = answer_logprobs_by_prompt(model, PROMPTS, ANSWERS)
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=0.05)
    # More than what rounding does tells the answers apart.
    assert float(wanted.std(1).min()) > 1


def test_fewer_prompts_at_a_time_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    wanted = answer_logprobs_by_prompt(model, PROMPTS, ANSWERS)
    real = answers._tree_states

    def short(model: Model, trees: Sequence[object]) -> torch.Tensor:
        if len(trees) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, trees)  # type: ignore[arg-type]

    monkeypatch.setattr(answers, "_tree_states", short)
    with pytest.warns(RuntimeWarning, match=r"goes on with \d at a time"):
        found = answer_logprobs_by_prompt(model, PROMPTS, ANSWERS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_model_whose_layers_carry_a_state_reads_prompts_one_by_one() -> None:
    """As a recurrent one does: what stands before a branch would change it."""
    model = tiny_model("llama")
    widths: list[int] = []

    def carry(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        widths.append(len(output))
        return output + 0.01 * output.cumsum(1)

    handle = model.architecture.blocks[1].register_forward_hook(carry)
    assert not answers._takes_trees(model, longest=45)
    widths.clear()
    found = answer_logprobs_by_prompt(model, PROMPTS[:2], ANSWERS)
    assert widths == [1, 2, 1, 2]
    wanted = torch.stack([answer_logprobs(model, p, ANSWERS) for p in PROMPTS[:2]])
    assert torch.equal(found, wanted)
    handle.remove()


def test_so_does_one_whose_kind_of_layer_is_not_known() -> None:
    model = tiny_model("qwen3")
    model.module.config.layer_types = ["chunked_attention"] * 4
    assert not answers._takes_trees(model, longest=20)


def test_so_does_one_whose_attention_takes_no_masks() -> None:
    model = tiny_model("llama")
    model.module.config._attn_implementation = "flash_attention_2"
    assert not answers._takes_trees(model, longest=20)


def test_so_does_one_whose_layers_count_places_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As GPT-Neo does, whose window is over places in what is read."""
    model = tiny_model("llama")
    real: Any = answers._masks

    def windowed(model: Model, branch: torch.Tensor, *rest: Any, **more: Any) -> Any:
        place = torch.arange(branch.shape[1])
        near = place[:, None] - place[None] < 32
        return real(model, branch, *rest, **more) & near

    monkeypatch.setattr(answers, "_masks", windowed)
    assert answers._takes_trees(model, longest=32)
    assert not answers._takes_trees(model, longest=33)
    assert not answers._takes_trees(model, longest=80)
    assert answers._takes_trees(model, longest=32)  # whatever was read in between
    prompts = [PROMPT * 3]
    many = [[3 + i, 5, 9 + i] for i in range(11)]
    assert len(answers._tree(prompts[0], many).ids) == 34
    found = answer_logprobs_by_prompt(model, prompts, many)
    assert torch.equal(found[0], answer_logprobs(model, prompts[0], many))


def test_a_trial_for_which_there_is_no_memory_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    wanted = answer_logprobs(model, PROMPT, ANSWERS)
    with monkeypatch.context() as patch:

        def short(*_: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        patch.setattr(answers, "_tree_states", short)
        with pytest.warns(RuntimeWarning, match="prompts are read one by one"):
            found = answer_logprobs_by_prompt(model, [PROMPT], ANSWERS)
    assert torch.equal(found[0], wanted)
    assert answers._takes_trees(model, longest=9)


@pytest.mark.parametrize("positions", ["all", "prompt", "completion"])
def test_whoever_steers_when_trees_are_tried_out_changes_nothing(
    positions: Positions,
) -> None:
    model = tiny_model("llama")
    vector = SteeringVector(
        directions=torch.ones(1, model.architecture.hidden_size), layers=(1,),
        method="x", trait="cat", n=1, fingerprint=model.fingerprint,
        model_name=model.name, residual_norms=(1.0,),
    )  # fmt: skip
    with steering(model, vector, strength=3.0, positions=positions):
        assert answers._takes_trees(model, longest=45)
        wanted = torch.stack([answer_logprobs(model, p, ANSWERS) for p in PROMPTS])
        found = answer_logprobs_by_prompt(model, PROMPTS, ANSWERS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_long_trees_score_as_each_prompt_alone(family: Family) -> None:
    """Longer than what the products keep scores of, and than a window."""
    model = tiny_model(family)
    prompts = [[60 + (7 * i) % 90 for i in range(length)] for length in (30, 180)]
    many = [[3 + i, 5, 9 + i, 7] for i in range(130)]
    assert len(answers._tree(prompts[0], many).ids) > 400
    wanted = torch.stack([answer_logprobs(model, p, many) for p in prompts])
    found = answer_logprobs_by_prompt(model, prompts, many)
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-5)
