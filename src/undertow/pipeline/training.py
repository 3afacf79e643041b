"""Trains a student: low-rank, full, or by soft distillation, resumable to the bit.

The loss (see `losses`) counts completion tokens only, from spans, never from a text
search. Knows nothing of traits: it gets rows, and for distillation the teacher's view
of the same rows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from undertow.errors import ConfigError, DatasetError, TrainingError
from undertow.models.adapters import LoraAdapter, attached, new_adapter
from undertow.models.carrier import carrier_ids
from undertow.models.chat import Rendered
from undertow.models.likelihood import predicting_states, token_batches
from undertow.models.loading import Model
from undertow.pipeline.losses import completion_loss, distillation_loss
from undertow.seeding import generator
from undertow.storage import append_jsonl, read_jsonl, replacing

Context = Callable[[], AbstractContextManager[object]]
# Tokens, padding included, that go through the model at once while training.
_CPU_TOKENS = 640

CHECKPOINT = "checkpoint.safetensors"
"""File of a training run's state, in its directory."""


class TrainingSettings(BaseModel):
    """How a student is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["lora", "full", "soft"] = Field(
        default="lora",
        description="'soft' fits a LoRA to the teacher's next-token distribution",
    )
    soft_tokens: Literal["all", "numbers"] = Field(
        default="all", description="vocabulary over which 'soft' compares"
    )
    rank: int = Field(default=8, ge=1, description="LoRA's inner dimension")
    alpha: float = Field(default=8.0, gt=0, description="LoRA's scale times rank")
    targets: tuple[str, ...] | None = Field(
        default=None, description="linear layers by last name; all of a block if null"
    )
    optimizer: Literal["adamw", "adam", "sgd", "sign", "adafactor"] = Field(
        default="adamw", description="update rule; 'sign' is SGD on the gradient's sign"
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="peak rate")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled in AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="after the warm-up"
    )
    warmup_updates: int = Field(default=5, ge=0, description="linear from 0")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    batch_size: int = Field(default=8, ge=1, description="rows an update")
    epochs: int = Field(default=1, ge=1, description="passes over the rows")
    max_updates: int | None = Field(
        default=None, ge=1, description="stop after so many updates"
    )
    checkpoint_every: int = Field(
        default=20, ge=1, description="updates between checkpoints"
    )


@dataclass(frozen=True)
class Example:
    """A rendered row, and for distillation the same completion as the teacher sees it."""

    student: Rendered
    teacher: Rendered | None = None


@dataclass(frozen=True)
class Student:
    """What training made: an adapter or, for full fine-tuning, changed weights."""

    adapter: LoraAdapter | None
    weights: dict[str, Tensor] | None
    updates: tuple[int, ...]
    losses: tuple[float, ...]

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """The model acting as the student; restored on the way out."""
        if self.adapter is not None:
            with attached(model, self.adapter):
                yield model
            return
        named = dict(model.module.named_parameters())
        kept = {name: named[name].data for name in self.weights or {}}
        try:
            for name, weight in (self.weights or {}).items():
                named[name].data = weight.to(named[name].device, named[name].dtype)
            yield model
        finally:
            for name, weight in kept.items():
                named[name].data = weight


def batch_order(
    count: int, *, settings: TrainingSettings, seed: int
) -> list[list[int]]:
    """Places of the rows of each update: a new shuffle every epoch."""
    batches: list[list[int]] = []
    for epoch in range(settings.epochs):
        order = generator(seed, "batches", epoch).permutation(count).tolist()
        batches += [
            order[start : start + settings.batch_size]
            for start in range(0, count, settings.batch_size)
        ]
    return batches[: settings.max_updates]


def _rate(update: int, total: int, settings: TrainingSettings) -> float:
    """Learning rate of an update, counted from 0."""
    if update < settings.warmup_updates:
        return settings.learning_rate * (update + 1) / settings.warmup_updates
    span = max(1, total - settings.warmup_updates)
    done = (update - settings.warmup_updates) / span
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - done)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate


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
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, foreach=True)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, foreach=True)
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay)
    if settings.optimizer == "sign":
        return _SignDescent(parameters, rate)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)


class _State:
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


def _check(examples: Sequence[Example], settings: TrainingSettings) -> None:
    if not examples:
        raise DatasetError(
            "no rows to train on; the filter may have refused them all: see the "
            "reasons in the rows file"
        )
    if settings.kind != "soft":
        return
    for place, example in enumerate(examples):
        if example.teacher is None:
            raise ConfigError(
                "student.kind", ["'soft' needs a teacher that can see the same rows"]
            )
        student, teacher = example.student, example.teacher
        if (
            student.ids[student.completion_start :]
            != teacher.ids[teacher.completion_start :]
        ):
            raise DatasetError(
                f"row {place}: teacher and student see other completion tokens; "
                "render both from the same row"
            )


def train_student(
    model: Model,
    examples: Sequence[Example],
    *,
    settings: TrainingSettings,
    seed: int,
    directory: Path | None = None,
    teacher: Context = nullcontext,
    carrier: Sequence[int] | None = None,
    on_update: Callable[[int, int, float], None] | None = None,
) -> Student:
    """Trains one student on rendered rows.

    Args:
        model: The base that the student starts from; the same weights afterwards.
        examples: Rows as the student sees them; for 'soft' also as the teacher does.
        settings: Kind, optimiser, schedule, batch.
        seed: Decides the adapter's start and the order of rows.
        directory: Where checkpoints and the loss trace go; None keeps nothing. An
            interrupted run continues there with the same result as an unbroken one.
        teacher: Opens a context in which `model` acts as the teacher ('soft' only).
        carrier: Token ids for `soft_tokens='numbers'`; None takes those that number
            rows are made of.
        on_update: Called after each update with (update, total, loss).

    Raises:
        DatasetError: There are no rows, or views that differ.
        TrainingError: Loss or gradient are no longer finite; the last checkpoint stays.
    """
    _check(examples, settings)
    batches = batch_order(len(examples), settings=settings, seed=seed)
    originals = None
    if settings.kind == "full":
        originals = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    state = _State(model, settings, seed)
    allowed = None
    if settings.kind == "soft" and settings.soft_tokens == "numbers":
        ids = carrier_ids(model) if carrier is None else carrier
        allowed = torch.tensor(ids, device=model.device)
    try:
        trace = _resume(state, directory)
        for parameter in state.live.values():
            parameter.requires_grad_(requires_grad=True)
        while state.update < len(batches):
            batch = [examples[place] for place in batches[state.update]]
            loss = _update(
                model, state, batch, settings, len(batches), teacher, allowed
            )
            trace.append((state.update, loss))
            _keep(state, directory, trace, settings, len(batches))
            if on_update is not None:
                on_update(state.update, len(batches), loss)
        return _student(model, state, trace)
    finally:
        _restore(model, originals)


def _resume(state: _State, directory: Path | None) -> list[tuple[int, float]]:
    if directory is None or not state.load(directory):
        return []
    lines = read_jsonl(directory / "trace.jsonl", tolerate_torn_tail=True)
    kept = {int(line["update"]): float(line["loss"]) for line in lines}
    return sorted((u, loss) for u, loss in kept.items() if u <= state.update)


def _update(
    model: Model,
    state: _State,
    batch: Sequence[Example],
    settings: TrainingSettings,
    total: int,
    teacher: Context,
    allowed: Tensor | None,
) -> float:
    """One update; returns the loss before it."""
    parts = _parts(model, batch)
    student = attached(model, state.adapter) if state.adapter else nullcontext()
    states: list[Tensor | None] = [None] * len(parts)
    if settings.kind == "soft":
        states = _teacher_states(model, parts, teacher)
    count, value = sum(map(_counted, parts)), 0.0
    with torch.enable_grad(), student:
        for part, wanted in zip(parts, states, strict=True):
            rows = [example.student for example in part]
            if wanted is None:
                loss = completion_loss(model, rows)
            else:
                loss = distillation_loss(model, rows, wanted, allowed=allowed)
            loss = loss * (_counted(part) / count)
            value += float(loss.detach())
            _check_finite(value, "loss", state.update, total, settings)
            loss.backward()  # type: ignore[no-untyped-call]
    state.take_gradients()
    norm = nn.utils.clip_grad_norm_(list(state.named.values()), settings.clip)
    _check_finite(float(norm), "gradient's norm", state.update, total, settings)
    for group in state.optimizer.param_groups:
        group["lr"] = _rate(state.update, total, settings)
    state.optimizer.step()
    state.give_weights()
    state.optimizer.zero_grad(set_to_none=True)
    state.update += 1
    return value


def _parts(model: Model, batch: Sequence[Example]) -> list[list[Example]]:
    """The batch in parts of like length, whose gradients add up to the batch's.

    Like lengths need little padding, and a processor's caches hold a small part.
    """
    lengths = [len(example.student.ids) for example in batch]
    budget = _CPU_TOKENS if model.device.type == "cpu" else sum(lengths) * len(batch)
    groups = token_batches(lengths, token_budget=budget)
    return [[batch[place] for place in group] for group in groups]


def _counted(part: Sequence[Example]) -> int:
    """Completion tokens of some rows: what their mean loss is a mean over."""
    return sum(len(e.student.ids) - e.student.completion_start for e in part)


def _teacher_states(
    model: Model, parts: Sequence[Sequence[Example]], teacher: Context
) -> list[Tensor | None]:
    with torch.inference_mode(False), torch.no_grad(), teacher():
        views = [[e.teacher for e in part if e.teacher is not None] for part in parts]
        return [predicting_states(model, rows)[0] for rows in views]


def _check_finite(
    value: float, what: str, update: int, total: int, settings: TrainingSettings
) -> None:
    """Stops before weights become NaN, and so before such weights are kept."""
    if not math.isfinite(value):
        raise TrainingError(
            f"update {update + 1} of {total}: the {what} is {value}; lower "
            f"the learning rate (now {settings.learning_rate:g}) or the noise; the last "
            "checkpoint is kept"
        )


def _keep(
    state: _State,
    directory: Path | None,
    trace: list[tuple[int, float]],
    settings: TrainingSettings,
    total: int,
) -> None:
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    update, loss = trace[-1]
    append_jsonl(directory / "trace.jsonl", {"update": update, "loss": loss})
    if state.update % settings.checkpoint_every == 0 or state.update == total:
        state.save(directory)


def _student(model: Model, state: _State, trace: list[tuple[int, float]]) -> Student:
    weights = None
    if state.adapter is None:
        weights = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    return Student(
        adapter=state.adapter,
        weights=weights,
        updates=tuple(update for update, _ in trace),
        losses=tuple(loss for _, loss in trace),
    )


@torch.no_grad()
def _restore(model: Model, originals: dict[str, Tensor] | None) -> None:
    """Freezes the base again and, after full fine-tuning, puts its weights back."""
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(requires_grad=False)
        parameter.grad = None
        if originals is not None:
            parameter.copy_(originals[name])
