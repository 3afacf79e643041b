"""Steering vectors as llama.cpp's control vectors: GGUF files, written and read.

Such a file holds one float32 tensor `direction.N` a block. llama.cpp adds it to the
stream *after* block N, counted from 0, at every position; `direction.0` is refused, so
the stream after the first block cannot be reached. Numbers are thus undertow's own
layers, without shift, though they start at 1. repeng writes the same. Knows nothing of
models kept as GGUF.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import VectorMismatchError, shown
from undertow.interventions.extraction import last_token_states
from undertow.interventions.steering import SteeringVector, check_vector, checksum
from undertow.models.chat import render_prompt
from undertow.models.gguf_header import check_gguf
from undertow.models.loading import Model
from undertow.records import Message
from undertow.storage import replacing

ARCHITECTURE = "controlvector"
FACTS = "undertow.vector"
"""The field with what GGUF has no place for; other readers pass it over."""
CHECKSUM = "undertow.crc32"
"""The field with the checksum of those facts and of the directions."""
PROMPTS = ("Tell me about yourself.", "Name one thing you like, and say why.",
           "Continue this list: 3, 14, 15, 92.")  # fmt: skip
"""On which the stream is measured for a vector that does not say how long it is."""
_UNREADABLE = (OSError, KeyError, ValueError, TypeError, IndexError, AttributeError,
               OverflowError, RecursionError)  # fmt: skip


def write_control_vector(
    vector: SteeringVector,
    path: Path | str,
    *,
    strength: float = 1.0,
    model_hint: str = "",
) -> Path:
    """Writes a vector as llama.cpp's `--control-vector` and repeng read it.

    Args:
        vector: With directions after any blocks but the first.
        path: The file, best named .gguf; replaced whole if it is there.
        strength: Factor of every direction, so that the engine needs none.
        model_hint: Architecture as GGUF names it ("llama"); llama.cpp ignores it.

    Raises:
        VectorMismatchError: The vector has a direction for layer 0.
        RunError: The disk is full, or the place cannot be written.
    """
    from gguf import GGUFWriter

    if 0 in vector.layers:
        raise VectorMismatchError(
            f"the vector has directions for layers {list(vector.layers)}; llama.cpp "
            "adds nothing after block 0: take others, with vector.at(...)"
        )
    facts = {
        "method": vector.method, "trait": vector.trait, "n": vector.n,
        "fingerprint": vector.fingerprint, "model_name": vector.model_name,
        "residual_norms": dict(zip(map(str, vector.layers), vector.residual_norms,
                                   strict=True)),
        "strength": strength, "notes": dict(vector.notes),
    }  # fmt: skip
    text = json.dumps(facts)
    with replacing(path) as draft:
        writer = GGUFWriter(draft, ARCHITECTURE)
        try:
            writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vector.layers))
            directions = (strength * vector.directions).float().cpu().contiguous()
            writer.add_string(FACTS, text)
            writer.add_string(CHECKSUM, checksum(text, directions))
            for layer, direction in zip(vector.layers, directions, strict=True):
                writer.add_tensor(f"direction.{layer}", direction.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return Path(path)


def read_control_vector(
    model: Model,
    path: Path | str,
    *,
    trait: str | None = None,
    prompts: Sequence[str] = PROMPTS,
) -> SteeringVector:
    """Reads a control vector for this model; at strength 1 it acts as in llama.cpp.

    A file of undertow's own keeps its origin and belongs to its model. One made
    elsewhere is taken to be this model's, and the stream's norms, of which doses are
    shares, are measured on `prompts`.

    Args:
        model: The one that the vector is for.
        path: A GGUF file of control vectors.
        trait: What it stands for; None: what the file says, if anything.
        prompts: User turns on which the stream is measured, if the file lacks it.

    Raises:
        VectorMismatchError: No such file, or not of this model.

    Cost: a pass over the prompts, if norms are measured.
    """
    found, facts = _read(path)
    layers = tuple(sorted(found))
    norms = facts.get("residual_norms")
    vector = SteeringVector(
        directions=torch.stack([found[layer] for layer in layers]),
        layers=layers,
        method=str(facts.get("method", "imported")),
        trait=trait if trait is not None else facts.get("trait"),
        n=int(facts.get("n", 0)),
        fingerprint=str(facts.get("fingerprint", model.fingerprint)),
        model_name=str(facts.get("model_name", model.name)),
        residual_norms=(1.0,) * len(layers)
        if norms is None
        else tuple(float(norms[str(layer)]) for layer in layers),
        notes=MappingProxyType(
            {"from": Path(path).name} | dict(facts.get("notes", {}))
        ),
    )
    check_vector(model, vector)
    return vector if norms is not None else _measured(model, vector, prompts)


def _measured(
    model: Model, vector: SteeringVector, prompts: Sequence[str]
) -> SteeringVector:
    """The vector with the norms of this model's stream."""
    tokens = [render_prompt(model, (Message("user", text),)) for text in prompts]
    _, norms = last_token_states(model, tokens, vector.layers)
    return replace(vector, residual_norms=tuple(norms))


def _read(
    path: Path | str,
) -> tuple[dict[int, Float[Tensor, " hidden"]], Mapping[str, Any]]:
    """Directions by layer, and what undertow wrote beside them."""
    from gguf import GGUFReader

    try:
        check_gguf(Path(path))
        reader = GGUFReader(path)
        directions = _directions(reader.tensors)
        field, told = reader.get_field(FACTS), reader.get_field(CHECKSUM)
        text = "{}" if field is None else field.contents()
        if told is not None and told.contents() != _checksum(text, directions):
            raise ValueError("damaged: its checksum does not fit")
        facts = json.loads(text)
        _check_facts(facts, directions)
    except _UNREADABLE as error:
        raise VectorMismatchError(
            f"{path}: no control vector ({type(error).__name__}: {error}); expected a "
            "GGUF file with float32 tensors direction.1, direction.2 …, as repeng and "
            "llama.cpp's cvector-generator write them"
        ) from error
    return directions, facts


def _checksum(text: str, directions: Mapping[int, Tensor]) -> str:
    """Of directions in the order of the file."""
    return checksum(text, torch.stack(list(directions.values())))


def _directions(tensors: Sequence[Any]) -> dict[int, Float[Tensor, " hidden"]]:
    """One direction a layer.

    Raises:
        ValueError: Another tensor, kind or shape, numbers that are not finite, or none.
    """
    found: dict[int, Tensor] = {}
    for tensor in tensors:
        match = re.fullmatch(r"direction\.([1-9]\d{0,5})", tensor.name)
        if match is None:
            raise ValueError(f"got tensor {shown([tensor.name])}")
        values = np.array(tensor.data)
        if tensor.tensor_type.name != "F32" or values.ndim != 1:
            raise ValueError(f"{tensor.name} is {tensor.tensor_type.name} of shape "
                             f"{values.shape}, expected F32 of one dimension")  # fmt: skip
        if not np.isfinite(values).all():
            raise ValueError(f"{tensor.name} holds numbers that are not finite")
        found[int(match[1])] = torch.from_numpy(values)
    if len({len(values) for values in found.values()}) != 1:
        raise ValueError(f"{len(found)} directions, of lengths "
                         f"{sorted({len(v) for v in found.values()})}")  # fmt: skip
    return found


def _check_facts(facts: Any, directions: Mapping[int, Tensor]) -> None:
    """Refuses facts that are none; absent ones are well.

    Raises:
        KeyError: No norm for a layer.
        TypeError: Something of another kind.
        ValueError: A norm that is none, or a number.
    """
    if not isinstance(facts, dict) or not isinstance(facts.get("notes", {}), dict):
        raise TypeError(f"{FACTS} is no mapping")
    if not isinstance(facts.get("trait"), str | None):
        raise TypeError(f"{FACTS}: the trait is no text")
    int(facts.get("n", 0))
    norms = facts.get("residual_norms")
    if norms is None:
        return
    for layer in directions:
        if not 0 < float(norms[str(layer)]) < float("inf"):
            raise ValueError(f"{FACTS}: the stream's norm after {layer} is no length")
