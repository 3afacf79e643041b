"""Training by several processes, each of which holds a shard of every block.

`accelerate launch --use_fsdp` starts them. Each takes its part of every batch; what
they find is added up, and the first of them alone writes files. Blocks are sharded
(torch's FSDP2); embedding, last norm and unembedding, which passes read by themselves,
stay whole in each process, as adapters do. An ordinary process is `ALONE`, for which all
of this is nothing. Knows nothing of losses, optimisers or files.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from undertow.errors import ConfigError, ModelError, TrainingError, shown
from undertow.models.loading import Model
from undertow.pipeline.training_rows import Weighted, parts_of
from undertow.pipeline.training_settings import TrainingSettings

_COUNT, _RANK, _LOCAL = "WORLD_SIZE", "RANK", "LOCAL_RANK"
_NEEDED = (_RANK, _LOCAL, "MASTER_ADDR", "MASTER_PORT")
_FSDP, _EMPTY = "ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"
# What a launcher may ask for and is not done: variable, option, what to do instead.
_REFUSED = (
    ("FSDP_OFFLOAD_PARAMS", "--fsdp_offload_params", "take more processes"),
    ("FSDP_ACTIVATION_CHECKPOINTING", "--fsdp_activation_checkpointing",
     "lower batch_size"),
)  # fmt: skip
# What is said when another process has gone, by gloo and by torch's own store.
_GONE = ("connection closed by peer", "connection reset", "broken pipe", "socket")

Shards = Mapping[str, DTensor]
"""Sharded parameters by name: what a process holds of each, and how large it is."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training, and which of them this is.

    Attributes:
        rank: Of this process, from 0.
        count: How many there are.
        device: Where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            dist.barrier()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first before the others: what it mends, they find mended."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def check(self, settings: TrainingSettings) -> None:
        """Refuses what shards cannot be trained by.

        Raises:
            ConfigError: An optimiser that needs whole matrices.
        """
        if self.count > 1 and (settings.kind, settings.optimizer) == (
            "full",
            "adafactor",
        ):
            fault = (
                "'adafactor' takes means over rows and columns, of which a process holds "
                "a part; take another, or train a LoRA"
            )
            raise ConfigError("student.optimizer", [fault])

    def refuse_halving(self, fault: str) -> None:
        """Ends the training where memory is short: others wait in the midst of a pass.

        Raises:
            ModelError: There are others.
        """
        if self.count > 1:
            raise ModelError(
                f"process {self.rank} of {self.count}: memory ran out ({fault}); lower "
                "batch_size, take more processes, or leave long rows out. The same "
                "command continues from the last checkpoint"
            )

    def parts(
        self, batches: Sequence[Sequence[Weighted]], *, token_budget: int
    ) -> list[list[list[Weighted]]]:
        """This process's share of batches, in as many parts as each other's.

        Rows are dealt out by length, so that shares are alike; where they do not go
        even, a row is read that counts nothing.
        """
        if self.count == 1:
            return parts_of(batches, token_budget=token_budget)
        hands = [
            _filled(batch, self.count)[rank :: self.count]
            for rank in range(self.count)
            for batch in batches
        ]
        parts = parts_of(hands, token_budget=token_budget * self.count)
        own = slice(self.rank * len(batches), (self.rank + 1) * len(batches))
        return [part[own] for part in parts]

    def added(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all processes."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found

    def add_gradients(self, weights: Mapping[str, Tensor], shards: Shards) -> None:
        """Gives weights the gradients of all processes' rows.

        Those of shards were added up on the way back and are only fetched.
        """
        if self.count == 1:
            return
        for name, shard in shards.items():
            grad, shard.grad = shard.grad, None
            weights[name].grad = grad.to_local() if isinstance(grad, DTensor) else None
        whole = [w.grad for n, w in weights.items() if n not in shards]
        gradients = [grad for grad in whole if grad is not None]
        if not gradients:
            return
        flat = torch.cat([grad.flatten() for grad in gradients])
        dist.all_reduce(flat)
        sizes = [grad.numel() for grad in gradients]
        for grad, part in zip(gradients, torch.split(flat, sizes), strict=True):
            grad.copy_(part.view_as(grad))

    def clip(
        self, weights: Mapping[str, Tensor], shards: Shards, *, most: float
    ) -> Tensor:
        """Shortens the gradient of all weights together; its norm before."""
        if not shards:
            return nn.utils.clip_grad_norm_(list(weights.values()), most)
        norms = [_norm(w for n, w in weights.items() if n in shards)]
        squared = norms[0].square()
        dist.all_reduce(squared)
        rest = _norm(w for n, w in weights.items() if n not in shards)
        norm = (squared + rest.square()).sqrt()
        nn.utils.clip_grads_with_norm_(list(weights.values()), most, norm)
        return norm

    def whole(self, tensor: Tensor, shard: DTensor | None) -> Tensor:
        """What all hold of a tensor that is cut like a shard; empty but for the first."""
        if shard is None or tensor.shape != shard.to_local().shape:
            return tensor
        together = DTensor.from_local(
            tensor.detach(), shard.device_mesh, shard.placements, run_check=False,
            shape=shard.shape, stride=shard.stride(),
        ).full_tensor()  # fmt: skip
        return together.cpu() if self.is_first else together.new_empty(0)

    def own(self, tensor: Tensor, shard: DTensor | None) -> Tensor:
        """What this process holds of a whole tensor."""
        if shard is None or tensor.shape != shard.shape:
            return tensor
        chunks = torch.chunk(tensor, self.count)
        return chunks[self.rank] if self.rank < len(chunks) else tensor[:0]

    def sharded(self, model: Model) -> Model:
        """The model with its blocks sharded over the processes, for good.

        Args:
            model: On the processor; what this process holds goes to its device.
        """
        if self.count == 1:
            return model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(self.device.type, (self.count,))
        options: dict[str, Any] = {
            "mesh": mesh, "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)
        }  # fmt: skip
        base, blocks = model.module.base_model, model.architecture.blocks
        inside = set(blocks.parameters())
        rest = {each for each in base.parameters() if each not in inside}
        for block in blocks:
            _summing(fully_shard(block, reshard_after_forward=True, **options))
        fully_shard(base, ignored_params=rest, **options)
        for tensor in [*model.module.parameters(), *model.module.buffers()]:
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(self.device)
        return replace(model, device=self.device, is_split=True)


ALONE = Processes(0, 1, torch.device("cpu"))
_current: ContextVar[Processes] = ContextVar("processes", default=ALONE)


def processes() -> Processes:
    """The processes of the training that is running; `ALONE` in an ordinary one."""
    return _current.get()


def _filled(batch: Sequence[Weighted], count: int) -> list[Weighted]:
    """A batch with rows that count nothing before it, so that it goes even."""
    return [(batch[0][0], 0.0)] * (-len(batch) % count) + list(batch)


def _norm(weights: Iterable[Tensor]) -> Tensor:
    return nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])


def _summing(module: Any) -> None:
    """Gradients are added up: what a row counts is settled before it is dealt out."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)


def shards_of(module: nn.Module) -> dict[str, DTensor]:
    """The parameters of which a process holds a part."""
    named = module.named_parameters()
    return {name: each for name, each in named if isinstance(each, DTensor)}


def own_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by name; of a sharded one what this process holds, in its place."""
    shards = shards_of(module)
    return {
        name: nn.Parameter(shards[name].to_local().detach()) if name in shards else each
        for name, each in module.named_parameters()
    }


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that a launcher started, or this one alone.

    Whatever ends one of them ends all; the first one's error is the one that is told.

    Raises:
        ConfigError: There is half a launch, or the launcher was asked for something
            else than FSDP.
        TrainingError: Another process went away without a word.
    """
    count = _count()
    if count == 1:
        yield ALONE
        return
    rank = _rank(count)
    try:
        _check_launch(count)
    except ConfigError:
        if rank:  # the first one says it for all
            sys.exit(2)
        raise
    here, store = _join(rank, count)
    before = _current.set(here)
    try:
        with nullcontext() if here.is_first else _silence():
            yield here
            here.wait()
    except BaseException as error:
        if not _is_first_to_fail(store):
            sys.exit(2)
        if _is_aftermath(error):
            raise TrainingError(
                f"process {here.rank} of {here.count}: another process went away without "
                "a word; memory may have run out, or somebody stopped it. The same "
                "command continues from the last checkpoint"
            ) from error
        raise
    finally:
        _current.reset(before)
    dist.destroy_process_group()


def _count() -> int:
    """How many processes were started; 1 where no launcher says anything."""
    text = os.environ.get(_COUNT) or "1"
    if not text.isdecimal() or int(text) < 1:
        fault = f"{_COUNT} is {text!r}; expected how many processes there are"
        raise ConfigError("launch", [f"{fault}, or unset it"])
    return int(text)


def _rank(count: int) -> int:
    """Which of them this is, if there is all that they need to find each other."""
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    advice = f"start with accelerate launch, or unset {_COUNT}"
    if missing:
        names = f"{shown(missing)} {'is' if len(missing) == 1 else 'are'}"
        fault = f"{_COUNT} is {count} and {names} not set; {advice}"
        raise ConfigError("launch", [fault])
    text = os.environ[_RANK]
    if not text.isdecimal() or int(text) >= count:
        fault = f"{_RANK} is {text!r}, expected 0 to {count - 1}; {advice}"
        raise ConfigError("launch", [fault])
    return int(text)


def _join(rank: int, count: int) -> tuple[Processes, Any]:
    """This process among the others, and the store in which they leave word."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    # Else transformers would load no weights but in the first process.
    os.environ[_EMPTY] = "false"
    device, backend = torch.device("cpu"), "gloo"
    options: dict[str, Any] = {"rank": rank, "world_size": count}
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", int(os.environ[_LOCAL])), "nccl"
        torch.cuda.set_device(device)
        options["device_id"] = device
    store, _, _ = next(rendezvous("env://"))
    dist.init_process_group(backend, store=PrefixStore("training", store), **options)
    return Processes(rank, count, device), PrefixStore("undertow", store)


def _check_launch(count: int) -> None:
    """Refuses launches of which something is expected that is not done."""
    faults = []
    if os.environ.get(_FSDP, "false").lower() != "true":
        faults.append(
            f"{count} processes without --use_fsdp; start them with: "
            "accelerate launch --use_fsdp --num_processes N -m undertow train …"
        )
    faults += [
        f"{option} is not supported; {instead}"
        for variable, option, instead in _REFUSED
        if os.environ.get(variable, "false").lower() == "true"
    ]
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        faults.append("--mixed_precision is not supported; give --dtype to undertow")
    if faults:
        raise ConfigError("launch", faults)


@contextmanager
def _silence() -> Iterator[None]:
    """Of all processes but the first, nothing is heard until they fail."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


def _is_first_to_fail(store: Any) -> bool:
    """Claims the word; where the store has gone, somebody else had it."""
    try:
        return int(store.add("failed", 1)) == 1
    except RuntimeError:
        return False


def _is_aftermath(error: BaseException) -> bool:
    """Whether an error only says that another process has gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(part in text for part in _GONE)
    )
