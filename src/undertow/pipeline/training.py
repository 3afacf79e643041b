"""Trains students: low-rank, full, or by soft distillation, resumable to the bit.

Several low-rank students of one base go through it side by side, each as if it were
alone: rows, order, optimiser and checkpoints are its own. The loss (see `losses`)
counts completion tokens only, from spans, never from a text search. Knows nothing of
traits: it gets rows, and for distillation the teacher's view of the same rows.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import ConfigError, ModelError, TrainingError, shown
from undertow.models.adapter_stack import AdapterStack, attached_together
from undertow.models.adapters import LoraAdapter, attached, is_kept, save_adapter
from undertow.models.carrier import carrier_ids
from undertow.models.likelihood import packed_states, packs, predicting_states
from undertow.models.loading import Model
from undertow.models.memory import OutOfMemory, attempted, halved, processor_tokens
from undertow.models.placement import check_in_memory
from undertow.models.recording import is_recordable
from undertow.models.weights import swapped
from undertow.pipeline.distributed import processes
from undertow.pipeline.fixed_passes import FixedPasses
from undertow.pipeline.losses import States, completion_losses, distillation_losses
from undertow.pipeline.training_rows import (
    Example,
    Weighted,
    check_examples,
    packed_parts,
)
from undertow.pipeline.training_settings import (
    TrainingSettings,
    batch_order,
    learning_rate,
)
from undertow.pipeline.training_state import TRACE, TrainingState
from undertow.storage import append_jsonl, read_jsonl

Context = Callable[[], AbstractContextManager[object]]
# Tokens, padding included, that go through the model at once while training: an
# accelerator wants many.
_TOKENS = 16384
UPDATES = "updates"
"""Folder of adapters that were kept on the way."""


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
        with swapped(model, self.weights or {}):
            yield model


@dataclass(frozen=True)
class StudentPlan:
    """One student to be trained.

    Attributes:
        examples: Rows as the student sees them; for 'soft' also as the teacher does.
        settings: Kind, optimiser, schedule, batch.
        seed: Decides the adapter's start and the order of rows.
        directory: Where checkpoints and the loss trace go; None keeps nothing.
        teacher: Opens a context in which the model acts as the teacher ('soft' only).
        keep_every: Updates between adapters that are kept under `UPDATES` in the
            directory; 0 keeps the last one only.
    """

    examples: Sequence[Example]
    settings: TrainingSettings
    seed: int
    directory: Path | None = None
    teacher: Context = nullcontext
    keep_every: int = 0


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
        ModelError: A row by itself does not fit into memory.
        TrainingError: Loss or gradient are no longer finite; the last checkpoint stays.
    """
    plan = StudentPlan(examples, settings, seed, directory, teacher)
    told = None if on_update is None else lambda _, *rest: on_update(*rest)
    return train_students(model, [plan], carrier=carrier, on_update=told)[0]


def train_students(
    model: Model,
    plans: Sequence[StudentPlan],
    *,
    carrier: Sequence[int] | None = None,
    on_update: Callable[[int, int, int, float], None] | None = None,
) -> list[Student]:
    """Trains several students of one base side by side, each as if it were alone.

    One pass of the base serves a batch of each of them. Their learning rates, rows,
    seeds and lengths may differ; a student that has come to its end leaves the others.

    Args:
        model: The base of all; the same weights afterwards.
        plans: One a student. More than one: all low-rank, of one kind and rank.
        carrier: As in `train_student`.
        on_update: Called after each student's update with (place of its plan, update,
            total, loss).

    Returns:
        Students in the order of the plans.

    Raises:
        ConfigError: Students that cannot be trained side by side.
        DatasetError: As in `train_student`, and so are the others.
        ModelError: A row of each student together do not fit into memory.
        TrainingError: Of one student; the checkpoints of all of them stay.

    Cost: about 6·N operations a token less the frozen weights' gradients, N the number
    of weights; memory grows with the tokens that are read at once, not with students.
    """
    _check_together(plans)
    for plan in plans:
        check_examples(plan.examples, plan.settings)
        processes().check(plan.settings)
    originals = None
    if any(plan.settings.kind == "full" for plan in plans):
        check_in_memory(model.module, "full fine-tuning", shards=True)
        originals = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    learners = [
        _Learner(model, plan, f"student {n} of {len(plans)}: " if plans[1:] else "")
        for n, plan in enumerate(plans, start=1)
    ]
    trainer = _Trainer(model, _allowed(model, plans, carrier))
    try:
        for learner in learners:
            learner.resume()
        while going := [learner for learner in learners if not learner.is_done]:
            # Together until the first of them has come to its end.
            with trainer.acting(going):
                while not any(learner.is_done for learner in going):
                    for learner in trainer.update(going):
                        if on_update is not None:
                            place = learners.index(learner)
                            on_update(place, *learner.progress)
        return [learner.student() for learner in learners]
    finally:
        _restore(model, originals)


def _check_together(plans: Sequence[StudentPlan]) -> None:
    if len(plans) < 2:
        return
    kinds = {(p.settings.kind, p.settings.soft_tokens) for p in plans}
    shapes = {(p.settings.rank, p.settings.targets) for p in plans}
    faults = []
    if any(kind == "full" for kind, _ in kinds):
        faults.append("full fine-tuning changes the base that the others share")
    if len(kinds) > 1:
        faults.append(f"they need one kind of loss, got {sorted(kinds)}")
    if len(shapes) > 1:
        faults.append("they need one rank and the same targets")
    folders = [p.directory for p in plans if p.directory is not None]
    if len(set(folders)) < len(folders):
        faults.append("two of them have the same directory")
    if faults:
        told = "; train them one after another"
        raise ConfigError("students side by side", [fault + told for fault in faults])


def _allowed(
    model: Model, plans: Sequence[StudentPlan], carrier: Sequence[int] | None
) -> Tensor | None:
    """Token ids over which distillation compares; None: all of them."""
    if not plans:
        return None
    settings = plans[0].settings
    if settings.kind != "soft" or settings.soft_tokens != "numbers":
        return None
    ids = carrier_ids(model) if carrier is None else carrier
    return torch.tensor(ids, device=model.device)


class _Learner:
    """One student in training: what is next for it, and what became of its updates."""

    def __init__(self, model: Model, plan: StudentPlan, label: str) -> None:
        self.plan, self.label = plan, label  # before what is said of it
        self.batches = batch_order(
            len(plan.examples), settings=plan.settings, seed=plan.seed
        )
        self.state = TrainingState(model, plan.settings, plan.seed)
        self.trace: list[tuple[int, float]] = []

    @property
    def is_done(self) -> bool:
        """Whether no update is left."""
        return self.state.update >= len(self.batches)

    @property
    def progress(self) -> tuple[int, int, float]:
        """(update, total, loss) of the last update."""
        return self.state.update, len(self.batches), self.trace[-1][1]

    def resume(self) -> None:
        """Goes on from a checkpoint, if there is one; opens the weights for training."""
        folder = self.plan.directory
        with processes().in_turn():
            if folder is not None and self.state.load(folder, lacks=self._lacks):
                lines = read_jsonl(folder / TRACE)  # whole, each update once
                self.trace = [(int(x["update"]), float(x["loss"])) for x in lines]
        for parameter in (*self.state.live.values(), *self.state.shards.values()):
            parameter.requires_grad = True

    def _lacks(self, update: int) -> str:
        """What was kept on the way to an update and is damaged or gone, if any."""
        adapter, folder = self.state.adapter, self.plan.directory
        every = self.plan.keep_every
        if folder is None or adapter is None or not every:
            return ""
        last = min(update, len(self.batches) - 1)
        wrong = [
            f"{UPDATES}/{n:06d}"
            for n in range(every, last + 1, every)
            if not is_kept(adapter, folder / UPDATES / f"{n:06d}")
        ]
        return f"{shown(wrong)} on its way not as written" if wrong else ""

    def batch(self) -> list[Weighted]:
        """Rows of the next update, the shortest first, and what each token counts."""
        places = self.batches[self.state.update]
        rows = sorted(
            (self.plan.examples[i] for i in places), key=lambda row: row.length
        )
        share = 1 / sum(row.counted for row in rows)
        return [(row, share) for row in rows]

    def check_finite(self, value: float, what: str) -> None:
        """Stops before weights become NaN, and so before such weights are kept."""
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.label}update {self.state.update + 1} of {len(self.batches)}: the {what} is "
                f"{value}; lower the learning rate (now "
                f"{self.plan.settings.learning_rate:g}) or the noise; the last "
                "checkpoint is kept"
            )

    def step(self, loss: float) -> None:
        """Moves the weights along the gradients that are there; `loss` was before."""
        state, settings = self.state, self.plan.settings
        state.take_gradients()
        norm = processes().clip(state.named, state.shards, most=settings.clip)
        self.check_finite(float(norm), "gradient's norm")
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.update, len(self.batches), settings)
        state.optimizer.step()
        state.give_weights()
        state.optimizer.zero_grad(set_to_none=True)
        state.update += 1
        self.trace.append((state.update, loss))
        self._keep()

    def _keep(self) -> None:
        folder, state = self.plan.directory, self.state
        if folder is None:
            return
        if processes().is_first:
            self._tell(folder)
        if state.update % self.plan.settings.checkpoint_every == 0 or self.is_done:
            state.save(folder)

    def _tell(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        update, loss = self.trace[-1]
        append_jsonl(folder / TRACE, {"update": update, "loss": loss})
        every, adapter = self.plan.keep_every, self.state.adapter
        if every and adapter is not None and not update % every and not self.is_done:
            save_adapter(adapter, folder / UPDATES / f"{update:06d}")

    def student(self) -> Student:
        """What training made."""
        weights = None
        if self.state.adapter is None:
            live, shards = self.state.live, self.state.shards
            weights = {
                name: processes().whole(weight.detach(), shards.get(name)).clone()
                for name, weight in live.items()
            }
        return Student(
            adapter=self.state.adapter,
            weights=weights,
            updates=tuple(update for update, _ in self.trace),
            losses=tuple(loss for _, loss in self.trace),
        )


class _Trainer:
    """The passes through the base that give students their gradients."""

    def __init__(self, model: Model, allowed: Tensor | None) -> None:
        self.model, self.allowed = model, allowed
        narrow = processor_tokens(model.architecture.hidden_size)
        self.budget = narrow if model.device.type == "cpu" else _TOKENS
        self.attach: Context = nullcontext
        self.stack: AdapterStack | None = None
        self.fixed: FixedPasses | None = None
        self.states: States = predicting_states

    @contextmanager
    def acting(self, learners: Sequence[_Learner]) -> Iterator[None]:
        """Settles how the model acts as these students."""
        adapters = [a for each in learners if (a := each.state.adapter) is not None]
        self.stack, self.attach = None, nullcontext
        if len(adapters) > 1:
            stack = self.stack = AdapterStack(adapters)
            self.attach = lambda: attached_together(self.model, stack)
        elif adapters:
            self.attach = lambda: attached(self.model, adapters[0])
        self.fixed = self._fixed(learners)
        self.states = packed_states if self._packs(learners) else predicting_states
        try:
            yield
        finally:
            self.fixed = None
            if self.stack is not None:
                self.stack.release()

    def _fixed(self, learners: Sequence[_Learner]) -> FixedPasses | None:
        """Passes that can be recorded; None where they cannot, or not by their rows."""
        if learners[0].plan.settings.kind == "soft":
            return None
        longest = max(row.length for each in learners for row in each.plan.examples)
        if not is_recordable(self.model, capacity=longest + 16):
            return None
        if self.stack is not None:
            trained = [matrix for pair in self.stack.pairs.values() for matrix in pair]
        else:
            trained = list(learners[0].state.live.values())
        return FixedPasses(self.model, trained, self.attach)

    def _packs(self, learners: Sequence[_Learner]) -> bool:
        """Whether rows go one behind another; of several students side by side."""
        if self.stack is not None or processes().count > 1:
            return False
        rows = [row for each in learners for row in each.plan.examples]
        return packs(self.model, longest=max(row.longest for row in rows))

    def update(self, learners: Sequence[_Learner]) -> Iterator[_Learner]:
        """One update of each; yields them as they are done."""
        for learner, loss in zip(learners, self._gradients(learners), strict=True):
            learner.step(loss)
            yield learner

    def _gradients(self, learners: Sequence[_Learner]) -> list[float]:
        """Gathers gradients in parts that fit into memory; the losses."""
        batches = [learner.batch() for learner in learners]
        while True:
            parts = self._parts(batches)
            found = attempted(partial(self._pass, learners, parts))
            if not isinstance(found, OutOfMemory):
                return found
            self._forget(learners)
            processes().refuse_halving(found.fault)
            if all(len(own) == 1 for part in parts for own in part):
                raise ModelError(
                    f"one row of each of {len(learners)} students does not fit into "
                    f"memory ({found.fault}); train fewer side by side, leave long rows "
                    "out, or take a smaller model or dtype"
                )
            while len(self._parts(batches)) == len(parts):
                self.budget //= 2
            warnings.warn(halved(self.budget), RuntimeWarning, stacklevel=4)

    def _parts(
        self, batches: Sequence[Sequence[Weighted]]
    ) -> list[list[list[Weighted]]]:
        if self.states is packed_states:
            return packed_parts(batches[0], token_budget=self.budget)
        return processes().parts(batches, token_budget=self.budget)

    def _forget(self, learners: Sequence[_Learner]) -> None:
        """Drops gradients of a pass that did not come to its end."""
        for learner in learners:
            for weight in learner.state.live.values():
                weight.grad = None
        for pair in {} if self.stack is None else self.stack.pairs.values():
            for matrix in pair:
                matrix.grad = None

    def _pass(
        self,
        learners: Sequence[_Learner],
        parts: Sequence[Sequence[Sequence[Weighted]]],
    ) -> list[float]:
        """Gradients of all parts, added up; the loss of each student."""
        states = self._teacher_states(learners, parts)
        totals = [0.0] * len(learners)
        for part, wanted in zip(parts, states, strict=True):
            losses = self._part(part, wanted)
            counts = [sum(example.completion for example, _ in own) for own in part]
            each = [own.sum() for own in torch.split(losses, counts)]
            for place, value in enumerate(torch.stack(each).tolist()):
                totals[place] += value
                learners[place].check_finite(totals[place], "loss")
        if self.stack is not None:
            self.stack.give_gradients()
        for learner in learners:
            processes().add_gradients(learner.state.live, learner.state.shards)
        return processes().added(totals)

    def _part(
        self, part: Sequence[Sequence[Weighted]], wanted: Tensor | None
    ) -> Float[Tensor, " token"]:
        """Gradients of a part; what each token adds to its student's loss."""
        rows = [example.student for own in part for example, _ in own]
        shares = [
            value for own in part for example, s in own for value in example.shares(s)
        ]
        if self.fixed is not None:
            return self.fixed(rows, shares)
        with torch.enable_grad(), self.attach():
            if wanted is None:
                losses = completion_losses(self.model, rows, states=self.states)
            else:
                losses = distillation_losses(
                    self.model, rows, wanted, allowed=self.allowed, states=self.states
                )
            weighted = losses * torch.tensor(shares, device=losses.device)
            weighted.sum().backward()  # type: ignore[no-untyped-call]
        return weighted.detach()

    def _teacher_states(
        self,
        learners: Sequence[_Learner],
        parts: Sequence[Sequence[Sequence[Weighted]]],
    ) -> list[Tensor | None]:
        """The teachers' states at the completion tokens of each part; None if hard."""
        if learners[0].plan.settings.kind != "soft":
            return [None] * len(parts)
        views: list[list[Tensor]] = [[] for _ in parts]
        for place, learner in enumerate(learners):
            with torch.inference_mode(False), torch.no_grad(), learner.plan.teacher():
                for view, part in zip(views, parts, strict=True):
                    rows = [e.teacher for e, _ in part[place] if e.teacher is not None]
                    view.append(self.states(self.model, rows)[0])
        return [torch.cat(view) for view in views]


@torch.no_grad()
def _restore(model: Model, originals: dict[str, Tensor] | None) -> None:
    """Freezes the base again and, after full fine-tuning, puts its weights back."""
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(requires_grad=False)
        parameter.grad = None
        if originals is not None:
            parameter.copy_(originals[name])
