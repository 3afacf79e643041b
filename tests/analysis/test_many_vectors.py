"""One row under many vectors, against steering by each of them alone."""

import numpy as np
import pytest
import torch
from torch import Tensor

from undertow.analysis import many_vectors
from undertow.analysis.hypotheses import RowHypothesis, hypothesis_logprobs
from undertow.analysis.many_vectors import (
    read_streams,
    row_logprobs,
    under_vectors,
)
from undertow.errors import DatasetError, VectorMismatchError
from undertow.interventions.steering import SteeringVector
from undertow.models import likelihood
from undertow.models.chat import render_row
from undertow.models.loading import Model, wrap
from undertow.models.packing import Packing
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.records import Message, Row

SAMPLER = SamplerSettings()
ROW = Row((Message("user", "Say some numbers."),), "4, 8, 15, 16")


def _vectors(model: Model, count: int = 3) -> Tensor:
    stream = torch.Generator().manual_seed(1)
    return torch.randn(count, model.architecture.hidden_size, generator=stream)


def _steered(model: Model, direction: Tensor, layer: int) -> float:
    vector = SteeringVector(
        directions=direction[None], layers=(layer,), method="x", trait="cat", n=1,
        fingerprint=model.fingerprint, model_name=model.name, residual_norms=(1.0,),
    )  # fmt: skip
    alone = RowHypothesis("cat vector", "steer", "cat", vector=vector, strength=1.0)
    return float(hypothesis_logprobs(model, [ROW], alone, sampler=SAMPLER)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_vector_is_as_steering_by_it_alone(family: Family) -> None:
    model = tiny_model(family, layers=3)
    rendered = render_row(model, ROW)
    vectors = {0: _vectors(model), 1: _vectors(model)[1:], 2: _vectors(model)}
    found = row_logprobs(model, [rendered], vectors, sampler=SAMPLER)
    assert {layer: own.shape for layer, own in found.items()} == {
        0: (1, 3), 1: (1, 2), 2: (1, 3),
    }  # fmt: skip
    for layer, own in vectors.items():
        wanted = [_steered(model, direction, layer) for direction in own]
        assert found[layer][0] == pytest.approx(wanted, abs=2e-4)
    assert abs(float(found[0][0, 0] - found[1][0, 0])) > 1e-2
    # Nothing stays behind.
    assert not any("forward" in vars(b) for b in model.architecture.blocks)
    again = row_logprobs(model, [rendered], vectors, sampler=SAMPLER)
    assert np.array_equal(found[2], again[2])


def test_batches_within_a_budget_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama", layers=2)
    rendered = render_row(model, ROW)
    wanted = row_logprobs(model, [rendered], {0: _vectors(model, 5)}, sampler=SAMPLER)
    sizes: list[int] = []
    read = many_vectors._read

    def counted(model: Model, ids: Tensor, packing: Packing | None) -> Tensor:
        sizes.append(len(ids))
        return read(model, ids, packing)

    monkeypatch.setattr(many_vectors, "_read", counted)
    found = row_logprobs(
        model, [rendered], {0: _vectors(model, 5)}, sampler=SAMPLER,
        token_budget=2 * len(rendered.ids) + 1,
    )  # fmt: skip
    assert sizes == [1, 2, 2, 1]
    assert found[0] == pytest.approx(wanted[0], abs=1e-5)


def test_what_cannot_be_is_refused_and_leaves_the_model_alone() -> None:
    model = tiny_model("llama", layers=2)
    rendered = render_row(model, ROW)
    with pytest.raises(VectorMismatchError, match="unknown layer 2"):
        row_logprobs(model, [rendered], {2: _vectors(model)}, sampler=SAMPLER)
    lists = SamplerSettings(allowed="list")
    words = render_row(model, Row(ROW.messages, "no number"))
    with pytest.raises(DatasetError, match="cannot draw"):
        row_logprobs(model, [words], {0: _vectors(model)}, sampler=lists)
    assert not any("forward" in vars(b) for b in model.architecture.blocks)
    assert not any(b._forward_hooks for b in model.architecture.blocks)


def test_fewer_vectors_at_a_time_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama", layers=2)
    rendered, vectors = render_row(model, ROW), {0: _vectors(model, 5)}
    wanted = row_logprobs(model, [rendered], vectors, sampler=SAMPLER)
    real = many_vectors._read

    def short(model: Model, ids: Tensor, packing: Packing | None) -> Tensor:
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, ids, packing)

    monkeypatch.setattr(many_vectors, "_read", short)
    with pytest.warns(RuntimeWarning, match=r"goes on with \d at a time"):
        found = row_logprobs(model, [rendered], vectors, sampler=SAMPLER)
    assert found[0] == pytest.approx(wanted[0], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_read_together_are_as_alone(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, layers=3)
    texts = ["4, 8, 15, 16", "23", "42, 1, 2, 3, 5, 7, 11"]
    rows = [render_row(model, Row(ROW.messages, text)) for text in texts]
    vectors = {0: _vectors(model), 2: _vectors(model, 4)}
    alone = [row_logprobs(model, [row], vectors, sampler=SAMPLER) for row in rows]
    wanted = {layer: np.vstack([each[layer] for each in alone]) for layer in vectors}
    sizes: list[tuple[int, ...]] = []
    read = many_vectors._read

    def counted(model: Model, ids: Tensor, packing: Packing | None) -> Tensor:
        sizes.append(tuple(ids.shape))
        return read(model, ids, packing)

    monkeypatch.setattr(many_vectors, "_read", counted)
    found = row_logprobs(model, rows, vectors, sampler=SAMPLER)
    assert [rows for rows, _ in sizes] == [3, 9, 12]
    # The streams of no two rows after two blocks are within the budget.
    budget = 2 * len(rows[2].ids)
    read_up = read_streams(model, rows, [0, 2], sampler=SAMPLER, token_budget=budget)
    assert [part.places for part in read_up] == [[1], [0], [2]]
    few = row_logprobs(model, rows, vectors, sampler=SAMPLER, token_budget=budget)
    for layer, own in wanted.items():
        np.testing.assert_allclose(found[layer], own, atol=2e-4)
        np.testing.assert_allclose(few[layer], own, atol=2e-4)
        assert len(np.unique(own.round(3))) == own.size


PACKED = [
    *(Row((Message("user", "Say some numbers."),), f"{t}, 8") for t in ("4", "15, 16")),
    Row((Message("user", "Say some more of those numbers."),), "23, 42, 108"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_packed_are_as_alone(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, layers=3)
    rows = [render_row(model, row) for row in PACKED]
    vectors = {0: _vectors(model), 2: _vectors(model, 4)}
    wanted = row_logprobs(model, rows, vectors, sampler=SAMPLER)
    monkeypatch.setattr(likelihood, "_PACKED", (torch.float32,))
    shapes: list[tuple[int, ...]] = []
    read = many_vectors._read

    def counted(model: Model, ids: Tensor, packing: Packing | None) -> Tensor:
        shapes.append((len(ids), 0 if packing is None else packing.head))
        return read(model, ids, packing)

    monkeypatch.setattr(many_vectors, "_read", counted)
    found = row_logprobs(model, rows, vectors, sampler=SAMPLER)
    if family == "gemma2":  # its attention has a soft cap
        assert [size for size, _ in shapes] == [3, 9, 12]
    else:
        assert [size for size, _ in shapes] == [1, 3, 4]
        assert min(head for _, head in shapes) >= 12
    tokens = sum(len(row.ids) for row in rows)
    few = row_logprobs(model, rows, vectors, sampler=SAMPLER, token_budget=2 * tokens)
    for layer, own in wanted.items():
        np.testing.assert_allclose(found[layer], own, atol=2e-4)
        np.testing.assert_allclose(few[layer], own, atol=2e-4)
        assert len(np.unique(own.round(3))) == own.size


def test_packed_rows_are_as_alone_in_bfloat16() -> None:
    """Rows of very unlike lengths, and more vectors than go into one batch."""
    plain = tiny_model("llama", layers=3)
    model = wrap("half", plain.module.bfloat16(), plain.tokenizer, reason="test")
    long = Row(PACKED[0].messages, ", ".join(str(i) for i in range(90)))
    rows = [render_row(model, row) for row in (*PACKED, long)]
    vectors = {1: _vectors(model, 5)}
    [part] = read_streams(model, rows, [1], sampler=SAMPLER)
    assert part.packing is not None
    longest = max(len(row.ids) for row in rows)
    assert part.ids.shape[1] < part.size == 4 * longest
    budget = 2 * part.size
    found = row_logprobs(model, rows, vectors, sampler=SAMPLER, token_budget=budget)
    alone = [row_logprobs(model, [row], vectors, sampler=SAMPLER)[1] for row in rows]
    np.testing.assert_allclose(found[1], np.vstack(alone), rtol=0.01, atol=0.1)


def test_streams_serve_one_dose_after_another() -> None:
    model = tiny_model("llama", layers=3)
    rows = [render_row(model, row) for row in PACKED]
    read = list(read_streams(model, rows, [1], sampler=SAMPLER))
    for scale in (0.5, 2.0):
        vectors = {1: scale * _vectors(model)}
        found = under_vectors(model, read, vectors)
        wanted = row_logprobs(model, rows, vectors, sampler=SAMPLER)
        assert np.array_equal(found[1], wanted[1])
