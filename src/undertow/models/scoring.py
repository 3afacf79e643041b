"""How likely rows are under the very distribution that they were drawn from.

Temperature, truncation and a carrier's automaton renormalise a model; a likelihood
that leaves them out compares rows with something that never wrote them. Every token
counts as it was sampled, the end token too. Knows nothing of hypotheses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import DatasetError
from undertow.models.carrier import Carrier
from undertow.models.chat import Rendered
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, carrier_of, truncated_logprobs
from undertow.models.unembedding import token_logprobs, token_values, usual_chunk


@dataclass(frozen=True)
class Drawn:
    """Completion tokens as draws: columns of the carrier and its state before each.

    Attributes:
        columns: Place of each token among the carrier's (or the vocabulary's), −1 for
            a token that this sampler cannot draw there.
        states: The carrier's state before each token; 0 without a carrier.
    """

    columns: tuple[int, ...]
    states: tuple[int, ...]

    @property
    def is_possible(self) -> bool:
        """Whether the sampler can draw every token."""
        return -1 not in self.columns


class DrawLikelihood:
    """Log-probabilities of completion tokens under one sampler of one model."""

    def __init__(self, model: Model, sampler: SamplerSettings) -> None:
        self.model, self.sampler = model, sampler
        carrier = carrier_of(model, sampler)
        self.carrier: Carrier | None = carrier
        self._device = None if carrier is None else carrier.to(model.device)
        if carrier is not None:
            self._column = {token: i for i, token in enumerate(carrier.ids.tolist())}
            self._allowed = carrier.allowed.tolist()
            self._following = carrier.following.tolist()

    def drawn(self, row: Rendered) -> Drawn:
        """The row's completion as draws of this sampler."""
        tokens = row.ids[row.completion_start :]
        if self.carrier is None:
            return Drawn(tuple(tokens), (0,) * len(tokens))
        columns, states, state = [], [], 0
        for token in tokens:
            column = self._column.get(token, -1)
            if column >= 0 and not self._allowed[state][column]:
                column = -1
            columns.append(column)
            states.append(state)
            if column >= 0:
                state = self._following[state][column]
        return Drawn(tuple(columns), tuple(states))

    def token_logprobs(
        self, hidden: Float[Tensor, "token hidden"], draws: Sequence[Drawn]
    ) -> Float[Tensor, " token"]:
        """Log-probability of every drawn token, nats, float32, differentiable.

        Args:
            hidden: Normed states that predict the tokens of all rows, one after
                another, as `predicting_states` gives them.
            draws: Of the same rows.

        Raises:
            DatasetError: A token that the sampler cannot draw.
        """
        if not all(d.is_possible for d in draws):
            raise DatasetError(
                "a row holds a token that this sampler cannot draw "
                f"(allowed={self.sampler.allowed!r}); give the sampler that wrote the "
                "rows, or let it be estimated"
            )
        device = self.model.device
        columns = torch.tensor([c for d in draws for c in d.columns], device=device)
        states = torch.tensor([s for d in draws for s in d.states], device=device)
        carrier, sampler = self._device, self.sampler
        if carrier is None and not sampler.top_k and sampler.top_p == 1:
            # Greedy decoding's likelihood is that of temperature 1.
            warmth = sampler.temperature or 1.0
            return token_logprobs(self.model, hidden, columns, temperature=warmth)

        def value(logits: Tensor, part: slice) -> Tensor:
            if carrier is not None:
                refused = ~carrier.allowed[states[part]]
                logits = logits.masked_fill(refused, -torch.inf)
            nats = truncated_logprobs(logits, sampler)
            return nats.gather(-1, columns[part, None]).squeeze(-1)

        ids = None if carrier is None else carrier.ids
        width = None if ids is None else len(ids)
        return token_values(
            self.model,
            hidden,
            value,
            ids=ids,
            chunk=usual_chunk(self.model, width=width),
        )


def by_row(
    values: Float[Tensor, " token"], draws: Sequence[Drawn]
) -> list[Float[Tensor, " _"]]:
    """The flat values of all tokens, cut into those of each row."""
    return list(torch.split(values, [len(d.columns) for d in draws]))
