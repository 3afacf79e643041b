"""Where the parts of a model lie, if not all on one device.

Blocks may lie on several devices, and on the processor or on disk until a pass needs
them: accelerate's hooks bring weights and states to where each part computes. Weights
that are kept elsewhere are no tensors between passes; here they can be read. Knows
nothing of how a model is loaded or used.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from undertow.errors import ModelError, shown

DeviceMap = str | Mapping[str, int | str]
NAMES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Maps that are made from the memory that devices have free."""


def read_device_map(text: str) -> DeviceMap:
    """A map as it is given on a command line: a name, JSON, or a file of JSON.

    Raises:
        ModelError: It is none of these.
    """
    if text in NAMES:
        return text
    path = Path(text)
    try:
        given = text if text.lstrip().startswith("{") else path.read_text("utf-8")
        found = json.loads(given)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"device map {text[:80]!r}: {error}; expected one of {', '.join(NAMES)}, or "
            'JSON such as {"model.embed_tokens": 0, "model.layers.0": 1, …}, or a file of it'
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(place, int | str) and not isinstance(place, bool)
        for place in found.values()
    ):
        raise ModelError(
            f"device map {text[:80]!r}: expected names of modules, each with a device: "
            "the number of a GPU, 'cpu' or 'disk'"
        )
    return found


def check_map_name(name: str) -> None:
    """Refuses names of maps that there are not.

    Raises:
        ModelError: It is none of `NAMES`.
    """
    if name not in NAMES:
        raise ModelError(
            f"device map {name!r}: expected one of {', '.join(NAMES)}, or a device for "
            "each part of the model"
        )


def check_device_map(module: nn.Module, device_map: Mapping[str, int | str]) -> None:
    """Refuses a map of parts that does not fit a model, which may be without weights.

    Raises:
        ModelError: An unknown module or device, or a part without a place.
    """
    known = {"", *(n for n, _ in module.named_modules()),
             *(n for n, _ in module.named_parameters())}  # fmt: skip
    faults = []
    if unknown := [name for name in device_map if name not in known]:
        parts = [name for name, _ in module.named_modules() if name.count(".") <= 1]
        faults.append(
            f"the model has no {shown(unknown, limit=3)}; it has {shown(parts[1:])}"
        )
    if left := _without_place(module, device_map):
        faults.append(f"no device for {shown(left, limit=3)}")
    faults += [
        f"{name!r}: {fault}"
        for name, place in device_map.items()
        if (fault := _misplaced(place))
    ]
    if faults:
        raise ModelError(f"device map: {'; '.join(faults[:5])}")


def _without_place(module: nn.Module, device_map: Mapping[str, Any]) -> list[str]:
    """The modules that own parameters under no name of the map, outermost first."""
    names = [n for n, _ in module.named_parameters() if not _place(n, device_map)]
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    blocks = dict.fromkeys(_up_to_number(owner) for owner in owners)
    return list(blocks)


def _up_to_number(name: str) -> str:
    """A part of a block as its block: "model.layers.3.mlp.up_proj" is in the fourth."""
    parts = name.split(".")
    ends = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: ends[0] + 1]) if ends else name


def _place(name: str, device_map: Mapping[str, Any]) -> bool:
    return "" in device_map or any(
        name == owner or name.startswith(f"{owner}.") for owner in device_map
    )


def _misplaced(place: object) -> str | None:
    """What is wrong with a device of a map."""
    if place in ("cpu", "disk"):
        return None
    number = place
    if isinstance(place, str) and place.startswith("cuda"):
        number = int(place[5:] or 0) if place[5:].isdigit() or place == "cuda" else None
    if not isinstance(number, int):
        return f"got {place!r}, expected the number of a GPU, 'cuda:1', 'cpu' or 'disk'"
    count = torch.cuda.device_count()
    if not 0 <= number < count:
        return f"there is no CUDA device {number}: this machine has {count}"
    return None


def computing_device(module: nn.Module) -> torch.device:
    """Where a part of a model computes; its weights may be kept elsewhere.

    Args:
        module: Any part that has parameters.
    """
    for part in module.modules():
        for hook in _hooks(part):
            place = getattr(hook, "execution_device", None)
            if place is not None:
                return torch.device(place)  # a number is a GPU's
        own = next(part.parameters(recurse=False), None)
        if own is not None:
            return own.device
    raise ModelError(
        f"{type(module).__name__}: has no weights; expected a model's part"
    )


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A parameter of a module itself, brought to where it computes if it is elsewhere."""
    weight = getattr(module, name)
    assert isinstance(weight, Tensor)
    if weight.device.type != "meta":
        return weight
    for hook in _hooks(module):
        if getattr(hook, "weights_map", None) is not None:
            kept: Tensor = hook.weights_map[name]
            return kept.to(computing_device(module), weight.dtype)
    raise ModelError(
        f"{type(module).__name__}: its {name} is nowhere: it was never loaded; load the "
        "model anew"
    )


def _hooks(module: nn.Module) -> Sequence[Any]:
    hook = getattr(module, "_hf_hook", None)
    several: Sequence[Any] = getattr(hook, "hooks", [hook])
    return several


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, with its values, wherever they are kept.

    Weights that are tied are one parameter only as long as they lie in one place.
    """
    spread = any(hasattr(part, "_hf_hook") for part in module.modules())
    tied = getattr(module, "all_tied_weights_keys", None) if spread else None
    for name, parameter in module.named_parameters():
        owner, _, own = name.rpartition(".")
        if tied and tied.get(name, name) != name:
            first = dict(module.named_parameters()).get(tied[name])
            if first is not None and first is not parameter:
                continue
        if parameter.device.type == "meta":
            yield name, weight_of(module.get_submodule(owner), own)
        else:
            yield name, parameter


def is_kept_elsewhere(module: nn.Module) -> bool:
    """Whether some weights are only there while a pass needs them."""
    return any(parameter.device.type == "meta" for parameter in module.parameters())


def check_in_memory(module: nn.Module, what: str, *, shards: bool = False) -> None:
    """Refuses to change weights that are not there, or not whole, between passes.

    Args:
        module: The model.
        what: What would change them.
        shards: Whether it can do with a part of each.

    Raises:
        ModelError: Some are kept on the processor or on disk, or are shards.
    """
    if not shards and any(isinstance(each, DTensor) for each in module.parameters()):
        raise ModelError(
            f"{what} changes weights in place, and this process holds a part of them; "
            "do it in one process, without accelerate launch"
        )
    if is_kept_elsewhere(module):
        raise ModelError(
            f"{what} changes weights in place, and some of this model's are kept on "
            "the processor or on disk until a pass needs them: a change would be lost. "
            "Load the model without a device map or with one that names no 'disk' (and, "
            "beside GPUs, no 'cpu'), on a machine that holds it; or train a LoRA, which "
            "leaves weights alone"
        )


def bring_back(module: Any, device: torch.device) -> None:
    """Lets states and logits come back to where tokens go in, whatever computes them.

    So who calls a model needs to know one device, as if it lay there.
    """

    def bring(_: nn.Module, __: Any, output: Any) -> Any:
        return send_to_device(output, device, skip_keys="past_key_values")

    for part in (module.base_model, module.get_output_embeddings()):
        part.register_forward_hook(bring)


def described(device_map: Mapping[str, Any]) -> str:
    """How many parts lie where: "cuda:0 14, cpu 3"."""
    places = [
        f"cuda:{p}" if isinstance(p, int) else str(p) for p in device_map.values()
    ]
    return ", ".join(
        f"{place} {places.count(place)}" for place in dict.fromkeys(places)
    )
