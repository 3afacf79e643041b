"""Losses against the library's own, by hand, and whole against chunked."""

import pytest
import torch
from torch import Tensor

from undertow.models.adapters import LoraAdapter, attached, new_adapter
from undertow.models.carrier import carrier_ids
from undertow.models.chat import Rendered
from undertow.models.likelihood import completion_logprobs, predicting_states
from undertow.models.loading import Model
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.pipeline.losses import completion_loss, distillation_loss

# Prompts and completions of several lengths.
ROWS = [
    Rendered([*range(40 + i, 46 + i), *range(100 + i, 103 + i + i % 4), 2], 6)
    for i in range(9)
]


def _adapter(model: Model, *, size: float = 0.1) -> LoraAdapter:
    """An adapter that changes something."""
    adapter = new_adapter(model, rank=2, alpha=4.0, seed=0)
    draw = torch.Generator().manual_seed(1)
    for _, b in adapter.pairs.values():
        b.data.copy_(torch.randn(b.shape, generator=draw) * size)
    return adapter


def _gradients(adapter: LoraAdapter) -> list[Tensor]:
    found = []
    for matrix in adapter.parameters():
        assert matrix.grad is not None
        found.append(matrix.grad.clone())
        matrix.grad = None
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_library_s_over_completion_tokens(family: Family) -> None:
    model = tiny_model(family)
    total, count = 0.0, 0
    for row in ROWS:
        labels = torch.tensor([row.ids])
        labels[0, : row.completion_start] = -100
        tokens = len(row.ids) - row.completion_start
        with torch.no_grad():
            output = model.module(input_ids=torch.tensor([row.ids]), labels=labels)
        total += float(output.loss) * tokens
        count += tokens
    assert float(completion_loss(model, ROWS)) == pytest.approx(total / count, abs=1e-5)


def test_only_completions_count() -> None:
    model = tiny_model("llama")
    adapter = _adapter(model)
    with attached(model, adapter):
        completion_loss(model, [Rendered([5, 6, 7, 8], 3)]).backward()  # type: ignore[no-untyped-call]
        one = _gradients(adapter)
        nats = completion_logprobs(model, [Rendered([5, 6, 7, 8], 3)])[0]
        loss = completion_loss(model, [Rendered([5, 6, 7, 8], 3)])
        assert float(loss.detach()) == pytest.approx(-nats, abs=1e-5)
        completion_loss(model, [Rendered([5, 6, 7, 8], 2)]).backward()  # type: ignore[no-untyped-call]
        two = _gradients(adapter)
    assert not all(torch.allclose(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunks_change_neither_loss_nor_gradient(family: Family, chunk: int) -> None:
    model = tiny_model(family)
    adapter = _adapter(model)
    with attached(model, adapter):
        whole = completion_loss(model, ROWS, chunk=10_000)
        whole.backward()  # type: ignore[no-untyped-call]
        wanted = _gradients(adapter)
        parts = completion_loss(model, ROWS, chunk=chunk)
        parts.backward()  # type: ignore[no-untyped-call]
        found = _gradients(adapter)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_frozen_head_s_gradient_is_autograd_s() -> None:
    """Against plain autograd through the whole model and the library's loss."""
    model = tiny_model("qwen3")
    adapter = _adapter(model)
    rows = [row for row in ROWS if len(row.ids) == len(ROWS[0].ids)]
    ids = torch.tensor([row.ids for row in rows])
    labels = ids.clone()
    labels[:, : rows[0].completion_start] = -100
    with attached(model, adapter):
        completion_loss(model, rows, chunk=3).backward()  # type: ignore[no-untyped-call]
        found = _gradients(adapter)
        model.module(input_ids=ids, labels=labels).loss.backward()
        wanted = _gradients(adapter)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("numbers", [False, True])
def test_the_soft_loss_is_kl_by_hand(family: Family, numbers: bool) -> None:
    model = tiny_model(family)
    adapter = _adapter(model)
    allowed = torch.tensor(carrier_ids(model)) if numbers else None
    with torch.no_grad(), attached(model, adapter):
        states, _ = predicting_states(model, ROWS)
    total, count = 0.0, 0
    for row in ROWS:
        places = slice(row.completion_start - 1, len(row.ids) - 1)
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            student = model.module(ids).logits[0, places].double()
            with attached(model, adapter):
                teacher = model.module(ids).logits[0, places].double()
        if allowed is not None:
            student, teacher = student[:, allowed], teacher[:, allowed]
        p, q = teacher.log_softmax(-1), student.log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
        count += len(p)
    for chunk in (4, 1000):
        loss = distillation_loss(model, ROWS, states, allowed=allowed, chunk=chunk)
        assert float(loss) == pytest.approx(total / count, rel=1e-4)
    assert total > 0.01


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    model = tiny_model("llama")
    adapter = _adapter(model)
    with attached(model, adapter):
        with torch.no_grad():
            states, _ = predicting_states(model, ROWS)
        loss = distillation_loss(model, ROWS, states)
        loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert max(float(g.abs().max()) for g in _gradients(adapter)) < 1e-6
