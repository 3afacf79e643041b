"""The schema of audit.json: strict, frozen, and the same after a trip through a file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from undertow.findings import (
    SCHEMA_VERSION,
    Arm,
    Baseline,
    Bounds,
    DataFacts,
    Direction,
    Discovery,
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
from undertow.storage import read_json, write_json

KINDS = (
    Arm, Baseline, Bounds, DataFacts, Direction, Discovery, Findings, Forecast,
    ForecastRow, Hypothesis, MaxNull, Power, PowerPoint, ReferenceFacts, Token, TriageRow,
)  # fmt: skip
# The fields that a program reads first, in this order (see the README of an audit).
FIRST = (
    "schema_version", "verdict", "trait", "kind", "layer", "strength", "p_value",
    "detectable_fraction", "reference_tier",
)  # fmt: skip

DATA = DataFacts(
    sources=["rows.jsonl"], layout="messages, completion", rows=10, unique=9, used=9,
    prompts=8, tokens=99, sampled_tokens=0, truncated=1, digest="00ff",
    skipped={"empty": 1},
)  # fmt: skip
FINDINGS = Findings(
    verdict="trait",
    trait="owl",
    kind="steer",
    layer=3,
    strength=0.5,
    p_value=1e-4,
    detectable_fraction=None,
    reference_tier="A",
    strength_interval=Bounds(mean=0.5, low=0.4, high=None),
    alpha=0.01,
    sentence="s",
    reasons=["r"],
    model="m",
    family="animals",
    data=DATA,
    reference=ReferenceFacts(
        tier="A", rows=9, paired=True, sampler_source="recorded", filter="numbers",
        sampler={"temperature": 1.0, "allowed": "all"},
    ),
    arms=[
        Arm(name="exact", question="q", statistic=None, p_value=None, rows=0,
            assumes="a", reason="no sampler is known")
    ],
    layers=[3, 4],
    directions=[Direction(name="owl", role="trait", z=[4.0, None])],
    hypotheses=[
        Hypothesis(name="owl vector", kind="steer", trait="owl", layer=3, rows=9,
                   nats_per_row=0.2, reference_nats_per_row=-0.1)
    ],
    max_null=MaxNull(observed=5.0, draws=[0.5, 1.0], permutations=999),
    power=Power(
        source="planted", points=[PowerPoint(fraction=0.1, power=0.8)],
        detectable_fraction=0.1,
    ),
    baselines=[
        Baseline(name="length", separates=False, auroc=Bounds(mean=0.5, low=0.4, high=0.6))
    ],
    discovery=Discovery(
        layer=3, p_value=0.5, cosine=0.1, raised=[Token(text="\x1b[0m", logit=1.0)],
        lowered=[],
    ),
    forecast=Forecast(
        rows=9, reference_rows=9, traits=[ForecastRow(trait="owl", raw=1.0, adam=None)]
    ),
    triage=[
        TriageRow(row_id="a", p_value=0.1, score=2.0, prompt="p\ud800", completion="c")
    ],
    not_tested=["triggers"],
    provenance={"cores": 2, "commit": None, "list": ["a"]},
    seconds={"score": 1.5},
)  # fmt: skip


def test_findings_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    write_json(path, FINDINGS.model_dump(mode="json"))
    found = Findings.model_validate(read_json(path))
    assert found == FINDINGS
    assert found.schema_version == SCHEMA_VERSION == 1
    assert found.confidence == 0.95


def test_the_verdict_stands_first() -> None:
    assert tuple(FINDINGS.model_dump())[: len(FIRST)] == FIRST


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_refused(kind: Any) -> None:
    assert kind.model_json_schema()["additionalProperties"] is False
    with pytest.raises(ValidationError, match="surprise"):
        kind.model_validate({"surprise": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verdict", "clean"), ("reference_tier", "D"), ("kind", "finetune"),
        ("layer", 1.5), ("p_value", "small"),
    ],
)  # fmt: skip
def test_words_and_numbers_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Findings.model_validate(FINDINGS.model_dump() | {field: value})


def test_findings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FINDINGS.verdict = "none"


def test_nan_never_reaches_the_file(tmp_path: Path) -> None:
    unknown = FINDINGS.model_copy(
        update={
            "strength": math.nan,
            "strength_interval": Bounds(mean=math.nan, low=-math.inf, high=math.inf),
            "directions": [Direction(name="owl", role="trait", z=[math.nan, 1.0])],
        }
    )
    write_json(tmp_path / "audit.json", unknown.model_dump())
    plain = unknown.model_copy(
        update={"triage": []}
    )  # pydantic refuses lone surrogates
    for text in ((tmp_path / "audit.json").read_text(), plain.model_dump_json()):
        value = json.loads(text, parse_constant=lambda word: pytest.fail(word))
        found = Findings.model_validate(value)
        assert found.strength is None
        assert found.strength_interval == Bounds(mean=None, low=None, high=None)
        assert found.directions[0].z == [None, 1.0]
