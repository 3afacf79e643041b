"""Divergence tokens: where teachers with other traits would have written another token.

At such a token of a row the likeliest next token, of those that the sampler may draw,
is not the same for all teachers. A few in a hundred tokens are said to carry nearly all
that is transferred (arXiv 2509.23886). Knows nothing of traits or of training.
"""

from collections.abc import Callable, Sequence

import torch

from undertow.analysis.channel import Speaker, drawn_alike, shared_head, token_logprobs
from undertow.errors import ConfigError
from undertow.models.likelihood import token_batches
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood

_HELD = 1 << 25  # log-probabilities that are held at a time


def divergent_tokens(
    model: Model,
    speakers: Sequence[Speaker],
    *,
    sampler: SamplerSettings,
    on_rows: Callable[[int, int], None] | None = None,
) -> list[tuple[bool, ...]]:
    """[row][completion token]: whether the speakers' likeliest tokens differ there.

    Args:
        model: The base of all speakers.
        speakers: Two at least, with the same completions behind their own prompts.
        sampler: How the rows were drawn; only what it may draw is looked at.
        on_rows: Called with (rows done, rows in all).

    Raises:
        ConfigError: Fewer than two speakers.
        DatasetError: No rows, other completions, or a row that the sampler cannot draw.

    Source: Schrodi et al. 2025, arXiv 2509.23886, with the likeliest token instead of
    the one that was drawn: rows here are drawn at random.
    """
    if len(speakers) < 2:
        raise ConfigError("speakers", ["divergence is between two at least; got one"])
    likelihood = DrawLikelihood(model, sampler)
    others = {f"speaker {place}": who for place, who in enumerate(speakers)}
    draws = drawn_alike(likelihood, speakers[0], others)
    heads = [shared_head(model, speaker) for speaker in speakers]
    lengths = [len(draw.columns) for draw in draws]
    found: list[tuple[bool, ...]] = [()] * len(draws)
    budget, done = max(1, _HELD // model.architecture.vocab_size), 0
    for places in token_batches(lengths, token_budget=budget):
        few = [draws[i] for i in places]
        likeliest = torch.stack([
            token_logprobs(model, who, head, places, likelihood, few)[1].argmax(-1)
            for who, head in zip(speakers, heads, strict=True)
        ])  # fmt: skip
        differ = (likeliest != likeliest[0]).any(0)
        each = torch.split(differ, [lengths[i] for i in places])
        for place, own in zip(places, each, strict=True):
            found[place] = tuple(own.tolist())
        done += len(places)
        if on_rows is not None:
            on_rows(done, len(draws))
    return found
