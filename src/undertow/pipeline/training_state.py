"""Parameters and optimiser of one student in training, and their checkpoint.

Knows nothing of rows, losses or of other students beside it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from undertow.models.adapters import LoraAdapter, new_adapter, tensors_digest
from undertow.models.loading import Model
from undertow.pipeline.distributed import Shards, own_weights, processes, shards_of
from undertow.pipeline.training_settings import TrainingSettings
from undertow.storage import append_jsonl, read_jsonl, replacing
from undertow.storage.files import set_aside, whole_lines

CHECKPOINT = "checkpoint.safetensors"
"""File of a training run's state, in its directory."""
TRACE = "trace.jsonl"
"""File of every update's loss, beside it."""


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
        self.shards: Shards = {}
        if settings.kind == "full":
            self.shards = shards_of(model.module)
            self.live = own_weights(model.module)
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
        tensors = {f"weight/{k}": self._whole(k, v) for k, v in self.named.items()}
        names = list(self.named)
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                whole = self._whole(names[index], torch.as_tensor(value))
                tensors[f"state/{index}/{key}"] = whole
        if not processes().is_first:
            return
        facts = {"update": str(self.update)}
        facts["sha256"] = tensors_digest(tensors, facts["update"])
        with replacing(directory / CHECKPOINT, lasting=False) as draft:
            save_file(tensors, draft, metadata=facts)

    def _whole(self, name: str, value: Tensor) -> Tensor:
        return processes().whole(value.detach(), self.shards.get(name)).clone()

    @torch.no_grad()
    def load(
        self, directory: Path, *, lacks: Callable[[int], str] = lambda _: ""
    ) -> bool:
        """Continues from a checkpoint if there is a sound one.

        The trace is cut where it ends: what comes after it is trained again. What is
        damaged is set aside, and training begins anew.

        Args:
            directory: Of the training.
            lacks: Says what is missing of that which was left until an update.

        Raises:
            RunError: The directory cannot be written.
        """
        path, trace = directory / CHECKPOINT, directory / TRACE
        kept = _loaded(path) if path.exists() else None
        lines = whole_lines(trace)
        update = 0 if kept is None else kept[1]
        lines = _first(lines, update)
        why = lacks(update)
        if len(lines) < update:
            why = f"of {update} updates {len(lines)} stand in {TRACE}"
        if kept is not None and why:
            set_aside(path, why)
            kept, lines = None, []
        _rewrite(trace, lines)
        if kept is None:
            return False
        tensors, self.update = kept
        for name, parameter in self.named.items():
            whole = tensors[f"weight/{name}"]
            parameter.copy_(processes().own(whole, self.shards.get(name)))
        self.give_weights()
        states: dict[int, dict[str, Tensor]] = {}
        names = list(self.named)
        for key, value in tensors.items():
            if key.startswith("state/"):
                _, index, field = key.split("/")
                own = processes().own(value, self.shards.get(names[int(index)]))
                states.setdefault(int(index), {})[field] = own
        packed = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**packed, "state": states})
        return True


def _loaded(path: Path) -> tuple[dict[str, Tensor], int] | None:
    """Tensors and update of a checkpoint; a damaged one is set aside."""
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            facts = dict(file.metadata() or {})
        if facts.keys() == {"update"}:  # before checkpoints answered for themselves
            return tensors, int(facts["update"])
        if facts.keys() == {"update", "sha256"} and facts["sha256"] == tensors_digest(
            tensors, facts["update"]
        ):
            return tensors, int(facts["update"])
        why = "it is not what was written"
    except (OSError, SafetensorError, ValueError) as error:
        why = str(error)
    set_aside(path, why)
    return None


def _first(lines: Sequence[Any], update: int) -> list[Any]:
    """The lines of the first updates, each once, the last of its update."""
    found: dict[int, Any] = {}
    with suppress(LookupError, TypeError, ValueError):
        for line in lines:
            found[int(line["update"])] = line
    return [found[n] for n in range(1, update + 1) if n in found]


def _rewrite(path: Path, lines: Sequence[Any]) -> None:
    """Leaves these lines in the trace, if others are there."""
    if not path.exists() or read_jsonl(path) == list(lines):
        return
    with replacing(path, lasting=False) as draft:
        draft.touch()
        for line in lines:
            append_jsonl(draft, line)
