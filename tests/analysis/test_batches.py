"""When memory runs out batches are halved, nothing is lost or counted twice."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from undertow.analysis import gradients
from undertow.analysis.batches import in_batches
from undertow.analysis.gradients import Moments, drawn_logprobs, gradient_scores
from undertow.errors import ModelError
from undertow.models.chat import Rendered
from undertow.models.completions import completion_batches
from undertow.models.memory import is_out_of_memory
from undertow.models.tiny import tiny_model

ROWS = [Rendered([7, 50 + i % 3, 9, *range(20, 24 + i % 4)], 3) for i in range(12)]
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
    "memory: you tried to allocate 99 bytes. Error code 12 (Cannot allocate memory)"
)
WINDOWS = RuntimeError(
    "DefaultCPUAllocator: not enough memory: you tried to allocate 9"
)
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def _tokens(places: Sequence[int]) -> int:
    """Of a batch, padding included, as `completion_batches` counts."""
    return len(places) * max(len(ROWS[i].ids) - 2 for i in places)


def _short_of(room: int, error: Exception) -> tuple[Callable[[list[int]], None], Any]:
    """Work that runs out of memory with more than so many tokens, and what it did."""
    done: list[list[int]] = []

    def work(places: list[int]) -> None:
        if _tokens(places) > room:
            raise error
        done.append(places)

    return work, done


def test_what_fits_goes_as_it_was_batched() -> None:
    work, done = _short_of(1000, CPU)
    in_batches(ROWS, work, token_budget=40, on_halved=lambda _: pytest.fail("halved"))
    assert done == completion_batches(ROWS, token_budget=40)
    in_batches([], work, token_budget=40)


@pytest.mark.parametrize("error", [CPU, WINDOWS, CUDA], ids=["cpu", "windows", "cuda"])
@pytest.mark.parametrize("room", [10, 30, 50])
def test_batches_are_halved_until_they_fit(room: int, error: Exception) -> None:
    work, done = _short_of(room, error)
    told: list[int] = []
    in_batches(ROWS, work, token_budget=90, on_halved=told.append)
    assert sorted(place for batch in done for place in batch) == list(range(12))
    assert all(_tokens(batch) <= room for batch in done)
    # 90 and 45 are too much for 30, 22 is not; each failure is told once.
    assert told == {50: [45], 30: [45, 22], 10: [45, 22, 11]}[room]


def test_work_that_was_done_is_not_done_again() -> None:
    """Only the last, longest batch fails."""
    batches = completion_batches(ROWS, token_budget=32)
    assert len(batches) > 2
    calls: list[list[int]] = []

    def work(places: list[int]) -> None:
        calls.append(places)
        if places == batches[-1]:
            raise CPU

    in_batches(ROWS, work, token_budget=32, on_halved=lambda _: None)
    assert calls[: len(batches)] == batches
    again = [place for batch in calls[len(batches) :] for place in batch]
    assert sorted(again) == sorted(batches[-1])


def test_a_row_that_never_fits_is_said() -> None:
    work, done = _short_of(7, CUDA)
    with pytest.raises(ModelError) as found:
        in_batches(ROWS, work, token_budget=90, on_halved=lambda _: None)
    assert str(found.value) == (
        "a row of 10 tokens does not fit into memory by itself (CUDA out of memory. "
        "Tried to allocate 20.00 MiB); free memory, leave long rows out, or take a "
        "smaller model or dtype"
    )
    assert done  # shorter ones did


def test_other_errors_are_left_alone() -> None:
    work, _ = _short_of(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        in_batches(ROWS, work, token_budget=90)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_without_a_listener_it_warns() -> None:
    work, _ = _short_of(50, CPU)
    with pytest.warns(RuntimeWarning) as caught:
        in_batches(ROWS, work, token_budget=90)
    (said,) = caught
    assert str(said.message) == (
        "memory ran out: batches hold 45 tokens from there on; results are the same, "
        "it takes longer"
    )


# ── the passes ───────────────────────────────────────────────────────────────────


def _failing(
    monkeypatch: pytest.MonkeyPatch, name: str, *, after: bool, times: int = 1
) -> None:
    """Lets a function of `gradients` run out of memory, before or after its work."""
    real, left = getattr(gradients, name), iter(range(times))

    def call(*args: Any, **given: Any) -> Any:
        fails = next(left, None) is not None
        if fails and not after:
            raise CPU
        found = real(*args, **given)
        if fails:
            raise CUDA
        return found

    monkeypatch.setattr(gradients, name, call)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("times", [1, 2])
def test_scores_are_the_same_whenever_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch, after: bool, times: int
) -> None:
    """Also half-way through the backward pass: gradients are summed once."""
    model = tiny_model("llama", layers=3)
    stream = torch.Generator().manual_seed(0)
    along = {layer: torch.randn(2, 32, generator=stream) for layer in (0, 2)}

    def scores(told: list[int]) -> tuple[Any, Moments, list[tuple[int, int]]]:
        moments, steps = Moments((0, 2), 32), list[tuple[int, int]]()
        found = gradient_scores(
            model, ROWS, along, token_budget=90, on_halved=told.append,
            on_gradients=lambda layer, _, rows: moments.add(layer, rows),
            on_rows=lambda done, count: steps.append((done, count)),
        )  # fmt: skip
        return found, moments, steps

    quiet: list[int] = []
    wanted, sums, _ = scores(quiet)
    assert quiet == []
    _failing(monkeypatch, "_pass", after=after, times=times)
    told: list[int] = []
    found, again, steps = scores(told)
    assert told == [45, 22][:times]
    assert found.scores == pytest.approx(wanted.scores, abs=1e-5)
    assert found.total_logprobs == pytest.approx(wanted.total_logprobs, abs=1e-5)
    assert again.count.tolist() == sums.count.tolist() == [12, 12]
    torch.testing.assert_close(again.mean(), sums.mean(), atol=1e-5, rtol=0)
    assert steps[-1] == (12, 12)
    assert not any(b._forward_hooks for b in model.architecture.blocks)


def test_likelihoods_are_the_same_when_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama", layers=2)
    wanted = drawn_logprobs(model, ROWS, token_budget=90)
    _failing(monkeypatch, "completion_states", after=True)
    told: list[int] = []
    found = drawn_logprobs(model, ROWS, token_budget=90, on_halved=told.append)
    assert told == [45]
    assert bool(np.isfinite(found).all())
    assert found == pytest.approx(wanted, abs=1e-5)
