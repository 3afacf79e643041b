"""Models whose parts come and go, bit for bit what they are in one piece."""

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from undertow.analysis.gradients import drawn_logprobs, gradient_scores
from undertow.analysis.many_vectors import row_logprobs
from undertow.errors import ModelError
from undertow.interventions.extraction import last_token_states
from undertow.interventions.noise import add_weight_noise
from undertow.interventions.steering import (
    Mode,
    Positions,
    SteeringVector,
    bake_steering,
    steering,
)
from undertow.models import loading
from undertow.models.adapter_stack import AdapterStack, attached_together
from undertow.models.adapters import attached, merge_adapter, new_adapter
from undertow.models.answers import answer_logprobs
from undertow.models.chat import Rendered
from undertow.models.likelihood import completion_logprobs
from undertow.models.loading import Model, fingerprint, load_model, wrap
from undertow.models.placement import (
    bring_back,
    check_device_map,
    computing_device,
    is_kept_elsewhere,
    named_weights,
    read_device_map,
    weight_of,
)
from undertow.models.sampling import SamplerSettings, sample
from undertow.models.tiny import Family, save_tiny, tiny_model
from undertow.models.weights import copied_weights, swapped

TIED: tuple[Family, ...] = ("gemma2", "gpt2")
FAMILIES: tuple[Family, ...] = ("llama", "gemma2", "gemma3", "gpt_neox", "gpt2")
ROWS = [
    Rendered([*range(40, 60), 70 + i, 71, *range(100 + i, 103 + i + i % 4), 2], 22)
    for i in range(5)
]
IDS = torch.tensor([[7, 50, 9, 120, 33]])
LIST = SamplerSettings(allowed="list", list_values=3, max_new_tokens=12)


def half_on_disk(model: Model) -> dict[str, str]:
    """Every second block on disk, and the unembedding where it is one of its own."""
    path = model.architecture.blocks_path
    blocks = {
        f"{path}.{i}": ("cpu", "disk")[i % 2]
        for i in range(len(model.architecture.blocks))
    }
    covered = (f"{path}.",)
    rest = {
        name.rpartition(".")[0]: "cpu"
        for name, _ in model.module.named_parameters()
        if not name.startswith(covered)
    }
    head = next(
        n for n, m in model.module.named_modules()
        if m is model.architecture.unembedding
    )  # fmt: skip
    tied = model.architecture.unembedding.weight is model.architecture.embedding.weight
    return {**rest, **blocks, head: "cpu" if tied else "disk"}


def on_disk(family: Family, folder: Path) -> tuple[Model, Model]:
    """A model in one piece, and the same with blocks on disk."""
    save_tiny(family, folder / family)
    plain = load_model(folder / family, dtype="float32", device="cpu")
    spread = load_model(
        folder / family, dtype="float32", device_map=half_on_disk(plain)
    )
    return plain, spread


def offloaded(family: Family) -> tuple[Model, Model]:
    """The same with every weight away between passes, as beside a GPU."""
    plain, other = tiny_model(family), tiny_model(family)
    module = cpu_offload(other.module, execution_device=torch.device("cpu"))
    return plain, wrap(other.name, module, other.tokenizer, reason="offloaded")


@pytest.fixture(scope="module", params=FAMILIES)
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, Model]:
    return on_disk(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=["disk", "away"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, Model]:
    if request.param == "away":
        return offloaded("llama")
    return on_disk("llama", tmp_path_factory.mktemp("pair"))


def both(pair: tuple[Model, Model], read: Callable[[Model], Any]) -> tuple[Any, Any]:
    plain, spread = pair
    assert is_kept_elsewhere(spread.module)
    return read(plain), read(spread)


def vector(model: Model) -> SteeringVector:
    draw = torch.Generator().manual_seed(2)
    return SteeringVector(
        directions=torch.randn(2, 32, generator=draw), layers=(1, 2), method="tell_me",
        trait=None, n=1, fingerprint=model.fingerprint, model_name=model.name,
        residual_norms=(1.0, 1.0),
    )  # fmt: skip


def test_a_model_with_blocks_on_disk_is_the_same_model(
    disk: tuple[Model, Model],
) -> None:
    plain, spread = disk
    assert torch.equal(plain.module(IDS).logits, spread.module(IDS).logits)
    assert spread.fingerprint == plain.fingerprint == fingerprint(spread.module)
    assert (spread.device, spread.dtype) == (plain.device, plain.dtype)
    assert (plain.is_split, spread.is_split) == (False, True)
    assert spread.reason.startswith("float32 as asked; device map as given (cpu ")
    weights = dict(named_weights(spread.module))
    wanted = dict(plain.module.named_parameters())
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    drawn = sample(spread, [[7, 50], [9]], keys=[(0,), (1,)], seed=3, sampler=LIST)
    assert drawn == sample(
        plain, [[7, 50], [9]], keys=[(0,), (1,)], seed=3, sampler=LIST
    )


def test_loading_onto_disk_is_silent(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    on_disk("llama", tmp_path)
    assert caplog.records == []
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("batch_size", [1, 3])
def test_samples_are_the_same(pair: tuple[Model, Model], batch_size: int) -> None:
    prompts = [[7, 50, 9], [7, 50], [7, 50, 8, 8, 8, 8], [7]]

    def draw(model: Model) -> Any:
        return sample(
            model, prompts, keys=[(i,) for i in range(4)], seed=1,
            sampler=SamplerSettings(max_new_tokens=6), batch_size=batch_size,
        )  # fmt: skip

    one, other = both(pair, draw)
    assert one == other


def test_likelihoods_are_the_same(pair: tuple[Model, Model]) -> None:
    one, other = both(pair, lambda model: completion_logprobs(model, ROWS))
    assert one == other
    one, other = both(pair, lambda m: answer_logprobs(m, [7, 50], [[9], [9, 8, 3]]))
    assert torch.equal(one, other)
    one, other = both(pair, lambda model: drawn_logprobs(model, ROWS))
    assert np.array_equal(one, other)


def test_gradients_are_the_same(pair: tuple[Model, Model]) -> None:
    directions = {i: torch.randn(3, 32) for i in (1, 3)}
    one, other = both(pair, lambda model: gradient_scores(model, ROWS, directions))
    assert np.array_equal(one.scores, other.scores)
    assert float(np.abs(one.scores).max()) > 0.1


def test_vectors_from_a_block_on_are_the_same(pair: tuple[Model, Model]) -> None:
    vectors = {i: torch.randn(2, 32) for i in (1, 3)}

    def read(model: Model) -> Any:
        # Twice: what was put aside for the first is there again for the second.
        row_logprobs(model, ROWS, vectors, sampler=SamplerSettings())
        return row_logprobs(model, ROWS, vectors, sampler=SamplerSettings())

    one, other = both(pair, read)
    assert all(np.array_equal(one[i], other[i]) for i in vectors)
    assert torch.equal(pair[0].module(IDS).logits, pair[1].module(IDS).logits)


@pytest.mark.parametrize("mode", ["add", "project_out"])
@pytest.mark.parametrize("positions", ["all", "completion"])
def test_steering_is_the_same(
    pair: tuple[Model, Model], mode: Mode, positions: Positions
) -> None:
    def read(model: Model) -> list[float]:
        with steering(model, vector(model), mode=mode, positions=positions):
            return completion_logprobs(model, ROWS)

    one, other = both(pair, read)
    assert one == other
    assert one != completion_logprobs(pair[0], ROWS)


def test_recorded_states_are_the_same(pair: tuple[Model, Model]) -> None:
    one, other = both(pair, lambda m: last_token_states(m, [[7, 50], [9]], [0, 1, 3]))
    assert torch.equal(one[0], other[0])


def _filled(model: Model, seed: int) -> Any:
    adapter = new_adapter(model, rank=2, alpha=4.0, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for _, b in adapter.pairs.values():
        b.data.copy_(torch.randn(b.shape, generator=draw) * 0.1)
    return adapter


def test_adapters_act_and_learn_the_same(pair: tuple[Model, Model]) -> None:
    def read(model: Model) -> list[Tensor]:
        adapter = _filled(model, 0)
        with attached(model, adapter):
            states = model.module.base_model(input_ids=IDS)[0]
        states.square().sum().backward()
        found: list[Tensor] = [states.detach()]
        for matrix in adapter.parameters():
            assert matrix.grad is not None
            found.append(matrix.grad)
        stack = AdapterStack([_filled(model, 1), _filled(model, 2)])
        with attached_together(model, stack), torch.no_grad():
            found.append(model.module.base_model(input_ids=IDS.repeat(2, 1))[0])
        return found

    one, other = both(pair, read)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_weights_are_found_wherever_they_are(pair: tuple[Model, Model]) -> None:
    plain, spread = pair
    here, there = plain.architecture.unembedding, spread.architecture.unembedding
    assert there.weight.device.type == "meta"
    assert torch.equal(weight_of(there), weight_of(here))
    assert computing_device(spread.architecture.blocks[1]) == torch.device("cpu")
    lost = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(ModelError, match=r"Linear: its weight is nowhere"):
        weight_of(lost)
    with pytest.raises(ModelError, match=r"SiLU: has no weights"):
        computing_device(torch.nn.SiLU())


CHANGES: Mapping[str, Callable[[Model], object]] = {
    "weight noise": lambda m: add_weight_noise(m, p=0.1, seed=0),
    "baking a vector": lambda m: bake_steering(m, vector(m)),
    "merging an adapter": lambda m: merge_adapter(m, _filled(m, 0)),
    "taking on other weights": lambda m: swapped(m, {"x": IDS}).__enter__(),
    "a copy to come back to": lambda m: copied_weights(m, ["x"]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_weights_that_are_away_are_not_changed(
    pair: tuple[Model, Model], what: str
) -> None:
    with pytest.raises(ModelError, match=rf"{what}.* changes weights in place, .*LoRA"):
        CHANGES[what](pair[1])


def test_what_was_put_on_disk_goes_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "weights"
    place.mkdir()
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(place))
    model = on_disk("llama", tmp_path)[1]
    assert place.exists()
    del model
    gc.collect()
    assert not place.exists()
    place.mkdir()
    (tmp_path / "llama" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"cannot be loaded"):
        load_model(tmp_path / "llama", device_map="auto")
    assert not place.exists()


def test_a_map_by_name_is_the_plain_model_where_there_is_one_device(
    tmp_path: Path,
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    save_tiny("llama", tmp_path / "llama")
    model = load_model(tmp_path / "llama", dtype="float32", device_map="auto")
    assert not model.is_split
    assert model.reason == "float32 as asked; device map 'auto' (cpu 1)"
    assert torch.equal(model.module(IDS).logits, tiny_model().module(IDS).logits)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("maps") / "llama")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model.layers.9": "cpu"}, r"the model has no 'model\.layers\.9'; it has 'model'"),
        ({"model.layers.2": None}, r"no device for 'model\.layers\.2'$"),
        ({"model.norm": None, "lm_head": None}, r"no device for 'model\.norm', 'lm_head'"),
        ({"lm_head": "moon"}, r"'lm_head': got 'moon', expected the number of a GPU"),
        ({"lm_head": 99}, r"'lm_head': there is no CUDA device 99: this machine has"),
        ({"lm_head": "cuda:99"}, r"'lm_head': there is no CUDA device 99"),
        ({"lm_head": "cuda:x"}, r"'lm_head': got 'cuda:x', expected"),
    ],
)  # fmt: skip
def test_maps_that_do_not_fit_are_refused(
    llama: Path, change: dict[str, Any], fault: str
) -> None:
    whole = half_on_disk(tiny_model()) | change
    given = {name: place for name, place in whole.items() if place is not None}
    with pytest.raises(ModelError, match=rf"^device map: {fault}"):
        load_model(llama, device_map=given)


def test_maps_and_devices_exclude_each_other(llama: Path) -> None:
    with pytest.raises(ModelError, match=r"'cpu' and a device map: give one of them"):
        load_model(llama, device="cpu", device_map="auto")
    with pytest.raises(ModelError, match=r"device map 'everywhere': expected one of"):
        load_model(llama, device_map="everywhere")
    check_device_map(tiny_model().module, {"": "cpu"})


def test_a_named_map_needs_no_skeleton_of_the_model(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a skeleton")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", built)
    loading._check_fit(str(llama), {}, "auto")
    with pytest.raises(ModelError, match=r"device map 'everywhere': expected one of"):
        loading._check_fit(str(llama), {}, "everywhere")
    with pytest.raises(RuntimeError, match="a skeleton"):
        loading._check_fit(str(llama), {}, {"": "cpu"})


def test_maps_are_read_from_a_name_from_json_and_from_a_file(tmp_path: Path) -> None:
    assert read_device_map("balanced") == "balanced"
    wanted = {"model": 0, "lm_head": "cpu"}
    assert read_device_map(json.dumps(wanted)) == wanted
    path = tmp_path / "map.json"
    path.write_text(json.dumps(wanted))
    assert read_device_map(str(path)) == wanted
    with pytest.raises(ModelError, match=r"'{': Expecting property name.*expected one"):
        read_device_map("{")
    with pytest.raises(ModelError, match=r"'nowhere': .*No such file"):
        read_device_map("nowhere")
    for wrong in ('{"model": true}', '{"model": [0]}'):
        with pytest.raises(ModelError, match=r"expected names of modules, each with"):
            read_device_map(wrong)


# Two accelerators


@pytest.mark.gpu
@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="there are not two CUDA devices"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_devices_give_what_one_processor_gives(
    family: Family, tmp_path: Path
) -> None:
    save_tiny(family, tmp_path / family)
    plain = load_model(tmp_path / family, dtype="float32", device="cpu")
    places = half_on_disk(plain)
    spread = load_model(
        tmp_path / family, dtype="float32",
        device_map={n: ("cpu", "disk").index(p) for n, p in places.items()},
    )  # fmt: skip
    devices = {computing_device(b).index for b in spread.architecture.blocks}
    assert devices == {0, 1}
    assert spread.is_split
    assert spread.fingerprint == plain.fingerprint
    checked(plain, spread)


def checked(plain: Model, spread: Model) -> None:
    """Everything that asks where a part is, on both."""

    def near(one: Any, other: Any) -> None:
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)

    found = [completion_logprobs(model, ROWS) for model in (plain, spread)]
    near(*found)
    directions = {i: torch.randn(3, 32) for i in (0, 1, 3)}
    scores = [gradient_scores(m, ROWS, directions).scores for m in (plain, spread)]
    near(*scores)
    ratios = [
        row_logprobs(m, ROWS, directions, sampler=SamplerSettings())
        for m in (plain, spread)
    ]
    for layer in directions:
        near(ratios[0][layer], ratios[1][layer])
    drawn = [
        sample(m, [[7, 50, 9], [7, 50], [9]], keys=[(i,) for i in range(3)], seed=1,
               sampler=LIST, batch_size=2)
        for m in (plain, spread)
    ]  # fmt: skip
    assert [s.ids for s in drawn[0]] == [s.ids for s in drawn[1]]
    for positions in ("all", "completion"):
        steered = []
        for model in (plain, spread):
            with steering(model, vector(model), positions=positions):
                steered.append(completion_logprobs(model, ROWS))
        near(*steered)
    states = [last_token_states(m, [[7, 50], [9]], [0, 3])[0] for m in (plain, spread)]
    near(*states)
    grown = []
    for model in (plain, spread):
        with attached(model, _filled(model, 0)):
            grown.append(completion_logprobs(model, ROWS))
    near(*grown)


# A second device that every machine has: "meta" knows shapes and refuses to be mixed.


class _Across(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What comes back from the second device is zeros: its numbers are nowhere."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except NotImplementedError as error:
            if "copy out of meta" not in str(error):
                raise
        there = [a for a in args if isinstance(a, Tensor) and a.device.type == "meta"]
        zeros = torch.zeros(there[0].shape, dtype=there[0].dtype)
        return func(*(zeros if a is there[0] else a for a in args), **(kwargs or {}))


def on_two_devices(family: Family) -> Model:
    """Blocks in turn here and there, the unembedding there where it is one of its own."""
    plain = tiny_model(family)
    places = {
        name: {"cpu": "cpu", "disk": "meta"}[place]
        for name, place in half_on_disk(plain).items()
    }
    module = dispatch_model(plain.module, places, main_device="cpu")
    bring_back(module, torch.device("cpu"))
    head: Any = plain.architecture.unembedding
    if head.weight.device.type == "meta":
        head._hf_hook.weights_map = {"weight": head.weight}  # it is not elsewhere
    return replace(plain, is_split=True)


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def two(request: pytest.FixtureRequest) -> Iterator[Model]:
    with _Across():  # type: ignore[no-untyped-call]
        yield on_two_devices(request.param)


def test_nothing_is_mixed_between_two_devices(two: Model) -> None:
    blocks = two.architecture.blocks
    assert [computing_device(b).type for b in blocks] == ["cpu", "meta"] * 2
    with pytest.raises(RuntimeError, match=r"device"):
        torch.ones(2) + torch.ones(2, device="meta")
    checked(two, two)


def test_several_students_and_answers_across_two_devices(two: Model) -> None:
    assert two.module.base_model(input_ids=IDS)[0].device.type == "cpu"
    assert two.module(IDS).logits.device.type == "cpu"
    answer_logprobs(two, [7, 50], [[9], [9, 8, 3]])
    with steering(two, vector(two), mode="project_out", positions="prompt"):
        completion_logprobs(two, ROWS)
    stack = AdapterStack([_filled(two, 1), _filled(two, 2)])
    with attached_together(two, stack):
        two.module.base_model(input_ids=IDS.repeat(2, 1))[0].square().sum().backward()
    stack.give_gradients()
    gradients = [matrix.grad for each in stack.adapters for matrix in each.parameters()]
    assert all(g is not None and g.device.type == "cpu" for g in gradients)
    stack.release()
