"""Loads any Hugging Face causal language model and keeps what undertow needs of it.

From a registry name, a local folder, a GGUF file or a hub name; never with remote
code, never from pickles. dtype and device are chosen with a reason that is recorded.
Knows nothing of what the model is used for.
"""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from undertow.errors import ModelError, shown
from undertow.models import registry
from undertow.models.architecture import Architecture, find_architecture
from undertow.models.chat import ChatTemplate, choose_template
from undertow.models.gguf_header import check_gguf
from undertow.models.placement import (
    DeviceMap,
    bring_back,
    check_device_map,
    check_map_name,
    computing_device,
    described,
    is_kept_elsewhere,
    named_weights,
)
from undertow.storage import write_json, writing

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_FACTS = "undertow.json"
# Tokens that end a turn in the chat formats of the known families.
_TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "</s>")


@dataclass(frozen=True)
class Model:
    """A loaded model with its tokenizer, template and parts.

    Attributes:
        name: As it was asked for.
        module: The Hugging Face model, in eval mode, frozen.
        tokenizer: Its tokenizer.
        template: The chat template in use.
        architecture: Blocks, norm, unembedding, embedding.
        device: Where it is; of a model on several devices, where tokens go in and
            states and logits come out.
        dtype: Of its weights.
        reason: Why this dtype and device.
        fingerprint: 16 hexadecimal digits of the weights' names, shapes and a sample.
        end_ids: Tokens that end an answer, the one used for training first.
        context: Longest sequence in tokens.
        is_split: Whether its parts lie on several devices, or come only for a pass.
    """

    name: str
    module: Any
    tokenizer: Any
    template: ChatTemplate
    architecture: Architecture
    device: torch.device
    dtype: torch.dtype
    reason: str
    fingerprint: str
    end_ids: tuple[int, ...]
    context: int
    is_split: bool = False


def choose_device(wanted: str = "auto") -> tuple[torch.device, str]:
    """The device to use, and why."""
    if wanted != "auto":
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise ModelError(f"device {wanted!r}: no CUDA device; use 'cpu' or 'auto'")
        try:
            return torch.device(wanted), f"device {wanted} as asked"
        except RuntimeError as error:
            raise ModelError(
                f"device {wanted!r}: torch knows no such device; use 'auto', 'cpu' or "
                "'cuda'"
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda"), f"device cuda: {torch.cuda.get_device_name()}"
    return torch.device("cpu"), "device cpu: there is no CUDA device"


def _bf16_units() -> str | None:
    """The processor's bf16 instructions, or None."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    checks = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "AVX-512 BF16" if checks is not None and checks() else None


def choose_dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to use, and why."""
    if wanted != "auto":
        if wanted not in _DTYPES:
            raise ModelError(
                f"dtype {wanted!r}: expected auto or one of {list(_DTYPES)}"
            )
        return _DTYPES[wanted], f"{wanted} as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "bfloat16: the GPU computes it"
        return torch.float32, "float32: the GPU has no bfloat16"
    units = _bf16_units()
    if units:
        return torch.bfloat16, f"bfloat16: the processor has {units}"
    return torch.float32, "float32: the processor has no bfloat16 units"


def _load_from(
    source: str,
    dtype: torch.dtype,
    attention: str | None,
    device_map: DeviceMap | None,
) -> tuple[Any, Any]:
    """Model and tokenizer from a folder, a GGUF file or the hub."""
    options: dict[str, Any] = {"trust_remote_code": False}
    path = Path(source)
    if path.suffix == ".gguf":
        check_gguf(path)
        source, options["gguf_file"] = str(path.parent), path.name
    options |= registry.without_waiting(source)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if device_map is not None:
        _check_fit(source, options, device_map)
        options["device_map"] = device_map
    if attention:
        options["attn_implementation"] = attention
    if path.suffix != ".gguf":
        options["use_safetensors"] = True
    module, report = _with_weights(source, dtype, options)
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise ValueError(f"weights are missing: {shown(missing, limit=3)}")
    return module, tokenizer


def _with_weights(
    source: str, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The model, and what was missing; weights put on disk go when the model does."""
    loading: Any = AutoModelForCausalLM.from_pretrained
    options = options | {"dtype": dtype, "output_loading_info": True}
    if "device_map" not in options:
        module, report = loading(source, **options)
        return module, report
    folder = tempfile.mkdtemp(prefix="undertow-weights-")
    try:
        module, report = loading(source, offload_folder=folder, **options)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(module, shutil.rmtree, folder, ignore_errors=True)
    return module, report


def _check_fit(source: str, options: dict[str, Any], device_map: DeviceMap) -> None:
    """Compares a map with the model's parts before any weight is read."""
    if isinstance(device_map, str):
        check_map_name(device_map)
        return
    config = AutoConfig.from_pretrained(source, **options)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    check_device_map(skeleton, device_map)


def load_model(
    name_or_path: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    template: str | None = None,
    blocks_path: str | None = None,
    norm_path: str | None = None,
    attention: str | None = None,
) -> Model:
    """Loads a model, frozen and in eval mode.

    Args:
        name_or_path: Registry name, local folder, GGUF file or hub name.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", "cuda:1" …
        device_map: For models larger than one device: "auto", "balanced",
            "balanced_low_0", "sequential", or the device ("cpu", "disk" or a GPU's
            number) of each part by its dotted name. What does not fit on devices is
            kept on the processor and on disk and brought for each pass.
        template: Named chat template, for tokenizers that have none.
        blocks_path: Where the decoder blocks are, if they are not found.
        norm_path: Where the final norm is, if it is not found.
        attention: Attention implementation of transformers; None takes its default.

    Raises:
        ModelError: It cannot be found, read, verified or rendered for, or the device
            map does not fit it.
    """
    source = str(registry.resolve(str(name_or_path)))
    chosen_device, why_device = _choose_place(device, device_map)
    chosen_dtype, why_dtype = choose_dtype(dtype, chosen_device)
    try:
        with registry.quiet():
            module, tokenizer = _load_from(source, chosen_dtype, attention, device_map)
    except ModelError:
        raise
    except Exception as error:  # what others raise at damaged files is not foretold
        raise ModelError(_not_loaded(str(name_or_path), error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # tokenizers, at a bad vocabulary
            raise
        raise ModelError(_not_loaded(str(name_or_path), error)) from error
    if not any(True for _ in module.parameters()):
        raise ModelError(f"{name_or_path!r}: the model has no weights")
    if device_map is None:
        module = module.to(chosen_device)
    else:
        places = getattr(module, "hf_device_map", {"": str(module.device)})
        why_device += f" ({described(places)})"
    return wrap(
        str(name_or_path),
        module,
        tokenizer,
        template=template,
        reason=f"{why_dtype}; {why_device}",
        blocks_path=blocks_path,
        norm_path=norm_path,
    )


def _choose_place(
    device: str, device_map: DeviceMap | None
) -> tuple[torch.device, str]:
    """Where a model computes in the main, and why."""
    if device_map is None:
        return choose_device(device)
    if device != "auto":
        raise ModelError(
            f"device {device!r} and a device map: give one of them; a map names the "
            "device of every part"
        )
    if isinstance(device_map, str):
        return choose_device()[0], f"device map {device_map!r}"
    only = set(map(str, device_map.values())) <= {"cpu", "disk"}
    return choose_device("cpu" if only else "auto")[0], "device map as given"


def _not_loaded(name: str, error: BaseException) -> str:
    first = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
    known = ", ".join(entry.name for entry in registry.entries())
    return (
        f"model {name!r} cannot be loaded: {type(error).__name__}: {first}. Expected a "
        f"short name ({known}), a folder with config.json and safetensors weights, a "
        ".gguf file, or a hub name where the hub can be reached; pickled weights and "
        "remote code are never loaded"
    )


def wrap(
    name: str,
    module: Any,
    tokenizer: Any,
    *,
    template: str | None = None,
    reason: str,
    blocks_path: str | None = None,
    norm_path: str | None = None,
) -> Model:
    """A `Model` around a Hugging Face model that is already in memory."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(requires_grad=False)
    chat = choose_template(tokenizer, template)
    config = module.config.get_text_config()
    weight = next(module.parameters())
    device = computing_device(module.get_input_embeddings())
    is_split = _is_split(module)
    if is_split:
        bring_back(module, device)
    return Model(
        name=name,
        module=module,
        tokenizer=tokenizer,
        template=chat,
        architecture=find_architecture(
            module, blocks_path=blocks_path, norm_path=norm_path
        ),
        device=device,
        dtype=weight.dtype,
        reason=reason,
        fingerprint=fingerprint(module),
        end_ids=_end_ids(module, tokenizer, chat),
        context=int(config.max_position_embeddings),
        is_split=is_split,
    )


def _is_split(module: Any) -> bool:
    places = {computing_device(part) for part in _leaves(module)}
    return len(places) > 1 or is_kept_elsewhere(module)


def _leaves(module: Any) -> Iterable[torch.nn.Module]:
    """The parts that own parameters themselves."""
    for part in module.modules():
        if next(part.parameters(recurse=False), None) is not None:
            yield part


def fingerprint(module: Any) -> str:
    """16 hexadecimal digits that change with the shape or the weights of a model.

    From every parameter's name and shape and 64 evenly spaced values of it, in
    bfloat16, so that a model has one fingerprint in each dtype it is loaded in.
    """
    digest = hashlib.sha256()
    for name, parameter in named_weights(module):
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // 64)
        values = flat[::step][:64].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def _end_ids(module: Any, tokenizer: Any, chat: ChatTemplate) -> tuple[int, ...]:
    """End tokens: of the turn first, then what the model itself stops at."""
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    if chat.name == "plain":  # a pretrained model ends an answer with its line
        found += _single(tokenizer, "\n")
    found += [vocabulary[t] for t in _TURN_ENDS if t in chat.text and t in vocabulary]
    for source in (module.generation_config.eos_token_id, tokenizer.eos_token_id):
        if source is not None:
            found += source if isinstance(source, list) else [source]
    ids = tuple(dict.fromkeys(found))
    if not ids:
        raise ModelError(
            "no end token: neither the tokenizer nor the model's generation "
            "configuration names one; set tokenizer.eos_token"
        )
    return ids


def _single(tokenizer: Any, text: str) -> Iterable[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids if len(ids) == 1 else []


def save_checkpoint(
    model: Model, directory: Path, *, provenance: dict[str, Any]
) -> Path:
    """Writes weights (safetensors), tokenizer and provenance; `load_model` reads it.

    The folder appears under its name only when everything is in it. A checkpoint that
    was written there before is replaced.

    Raises:
        ModelError: The folder holds something else.
        RunError: The disk is full, or the place cannot be written.
    """
    ours = (directory / _FACTS).exists()
    if directory.exists() and not ours and any(directory.iterdir()):
        raise ModelError(
            f"{directory}: holds other files than a checkpoint of undertow's; choose "
            "a new folder"
        )
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with registry.quiet(), writing(directory):
        partial.mkdir(parents=True)
        model.module.save_pretrained(partial, safe_serialization=True)
        model.tokenizer.save_pretrained(partial)
    facts = {"format": 1, "base": model.name, "fingerprint": model.fingerprint}
    write_json(partial / _FACTS, facts | {"provenance": provenance})
    if ours:
        shutil.rmtree(directory)
    partial.replace(directory)
    return directory
