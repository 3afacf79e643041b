"""The score test's raw material: each row's gradient in the residual stream.

For a vector v added after block L at every position that predicts a completion token,
the row's score is s = Σ_t ⟨∂ log p(y|x)/∂h_{L,t}, v⟩, the derivative of its
log-likelihood by the vector's strength. Positions inside the prompt are left out:
prompts are read once, without gradients, for all rows that share them. One forward and
one backward pass give all layers and directions; gradients are reduced inside hooks
and nothing of size rows × hidden is kept. Knows nothing of where rows come from, nor
of tests (see `audit`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.analysis.batches import OnHalved, in_batches, prompt_parts, usual_tokens
from undertow.models.chat import Rendered
from undertow.models.completions import Prompts, completion_states
from undertow.models.hooks import (
    check_layers,
    current_completion_positions,
    editing_residuals,
)
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood, by_row

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class GradientScores:
    """What one pass over rows found.

    Attributes:
        layers: The blocks.
        scores: [row, layer, direction], nats per unit of strength, rows as given.
        total_logprobs: [row]: log-probability of each completion, nats.
        tokens: [row]: completion tokens of each row.
    """

    layers: tuple[int, ...]
    scores: Array
    total_logprobs: np.ndarray[Any, np.dtype[np.float64]]
    tokens: np.ndarray[Any, np.dtype[np.int64]]


class Moments:
    """Sums of rows' gradients by layer: n, Σg, Σgg'. Sums of parts add up."""

    def __init__(self, layers: Sequence[int], hidden: int) -> None:
        self.layers = tuple(layers)
        self.count = torch.zeros(len(layers), dtype=torch.float64)
        self.total = torch.zeros(len(layers), hidden, dtype=torch.float64)
        self.square = torch.zeros(len(layers), hidden, hidden)

    def add(self, layer: int, gradients: Float[Tensor, "row hidden"]) -> None:
        """Adds rows at one layer."""
        place = self.layers.index(layer)
        here = gradients.float().cpu()
        self.count[place] += len(here)
        self.total[place] += here.double().sum(0)
        self.square[place].addmm_(here.T, here)

    def mean(self) -> Float[Tensor, "layer hidden"]:
        """Mean gradient, float32; NaN without rows."""
        return (self.total / self.count[:, None]).float()

    def covariance(self) -> Float[Tensor, "layer hidden hidden"]:
        """Covariance of the rows' gradients, float32; NaN without rows."""
        mean = self.mean()
        square = self.square / self.count[:, None, None].float()
        return square - mean[:, :, None] * mean[:, None, :]


OnGradients = Callable[[int, Sequence[int], Tensor], None]
Reduce = Callable[[int, Tensor], None]


def gradient_scores(
    model: Model,
    rows: Sequence[Rendered],
    directions: Mapping[int, Float[Tensor, "direction hidden"]],
    *,
    sampler: SamplerSettings | None = None,
    on_gradients: OnGradients | None = None,
    prompts: Prompts | None = None,
    token_budget: int | None = None,
    on_rows: Callable[[int, int], None] | None = None,
    on_halved: OnHalved | None = None,
) -> GradientScores:
    """Scores of every row along every direction after every layer of `directions`.

    Args:
        model: The base, without an intervention.
        rows: Prompts with completions, as tokens.
        directions: By layer; the same number of directions at each.
        sampler: What the rows were drawn by: the likelihood is that of its own
            distribution. None: the model's own, temperature 1.
        on_gradients: Called with (layer, places, gradients [row, hidden]) for each
            batch, to sum them as the caller likes; gradients are float32, summed over
            positions.
        prompts: The rows' prompts, read before; None reads them now.
        token_budget: Tokens of a batch of completions, padding included; None: what
            suits the device. Changes memory and speed.
        on_rows: Called with (rows done, rows in all).
        on_halved: Called with the new budget if memory ran out; None warns.

    Raises:
        VectorMismatchError: Unknown layer.
        DatasetError: A row that the sampler cannot draw.
        ModelError: A row by itself does not fit into memory.

    Cost: about 4·N operations a token, N the weights above the lowest layer doubly;
    memory for the activations of one batch.
    """
    layers = tuple(sorted(directions))
    check_layers(model, layers)
    likelihood = DrawLikelihood(model, sampler or SamplerSettings())
    count = len(next(iter(directions.values())))
    scores = np.full((len(rows), len(layers), count), np.nan, dtype=np.float32)
    totals = np.full(len(rows), np.nan)
    placed = {layer: directions[layer].to(model.device).float() for layer in layers}
    done = 0

    def work(places: list[int], read: Prompts) -> None:
        nonlocal done
        # Only a pass that came to its end counts: one that did not is done again.
        found: list[tuple[int, Tensor]] = []
        nats = _pass(
            model, likelihood, [rows[place] for place in places], layers,
            lambda layer, gradient: found.append((layer, _summed(model, gradient))),
            prompts=read,
        )  # fmt: skip
        for layer, summed in found:
            column = layers.index(layer)
            scores[places, column] = (summed @ placed[layer].T).cpu().numpy()
            if on_gradients is not None:
                on_gradients(layer, places, summed)
        totals[places] = [float(part.sum()) for part in nats]
        done += len(places)
        if on_rows is not None:
            on_rows(done, len(rows))

    budget = token_budget or usual_tokens(model, with_graph=True)
    _in_parts(model, rows, work, prompts, budget, on_halved)
    counts = [len(row.ids) - row.completion_start for row in rows]
    tokens = np.array(counts, dtype=np.int64)
    return GradientScores(layers, scores, totals, tokens)


def _summed(model: Model, gradient: Tensor) -> Float[Tensor, "row hidden"]:
    """Over positions, float32, where directions are: blocks may lie elsewhere."""
    return gradient.float().sum(1).to(model.device)


def _in_parts(
    model: Model,
    rows: Sequence[Rendered],
    work: Callable[[list[int], Prompts], None],
    prompts: Prompts | None,
    token_budget: int,
    on_halved: OnHalved | None,
) -> None:
    """Calls `work` with the places of each batch and their prompts, read before."""
    for part, read in prompt_parts(model, rows, prompts):

        def batch(
            places: list[int],
            part: list[int] = part,
            read: Prompts = read,
        ) -> None:
            work([part[place] for place in places], read)

        in_batches(
            [rows[place] for place in part], batch, token_budget=token_budget,
            on_halved=on_halved,
        )  # fmt: skip


def _pass(
    model: Model,
    likelihood: DrawLikelihood,
    batch: Sequence[Rendered],
    layers: Sequence[int],
    reduce: Reduce,
    *,
    prompts: Prompts,
) -> list[Tensor]:
    """One forward and backward pass; each layer's gradient goes through `reduce`."""
    draws = [likelihood.drawn(row) for row in batch]
    with torch.enable_grad(), _gradients(model, layers, reduce):
        hidden = completion_states(model, batch, prompts=prompts)
        nats = likelihood.token_logprobs(hidden, draws)
        nats.sum().backward()  # type: ignore[no-untyped-call]
    return by_row(nats.detach().double().cpu(), draws)


@contextmanager
def _gradients(model: Model, layers: Sequence[int], reduce: Reduce) -> Iterator[None]:
    """Starts the graph at the lowest layer and reduces the gradient at each."""
    lowest = min(layers)

    def edit_of(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(hidden: Tensor) -> Tensor:
            if not torch.is_grad_enabled():  # prompts are read without gradients
                return hidden
            if layer == lowest:
                hidden = hidden.detach().requires_grad_()
            hidden.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: reduce(layer, gradient)
            )
            return hidden

        return edit

    with editing_residuals(model, {layer: edit_of(layer) for layer in layers}):
        yield


def finite_difference_scores(
    model: Model,
    rows: Sequence[Rendered],
    direction: Float[Tensor, " hidden"],
    layer: int,
    *,
    sampler: SamplerSettings | None = None,
    step: float = 1e-2,
    token_budget: int | None = None,
) -> Array:
    """The same scores by two forward passes: (ℓ(+ε) − ℓ(−ε)) / 2ε.

    Args:
        model: The base.
        rows: As in `gradient_scores`.
        direction: One direction after `layer`.
        layer: The block.
        sampler: As in `gradient_scores`.
        step: ε, in units of the direction.
        token_budget: Tokens of a batch.

    Returns:
        [row], nats per unit of strength.
    """
    ends = []
    for signed in (step, -step):

        def add(hidden: Tensor, signed: float = signed) -> Tensor:
            mask = current_completion_positions()
            if mask is None or not mask.any():  # prompts are read as they are
                return hidden
            return hidden + (signed * direction).to(hidden)

        with editing_residuals(model, {layer: add}):
            ends.append(
                drawn_logprobs(model, rows, sampler=sampler, token_budget=token_budget)
            )
    difference: Array = ((ends[0] - ends[1]) / (2 * step)).astype(np.float32)
    return difference


@torch.inference_mode()
def drawn_logprobs(
    model: Model,
    rows: Sequence[Rendered],
    *,
    sampler: SamplerSettings | None = None,
    prompts: Prompts | None = None,
    token_budget: int | None = None,
    on_rows: Callable[[int, int], None] | None = None,
    on_halved: OnHalved | None = None,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log-probability of each completion under the sampler's distribution, nats.

    Args:
        model: The model, with whatever steering or adapter is attached.
        rows: Prompts with completions.
        sampler: What the rows were drawn by; None: temperature 1, every token.
        prompts: The rows' prompts, read before: what is attached then acts on the
            completions alone. None reads them with it.
        token_budget: As in `gradient_scores`.
        on_rows: Called with (rows done, rows in all).
        on_halved: As in `gradient_scores`.

    Raises:
        DatasetError: A row that the sampler cannot draw.
        ModelError: A row by itself does not fit into memory.
    """
    likelihood = DrawLikelihood(model, sampler or SamplerSettings())
    totals = np.full(len(rows), np.nan)
    done = 0

    def work(places: list[int], read: Prompts) -> None:
        nonlocal done
        batch = [rows[place] for place in places]
        draws = [likelihood.drawn(row) for row in batch]
        hidden = completion_states(model, batch, prompts=read)
        nats = by_row(likelihood.token_logprobs(hidden, draws).double().cpu(), draws)
        totals[places] = [float(part.sum()) for part in nats]
        done += len(places)
        if on_rows is not None:
            on_rows(done, len(rows))

    budget = token_budget or usual_tokens(model, with_graph=False)
    _in_parts(model, rows, work, prompts, budget, on_halved)
    return totals
