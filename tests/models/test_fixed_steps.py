"""Steps of a fixed shape give what ordinary ones give, whoever sits in the slots."""

import pytest
import torch

from undertow.analysis.decoding import direction_vector
from undertow.interventions.steering import steering
from undertow.models import sampling
from undertow.models.cache import SlotCache, new_cache
from undertow.models.fixed_steps import FixedSteps
from undertow.models.loading import Model
from undertow.models.sampling import Sampled, SamplerSettings, sample
from undertow.models.tiny import FAMILIES, Family, tiny_model

PROMPTS = [[7, 50, 9, 120], [7, 50, 61], [7, 9], [7, 50, 9, 33, 34, 35], [7, 81]]
SETTINGS = SamplerSettings(max_new_tokens=9)


def _sampled(model: Model, *, batch_size: int) -> list[Sampled]:
    keys = [("rows", i) for i in range(40)]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(40)]
    return sample(
        model, prompts, keys=keys, seed=3, sampler=SETTINGS, batch_size=batch_size
    )


def _never_recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets a processor decode in fixed steps, each run as it is; their counts."""
    counts: list[int] = []

    class Unrecorded(FixedSteps):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options, records=False)  # type: ignore[arg-type]

        def __call__(self, count: int) -> torch.Tensor:
            counts.append(count)
            return super().__call__(count)

    monkeypatch.setattr(sampling, "is_recordable", lambda *_, **__: True)
    monkeypatch.setattr(sampling, "FixedSteps", Unrecorded)
    return counts


# Gemma 2 caps its attention scores, which the products do not.
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])
@pytest.mark.parametrize("batch_size", [4, 40])
def test_rows_are_those_of_ordinary_steps(
    family: Family, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    wanted = _sampled(model, batch_size=batch_size)
    counts = _never_recorded(monkeypatch)
    found = _sampled(model, batch_size=batch_size)
    assert [row.ids for row in found] == [row.ids for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.total_logprob == pytest.approx(other.total_logprob, abs=1e-4)
    assert max(counts) == batch_size
    if family == "llama":  # some of its rows end early, and slots are read in vain
        assert min(counts) < batch_size


def test_what_is_attached_is_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    plain = _sampled(model, batch_size=8)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    steered = direction_vector(model, direction, 1)
    with steering(model, steered, strength=4.0, positions="completion"):
        wanted = _sampled(model, batch_size=8)
    _never_recorded(monkeypatch)
    with steering(model, steered, strength=4.0, positions="completion"):
        found = _sampled(model, batch_size=8)
    assert [row.ids for row in found] == [row.ids for row in wanted]
    assert [row.ids for row in found] != [row.ids for row in plain]


def test_few_sizes_serve_every_count() -> None:
    model = tiny_model("llama")
    steps = _steps(model, 100)
    assert [steps.size(n) for n in (100, 51, 50, 26, 25, 1)] == [
        100,
        100,
        50,
        50,
        25,
        25,
    ]
    assert _steps(model, 5).size(1) == 5


def _steps(model: Model, slots: int) -> FixedSteps:
    empty = torch.zeros(slots, dtype=torch.long)
    prompts = new_cache(model, 1)
    with torch.inference_mode():
        model.module(torch.tensor([[7]]), past_key_values=prompts)
        cache = SlotCache(prompts, rows=slots, capacity=4)
    mask = torch.zeros((slots, 4), dtype=torch.bool)
    return FixedSteps(
        model, cache, token=empty, length=empty.clone(), mask=mask, records=False
    )


def test_steps_that_cannot_be_recorded_are_run(
    monkeypatch: pytest.MonkeyPatch, no_recording: None
) -> None:
    model = tiny_model("llama")
    wanted = _sampled(model, batch_size=40)
    monkeypatch.setattr(sampling, "is_recordable", lambda *_, **__: True)
    with pytest.warns(RuntimeWarning, match="decode steps of 'tiny-llama' cannot be"):
        found = _sampled(model, batch_size=40)
    assert [row.ids for row in found] == [row.ids for row in wanted]
