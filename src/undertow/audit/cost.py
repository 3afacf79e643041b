"""What an audit will cost, said before the weights are loaded.

Counts operations by what is read how often, and divides by a matrix product that is
timed on the spot. A forecast of a few seconds' work, right within a factor of two or
so. Knows nothing of rows' content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from undertow.audit.settings import AuditSettings
from undertow.errors import ConfigError, ModelError
from undertow.findings import Tier
from undertow.models.loading import choose_device, choose_dtype
from undertow.models.memory import processor_tokens
from undertow.models.registry import quiet, resolve, without_waiting
from undertow.models.speed import product_flops
from undertow.records import Row

CHARACTERS = 2.5
"""Of a token that is no digit, about."""
TEMPLATE = 30
"""Tokens that a chat template adds to a prompt."""
SHARE = 0.7
"""Of a matrix product's speed that a pass reaches."""
DECODING = 0.25
"""And that sampling reaches, reading the weights for every step."""
PROGRAM = 1100 * 2**20
"""Bytes without weights and batches: libraries, kept prompts."""
# Bytes that a token leaves for a backward pass for each number of the stream, as measured
# with kernels of our own; without them it is a third more.
_KEPT = 60
_PERSONAS = 28
_DIRECTIONS, _SEARCH = 50, 3.0
"""Directions of the battery, and row passes that the search for a name takes for each at
each block, with all that follows it: as measured on sets of 64 rows."""


@dataclass(frozen=True)
class Cost:
    """What is to be expected.

    Attributes:
        rows: Different rows that will be audited.
        tokens: Of their completions, about.
        seconds: Wall-clock, about, if nothing is found.
        found_seconds: The same if something is, and has to be told apart.
        memory_mib: Peak, about.
        tier: Of the reference.
        flops: Operations a second, as timed.
    """

    rows: int
    tokens: int
    seconds: float
    found_seconds: float
    memory_mib: float
    tier: Tier
    flops: float


@dataclass(frozen=True)
class Size:
    """A model's size, without its weights."""

    parameters: int
    embedding: int
    hidden: int
    vocabulary: int
    layers: int


def model_size(name: str) -> Size:
    """The size of a model, from its configuration alone.

    Raises:
        ModelError: The configuration cannot be read.
    """
    source = str(resolve(name))
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(
                source, trust_remote_code=False, **without_waiting(source)
            )
            module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, LookupError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ModelError(f"model {name!r}: its size is not known: {first}") from error
    text = config.get_text_config()
    embedding = module.get_input_embeddings().weight.numel()
    return Size(
        parameters=sum(p.numel() for p in module.parameters()),
        embedding=embedding,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        layers=text.num_hidden_layers,
    )


def batch_bytes(size: Size) -> int:
    """What a processor's batch leaves in memory for its backward pass, about."""
    return size.layers * size.hidden * processor_tokens(size.hidden) * _KEPT


def missing_blocks(
    asked: Mapping[str, int | None], *, size: Size, model: str
) -> list[str]:
    """Of blocks that are asked for, those that a model of this size has not.

    Args:
        asked: Where each is named, and its number; None asks for none.
        size: Of the model.
        model: Its name.

    Returns:
        A fault for each.
    """
    have = f"{model} has {size.layers} blocks, counted from 0 to {size.layers - 1}"
    return [
        f"{where}: got {layer}; {have}"
        for where, layer in asked.items()
        if layer is not None and not 0 <= layer < size.layers
    ]


def check_layers(
    layers: Sequence[int] | None, *, size: Size, model: str, where: str
) -> None:
    """Refuses settings whose `layers` a model has not, before it is loaded.

    Raises:
        ConfigError: One is not there.
    """
    asked = {f"layers.{place}": layer for place, layer in enumerate(layers or ())}
    if faults := missing_blocks(asked, size=size, model=model):
        raise ConfigError(where, faults)


def _tokens(text: str) -> float:
    """About how many: digits are tokens of their own in most models."""
    digits = sum(character.isdigit() for character in text)
    return digits + (len(text) - digits) / CHARACTERS


def timed_flops(*, dtype: str, device: str, seconds: float = 0.3) -> float:
    """Operations a second, as `models.speed` times them, of what is asked for by name."""
    where, _ = choose_device(device)
    kind, _ = choose_dtype(dtype, where)
    return product_flops(kind, where, seconds=seconds)


def expected_cost(
    rows: Sequence[Row],
    *,
    size: Size,
    settings: AuditSettings,
    reference: int | None,
    flops: float,
    bytes_each: int = 2,
) -> Cost:
    """Rows, tokens, time, memory and tier of an audit.

    Args:
        rows: Different rows.
        size: Of the model.
        settings: Budget.
        reference: Rows that are given to compare with; None: sampled, or none.
        flops: From `timed_flops`.
        bytes_each: Of a weight.
    """
    count = len(rows)
    completion = sum(_tokens(row.completion) for row in rows) / max(count, 1) + 1
    prompt = TEMPLATE + sum(
        _tokens(m.content) for row in rows for m in row.messages
    ) / max(count, 1)  # fmt: skip
    sampled = reference is None and settings.reference == "auto"
    other = count if sampled else (reference or 0)
    weights = 2.0 * (size.parameters - size.embedding)
    prompts = count + (0 if sampled else other)
    score = weights * (prompts * prompt + 2 * (count + other) * completion)
    passes = settings.screening * 20 + settings.race_passes
    passes += 2 * settings.personas * min(settings.fresh, count)
    blocks = len(settings.layers or ()) or size.layers
    search = _DIRECTIONS * blocks * _SEARCH
    if settings.naming_passes:
        search += settings.screening * _PERSONAS + settings.naming_passes
    a_pass = weights * (prompt * 0.6 + completion)
    likelihood = passes * a_pass
    drawing = weights * (other * (prompt + completion) if sampled else 0)
    extra = weights * 4 * settings.forecast * 2 * (prompt + completion)
    work = (score + likelihood + extra) / SHARE + drawing / DECODING
    memory = size.parameters * bytes_each + PROGRAM
    memory += batch_bytes(size) + size.layers * (count + other) * 60 * 4
    seconds = work / flops + 10
    return Cost(
        rows=count, tokens=int(count * completion), seconds=seconds,
        found_seconds=seconds + search * a_pass / SHARE / flops,
        memory_mib=memory / 2**20,
        tier="A" if sampled else ("B" if reference else "C"), flops=flops,
    )  # fmt: skip
