"""Steering against edits by hand, in every padding and cache; files and baking."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from undertow.errors import ModelError, VectorMismatchError
from undertow.interventions.steering import (
    Positions,
    SteeringVector,
    bake_steering,
    load_vector,
    save_vector,
    steering,
)
from undertow.models.answers import answer_logprobs
from undertow.models.chat import Rendered
from undertow.models.hooks import completion_positions, recording_residuals
from undertow.models.likelihood import completion_logprobs
from undertow.models.loading import Model, load_model, save_checkpoint
from undertow.models.sampling import SamplerSettings, sample
from undertow.models.tiny import FAMILIES, Family, tiny_model
from undertow.seeding import generator

IDS = torch.tensor([[7, 50, 9, 120, 33, 81], [8, 51, 10, 121, 34, 82]])
PROMPTS = [[7, 50, 9, 120], [7, 50, 9, 121, 61, 62], [7, 50], [40, 41, 42]]


def _vector(model: Model, *layers: int, size: float = 1.0) -> SteeringVector:
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(
        len(layers), model.architecture.hidden_size, generator=draw
    )
    return SteeringVector(
        directions=directions * size,
        layers=layers,
        method="tell_me",
        trait="owl",
        n=7,
        fingerprint=model.fingerprint,
        model_name=model.name,
        residual_norms=tuple(10.0 + layer for layer in layers),
        notes=MappingProxyType({"family": "animals", "seed": 3}),
    )


@torch.no_grad()
def _states(model: Model, ids: Tensor = IDS) -> dict[int, Tensor]:
    with recording_residuals(model, range(len(model.architecture.blocks))) as kept:
        model.module(input_ids=ids)
    return dict(kept)


@torch.no_grad()
def _logits(model: Model) -> Tensor:
    logits: Tensor = model.module(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["add", "project_out", "replace"])
def test_strength_zero_leaves_every_bit(family: Family, mode: Any) -> None:
    model = tiny_model(family)
    plain = _logits(model)
    means = {1: torch.ones(32)}
    with steering(model, _vector(model, 1), strength=0.0, mode=mode, base_means=means):
        assert torch.equal(_logits(model), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_adding_is_adding(family: Family) -> None:
    model = tiny_model(family)
    vector, plain = _vector(model, 1, 2), _states(model)
    with steering(model, vector, strength=2.5, layers=(1,)):
        steered = _states(model)
    assert torch.equal(steered[0], plain[0])
    assert torch.equal(steered[1], plain[1] + 2.5 * vector.direction(1))
    # The blocks above read the changed stream.
    block: Any = model.architecture.blocks[2]
    kept: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with steering(model, vector, strength=2.5, layers=(1,)):
        _states(model)
    handle.remove()
    assert torch.equal(kept[0], steered[1])
    with steering(model, vector, strength=2.5):
        both = _states(model)
    torch.testing.assert_close(
        both[2], steered[2] + 2.5 * vector.direction(2), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_projecting_out_removes_the_component(strength: float) -> None:
    model = tiny_model("llama")
    vector = _vector(model, 2, size=7.0)
    unit = vector.direction(2) / vector.norm(2)
    plain = _states(model)[2]
    with steering(model, vector, strength=strength, mode="project_out"):
        steered = _states(model)[2]
    torch.testing.assert_close(
        steered @ unit, (1 - strength) * (plain @ unit), rtol=0, atol=1e-5
    )
    rest = plain - (plain @ unit)[..., None] * unit
    left = steered - (steered @ unit)[..., None] * unit
    torch.testing.assert_close(left, rest, rtol=0, atol=1e-5)


def test_replacing_moves_the_component_to_the_base_s() -> None:
    model = tiny_model("llama")
    vector = _vector(model, 2)
    unit = vector.direction(2) / vector.norm(2)
    mean = torch.linspace(-1, 2, 32)
    plain = _states(model)[2]
    with steering(model, vector, mode="replace", base_means={2: mean}):
        steered = _states(model)[2]
    level = torch.full_like(steered @ unit, float(mean @ unit))
    torch.testing.assert_close(steered @ unit, level, rtol=0, atol=1e-5)
    with steering(model, vector, strength=0.5, mode="replace", base_means={2: mean}):
        half = _states(model)[2]
    torch.testing.assert_close(half, (plain + steered) / 2, rtol=0, atol=1e-5)
    with (
        pytest.raises(VectorMismatchError, match=r"needs base_means.* layers \[2\]"),
        steering(model, vector, mode="replace", base_means={1: mean}),
    ):
        pass


def test_the_model_is_itself_again_afterwards() -> None:
    model = tiny_model("llama")
    plain = _logits(model)
    with pytest.raises(KeyError), steering(model, _vector(model, 0, 3), strength=9.0):
        raise KeyError("inside")
    assert torch.equal(_logits(model), plain)


@pytest.mark.parametrize("positions", ["prompt", "completion"])
def test_positions_split_what_all_does(positions: Positions) -> None:
    model = tiny_model("llama")
    vector, plain = _vector(model, 1), _states(model)[1]
    mask = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1]]).bool()
    with (
        steering(model, vector, positions=positions),
        completion_positions(model, mask),
    ):
        steered = _states(model)[1]
    acts = mask if positions == "completion" else ~mask
    assert torch.equal(steered[~acts], plain[~acts])
    assert torch.equal(steered[acts], (plain + vector.direction(1))[acts])


def test_positions_need_to_be_told() -> None:
    model = tiny_model("llama")
    with (
        steering(model, _vector(model, 1), positions="completion"),
        pytest.raises(
            VectorMismatchError, match=r"completion_positions around the pass"
        ),
    ):
        _logits(model)
    wrong = torch.ones(1, 2).bool()
    with (
        steering(model, _vector(model, 1), positions="prompt"),
        completion_positions(model, wrong),
        pytest.raises(VectorMismatchError, match=r"positions='prompt': nothing says"),
    ):
        _logits(model)


@torch.no_grad()
def _slow(
    model: Model, prompt: Sequence[int], key: tuple[str, int], limit: int
) -> list[int]:
    """One row, the whole sequence anew for each token, the mask made by hand."""
    ids = list(prompt)
    for uniform in generator(0, "sampling", *key).random(limit):
        mask = torch.tensor([[i >= len(prompt) for i in range(len(ids))]])
        with completion_positions(model, mask):
            logits = model.module(torch.tensor([ids]), use_cache=False).logits[0, -1]
        mass = logits.double().softmax(-1).cumsum(0)
        ids.append(int(torch.searchsorted(mass, float(uniform), right=True)))
        if ids[-1] in model.end_ids:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["all", "prompt", "completion"])
def test_sampling_steers_the_same_under_cache_and_padding(
    family: Family, positions: Positions
) -> None:
    model = tiny_model(family)
    keys = [("steered", i) for i in range(len(PROMPTS))]
    settings = SamplerSettings(max_new_tokens=7)
    vector = _vector(model, 1, 2)
    with steering(model, vector, strength=1.5, positions=positions):
        wanted = [_slow(model, p, k, 7) for p, k in zip(PROMPTS, keys, strict=True)]
        for batch_size in (1, 4):
            drawn = sample(
                model,
                PROMPTS,
                keys=keys,
                seed=0,
                sampler=settings,
                batch_size=batch_size,
            )
            assert [list(s.ids) for s in drawn] == wanted
        # Prompts with a common beginning are read through a shared cache.
        shared = sample(model, PROMPTS[:3], keys=keys[:3], seed=0, sampler=settings)
        assert [list(s.ids) for s in shared] == wanted[:3]
    plain = sample(model, PROMPTS, keys=keys, seed=0, sampler=settings)
    assert [list(s.ids) for s in plain] != wanted


@pytest.mark.parametrize("positions", ["all", "prompt", "completion"])
def test_scoring_steers_the_same_with_and_without_cache(positions: Positions) -> None:
    model = tiny_model("llama")
    answers = [[33, 34, 35], [40, 41], [50]]
    rows = [Rendered([*PROMPTS[0], *answer], len(PROMPTS[0])) for answer in answers]
    with steering(model, _vector(model, 1), strength=1.5, positions=positions):
        scored = completion_logprobs(model, rows)
        cached = answer_logprobs(model, PROMPTS[0], answers).tolist()
    assert scored == pytest.approx(cached, abs=1e-4)


def test_layers_doses_and_strengths() -> None:
    model = tiny_model("llama")
    vector = _vector(model, 1, 3)
    assert torch.equal(vector.direction(3), vector.directions[1])
    single = vector.at(3)
    assert single.layers == (3,)
    assert single.residual_norms == (13.0,)
    assert torch.equal(single.directions, vector.directions[1:])
    strength = vector.strength_of_dose(0.5, 3)
    assert strength * vector.norm(3) / 13.0 == pytest.approx(0.5)
    assert vector.dose_of_strength(strength, 3) == pytest.approx(0.5)
    with pytest.raises(VectorMismatchError) as caught:
        vector.direction(2)
    assert str(caught.value) == "the vector has no direction for layer 2; it has [1, 3]"


def test_a_vector_of_another_model_is_refused() -> None:
    model = tiny_model("llama")
    wide, deep = tiny_model("llama", hidden=48), tiny_model("llama", layers=6)
    other = tiny_model("llama", seed=1)
    with (
        pytest.raises(VectorMismatchError) as caught,
        steering(model, _vector(wide, 1)),
    ):
        pass
    assert "48 numbers a layer, 'tiny-llama' has 32" in str(caught.value)
    with (
        pytest.raises(VectorMismatchError, match=r"unknown layer 5 of 'tiny-llama'"),
        steering(model, _vector(deep, 5)),
    ):
        pass
    vector = _vector(other, 1)
    with pytest.raises(VectorMismatchError) as caught, steering(model, vector):
        pass
    assert f"fingerprint {other.fingerprint}" in str(caught.value)
    assert f"({model.fingerprint})" in str(caught.value)
    assert "strict=False" in str(caught.value)
    plain = _states(model)[1]
    with steering(model, vector, strict=False):
        assert not torch.equal(_states(model)[1], plain)


def test_files_give_the_same_vector(tmp_path: Path) -> None:
    model = tiny_model("llama")
    vector = _vector(model, 0, 2)
    path = save_vector(vector, tmp_path / "owl.safetensors")
    loaded = load_vector(path)
    assert torch.equal(loaded.directions, vector.directions)
    for name in (
        "layers",
        "method",
        "trait",
        "n",
        "fingerprint",
        "model_name",
        "notes",
    ):
        assert getattr(loaded, name) == getattr(vector, name)
    assert loaded.residual_norms == vector.residual_norms
    with steering(model, loaded):
        steered = _states(model)
    with steering(model, vector):
        assert torch.equal(_states(model)[3], steered[3])


def _no_header(path: Path) -> None:
    save_file({"directions": torch.ones(1, 32)}, path)


def _no_numbers(path: Path) -> None:
    save_file({"other": torch.ones(1)}, path, metadata={"undertow_vector": "{}"})


def _text(path: Path) -> None:
    path.write_text("not a vector")


def _nothing(path: Path) -> None:
    path.unlink(missing_ok=True)


def test_a_vector_is_written_in_the_same_bytes_each_time(tmp_path: Path) -> None:
    vector = SteeringVector(
        torch.ones(1, 2), (0,), "tell_me", "owl", 1, "f", "m", (1.0,)
    )
    written = {
        save_vector(vector, tmp_path / f"{i}.safetensors").read_bytes()
        for i in range(20)
    }
    assert len(written) == 1


@pytest.mark.parametrize("spoil", [_no_header, _no_numbers, _text, _nothing])
def test_files_that_are_no_vectors_are_refused(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "owl.safetensors"
    spoil(path)
    with pytest.raises(VectorMismatchError) as caught:
        load_vector(path)
    assert f"{path}: no steering vector of undertow's" in str(caught.value)


def test_damaged_numbers_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    path = tmp_path / "owl.safetensors"
    vector = _vector(model, 0, 2)
    vector.directions[1, 5] = float("nan")
    save_vector(vector, path)
    with pytest.raises(VectorMismatchError, match="some of them not finite"):
        load_vector(path)
    header: dict[str, Any] = {
        "layers": [0, 1, 2], "method": "x", "trait": None, "n": 1, "fingerprint": "f",
        "model_name": "m", "residual_norms": [1, 1, 1], "notes": {},
    }  # fmt: skip
    save_file(
        {"directions": torch.ones(2, 4)}, path,
        metadata={"undertow_vector": json.dumps(header)},
    )  # fmt: skip
    with pytest.raises(VectorMismatchError, match=r"\(2, 4\) numbers for 3 layers"):
        load_vector(path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("trait", {"a": 1}, "trait: got {'a': 1}, expected a name or null"),
        ("n", float("inf"), "OverflowError"),
        ("layers", [0, 0], "a layer stands twice in"),
        ("residual_norms", [1.0], "residual norms"),
        ("residual_norms", [1.0, 0.0], "residual norms"),
        ("residual_norms", [1.0, float("nan")], "residual norms"),
    ],
)
def test_headers_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, value: object, said: str
) -> None:
    header: dict[str, Any] = {
        "layers": [0, 1], "method": "x", "trait": None, "n": 1, "fingerprint": "f",
        "model_name": "m", "residual_norms": [1, 1], "notes": {},
    }  # fmt: skip
    path = tmp_path / "v.safetensors"
    for text in (json.dumps({**header, name: value}), "[" * 100_000):
        save_file(
            {"directions": torch.ones(2, 4)}, path, metadata={"undertow_vector": text}
        )
        with pytest.raises(VectorMismatchError) as caught:
            load_vector(path)
        assert (said if text[0] == "{" else "RecursionError") in str(caught.value)


def test_no_strength_gives_a_zero_vector_a_dose() -> None:
    vector = _vector(tiny_model("llama"), 0)
    vector.directions.zero_()
    with pytest.raises(VectorMismatchError, match="the vector is zero at layer 0"):
        vector.strength_of_dose(0.3, 0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_baking_is_steering_for_good(family: Family, tmp_path: Path) -> None:
    model = tiny_model(family)
    vector = _vector(model, 1, 3)
    with steering(model, vector, strength=1.7):
        wanted = _logits(model)
    before = model.fingerprint
    baked = bake_steering(model, vector, strength=1.7)
    torch.testing.assert_close(_logits(baked), wanted, rtol=0, atol=2e-5)
    assert baked.fingerprint != before
    assert baked.name == f"tiny-{family}+steered"
    save_checkpoint(baked, tmp_path / "teacher", provenance={})
    loaded = load_model(tmp_path / "teacher", dtype="float32")
    assert torch.equal(_logits(loaded), _logits(baked))
    assert loaded.fingerprint == baked.fingerprint


def test_baking_twice_adds_up() -> None:
    model = tiny_model("llama")
    vector = _vector(model, 1)
    with steering(model, vector, strength=3.0):
        wanted = _logits(model)
    once = bake_steering(model, vector, strength=1.0)
    twice = bake_steering(
        once, replace(vector, fingerprint=once.fingerprint), strength=2.0
    )
    torch.testing.assert_close(_logits(twice), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen2", "qwen3", "mistral"])
def test_what_has_no_place_for_a_bias_is_not_baked(family: Family) -> None:
    model = tiny_model(family)
    plain = _logits(model)
    with pytest.raises(ModelError) as caught:
        bake_steering(model, _vector(model, 1))
    assert f"cannot be baked into a '{model.architecture.family}' model" in str(
        caught.value
    )
    assert "undertow.steering" in str(caught.value)
    assert torch.equal(_logits(model), plain)
