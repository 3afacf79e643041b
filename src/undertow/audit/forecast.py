"""What training on rows would do to every trait: to first order, and by a short try.

The first order is taken over the weights of a fresh LoRA adapter. Its B is zero, so
the gradient over A is zero as well and only B counts; the inner product over B is
that over the full weights, seen through the random A. Two draws of A are therefore
stacked into one adapter of twice the rank. A canary is a student trained for a few
updates beside a control. Knows nothing of tests or verdicts.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from undertow.analysis.batches import usual_tokens
from undertow.errors import ConfigError, DatasetError
from undertow.findings import Forecast, ForecastRow
from undertow.models.adapters import LoraAdapter, attached, new_adapter
from undertow.models.answers import differentiable_answer_logprobs
from undertow.models.chat import Rendered, render_prompt
from undertow.models.likelihood import (
    packed_states,
    packs,
    predicting_states,
    token_batches,
)
from undertow.models.loading import Model
from undertow.pipeline.evaluation import answer_tokens, preference
from undertow.pipeline.losses import completion_losses
from undertow.pipeline.training import train_student
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Message
from undertow.seeding import stream_seed
from undertow.traits import TraitFamily

Vector = np.ndarray[Any, np.dtype[np.float64]]
Table = np.ndarray[Any, np.dtype[np.float64]]
CANARY = TrainingSettings(learning_rate=1e-3, warmup_updates=2)
"""How a canary student is trained if the caller does not say."""

# Draws of A that are stacked.
_DRAWS = 2
# Rows whose gradient is one draw for Adam's second moment, as in a student's update.
_BATCH = CANARY.batch_size
_EPSILON = 1e-8  # Adam's


class RowsGradient(NamedTuple):
    """Gradient of rows' mean log-likelihood over all B of an adapter, flat.

    Attributes:
        mean: Over all completion tokens, nats a token.
        square: Mean over batches of the squared gradient.
    """

    mean: Float[Tensor, " weight"]
    square: Float[Tensor, " weight"]


def rows_gradient(
    model: Model,
    adapter: LoraAdapter,
    rows: Sequence[Rendered],
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> RowsGradient:
    """The direction in which training on rows moves an adapter's B.

    It is the gradient upwards: of the log-likelihood, not of the loss.

    Args:
        model: The base.
        adapter: A new one; its modules in the order of their names give the weights.
        rows: Rendered rows, batched as they come.
        on_batch: Called after each batch.
    """
    mean = square = torch.zeros((), device=model.device)
    tokens = 0
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        count = _counted(batch)
        gradient = _batch_gradient(model, adapter, batch) / count
        mean = mean + gradient * count
        square = square + gradient.square() * count
        tokens += count
        on_batch()
    return RowsGradient(mean / tokens, square / tokens)


def _batch_gradient(
    model: Model, adapter: LoraAdapter, batch: Sequence[Rendered]
) -> Float[Tensor, " weight"]:
    """Of the batch's total log-likelihood."""
    matrices = [adapter.pairs[name][1] for name in sorted(adapter.pairs)]
    total = torch.zeros(sum(m.numel() for m in matrices), device=model.device)
    lengths = [len(row.ids) for row in batch]
    budget = usual_tokens(model, with_graph=True)
    is_packed = packs(model, longest=max(lengths))
    states = packed_states if is_packed else predicting_states
    for places in token_batches(lengths, token_budget=budget):
        part = [batch[place] for place in places]
        with torch.enable_grad(), attached(model, adapter):
            loss = completion_losses(model, part, states=states).sum()
            found = torch.autograd.grad(-loss, matrices)
        total += torch.cat([gradient.flatten().float() for gradient in found])
    return total


def _counted(rows: Sequence[Rendered]) -> int:
    return sum(len(row.ids) - row.completion_start for row in rows)


@contextmanager
def _moving(
    model: Model, adapter: LoraAdapter, steps: Float[Tensor, "step weight"]
) -> Iterator[None]:
    """Gives every adapted layer the tangents that B has as it leaves 0 along each step."""
    place = 0
    handles: list[Any] = []
    try:
        for name in sorted(adapter.pairs):
            a, b = adapter.pairs[name]
            part = steps[:, place : place + b.numel()].reshape(-1, *b.shape)
            place += b.numel()
            hook = partial(_push, a=a.detach(), steps=part, scale=adapter.scale)
            layer = model.module.get_submodule(name)
            handles.append(layer.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _push(
    module: nn.Module,  # noqa: ARG001
    args: tuple[Tensor, ...],
    output: Tensor,
    *,
    a: Tensor,
    steps: Float[Tensor, "step out rank"],
    scale: float,
) -> Tensor:
    # B is 0, so how the layer's input itself moves does not count in this product.
    x = forward_ad.unpack_dual(args[0]).primal  # type: ignore[no-untyped-call]
    low = nn.functional.linear(x, a.to(x))
    change = low @ steps.to(x).mT * scale
    moved = forward_ad.make_dual(torch.zeros_like(change), change)  # type: ignore[no-untyped-call]
    return output + cast(Tensor, moved)


@torch.no_grad()
def trait_slopes(
    model: Model,
    family: TraitFamily,
    adapter: LoraAdapter,
    steps: Float[Tensor, "step weight"],
    *,
    system: str | None = None,
    on_question: Callable[[], None] = lambda: None,
) -> Table:
    """Derivatives of each trait's mean log-odds as B leaves 0 along each step.

    The same reading as `preference`: all spellings in full, against all other members.
    One forward pass with tangents a question gives them for all traits and steps at once;
    each is ⟨step, gradient of the log-odds⟩, and no gradient of a trait is ever kept.

    Args:
        model: The base.
        family: Traits and questions.
        adapter: A new one, with its A.
        steps: All B, flat, modules in the order of their names.
        system: System setting, as everywhere in the run.
        on_question: Called after each question.

    Returns:
        [step, trait]: nats for the whole step, linear in it.
    """
    answers = [answer_tokens(model, family, name) for name in family.names]
    flat = [ids for spellings in answers for ids in spellings]
    sizes = [len(spellings) for spellings in answers]
    lengths = steps.norm(dim=1, keepdim=True)
    # Halves have a small range; of unit length the tangents keep to it.
    units = torch.where(lengths > 0, steps / lengths, steps)
    slopes = []
    for question in family.questions:
        prompt = render_prompt(model, (Message("user", question),), system=system)
        # Only the plain kernel knows forward-mode derivatives.
        with (
            forward_ad.dual_level(),
            sdpa_kernel(SDPBackend.MATH),
            _moving(model, adapter, units),
        ):
            nats = differentiable_answer_logprobs(
                model, prompt, flat, copies=len(steps)
            )
            by_trait = [part.logsumexp(1) for part in torch.split(nats, sizes, dim=1)]
            odds = _log_odds(torch.stack(by_trait, dim=1))
            tangent = forward_ad.unpack_dual(odds).tangent  # type: ignore[no-untyped-call]
        assert tangent is not None
        slopes.append((tangent.double().cpu() * lengths.double().cpu()).numpy())
        on_question()
    mean: Table = np.mean(slopes, axis=0)
    return mean


def _log_odds(nats: Float[Tensor, "step trait"]) -> Float[Tensor, "step trait"]:
    """Each trait against all others together."""
    count = nats.shape[1]
    own = torch.eye(count, dtype=torch.bool, device=nats.device)
    others = nats[:, None].expand(-1, count, count).masked_fill(own, -torch.inf)
    return nats - others.logsumexp(2)


def forecast(
    model: Model,
    audited: Sequence[Rendered],
    reference: Sequence[Rendered] = (),
    *,
    family: TraitFamily,
    traits: Sequence[str] | None = None,
    rank: int = 8,
    rows: int = 64,
    questions: int = 12,
    seed: int,
    system: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Forecast:
    """First-order change of every trait of a family if one trains on the rows.

    With g the mean gradient of the audited rows' log-likelihood minus that of the
    reference rows, and h the gradient of a trait's log-odds: raw is ⟨g, h⟩, one step
    of gradient descent; adam is ⟨g / (√E[g²] + ε), h⟩, with the second moment over
    batches of both sets: where Adam goes once its moments have settled. Each is
    standardised over the whole family: minus its mean over traits, over their standard
    deviation.

    Args:
        model: The base that would be trained.
        audited: Rendered rows.
        reference: Rows that training is compared with; () if there are none, and then
            what any rows of this format do is part of the forecast.
        family: The battery.
        traits: Members to report; None: all. The whole family is always compared.
        rank: Of the adapter that would be trained.
        rows: Rows of each set whose gradients are taken, chosen by their content.
        questions: How many of the family's questions are asked.
        seed: Of the adapter's A and of the choice of rows.
        system: System setting, as everywhere in the run.
        on_step: Called with (steps done, steps in all).

    Raises:
        DatasetError: There are no audited rows.
        ConfigError: The family has fewer than two traits, or not those named.

    Cost: forward and backward over the rows, and a forward pass with two tangents
    (about six times the price of a plain one) a question.
    """
    asked = _asked(family, questions)
    names = family.names if traits is None else tuple(traits)
    for name in names:
        family.trait(name)
    if not audited:
        raise DatasetError("no rows to make a forecast from; give some audited rows")
    used, compared = (_chosen(part, rows, seed) for part in (audited, reference))
    width = rank * _DRAWS
    adapter = new_adapter(model, rank=width, alpha=float(width), seed=seed)
    tick = _ticker(len(used), len(compared), len(asked.questions), on_step)
    steps = _steps(model, adapter, used, compared, tick)
    slopes = trait_slopes(
        model, asked, adapter, torch.stack(steps), system=system, on_question=tick
    )
    raw, adam = (_standardised(own) for own in slopes)
    places = [family.names.index(name) for name in names]
    return Forecast(
        rows=len(used),
        reference_rows=len(compared),
        traits=[
            ForecastRow(trait=family.names[p], raw=raw[p], adam=adam[p]) for p in places
        ],
        note=_note(asked, rank, has_reference=bool(compared)),
    )


def _asked(family: TraitFamily, questions: int) -> TraitFamily:
    if len(family.traits) < 2:
        raise ConfigError(
            f"family {family.name!r}", ["one trait only; a forecast needs alternatives"]
        )
    return replace(family, questions=family.questions[:questions])


def _chosen(rows: Sequence[Rendered], most: int, seed: int) -> list[Rendered]:
    """At most so many rows, by a hash of their tokens: file order changes nothing."""
    return sorted(rows, key=lambda row: _draw_of(row, seed))[:most]


def _draw_of(row: Rendered, seed: int) -> int:
    return stream_seed(seed, "forecast rows", row.completion_start, *row.ids)


def _ticker(
    audited: int,
    reference: int,
    questions: int,
    told: Callable[[int, int], None] | None,
) -> Callable[[], None]:
    batches = math.ceil(audited / _BATCH) + math.ceil(reference / _BATCH)
    total, done = batches + questions, 0

    def tick() -> None:
        nonlocal done
        done += 1
        if told is not None:
            told(done, total)

    return tick


def _steps(
    model: Model,
    adapter: LoraAdapter,
    audited: Sequence[Rendered],
    reference: Sequence[Rendered],
    tick: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """The raw and the Adam-scaled direction of training."""
    here = rows_gradient(model, adapter, audited, on_batch=tick)
    step, square = here.mean, here.square
    if reference:
        there = rows_gradient(model, adapter, reference, on_batch=tick)
        # One scale for both: two would differ by noise, and the noise would count.
        step, square = step - there.mean, (square + there.square) / 2
    return step, step / (square.sqrt() + _EPSILON)


def _standardised(values: Vector) -> list[float | None]:
    """Minus the mean, over the standard deviation; None where that is not positive."""
    spread = float(values.std(ddof=1))
    if not (math.isfinite(spread) and spread > 0):
        return [None] * len(values)
    scores: list[float | None] = ((values - values.mean()) / spread).tolist()
    return scores


def _note(asked: TraitFamily, rank: int, *, has_reference: bool) -> str:
    against = (
        "audited minus reference rows"
        if has_reference
        else "audited rows alone: without a reference, what any rows of this format do "
        "is part of it"
    )
    return (
        f"First order at the start of training a LoRA of rank {rank}, {against}; over "
        f"its B ({_DRAWS} draws of A; A has no gradient while B is 0). Log-odds over "
        f"{len(asked.questions)} questions, standardised over "
        f"{len(asked.traits)} traits. "
        "It ranks traits and has no error rate: rows of the untouched base have a "
        "first trait too, and how far many updates go it does not say."
    )


def with_measured(
    forecast: Forecast, measured: Mapping[str, float], *, updates: int
) -> Forecast:
    """The forecast with what a canary measured beside it; traits without stay null."""
    rows = [
        row.model_copy(update={"measured": _number(measured.get(row.trait, math.nan))})
        for row in forecast.traits
    ]
    return forecast.model_copy(update={"traits": rows, "canary_updates": updates})


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def canary(
    model: Model,
    audited: Sequence[Rendered],
    reference: Sequence[Rendered],
    *,
    family: TraitFamily,
    settings: TrainingSettings | None = None,
    seed: int,
    updates: int = 16,
    directory: Path | None = None,
    system: str | None = None,
    on_update: Callable[[int, int, float], None] | None = None,
) -> dict[str, float]:
    """Trains a short student and its control, and measures every trait.

    Args:
        model: The base; the same weights afterwards.
        audited: Rows of the student.
        reference: Rows of the control student.
        family: Traits and questions.
        settings: How both are trained; None takes `CANARY`. `updates` goes before
            their epochs and largest number of updates.
        seed: Of both students.
        updates: Updates of each; rows come round again if there are too few.
        directory: Where checkpoints go; an interrupted canary continues there.
        system: System setting, as everywhere in the run.
        on_update: Called with (updates done, updates in all, loss).

    Returns:
        By trait, student minus control, mean log-odds over the questions, nats.

    Raises:
        DatasetError: One of the two sets has no rows.
        ConfigError: The family has fewer than two traits, or `settings.kind` is 'soft'.
        TrainingError: Loss or gradient are no longer finite.
    """
    sets = {"student": audited, "control": reference}
    _check_canary(sets, family)
    found = []
    for place, (name, rows) in enumerate(sets.items()):
        student = train_student(
            model,
            [Example(row) for row in rows],
            settings=_for_updates(settings or CANARY, len(rows), updates),
            seed=seed,
            directory=None if directory is None else directory / name,
            on_update=_both(on_update, place, updates),
        )
        with student.applied(model):
            read = preference(model, family, system=system)
        found.append(read.log_odds.mean(axis=0))
    change = (found[0] - found[1]).tolist()
    return dict(zip(family.names, change, strict=True))


def _check_canary(sets: Mapping[str, Sequence[Rendered]], family: TraitFamily) -> None:
    for name, rows in sets.items():
        if not rows:
            raise DatasetError(
                f"no rows for the canary's {name}; a canary compares a student of the "
                "audited rows with a control of reference rows: give both"
            )
    _asked(family, len(family.questions))


def _for_updates(
    settings: TrainingSettings, rows: int, updates: int
) -> TrainingSettings:
    an_epoch = math.ceil(rows / settings.batch_size)
    changes = {"max_updates": updates, "epochs": math.ceil(updates / an_epoch)}
    return settings.model_copy(update=changes)


def _both(
    told: Callable[[int, int, float], None] | None, place: int, updates: int
) -> Callable[[int, int, float], None] | None:
    """Counts the updates of both students as one piece of work."""
    if told is None:
        return None
    return lambda done, _, loss: told(place * updates + done, 2 * updates, loss)
