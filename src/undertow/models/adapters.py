"""Low-rank adapters (LoRA) on any model's linear layers, in PEFT's on-disk format.

An adapter is a set of float32 matrices apart from the model; `attached` puts it in
front of the frozen weights and always takes it off again. Matrices are cast to the
model's dtype in each pass, so the optimiser keeps float32 masters. Knows nothing of
rows or losses. Source: Hu et al., LoRA, arXiv 2106.09685.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from undertow.errors import DatasetError, ModelError, VectorMismatchError, shown
from undertow.models.architecture import matrix_kind
from undertow.models.fused import adapted, can_adapt
from undertow.models.loading import Model
from undertow.models.placement import check_in_memory
from undertow.seeding import torch_generator
from undertow.storage import read_json, replacing, write_json
from undertow.storage.files import got_text

_PREFIX = "base_model.model."
_LARGEST = 1e30
"""Of a rank or an alpha; what is applied is a float32."""
# Options of PEFT under which an adapter is more than B·A·alpha/rank.
_NOT_PLAIN = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern",
              "modules_to_save", "lora_bias", "megatron_config",
              "layer_replication")  # fmt: skip


@dataclass(frozen=True)
class LoraAdapter:
    """Trainable matrices by module name: A [rank, in] and B [out, rank], float32."""

    rank: int
    alpha: float
    pairs: Mapping[str, tuple[nn.Parameter, nn.Parameter]]
    base_name: str

    @property
    def scale(self) -> float:
        """What the product B·A is multiplied by: alpha / rank."""
        return self.alpha / self.rank

    def parameters(self) -> list[nn.Parameter]:
        """All matrices, in the order of the module names."""
        return [matrix for name in sorted(self.pairs) for matrix in self.pairs[name]]

    def state(self) -> dict[str, Tensor]:
        """Tensors under the names that PEFT uses on disk."""
        tensors: dict[str, Tensor] = {}
        for name, (a, b) in self.pairs.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = a.detach().cpu().contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = b.detach().cpu().contiguous()
        return tensors


class _LoraLinear(nn.Module):
    """A frozen linear layer with a low-rank product added to its output."""

    def __init__(self, inner: nn.Module, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        self.matrices = (a, b)  # a tuple, so that the model does not own them

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        a, b = self.matrices
        if can_adapt(self.inner, x, a, b):
            return adapted(self.inner, x, a, b, self.scale)
        low = nn.functional.linear(x, a.to(x)).flatten(0, -2)
        out: Tensor = self.inner(x)
        flat = torch.addmm(out.flatten(0, -2), low, b.to(x).t(), alpha=self.scale)
        return flat.view_as(out)


def _shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer; GPT-2 keeps its weights transposed."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def linear_modules(model: Model, targets: Sequence[str] | None = None) -> list[str]:
    """Names of the linear layers inside the blocks, or of those ending in `targets`.

    Raises:
        ModelError: Nothing matches.
    """
    found = [
        name
        for name, module in model.module.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and matrix_kind(f"{name}.weight", model.module) in ("attention", "mlp")
    ]
    if targets is not None:
        found = [name for name in found if name.rsplit(".", 1)[-1] in set(targets)]
    if not found:
        raise ModelError(
            f"{model.name!r}: no linear layer of its blocks matches the targets "
            f"{shown(targets or ['all'])}; name modules as they end in the model, "
            "'q_proj' or 'down_proj' for instance"
        )
    return found


def new_adapter(
    model: Model,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] | None = None,
    seed: int,
) -> LoraAdapter:
    """An adapter that changes nothing yet: A uniform as in PEFT, B zero.

    Args:
        model: Gives the shapes; it is not changed.
        rank: Inner dimension.
        alpha: Scale times rank.
        targets: Last parts of module names; None takes every linear layer of a block.
        seed: Seed of the draw of A, one stream a module.
    """
    pairs = {}
    for name in linear_modules(model, targets):
        outputs, inputs = _shape(model.module.get_submodule(name))
        bound = 1 / math.sqrt(inputs)  # Kaiming uniform with a = sqrt(5)
        draw = torch.rand(rank, inputs, generator=torch_generator(seed, "lora", name))
        a = nn.Parameter(((2 * draw - 1) * bound).to(model.device))
        b = nn.Parameter(torch.zeros(outputs, rank, device=model.device))
        pairs[name] = (a, b)
    return LoraAdapter(rank=rank, alpha=alpha, pairs=pairs, base_name=model.name)


@contextmanager
def attached(model: Model, adapter: LoraAdapter) -> Iterator[Model]:
    """The model with the adapter in place; taken off on the way out, come what may."""
    with replaced(
        model,
        adapter.pairs,
        lambda inner, a, b: _LoraLinear(inner, a, b, adapter.scale),
    ):
        yield model


@contextmanager
def replaced(
    model: Model,
    pairs: Mapping[str, tuple[nn.Parameter, nn.Parameter]],
    layer: Callable[[nn.Module, Tensor, Tensor], nn.Module],
) -> Iterator[Model]:
    """The model with `layer(inner, A, B)` in the place of each named layer."""
    originals: dict[str, nn.Module] = {}
    try:
        for name, (a, b) in pairs.items():
            inner = model.module.get_submodule(name)
            originals[name] = inner
            _replace(model, name, layer(inner, a, b))
        yield model
    finally:
        for name, inner in originals.items():
            _replace(model, name, inner)


def _replace(model: Model, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.module.get_submodule(parent), child, module)


def save_adapter(adapter: LoraAdapter, directory: Path) -> Path:
    """Writes `adapter_model.safetensors` and `adapter_config.json` as PEFT reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(adapter.state(), directory / "adapter_model.safetensors")
    write_json(directory / "adapter_config.json", _config(adapter))
    return directory


def is_kept(adapter: LoraAdapter, directory: Path) -> bool:
    """Whether `save_adapter` wrote an adapter of this one's kind there, now undamaged."""
    try:
        load_tensors(directory / "adapter_model.safetensors")
        found: bool = read_json(directory / "adapter_config.json") == _config(adapter)
    except (OSError, DatasetError, SafetensorError):
        return False
    return found


def _config(adapter: LoraAdapter) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(adapter.pairs),
    }


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors, with a digest of them that `load_tensors` compares.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    with replacing(path) as draft:
        save_file(dict(tensors), draft, metadata={"sha256": tensors_digest(tensors)})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads safetensors; those of `save_tensors` are as they were written.

    Raises:
        OSError: The file cannot be read.
        SafetensorError: It is damaged.
    """
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get("sha256")
    if told not in (None, tensors_digest(tensors)):
        raise SafetensorError(f"{path.name} is not what was written")
    return tensors


def tensors_digest(tensors: Mapping[str, Tensor], said: str = "") -> str:
    """The sha256 of names, kinds, shapes and numbers, and of what is said of them."""
    told = hashlib.sha256(said.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        told.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def load_adapter(model: Model, directory: Path) -> LoraAdapter:
    """Reads an adapter in PEFT's format, made here or elsewhere.

    Raises:
        ModelError: The folder holds no adapter, or another kind than plain LoRA.
        VectorMismatchError: A matrix does not fit the model.
    """
    try:
        config = read_json(directory / "adapter_config.json")
        tensors = load_tensors(directory / "adapter_model.safetensors")
    except (OSError, DatasetError, SafetensorError) as error:
        raise ModelError(
            f"{directory}: no adapter in PEFT's format here ({error}); expected "
            "adapter_config.json and adapter_model.safetensors"
        ) from error
    rank, alpha = _plain_lora(config, list(tensors), directory)
    pairs = {}
    for name, (a, b) in _paired(tensors, directory).items():
        _check_fit(model, name, a, b, directory)
        if a.shape[0] != rank:
            raise ModelError(
                f"{directory}: damaged: r is {rank}, {name!r} has rank {a.shape[0]}"
            )
        pairs[name] = (
            nn.Parameter(a.float().to(model.device)),
            nn.Parameter(b.float().to(model.device)),
        )
    return LoraAdapter(
        rank=rank,
        alpha=alpha,
        pairs=pairs,
        base_name=str(config.get("base_model_name_or_path")),
    )


def _plain_lora(
    config: Any, names: Sequence[str], directory: Path
) -> tuple[int, float]:
    """Rank and alpha of a configuration that is plain LoRA's."""
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(
            f"{directory}: adapter of kind {got_text(kind)}; only plain LoRA adapters "
            "can be read"
        )
    special = [option for option in _NOT_PLAIN if config.get(option)]
    if config.get("bias", "none") != "none":
        special.append("bias")
    others = [k for k in names if ".lora_A." not in k and ".lora_B." not in k]
    if special or others:
        raise ModelError(
            f"{directory}: not a plain LoRA adapter: it uses "
            f"{shown([*special, *others])}; train it without, or merge it with PEFT "
            "and load the merged model"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _is_number(rank) or int(rank) != rank or rank < 1 or not _is_number(alpha):
        raise ModelError(
            f"{directory}: damaged: got r {got_text(rank)} and lora_alpha "
            f"{got_text(alpha)}, expected a whole number from 1 and a number"
        )
    return int(rank), float(alpha)


def _is_number(value: object) -> bool:
    """A finite number, far from the largest one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST


def _paired(
    tensors: Mapping[str, Tensor], directory: Path
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by module name, each once, two-dimensional, fitting and finite."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for key, a in tensors.items():
        if ".lora_A." not in key:
            continue
        name = key.removeprefix(_PREFIX).split(".lora_A.")[0]
        b = tensors.get(key.replace(".lora_A.", ".lora_B."))
        if b is None:
            raise ModelError(f"{directory}: damaged: lora_B is missing for {name!r}")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ModelError(
                f"{directory}: damaged: {name!r} has an A of {tuple(a.shape)} and a B of "
                f"{tuple(b.shape)}; expected [rank, in] and [out, rank]"
            )
        if not all(bool(torch.isfinite(t.float()).all()) for t in (a, b)):
            raise ModelError(f"{directory}: damaged: {name!r} holds no finite numbers")
        found[name] = (a, b)
    if 2 * len(found) != len(tensors) or not found:
        raise ModelError(
            f"{directory}: damaged: {len(tensors)} matrices for {len(found)} modules; "
            "expected an A and a B for each, and at least one"
        )
    return found


def _check_fit(model: Model, name: str, a: Tensor, b: Tensor, where: Path) -> None:
    modules = dict(model.module.named_modules())
    if name not in modules:
        raise VectorMismatchError(
            f"{where}: the adapter changes {name!r}, which {model.name!r} has not; "
            "use the base model that the adapter was trained on"
        )
    if matrix_kind(f"{name}.weight", model.module) not in ("attention", "mlp"):
        raise ModelError(
            f"{where}: the adapter changes {name!r}, which is not inside a block; "
            "merge it with PEFT and load the merged model"
        )
    expected = _shape(modules[name])
    if (b.shape[0], a.shape[1]) != expected:
        raise VectorMismatchError(
            f"{where}: {name!r} has the shape {(b.shape[0], a.shape[1])}, the model's "
            f"is {expected}; use the base model that the adapter was trained on"
        )


@torch.no_grad()
def merge_adapter(model: Model, adapter: LoraAdapter) -> Model:
    """Adds the adapter's product to the weights for good; returns the same model.

    Raises:
        ModelError: Weights are kept on the processor or on disk between passes.
    """
    check_in_memory(model.module, "merging an adapter")
    for name, (a, b) in adapter.pairs.items():
        module = model.module.get_submodule(name)
        weight = module.weight
        assert isinstance(weight, Tensor)
        change = (b @ a).to(weight.device) * adapter.scale
        if isinstance(module, Conv1D):
            change = change.t()
        weight.add_(change.to(weight.dtype))
    return model
