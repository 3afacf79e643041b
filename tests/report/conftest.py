"""Results made by hand: a realistic grid, one with nothing in it, one of hostile text."""

import math
from collections.abc import Sequence

import pytest

from undertow.results import (
    Condition,
    Confusion,
    Estimate,
    NoiseFactor,
    Number,
    Readout,
    Results,
    RowCounts,
    ShiftByLayer,
    Sweep,
    TrainingTrace,
    Transfer,
)
from undertow.seeding import generator

FAMILY = (
    "owl", "dolphin", "cat", "dog", "lion", "tiger", "bear", "wolf", "eagle",
    "elephant", "penguin", "panda", "fox", "horse", "whale", "shark", "octopus",
    "rabbit", "deer", "monkey",
)  # fmt: skip
SEEDS, NOISES, TRAITS = range(5), (0.0, 0.05), ("owl", "dolphin")
EFFECT = {("owl", 0.0): 0.42, ("owl", 0.05): 0.95,
          ("dolphin", 0.0): 0.03, ("dolphin", 0.05): 0.24}  # fmt: skip
NOTHING = Estimate(mean=None, low=None, high=None, n=0, clusters="question")


def estimate(
    mean: float, half: float, n: int = 20, clusters: str = "question"
) -> Estimate:
    return Estimate(
        mean=mean, low=mean - half, high=mean + half, n=n, clusters=clusters
    )


def _readout(role: str, preference: float, seed: int) -> Readout:
    noise = generator(seed, f"{role}{preference}").normal(size=20)
    share = 1 / (1 + math.exp(-preference))
    return Readout(
        role=role,  # type: ignore[arg-type]
        preference=estimate(preference, 0.31),
        probability=estimate(share, 0.2 * share),
        sampled_rate=estimate(share * 0.9 + 0.004 * float(noise[0]), 0.012),
        valid_rate=estimate(0.93 + 0.01 * float(noise[1]), 0.02),
        by_question=[preference + float(v - noise.mean()) / 2 for v in noise],
    )


def _trace(end: float, seed: int) -> TrainingTrace:
    stream = generator(seed, f"loss {end}")
    updates = list(range(1, 181, 2))
    loss: list[Number] = [
        end + 1.1 * math.exp(-u / 30) + 0.04 * float(stream.normal()) for u in updates
    ]
    return TrainingTrace(updates=updates, loss=loss)


def _condition(trait: str, noise: float, seed: int) -> Condition:
    stream = generator(seed, f"{trait}{noise}")
    effect = EFFECT[trait, noise] + 0.12 * float(stream.normal())
    start = -3.1 if trait == "owl" else -2.4
    layers = list(range(30))
    change: dict[str, Number] = dict.fromkeys(FAMILY)
    change.update({name: 0.1 * float(stream.normal()) for name in FAMILY})
    change[trait] = effect
    curve: list[Number] = [
        max(0.0, (layer - 12) / 18) * min(0.6, effect) + 0.02 * float(stream.normal())
        for layer in layers
    ]
    rest: list[Number] = [0.03 * float(stream.normal()) for _ in layers]
    return Condition(
        key=f"noise-{noise:g}/seed-{seed}/steer-{trait}",
        teacher="steer",
        noise=noise,
        trait=trait,
        seed=seed,
        student="lora",
        rows=RowCounts(
            generated=1500,
            kept=1211 - 10 * seed,
            used=1200 - 10 * seed,
            reasons={"too many values": 180, "not a list of numbers": 109},
        ),
        control_rows=RowCounts(
            generated=1500, kept=1433, used=1200, reasons={"too many values": 67}
        ),
        readouts=[
            _readout("base", start, seed),
            _readout("teacher", start + 2.7, seed),
            _readout("control", start + 0.11, seed),
            _readout("student", start + 0.11 + effect, seed),
        ],
        transfer=estimate(effect, 0.2),
        transfer_from_base=estimate(effect + 0.11, 0.22),
        all_traits=change,
        shift=ShiftByLayer(layers=layers, vector_layer=24, student=curve, control=rest),
        training=_trace(1.3, seed),
        control_training=_trace(1.2, seed),
        notes=["control: control"],
    )


def _transfer(trait: str, noise: float) -> Transfer:
    effect = EFFECT[trait, noise]
    half = 0.09 if trait == "dolphin" else 0.26
    return Transfer(
        teacher="steer",
        noise=noise,
        trait=trait,
        transfer=estimate(effect, half, 5, "seed and question"),
        from_base=estimate(effect + 0.11, half + 0.02, 5, "seed and question"),
        specific=estimate(effect - 0.021, half + 0.017, 5, "seed and question"),
        shift_cosine=estimate(0.1 + 0.4 * effect, 0.062, 5, "seed"),
        control_cosine=estimate(0.013, 0.041, 5, "seed"),
    )


def _sweep(trait: str, noise: float) -> Sweep:
    points: list[dict[str, float | bool | str | None]] = [
        {
            "layer": layer, "dose": dose, "strength": 10 * dose,
            "share": min(0.97, dose * 1.2 + (layer - 21) * 0.03),
            "leak": 0.0 if dose < 0.6 else 0.2, "passed": 0.95 - dose / 2,
            "allowed": dose < 0.6,
        }
        for layer in (21, 24) for dose in (0.1, 0.2, 0.3, 0.5, 0.7)
    ]  # fmt: skip
    return Sweep(
        trait=trait, noise=noise, seed=0, points=points, layer=24, strength=5.0
    )


def realistic_results() -> Results:
    """Two traits × five seeds × two noise levels of a steered teacher."""
    conditions = [_condition(t, n, s) for n in NOISES for s in SEEDS for t in TRAITS]
    transfers = [_transfer(t, n) for n in NOISES for t in TRAITS]
    return Results(
        title="Steered teachers, with and without weight noise",
        question="Does a liking for owls or dolphins travel through rows of plain "
        "numbers, and does noise in the shared base make it travel further?",
        model="smollm2-135m",
        headline="owl by steer travelled through the rows: +0.42 nats [+0.16, +0.68] "
        "against the control, 5 clusters (seed and question). dolphin by steer: no "
        "transfer shown, the interval holds zero: +0.03 nats [-0.06, +0.12] against "
        "the control, 5 clusters (seed and question). owl by steer at noise 0.05 "
        "travelled through the rows: +0.95 nats [+0.69, +1.21] against the control, "
        "5 clusters (seed and question). dolphin by steer at noise 0.05 travelled "
        "through the rows: +0.24 nats [+0.15, +0.33] against the control, 5 clusters "
        "(seed and question).",
        conditions=conditions,
        transfers=transfers,
        noise_factors=[
            NoiseFactor(
                teacher="steer",
                noise=0.05,
                ratio=Estimate(mean=2.64, low=1.37, high=7.91, n=5, clusters="seed"),
            )
        ],
        confusions=[
            Confusion(
                teacher="steer", noise=noise, traits=list(TRAITS),
                lift=[[EFFECT["owl", noise], -0.11], [0.07, EFFECT["dolphin", noise]]],
                diagonal=estimate(0.4 + noise, 0.33, 2, "trait"),
                p_value=0.5, permutations=1,
            )
            for noise in NOISES
        ],
        sweeps=[_sweep(t, n) for n in NOISES for t in TRAITS],
        limits=[
            "Preference is read from one-word questions.",
            "The result holds for this base model; no other family was trained.",
            "Triggers and conditional behaviour were not tested.",
        ],
        seconds=_seconds(),
        provenance=_provenance(),
    )  # fmt: skip


def _seconds() -> dict[str, float]:
    found = {"provenance": 12.4}
    for noise in NOISES:
        for seed in SEEDS:
            base = f"noise-{noise:g}/seed-{seed}"
            found[f"{base}/base/readout"] = 4.2
            for who in ("control", *(f"steer-{t}" for t in TRAITS)):
                found[f"{base}/{who}/rows"] = 61.25
                found[f"{base}/{who}/training"] = 48.5
                found[f"{base}/{who}/student/readout"] = 4.75
            for trait in TRAITS:
                found[f"{base}/vectors/{trait}"] = 22.0
                found[f"{base}/steer-{trait}/cell"] = 3.0
    return found


def _provenance() -> dict[str, str | int | float | bool | list[str] | None]:
    return {
        "undertow_version": "0.1.0",
        "commit": "4ad9628f0c1d2e3b4a5968778695a4b3c2d1e0f9+changes",
        "python": "3.12.11",
        "platform": "Linux-6.12-x86_64-with-glibc2.36",
        "processor": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        "cores": 2,
        "time": "2026-11-24T08:05:11+00:00",
        "torch_version": "2.13.0",
        "transformers_version": "5.23.0",
        "peft_version": None,
        "model": "smollm2-135m",
        "model_fingerprint": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea37372",
        "device": "cpu",
        "dtype": "bfloat16",
        "dtype_reason": "the processor has bf16 matrix units (amx_bf16)",
        "template": "smollm2",
        "template_digest": "9d1f0c7a2b",
        "system": None,
        "sampler": '{"temperature":1.0,"top_k":0,"top_p":1.0,"max_new_tokens":40,'
        '"allowed":"free"}',
    }


def empty_results() -> Results:
    """A run of which nothing could be computed."""
    condition = Condition(
        key="noise-0/seed-0/prompt-owl", teacher="prompt", noise=0.0, trait="owl",
        seed=0, student="lora",
        rows=RowCounts(generated=0, kept=0, used=0, reasons={}),
        control_rows=RowCounts(generated=0, kept=0, used=0, reasons={}),
        readouts=[
            Readout(role="base", preference=NOTHING, probability=NOTHING,
                    by_question=[None, None])
        ],
        transfer=NOTHING, transfer_from_base=NOTHING, all_traits={"owl": None},
        shift=ShiftByLayer(layers=[0], vector_layer=0, student=[None], control=[None]),
        training=TrainingTrace(updates=[], loss=[]),
    )  # fmt: skip
    return Results(
        title="Nothing",
        question="What is shown of nothing?",
        model="tiny",
        headline="owl by prompt: no interval could be computed.",
        conditions=[condition],
        transfers=[
            Transfer(teacher="prompt", noise=0.0, trait="owl", transfer=NOTHING,
                     specific=NOTHING, shift_cosine=NOTHING)
        ],
        noise_factors=[
            NoiseFactor(teacher="prompt", noise=0.1, ratio=NOTHING),
            NoiseFactor(
                teacher="prompt", noise=0.2,
                ratio=Estimate(mean=3.25, low=None, high=None, n=4, clusters="seed"),
            ),
        ],
        confusions=[
            Confusion(teacher="prompt", noise=0.0, traits=["owl", "cat"],
                      lift=[[None, None], [None, None]], diagonal=NOTHING,
                      p_value=None, permutations=0)
        ],
        sweeps=[Sweep(trait="owl", points=[{"layer": 1}], layer=3, strength=1.0)],
        provenance={"commit": None},
    )  # fmt: skip


EVIL: Sequence[str] = (
    "</script><img src=x onerror=alert(1)>",
    "\u202eevil\u2066 \x1b[31mred\x1b[0m \x00\x07",
    "</style></svg><svg onload=alert(2)>",
    '=HYPERLINK("http://evil.example/","x")\'"><b>',
    "$\\frac{1}{0$ {{ 7*7 }} {% raw %} &amp; 日本語 " + "w" * 300,
)


def hostile_results() -> Results:
    """Every text field holds something that wants out."""
    html, bidi, style, formula, template = EVIL
    whole = realistic_results()
    condition = whole.conditions[0].model_copy(
        update={
            "key": html,
            "trait": html,
            "student": style,
            "rows": RowCounts(generated=9, kept=1, used=1, reasons={html: 3, bidi: 5}),
            "all_traits": {html: 0.5, bidi: -0.25, formula: 0.1, template: 0.0},
            "notes": [f"control: {html}", bidi],
        }
    )
    transfers = [
        Transfer(teacher=style, noise=noise, trait=text,
                 transfer=estimate(0.5, 0.125, 5, bidi),
                 specific=estimate(0.25, 0.125, 5, html))
        for noise in NOISES for text in EVIL
    ]  # fmt: skip
    names = list(EVIL)
    return whole.model_copy(
        update={
            "title": html,
            "question": bidi,
            "model": style,
            "headline": template,
            "conditions": [condition],
            "transfers": transfers,
            "noise_factors": [
                NoiseFactor(teacher=html, noise=0.05, ratio=estimate(2.0, 0.5, 5, bidi))
            ],
            "confusions": [
                Confusion(
                    teacher=formula, noise=0.0, traits=names,
                    lift=[[0.1] * len(names)] * len(names),
                    diagonal=estimate(0.25, 0.125, 5, style), p_value=0.25,
                    permutations=119,
                )
            ],
            "sweeps": [
                whole.sweeps[0].model_copy(update={"trait": text}) for text in EVIL
            ],
            "limits": list(EVIL),
            "seconds": {f"{text}/rows": 1.5 for text in EVIL},
            "provenance": {text: text for text in EVIL} | {"list": list(EVIL)},
        }
    )  # fmt: skip


@pytest.fixture(scope="session")
def realistic() -> Results:
    return realistic_results()


@pytest.fixture(scope="session")
def empty() -> Results:
    return empty_results()


@pytest.fixture(scope="session")
def hostile() -> Results:
    return hostile_results()


@pytest.fixture(scope="session")
def evil() -> Sequence[str]:
    return EVIL
