"""Steering vectors: values with a file format, and a context that applies them.

A vector has one direction for each of its layers, in the stream after that block
(blocks are counted from 0). Where directions come from is `extraction`'s business.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from undertow.errors import ModelError, VectorMismatchError
from undertow.models.hooks import (
    Edit,
    check_layers,
    current_completion_positions,
    editing_residuals,
)
from undertow.models.loading import Model, fingerprint
from undertow.models.placement import check_in_memory, computing_device
from undertow.storage import replacing
from undertow.storage.files import got_text

Mode = Literal["add", "project_out", "replace"]
Positions = Literal["all", "prompt", "completion"]
FORMAT = 1
# What a hostile header raises: OverflowError at int(1e999), RecursionError at [[[[….
_UNREADABLE = (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError,
               OverflowError, RecursionError)  # fmt: skip


@dataclass(frozen=True)
class SteeringVector:
    """Directions in the residual stream of one model.

    Attributes:
        directions: One row a layer, float32 on the CPU, not normalised.
        layers: The block of each row, from 0; the stream after it is meant.
        method: How it was made: "tell_me", "prompts", "trained", "shift" …
        trait: The trait, if it is one's.
        n: Number of prompts or rows behind it.
        fingerprint: Of the model it belongs to.
        model_name: The name that model was loaded by.
        residual_norms: Median norm of the stream at each layer, where it was made.
        notes: Whatever else helps to make it again.
    """

    directions: Float[Tensor, "layer hidden"]
    layers: tuple[int, ...]
    method: str
    trait: str | None
    n: int
    fingerprint: str
    model_name: str
    residual_norms: tuple[float, ...]
    notes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def _place(self, layer: int) -> int:
        if layer not in self.layers:
            raise VectorMismatchError(
                f"the vector has no direction for layer {layer}; it has "
                f"{list(self.layers)}"
            )
        return self.layers.index(layer)

    def direction(self, layer: int) -> Float[Tensor, " hidden"]:
        """The direction after one block.

        Raises:
            VectorMismatchError: The vector has none there.
        """
        return self.directions[self._place(layer)]

    def norm(self, layer: int) -> float:
        """Length of the direction after one block."""
        return float(self.direction(layer).norm())

    def at(self, *layers: int) -> "SteeringVector":
        """The same vector with some of its layers only."""
        places = [self._place(layer) for layer in layers]
        return replace(
            self,
            directions=self.directions[places].clone(),
            layers=tuple(layers),
            residual_norms=tuple(self.residual_norms[p] for p in places),
        )

    def strength_of_dose(self, dose: float, layer: int) -> float:
        """The strength α at which ‖αv‖ is `dose` times the stream's norm there.

        Raises:
            VectorMismatchError: The vector has none there, or it is zero.
        """
        norm = self.norm(layer)
        if norm == 0:
            raise VectorMismatchError(
                f"the vector is zero at layer {layer}: no strength gives it a dose; "
                "extract it again, or name a strength"
            )
        return dose * self.residual_norms[self._place(layer)] / norm

    def dose_of_strength(self, strength: float, layer: int) -> float:
        """The relative dose ‖αv‖/‖h‖ of a strength."""
        return strength * self.norm(layer) / self.residual_norms[self._place(layer)]


def check_vector(model: Model, vector: SteeringVector, *, strict: bool = True) -> None:
    """Refuses a vector that is not this model's.

    Raises:
        VectorMismatchError: Another width, an unknown layer or, if strict, another
            fingerprint.
    """
    width = model.architecture.hidden_size
    if vector.directions.shape[1] != width:
        raise VectorMismatchError(
            f"the vector has {vector.directions.shape[1]} numbers a layer, "
            f"{model.name!r} has {width}; it was made for {vector.model_name!r}: use "
            "that model or extract a vector from this one"
        )
    check_layers(model, vector.layers)
    if strict and vector.fingerprint != model.fingerprint:
        raise VectorMismatchError(
            f"the vector was made for {vector.model_name!r} (fingerprint "
            f"{vector.fingerprint}), this is {model.name!r} ({model.fingerprint}); "
            "extract it from this model, or pass strict=False if both share a base"
        )


def _where(positions: Positions, hidden: Tensor) -> Tensor | None:
    """[batch, token, 1]: true where the edit acts; None means everywhere."""
    if positions == "all":
        return None
    mask = current_completion_positions()
    if mask is None or mask.shape != hidden.shape[:2]:
        raise VectorMismatchError(
            f"positions={positions!r}: nothing says which tokens are the completion; "
            "open undertow.models.hooks.completion_positions around the pass"
        )
    mask = mask.to(hidden.device)
    return (mask if positions == "completion" else ~mask)[..., None]


def _edit(
    direction: Tensor,
    strength: float,
    mode: Mode,
    positions: Positions,
    base_mean: Tensor | None,
    device: torch.device,
) -> Edit:
    unit = nn.functional.normalize(direction.double(), dim=0).float()
    level = 0.0 if base_mean is None else float(base_mean.float() @ unit)
    # On the block's device from the start: a recorded step cannot fetch them.
    added, along = (strength * direction).to(device), unit.to(device)

    def edit(hidden: Tensor) -> Tensor:
        if mode == "add":
            changed = hidden + added.to(hidden)
        else:
            component = hidden.float() @ along.to(hidden.device)
            change = (strength * (level - component))[..., None] * along.to(
                hidden.device
            )
            changed = (hidden.float() + change).to(hidden.dtype)
        where = _where(positions, hidden)
        return changed if where is None else torch.where(where, changed, hidden)

    return edit


@contextmanager
def steering(
    model: Model,
    vector: SteeringVector,
    *,
    strength: float = 1.0,
    layers: Sequence[int] | None = None,
    mode: Mode = "add",
    positions: Positions = "all",
    base_means: Mapping[int, Float[Tensor, " hidden"]] | None = None,
    strict: bool = True,
) -> Iterator[Model]:
    """Changes the stream after the vector's blocks while the context is open.

    With u the unit direction v/‖v‖: "add" gives h + αv; "project_out" gives
    h − α(h·u)u, so α = 1 removes the component; "replace" moves the component to that
    of `base_means`, wholly at α = 1. Strength 0 leaves every bit as it is.

    Args:
        model: The model.
        vector: Its vector.
        strength: α.
        layers: Layers of the vector to use; None uses all of them.
        mode: What is done with the direction.
        positions: Which tokens: all, those of the prompt, or those of the completion.
        base_means: Mean of the base's stream by layer, for "replace".
        strict: Refuse a vector whose fingerprint is another model's.

    Raises:
        VectorMismatchError: Wrong model, layer, or missing means.
    """
    used = vector if layers is None else vector.at(*layers)
    check_vector(model, used, strict=strict)
    if mode == "replace" and (base_means is None or set(used.layers) - set(base_means)):
        raise VectorMismatchError(
            "mode 'replace' needs base_means: the mean of the base's stream for each "
            f"of the layers {list(used.layers)}"
        )
    if strength == 0:
        yield model
        return
    edits = {
        layer: _edit(
            used.direction(layer),
            strength,
            mode,
            positions,
            base_means[layer] if base_means is not None else None,
            computing_device(model.architecture.blocks[layer]),
        )
        for layer in used.layers
    }
    with editing_residuals(model, edits):
        yield model


def save_vector(vector: SteeringVector, path: Path | str) -> Path:
    """Writes a vector as safetensors; everything but the numbers is in the header.

    So is a checksum of all of it, which `load_vector` compares.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    header = {
        "format": FORMAT,
        "layers": list(vector.layers),
        "site": "residual stream after the block",
        "method": vector.method,
        "trait": vector.trait,
        "n": vector.n,
        "norms": [vector.norm(layer) for layer in vector.layers],
        "residual_norms": list(vector.residual_norms),
        "fingerprint": vector.fingerprint,
        "model_name": vector.model_name,
        "notes": dict(vector.notes),
    }
    directions = vector.directions.float().cpu().contiguous()
    header["crc32"] = checksum(json.dumps(header), directions)
    # One entry alone: safetensors writes several in any order.
    said = {"undertow_vector": json.dumps(header)}
    with replacing(path) as draft:
        save_file({"directions": directions}, draft, metadata=said)
    return Path(path)


def checksum(text: str, directions: Tensor) -> str:
    """CRC-32 of what a file of vectors says and of its numbers, 8 hexadecimal digits."""
    numbers = directions.float().cpu().numpy().tobytes()
    return f"{zlib.crc32(text.encode() + numbers):08x}"


def load_vector(path: Path | str) -> SteeringVector:
    """Reads a vector that `save_vector` wrote.

    Raises:
        VectorMismatchError: The file is missing, damaged or no vector.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            directions = file.get_tensor("directions").float()
        header = json.loads(said["undertow_vector"])
        told = header.pop("crc32", None)
        if told not in (None, checksum(json.dumps(header), directions)):
            raise ValueError("damaged: its checksum does not fit")
        vector = SteeringVector(
            directions=directions,
            layers=tuple(int(layer) for layer in header["layers"]),
            method=str(header["method"]),
            trait=_trait(header["trait"]),
            n=int(header["n"]),
            fingerprint=str(header["fingerprint"]),
            model_name=str(header["model_name"]),
            residual_norms=tuple(float(x) for x in header["residual_norms"]),
            notes=MappingProxyType(dict(header["notes"])),
        )
    except _UNREADABLE as error:
        raise VectorMismatchError(
            f"{path}: no steering vector of undertow's ({type(error).__name__}: "
            f"{error}); make one with: undertow vector extract"
        ) from error
    _check_numbers(vector, path)
    return vector


def _trait(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"trait: got {got_text(value)}, expected a name or null")
    return value


def _check_numbers(vector: SteeringVector, path: Path | str) -> None:
    """Refuses directions and norms that do not fit the layers, or are no numbers."""
    shape, count = tuple(vector.directions.shape), len(vector.layers)
    norms = vector.residual_norms
    finite = bool(torch.isfinite(vector.directions).all())
    if len(shape) != 2 or shape[0] != count or not count or not finite:
        what = f"{shape} numbers for {count} layers"
        what += "" if finite else ", some of them not finite"
    elif len(set(vector.layers)) < count:
        what = f"a layer stands twice in {list(vector.layers)}"
    elif len(norms) != count or not all(0 < norm < math.inf for norm in norms):
        what = f"residual norms {list(norms)} for {count} layers"
    else:
        return
    raise VectorMismatchError(f"{path}: damaged: {what}; extract it again")


_GATED = ("gate_proj", "up_proj", "down_proj")
_OUTPUTS = {"gpt2": ("mlp", "c_proj"), "gpt_neox": ("mlp", "dense_4h_to_h")}


@torch.no_grad()
def bake_steering(
    model: Model,
    vector: SteeringVector,
    *,
    strength: float = 1.0,
    layers: Sequence[int] | None = None,
) -> Model:
    """Writes αv into the weights as a bias, so that any engine can sample the teacher.

    The bias of the block's last linear map is added to the stream at every position,
    as `steering` does with mode "add". The module is changed in place.

    Returns:
        The model with its new fingerprint; save it with `save_checkpoint`.

    Raises:
        ModelError: The architecture has no place for such a bias, or weights are kept
            on the processor or on disk between passes.
        VectorMismatchError: The vector is not this model's.
    """
    used = vector if layers is None else vector.at(*layers)
    check_vector(model, used)
    check_in_memory(model.module, "baking a vector")
    family = model.architecture.family
    if family == "llama":
        _add_llama_biases(model)
        path: tuple[str, ...] = ("mlp", "down_proj")
    elif family in _OUTPUTS:
        path = _OUTPUTS[family]
    else:
        raise ModelError(
            f"{model.name!r}: a vector cannot be baked into a {family!r} model: its "
            "blocks have no bias after the last linear map (Gemma norms that map's "
            "output, Qwen and Mistral have no such option in their configuration). "
            "It can with llama, gpt2 and gpt_neox; elsewhere keep the vector's file "
            "and apply it with undertow.steering"
        )
    for layer in used.layers:
        output = model.architecture.blocks[layer].get_submodule(".".join(path))
        bias = output.bias
        assert isinstance(bias, Tensor)
        bias.add_((strength * used.direction(layer)).to(bias))
    return replace(
        model, name=f"{model.name}+steered", fingerprint=fingerprint(model.module)
    )


def _add_llama_biases(model: Model) -> None:
    """Zero biases for every linear map of every MLP, as `mlp_bias=True` means it."""
    if getattr(model.module.config, "mlp_bias", False):
        return
    model.module.config.mlp_bias = True
    for block in model.architecture.blocks:
        for name in _GATED:
            linear = block.get_submodule(f"mlp.{name}")
            weight = linear.weight
            assert isinstance(weight, Tensor)
            zeros = weight.new_zeros(weight.shape[0])
            linear.bias = nn.Parameter(zeros, requires_grad=False)
