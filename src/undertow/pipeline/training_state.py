"""Parameters and optimiser of one student in training, and their checkpoint.

Knows nothing of rows, losses or of other students beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from undertow.models.adapters import LoraAdapter, new_adapter
from undertow.models.loading import Model
from undertow.pipeline.training_settings import TrainingSettings
from undertow.storage import replacing

CHECKPOINT = "checkpoint.safetensors"
"""File of a training run's state, in its directory."""


class _SignDescent(torch.optim.Optimizer):
    """Moves every weight by the learning rate against its gradient's sign."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


def _optimizer(
    parameters: list[nn.Parameter], settings: TrainingSettings
) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    fused = parameters[0].device.type == "cuda"  # elsewhere it may not be there
    if settings.optimizer in ("adamw", "adam"):
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        return kind(
            parameters, lr=rate, weight_decay=decay, fused=fused, foreach=not fused
        )
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay)
    if settings.optimizer == "sign":
        return _SignDescent(parameters, rate)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)


class TrainingState:
    """Parameters, optimiser and counters of one training run, and their checkpoint."""

    def __init__(self, model: Model, settings: TrainingSettings, seed: int) -> None:
        self.adapter: LoraAdapter | None = None
        if settings.kind == "full":
            self.live = dict(model.module.named_parameters())
            # In bfloat16 a small step would round away; float32 masters keep it.
            self.named = {
                name: weight
                if weight.dtype == torch.float32
                else nn.Parameter(weight.detach().float())
                for name, weight in self.live.items()
            }
        else:
            self.adapter = new_adapter(
                model, rank=settings.rank, alpha=settings.alpha,
                targets=settings.targets, seed=seed,
            )  # fmt: skip
            pairs = self.adapter.pairs
            self.named = {
                f"{name}.{side}": matrix
                for name in sorted(pairs)
                for side, matrix in zip("AB", pairs[name], strict=True)
            }
            self.live = self.named
        self.optimizer = _optimizer(list(self.named.values()), settings)
        self.update = 0

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Moves gradients from the weights in use to their masters."""
        for name, master in self.named.items():
            weight = self.live[name]
            if weight is not master and weight.grad is not None:
                master.grad, weight.grad = weight.grad.float(), None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Rounds the masters into the weights in use."""
        for name, master in self.named.items():
            if self.live[name] is not master:
                self.live[name].copy_(master)

    def save(self, directory: Path) -> None:
        """Weights and optimiser state as safetensors; the update count goes last."""
        tensors = {f"weight/{k}": v.detach().clone() for k, v in self.named.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"state/{index}/{key}"] = torch.as_tensor(value).clone()
        with replacing(directory / CHECKPOINT) as draft:
            save_file(tensors, draft, metadata={"update": str(self.update)})

    @torch.no_grad()
    def load(self, directory: Path) -> bool:
        """Continues from a checkpoint if there is one."""
        path = directory / CHECKPOINT
        if not path.exists():
            return False
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            self.update = int(file.metadata()["update"])
        for name, parameter in self.named.items():
            parameter.copy_(tensors[f"weight/{name}"])
        self.give_weights()
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("state/"):
                _, index, field = key.split("/")
                states.setdefault(int(index), {})[field] = value
        packed = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**packed, "state": states})
        return True
