"""Runs work over rows in batches that become smaller when memory runs out.

How large a batch may be is a guess that another program on the machine can make wrong.
Batches change memory and speed only, so the same work goes on in smaller ones. Knows
nothing of what is computed.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from undertow.errors import ModelError
from undertow.models.chat import Rendered
from undertow.models.completions import Prompts, completion_batches
from undertow.models.loading import Model
from undertow.models.memory import OutOfMemory, attempted, halved, processor_tokens

OnHalved = Callable[[int], None]
_MOST_TOKENS = 32768
_KEPT_STATES = 24  # of the hidden size, that a block keeps for its backward pass


def usual_tokens(model: Model, *, with_graph: bool) -> int:
    """Tokens of a batch if nobody says: with a graph, fewer the wider the stream.

    An accelerator takes what a quarter of its memory holds, 32,768 at most.

    Args:
        model: Where it runs.
        with_graph: Whether the pass keeps what a backward pass needs.
    """
    if model.device.type == "cpu":
        return processor_tokens(model.architecture.hidden_size) if with_graph else 2048
    if not with_graph or model.device.type != "cuda":
        return _MOST_TOKENS
    config = model.module.config.get_text_config()
    states = len(model.architecture.blocks) * int(config.hidden_size) * _KEPT_STATES
    memory = int(torch.cuda.get_device_properties(model.device).total_memory) // 4
    return max(1, min(_MOST_TOKENS, memory // (states * model.dtype.itemsize)))


def in_batches(
    rows: Sequence[Rendered],
    work: Callable[[list[int]], None],
    *,
    token_budget: int,
    on_halved: OnHalved | None = None,
) -> None:
    """Calls `work` with the places of each batch, in smaller ones if memory is short.

    A batch that failed is done again in parts, so `work` may keep what it finds only
    when all of it is there.

    Args:
        rows: Prompts with completions; prompts are read before and do not count.
        work: What is done with a batch.
        token_budget: Tokens of a batch's completions, padding included.
        on_halved: Told the new budget after each failure; None warns instead.

    Raises:
        ModelError: A row by itself does not fit into memory.
    """
    budget = token_budget
    waiting = completion_batches(rows, token_budget=budget)
    while waiting:
        places = waiting[0]
        found = attempted(partial(work, places))
        if not isinstance(found, OutOfMemory):
            waiting = waiting[1:]
            continue
        if len(places) == 1:
            raise ModelError(_too_large(rows[places[0]], found.fault))
        waiting, budget = _smaller(rows, waiting, budget)
        if on_halved is not None:
            on_halved(budget)
        else:
            warnings.warn(halved(budget), RuntimeWarning, stacklevel=3)


def prompt_parts(
    model: Model, rows: Sequence[Rendered], prompts: Prompts | None
) -> Iterator[tuple[list[int], Prompts]]:
    """Places of rows that go together, with their prompts; None reads these now."""
    if prompts is not None:
        yield list(range(len(rows))), prompts
        return
    kept = Prompts(model)
    for part in kept.parts(rows):
        kept.read([rows[place] for place in part])
        yield part, kept


def _smaller(
    rows: Sequence[Rendered],
    waiting: Sequence[list[int]],
    budget: int,
) -> tuple[list[list[int]], int]:
    """What is waiting, in batches of half the budget, or less if that changes nothing."""
    places = [place for batch in waiting for place in batch]
    left = [rows[place] for place in places]
    while True:
        budget = max(1, budget // 2)
        batches = completion_batches(left, token_budget=budget)
        if len(batches[0]) < len(waiting[0]) or budget == 1:
            return [[places[i] for i in batch] for batch in batches], budget


def _too_large(row: Rendered, fault: str) -> str:
    return (
        f"a row of {len(row.ids)} tokens does not fit into memory by itself ({fault}); "
        "free memory, leave long rows out, or take a smaller model or dtype"
    )
