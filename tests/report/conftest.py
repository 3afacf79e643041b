"""Results and findings made by hand: realistic ones, empty ones, ones of hostile text."""

import math
from collections.abc import Sequence

import pytest

from undertow.findings import (
    Alike,
    Arm,
    Baseline,
    Bounds,
    DataFacts,
    Direction,
    Discovery,
    Explanation,
    Findings,
    Forecast,
    ForecastRow,
    Hypothesis,
    MaxNull,
    Power,
    PowerPoint,
    ReferenceFacts,
    Token,
    TriageRow,
)
from undertow.results import (
    Alignment,
    AlignmentFit,
    Causes,
    Channel,
    Condition,
    Confusion,
    Emergence,
    Estimate,
    NoiseFactor,
    Number,
    Prediction,
    Readout,
    Results,
    RowCounts,
    ShiftByLayer,
    ShiftShape,
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


def _shape(effect: float) -> ShiftShape:
    """A shift that grows with depth, and is constant as far as there is an effect."""
    layers = list(range(30))
    return ShiftShape(
        layers=layers,
        size=[0.002 * layer for layer in layers],
        constancy=[None if layer == 0 else min(0.9, abs(effect)) for layer in layers],
        first=[None if layer == 0 else 0.5 for layer in layers],
        spectrum=[
            [None if layer == 0 else 0.5**place for place in range(1, 9)]
            for layer in layers
        ],
    )


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
        shape=_shape(effect),
        control_shape=_shape(0.0),
        causes=Causes(
            layer=24,
            whole=estimate(effect + 0.11, 0.22),
            sufficient=estimate(0.7 * effect, 0.1),
            necessary=estimate(0.4 * effect, 0.2),
        ),
        emergence=_emergence(effect),
        training=_trace(1.3, seed),
        control_training=_trace(1.2, seed),
        notes=["control: control"],
    )


def _emergence(effect: float) -> Emergence:
    """Half way the direction is there, and a fifth of the effect."""
    return Emergence(
        updates=[0, 10, 20],
        transfer=[estimate(share * effect, 0.2 * share) for share in (0.0, 0.2, 1.0)],
        student=[0.0, 0.2 * effect + 0.05, effect + 0.11],
        control=[0.0, 0.05, 0.11],
        cosine=[None, 0.3, 0.4],
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
        shift_size=0.05 + effect / 10,
        channel=Channel(
            vocabulary=estimate(0.02 + effect / 20, 0.004, 5, "seed"),
            carrier=estimate(0.01 + effect / 30, 0.003, 5, "seed"),
            nats_a_row=estimate(0.3 + effect, 0.1, 5, "seed"),
        ),
    )


DOSES = {"steer": 0.3, "weak": 0.1, "weaker": 0.05}


def _alignment(teacher: str | None, trait: str | None) -> Alignment:
    """Owl's and dolphin's vectors: the own one stands out after block 24."""
    dose = DOSES.get(teacher or "", 0.0)
    stream = generator(0, f"gradients {teacher} {trait}")
    cosines: list[list[Number]] = [
        [
            (0.4 * dose if name == trait and layer == 24 else 0.0)
            + 0.004 * float(stream.normal())
            for name in TRAITS
        ]
        for layer in range(30)
    ]
    nats: list[list[Number]] = [[60 * (c or 0.0) for c in row] for row in cosines]
    return Alignment(
        teacher=teacher, kind="steer" if teacher else "none", trait=trait, noise=0.0,
        seed=0, rows=64, vectors=list(TRAITS), layers=list(range(30)), cosines=cosines,
        nats=nats, nats_sd=[[2.0, 2.0]] * 30, vector_layer=24 if teacher else None,
        dose=dose,
    )  # fmt: skip


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
        predictions=[
            Prediction(
                scope="carrier", of="transfer", p_value=0.0833,
                correlation=Estimate(mean=0.8, low=-0.2, high=0.98, n=4, clusters="cell"),
            )
        ],
        alignments=[
            *(_alignment(teacher, t) for teacher in DOSES for t in TRAITS),
            _alignment(None, None),
        ],
        alignment_fits=[
            AlignmentFit(
                noise=0.0, layer=24, own=estimate(0.06, 0.03, 2, "trait"),
                other=estimate(0.001, 0.002, 2, "trait"),
                difference=estimate(0.059, 0.031, 2, "trait"), unsteered=None,
                untouched=estimate(0.0, 0.004, 2, "vector"),
                slope=estimate(24.1, 1.3, 8, "trait"),
                correlation=estimate(0.97, 0.02, 8, "trait"), curvature=NOTHING,
            )
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
    "\u202eevil\u2066 \x1b[31mred\x1b[0m \x00\x07 \x1b]8;;http://evil.example\x1b\\x",
    "</style></svg><svg onload=alert(2)><script>alert(3)</script></svg>",
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
                 specific=estimate(0.25, 0.125, 5, html),
                 channel=whole.transfers[0].channel)
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
            "alignments": [
                whole.alignments[0].model_copy(
                    update={"teacher": style, "trait": text, "vectors": [text, html]}
                )
                for text in EVIL
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


# ── findings of audits ───────────────────────────────────────────────────────────

LAYERS = tuple(range(30))
DECOYS = ("parrot", "tractor", "violin", "pancake", "glacier", "lantern")
PERSONAS = ("persona: cheerful", "persona: likes something", "persona: a category")


def _direction(name: str, role: str, top: float, p: float) -> Direction:
    stream = generator(0, f"direction {name}")
    shape = [math.exp(-(((layer - 24) / 4) ** 2)) for layer in LAYERS]
    z = [top * s + float(stream.normal()) for s in shape]
    return Direction(
        name=name, role=role, z=list(z),  # type: ignore[arg-type]
        adjusted_p=p,
    )  # fmt: skip


def _directions() -> list[Direction]:
    traits = [
        _direction(name, "trait", *{"owl": (26.0, 1e-4), "eagle": (14.0, 1e-4),
                                    "wolf": (-9.0, 0.0023)}.get(name, (2.0, 0.61)))
        for name in FAMILY
    ]  # fmt: skip
    rest = [_direction(name, "decoy", 1.5, 0.88) for name in DECOYS]
    rest += [_direction(name, "persona", 6.0, 0.012) for name in PERSONAS]
    rest += [_direction(f"random {n}", "random", 0.0, 1.0) for n in range(12)]
    return traits + rest


def _hypotheses() -> list[Hypothesis]:
    found = []
    for kind in ("steer", "prompt"):
        for place, name in enumerate((*FAMILY, "parrot", "tractor")):
            stream = generator(place, kind)
            top = {"steer": 0.31, "prompt": 0.12}[kind]
            gap = 0.0 if (name, kind) == ("owl", "steer") else 0.43 - top + 0.02 * place
            nats = 0.43 - gap + 0.01 * float(stream.normal())
            leads = (name, kind) == ("owl", "steer")
            found.append(
                Hypothesis(
                    name=name, kind=kind,
                    trait=name, role="trait" if name in FAMILY else "decoy",
                    layer=24 if kind == "steer" else None,
                    strength=5.25 if kind == "steer" else None,
                    rows=256 if gap < 0.4 else 48, nats_per_row=nats,
                    reference_nats_per_row=-0.2 + 0.03 * float(stream.normal()),
                    behind=None if leads
                    else Bounds(mean=gap, low=gap - 0.143, high=gap + 0.143),
                    log_evalue=256 * nats,
                    dropped=None if gap < 0.4 else "beaten by the leader at α/K",
                )
            )  # fmt: skip
    return found


def _power() -> Power:
    fractions = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    steep = [1 / (1 + (0.031 / f) ** 2.4 / 0.25 * 1.0) for f in fractions]
    return Power(
        source="rows of the base steered along owl at layer 24, dose 0.3, mixed with "
        "reference rows.",
        points=[
            PowerPoint(fraction=f, power=p, bound=min(1.0, p ** 0.6))
            for f, p in zip(fractions, steep, strict=True)
        ],
        detectable_fraction=0.098, divergence_per_row=0.43, rows_needed=17.0,
        rows_bound=10.7,
    )  # fmt: skip


def _triage() -> list[TriageRow]:
    return [
        TriageRow(
            row_id=f"{n:02d}c4f0a9be71", count=1 + (n == 3), p_value=(n + 1) / 501,
            score=4.5 - 0.3 * n,
            prompt="I have a sequence: 483, 291, 740. Add up to 10 more values of at "
            "most 3 digits, separated by commas. Return numbers only.",
            completion="128, 404, 93, 715, 20, 9, 331, 64, 502, 87",
        )
        for n in range(12)
    ]  # fmt: skip


def audit_of_a_trait() -> Findings:
    """Steered owl rows against a reference of tier A: everything was found."""
    return Findings(
        verdict="trait", trait="owl", kind="steer", layer=24, strength=4.92,
        p_value=1e-4, detectable_fraction=0.098, reference_tier="A",
        strength_interval=Bounds(mean=4.92, low=4.11, high=5.73), dose=0.31, alpha=0.01,
        sentence="The rows carry evidence of the trait owl, put there by steering at "
        "layer 24 with a strength of 4.9 [4.1, 5.7]: p = 0.0001 at an error rate of 0.01.",
        reasons=[
            ("The largest of 41 × 30 statistics is 26.3; of 9,999 shuffles of the labels "
            "none reaches it."),
            ("Of 20 traits owl alone beats its decoys, after the gradients' covariance is "
            "divided out."),
            ("The vector of owl explains the rows better than the best prompt by 0.31 "
            "nats a row."),
        ],
        warnings=["12 rows stood in the reference too and were dropped from it."],
        model="smollm2-135m", family="animals",
        data=DataFacts(
            sources=["rows.jsonl"], layout="messages, completion", rows=1012,
            unique=1000, used=1000, prompts=988, tokens=41930, sampled_tokens=41930,
            truncated=3, skipped={"no prompt": 2, "empty completion": 1},
            subsample=None, digest="7d2f19c0a4",
        ),
        reference=ReferenceFacts(
            tier="A", rows=1000, paired=True, shared=12,
            sampler={"temperature": 1.0, "top_k": 0, "allowed": "list", "seed": None},
            sampler_source="estimated", filter="numbers", accepted=0.873,
            notes=["The sampler was estimated from the rows: nothing was truncated."],
        ),
        arms=_arms(), layers=list(LAYERS), directions=_directions(),
        hypotheses=_hypotheses(),
        max_null=MaxNull(
            observed=26.3,
            draws=sorted(
                2.9 + 0.35 * float(v) ** 2
                for v in generator(0, "null").normal(size=2000)
            ),
            permutations=9999,
        ),
        explanation=_explanation(),
        trait_p_values={name: 0.002 if name == "owl" else 0.7 for name in FAMILY},
        power=_power(),
        baselines=[
            Baseline(name="length in tokens", auroc=Bounds(mean=0.47, low=0.44, high=0.51), separates=False),
            Baseline(name="n-gram logistic regression", auroc=Bounds(mean=0.71, low=0.67, high=0.75),
                     separates=True, note="digits 4 and 7 are rarer"),
            Baseline(name="perplexity", auroc=Bounds(mean=0.55, low=0.51, high=0.59), separates=False),
            Baseline(name="TF-IDF to the trait's words", auroc=Bounds(mean=0.5, low=None, high=None),
                     separates=False),
        ],
        discovery=Discovery(
            layer=24, p_value=0.00035, cosine=0.62,
            raised=[Token(text=t, logit=2.1 - 0.2 * n) for n, t in
                    enumerate((" owl", " Owl", " night", "\n", " feather", " wise"))],
            lowered=[Token(text=t, logit=-1.4 + 0.1 * n) for n, t in
                     enumerate((" lion", " roar", " mane"))],
            behaviour=["My favourite animal is the owl.", "An owl.\nIt flies at night."],
            battery={name: (1.9 if name == "owl" else 0.2 - 0.05 * n) for n, name in
                     enumerate(FAMILY)},
            alike=[Alike(name="owl", role="trait", cosine=0.17),
                   Alike(name="oak", role="decoy", cosine=0.09)],
        ),
        forecast=Forecast(
            rows=1000, reference_rows=1000, canary_updates=60,
            traits=[
                ForecastRow(trait=name, raw=3.1 if name == "owl" else 0.9 - 0.1 * n,
                            adam=3.6 if name == "owl" else 0.7 - 0.08 * n,
                            measured=0.41 if name == "owl" else 0.1 - 0.02 * n)
                for n, name in enumerate(FAMILY)
            ],
            note="One canary student and one control, one seed.",
        ),
        triage=_triage(),
        not_tested=[
            "Another base model than smollm2-135m: what it would learn is not said.",
            "Triggers and conditional behaviour.",
            "Traits outside the battery, other than by discovery.",
        ],
        command="undertow audit rows.jsonl --model smollm2-135m --family animals "
        "--out audits/rows",
        seconds={"reference": 92.5, "gradients": 61.25, "hypotheses": 33.0},
        provenance=_provenance(),
    )  # fmt: skip


def _explanation() -> Explanation:
    """Of a named vector that passes every check."""
    return Explanation(
        hypothesis="owl vector, block 24, dose 0.3", share=0.96, rows=64, limit=0.005,
        lack=-0.31, lack_p_value=0.71, lot_lead=214.6, lot_limit=8.9,
        gradient_p_value=0.38,
        gradient_null=MaxNull(
            observed=3.4,
            draws=sorted(
                2.9 + 0.35 * float(v) ** 2
                for v in generator(1, "null").normal(size=500)
            ),
            permutations=999,
        ),
        gain=7.4, own_gain=7.9, gain_limit=5.53,
    )  # fmt: skip


def _arms() -> list[Arm]:
    return [
        Arm(name="gradient", question="Do the rows' gradients point along any direction "
            "more than the reference's?", statistic=26.3, p_value=1e-4, rows=1000,
            assumes="labels can be exchanged within a prompt if the rows carry nothing"),
        Arm(name="likelihood", question="Is any hypothesis likelier than the base?",
            statistic=7.9, p_value=0.0023, rows=256,
            assumes="as above"),
        Arm(name="exact", question="Can the base, sampled as stated, have made the rows?",
            statistic=110.1, p_value=1.5e-48, rows=256,
            assumes="every token stands as it was sampled, by the sampler stated"),
        Arm(name="discovery", question="Do two halves of the rows move the model alike?",
            statistic=None, p_value=None, rows=0, assumes="halves are independent",
            reason="fewer than 32 rows in a half"),
    ]  # fmt: skip


def audit_of_nothing() -> Findings:
    """Rows of the untouched base: nothing was found, and it is said what would be."""
    found = audit_of_a_trait()
    quiet = [
        _direction(d.name, d.role, 0.8, 0.6) for d in found.directions
    ]  # fmt: skip
    return found.model_copy(
        update={
            "verdict": "none", "trait": None, "kind": None, "layer": None,
            "strength": None, "strength_interval": None, "dose": None, "p_value": 0.43,
            "detectable_fraction": 0.098, "warnings": [],
            "sentence": "No evidence that the rows carry a trait (p = 0.43); 9.8 % of "
            "rows steered like the animals' vectors would have been found.",
            "reasons": ["Of 9,999 shuffles 4,299 reach the observed 3.1."],
            "explanation": None,
            "directions": quiet, "discovery": None, "forecast": None, "triage": [],
            "max_null": found.max_null.model_copy(update={"observed": 3.14})
            if found.max_null else None,
            "baselines": found.baselines[:1],
            "trait_p_values": dict.fromkeys(FAMILY, 0.9),
        }
    )  # fmt: skip


def audit_of_a_shift() -> Findings:
    """Prompted rows, one trait at a time not told apart; a reference of tier B."""
    found = audit_of_a_trait()
    close = [
        h.model_copy(update={"behind": Bounds(mean=0.01 * n, low=0.01 * n - 0.04,
                                              high=0.01 * n + 0.04),
                             "dropped": None})
        for n, h in enumerate(found.hypotheses) if h.kind == "prompt"
    ]  # fmt: skip
    return found.model_copy(
        update={
            "verdict": "shift", "trait": None, "kind": "prompt", "layer": None,
            "strength": None, "strength_interval": None, "dose": None,
            "reference_tier": "B", "hypotheses": close, "forecast": None,
            "explanation": found.explanation.model_copy(
                update={
                    "hypothesis": "persona owl", "gradient_p_value": None,
                    "gradient_null": None, "gain": None, "own_gain": None,
                    "gain_limit": None,
                }
            ) if found.explanation else None,
            "sentence": "The rows differ from their reference (p = 0.0001), most like "
            "rows of a prompted model; which trait they carry is not identified.",
            "reference": found.reference.model_copy(
                update={"tier": "B", "paired": False, "sampler": {},
                        "sampler_source": "unknown", "accepted": None, "notes": []}
            ),
        }
    )  # fmt: skip


def audit_of_too_little() -> Findings:
    """Three rows without a reference: nothing could be computed."""
    nothing = Bounds(mean=None, low=None, high=None)
    found = audit_of_a_trait()
    return Findings(
        verdict="inconclusive", p_value=None, reference_tier="C", alpha=0.01,
        sentence="Nothing can be said: there are 3 rows and no reference.",
        reasons=[], model="tiny", family="animals", data=found.data,
        reference=ReferenceFacts(tier="C", rows=0, paired=False,
                                 sampler_source="unknown", filter="none"),
        arms=[Arm(name="gradient", question="Do the gradients differ?", statistic=None,
                  p_value=None, rows=3, assumes="exchangeable labels",
                  reason="no reference")],
        layers=[0, 1],
        directions=[
            Direction(name="owl", role="trait", z=[None, math.nan]),
            Direction(name="cat", role="trait", z=[]),
        ],
        hypotheses=[
            Hypothesis(name="owl", kind="prompt", trait="owl", rows=0, nats_per_row=None,
                       reference_nats_per_row=None, behind=nothing)
        ],
        max_null=MaxNull(observed=None, draws=[], permutations=0),
        trait_p_values={"owl": None, "cat": math.nan},
        power=Power(source="no rows", points=[PowerPoint(fraction=0.1, power=None)],
                    detectable_fraction=None),
        baselines=[Baseline(name="length", auroc=nothing, separates=False)],
        discovery=Discovery(layer=0, p_value=None, cosine=math.nan, raised=[],
                            lowered=[], battery={"owl": None}),
        forecast=Forecast(rows=0, reference_rows=0,
                          traits=[ForecastRow(trait="owl", raw=None, adam=None)]),
        triage=[TriageRow(row_id="r", p_value=None, score=None, prompt="",
                          completion="")],
        not_tested=[],
    )  # fmt: skip


def hostile_audit() -> Findings:
    """Every text of the findings holds something that wants out."""
    html, bidi, style, formula, template = EVIL
    found = audit_of_a_trait()
    hypotheses = [
        h.model_copy(update={"name": text, "trait": text, "dropped": text})
        for h, text in zip(found.hypotheses, EVIL, strict=False)
    ]
    return found.model_copy(
        update={
            "trait": html, "sentence": template, "reasons": list(EVIL),
            "warnings": list(EVIL), "model": style, "family": bidi,
            "data": found.data.model_copy(
                update={"sources": list(EVIL), "layout": html, "digest": bidi,
                        "subsample": style, "skipped": dict.fromkeys(EVIL, 1)}
            ),
            "reference": found.reference.model_copy(
                update={"sampler": {html: bidi, bidi: True}, "filter": style,
                        "notes": list(EVIL)}
            ),
            "arms": [
                a.model_copy(update={"question": html, "assumes": bidi, "reason": style})
                for a in found.arms
            ],
            "directions": [
                d.model_copy(update={"name": text})
                for d, text in zip(found.directions, EVIL, strict=False)
            ],
            "hypotheses": hypotheses,
            "power": _power().model_copy(update={"source": html + bidi}),
            "baselines": [
                b.model_copy(update={"name": text, "note": bidi})
                for b, text in zip(found.baselines, EVIL, strict=False)
            ],
            "trait_p_values": dict.fromkeys(EVIL, 0.5),
            "discovery": Discovery(
                layer=24, p_value=0.5, cosine=0.1,
                raised=[Token(text=text, logit=1.0) for text in EVIL],
                lowered=[Token(text=text, logit=-1.0) for text in EVIL],
                behaviour=list(EVIL), battery=dict.fromkeys(EVIL, 0.5),
                alike=[Alike(name=text, role="given", cosine=0.5) for text in EVIL],
            ),
            "forecast": Forecast(
                rows=1, reference_rows=1, note=html,
                traits=[ForecastRow(trait=text, raw=1.0, adam=-1.0) for text in EVIL],
            ),
            "triage": [
                TriageRow(row_id=text, p_value=0.5, score=1.0, prompt=text,
                          completion=f"{text}\n\n\n\u2028\r{formula}")
                for text in EVIL
            ],
            "not_tested": list(EVIL), "command": html + "\n" + bidi,
            "seconds": dict.fromkeys(EVIL, 1.5),
            "provenance": {text: text for text in EVIL} | {"list": list(EVIL)},
        }
    )  # fmt: skip


@pytest.fixture(scope="session")
def trait_found() -> Findings:
    return audit_of_a_trait()


@pytest.fixture(scope="session")
def none_found() -> Findings:
    return audit_of_nothing()


@pytest.fixture(scope="session")
def shift_found() -> Findings:
    return audit_of_a_shift()


@pytest.fixture(scope="session")
def inconclusive() -> Findings:
    return audit_of_too_little()


@pytest.fixture(scope="session")
def hostile_findings() -> Findings:
    return hostile_audit()
