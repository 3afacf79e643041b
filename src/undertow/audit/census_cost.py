"""What a census will take, from its survey and the model's size alone.

Operations are counted by what is read how often, as `audit.cost` does for an audit, and
the unembedding with them: over short completions of a small model it is most of the work.
Right within a factor of two or so. Knows nothing of rows' content.
"""

from dataclasses import dataclass

from undertow.audit.cost import CHARACTERS, DECODING, SHARE, TEMPLATE, Size
from undertow.audit.shards import Survey
from undertow.findings import Tier


@dataclass(frozen=True)
class CensusCost:
    """What is to be expected.

    Attributes:
        rows: Rows that are measured: audited ones, and partners or trusted ones.
        tokens: Of the audited rows, prompts and completions.
        operations: In all, as if every pass ran at a matrix product's full speed.
        seconds: Wall-clock, about, on one device.
    """

    rows: int
    tokens: int
    operations: float
    seconds: float


def row_operations(
    size: Size, *, prompt: float, completion: float, tier: Tier
) -> float:
    """Operations of one audited row and its partner, weighed by what passes reach.

    A prompt is read forward, a completion forward and backward through the activations,
    each 2 operations a weight and token; a partner is drawn and read as well.

    Args:
        size: Of the model.
        prompt: Tokens.
        completion: Tokens.
        tier: Of the reference: in "A" each row has a partner.
    """
    weights = 2.0 * (size.parameters - size.embedding)
    head = 2.0 * size.vocabulary * size.hidden
    read = weights * prompt + 2 * (weights + head) * completion
    if tier != "A":
        return read / SHARE
    more = 2 * (weights + head) * completion
    drawn = weights * (prompt + completion) + head * completion
    return (read + more) / SHARE + drawn / DECODING


def tokens_of(seen: Survey) -> tuple[float, float]:
    """Tokens of a prompt and of a completion, on average, about."""
    prompt, completion = (
        (digits + (characters - digits) / CHARACTERS) / seen.rows
        for characters, digits in zip(seen.characters, seen.digits, strict=True)
    )
    return prompt + TEMPLATE, completion + 1


def census_cost(
    seen: Survey, trusted: Survey | None, *, size: Size, tier: Tier, flops: float
) -> CensusCost:
    """Rows, tokens and time of a census.

    Args:
        seen: The audited rows.
        trusted: Those that are given to compare with.
        size: Of the model.
        tier: Of the reference.
        flops: Operations a second, from `timed_flops`.
    """
    operations, rows = 0.0, 0
    for side in (seen, trusted):
        if side is None:
            continue
        prompt, completion = tokens_of(side)
        each = row_operations(size, prompt=prompt, completion=completion, tier=tier)
        operations += each * side.rows
        rows += side.rows * (2 if tier == "A" else 1)
    prompt, completion = tokens_of(seen)
    return CensusCost(
        rows, int(seen.rows * (prompt + completion)), operations, operations / flops
    )
