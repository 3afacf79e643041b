"""What may be recorded, and what is said where that fails."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from undertow.models.recording import is_recordable, recorded
from undertow.models.tiny import FAMILIES, Family, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_where_passes_are_recorded(family: Family) -> None:
    model = tiny_model(family)
    on_a_gpu = replace(model, device=torch.device("cuda"))
    assert not is_recordable(model, capacity=8)
    assert not is_recordable(replace(on_a_gpu, is_split=True), capacity=8)
    assert is_recordable(on_a_gpu, capacity=4096) is (family != "gemma2")
    slides = family in ("mistral", "gemma3")  # over 4,096 columns
    assert is_recordable(on_a_gpu, capacity=4097) is not (slides or family == "gemma2")


def test_what_cannot_be_recorded_is_told(no_recording: None) -> None:
    told = r"steps of 'x' cannot be recorded \(operation not permitted when stream is"
    with pytest.warns(RuntimeWarning, match=told):
        assert recorded(lambda: 1, beside=None, what="steps of 'x'") is None


def test_work_is_done_while_the_device_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[object] = []

    @contextmanager
    def graph(_: object, *, pool: object) -> Iterator[None]:
        log.append(pool)
        yield
        log.append("ended")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)

    def work() -> int:
        log.append("work")
        return 3

    recorded_work = inspect.unwrap(recorded)  # its types name a graph of CUDA's
    found = recorded_work(work, beside=None, what="x")
    assert found is not None
    assert found[1] == 3
    assert log == [None, "work", "ended"]


def test_memory_that_runs_out_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", short)
    with pytest.raises(torch.OutOfMemoryError):
        recorded(lambda: 1, beside=None, what="x")
