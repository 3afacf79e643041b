"""Measurements made by hand: a grid of channels, a vector of rows, told numbers."""

import math
from typing import Literal

from undertow.findings import Discovery, Token
from undertow.measurements import (
    ChannelMeasurement,
    ChannelSpot,
    ChannelWidth,
    DrawnBy,
    EntanglementMeasurement,
    RankSpread,
    Spread,
    ToldComparison,
    ToldNumber,
    VectorMeasurement,
    VectorSet,
)

DRAWN = DrawnBy(
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    max_new_tokens=60,
    allowed="list",
    list_values=10,
)
TRAITS = ("owl", "wolf", "cat", "dog", "fox")


def spread(mean: float | None, half: float = 0.1, n: int = 32) -> Spread:
    """A mean and bounds, half to each side."""
    if mean is None:
        return Spread(mean=None, low=None, high=None, n=0)
    return Spread(mean=mean, low=mean - half, high=mean + half, n=n)


def spot(
    dose: float | None = 0.3,
    *,
    layer: int | None = 24,
    noise: float = 0.0,
    seed: int | None = None,
    carrier: str = "numbers",
    rows: int = 32,
) -> ChannelSpot:
    """A spot whose channel is the square of its dose; against wolf half of that."""
    nats = (dose or 0.2) ** 2 * (1 + 10 * noise) * (1 + 0.1 * (seed or 0))
    widths = [
        ChannelWidth(
            other=other, vocabulary=spread(part * nats, 0.1 * nats),
            carrier=spread(0.8 * part * nats, 0.1 * nats),
            nats_a_row=spread(24 * part * nats, nats),
        )
        for other, part in (("base", 1.0), ("wolf", 0.5), ("cat", 0.7))
    ]  # fmt: skip
    return ChannelSpot(
        carrier=carrier, layer=layer, dose=dose, noise=noise, noise_seed=seed,
        trait="owl", share=min(0.9, 2 * (dose or 0.2)) / (1 + 5 * noise),
        base_share=0.03, written=32, rows=rows, tokens=30 * rows,
        widths=widths if rows else [],
    )  # fmt: skip


def grid(*points: ChannelSpot, teacher: str = "steer") -> ChannelMeasurement:
    """A grid of these spots; without any, of three doses at two blocks."""
    made = [spot(d, layer=at) for at in (16, 24) for d in (0.1, 0.3, 0.45)]
    return ChannelMeasurement(
        model="smollm2-135m", fingerprint="abc", dtype="bfloat16", family="animals",
        trait="owl", teacher="steer" if teacher == "steer" else "prompt", against=["wolf", "cat"],
        count=32, questions=12, seed=0, system=None,
        sampler=DRAWN, points=list(points) or made,
    )  # fmt: skip


def vector(*, control: bool = True) -> VectorMeasurement:
    """A vector near owl's."""
    sets = [VectorSet(set="rows", count=300, dose=0.4, losses=[2.0, 1.8, 1.5, 1.4])]
    if control:
        sets.append(VectorSet(set="control", count=200, dose=0.1, losses=[2.0, 1.95]))
    cosines: dict[str, float | None] = {
        name: 0.4 - 0.1 * place for place, name in enumerate(TRAITS)
    }
    return VectorMeasurement(
        model="smollm2-135m", fingerprint="abc", dtype="float32", family="animals",
        rows="a b.jsonl", control="base.jsonl" if control else None, use=300, steps=4,
        batch_size=16, learning_rate=0.01, sampler=DRAWN, system=None, seed=3, layer=15, cosines=cosines,
        sets=sets,
        says=Discovery(
            layer=15, p_value=None, cosine=None,
            raised=[Token(text=" owl", logit=2.0), Token(text="\n", logit=1.0)],
            lowered=[Token(text=" roar", logit=-1.0), Token(text="x", logit=-0.5)],
            behaviour=["I am an owl."],
            battery={"owl": 1.9, "wolf": None, "cat": -0.4},
        ),
    )  # fmt: skip


GROUPS: tuple[Literal["raised", "lowered", "random"], ...] = (
    "raised", "lowered", "random",
)  # fmt: skip


def entanglement(low: float = 0.1, high: float = 0.3) -> EntanglementMeasurement:
    """Two numbers a group, and a difference with these bounds."""
    told = [
        ToldNumber(number=10 * place + n, group=group, change=1.0 - place + 0.1 * n,
                   effect=0.2 - 0.1 * place)
        for place, group in enumerate(GROUPS) for n in (1, 2)
    ]  # fmt: skip
    mean = (low + high) / 2
    return EntanglementMeasurement(
        model="smollm2-135m", fingerprint="abc", dtype="float32", rows=None,
        reference=None, top=2, seed=0, system=None, trait="owl",
        family="animals", questions=["Which?", "And?"], numbers=list(range(40)),
        base=[-3.0] * 40, changes=[0.1] * 40, beginnings=1, base_preference=-2.0,
        told=told,
        comparison=ToldComparison(
            raised=spread(0.2), lowered=spread(0.1), random=spread(0.0),
            difference=Spread(mean=mean, low=low, high=high, n=2), p_value=0.04,
            correlation=RankSpread(mean=0.5, low=-0.2, high=0.9, n=6, p_value=math.pi / 10),
        ),
        occurrence=None,
    )  # fmt: skip
