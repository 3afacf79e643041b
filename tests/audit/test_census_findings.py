"""The audit that a census leads to: everything that was told, and nothing else."""

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from undertow.audit.census_findings import Handed, audit_command
from undertow.audit.census_settings import CensusSettings
from undertow.audit.settings import AuditSettings
from undertow.config import check_settings
from undertow.models.reloading import ModelFacts
from undertow.models.sampling import SamplerSettings

HANDED = Handed(Path("out/subsample.jsonl"), None, (), Path("out/audit"))


def words(
    settings: dict[str, Any] | None = None, handed: Handed = HANDED, **options: Any
) -> list[str]:
    facts = ModelFacts("base", "0" * 16, options)
    return shlex.split(audit_command(facts, CensusSettings(**settings or {}), handed))


def told(command: list[str]) -> AuditSettings:
    """The settings as the command line makes them of `--set`."""
    pairs = [b for a, b in pairwise(command) if a == "--set"]
    return check_settings(AuditSettings, {}, where="audit", overrides=pairs)


def test_what_is_usual_is_not_said() -> None:
    assert words(dtype="auto", device="auto", template=None, device_map=None) == [
        "undertow", "audit", "out/subsample.jsonl", "--model", "base",
        "--set", "family=animals", "--out", "out/audit",
    ]  # fmt: skip


def test_the_model_is_loaded_in_the_same_way() -> None:
    found = words(
        dtype="float32", device="cpu", template="plain", device_map={"": "cpu"},
        blocks_path="a.b",
    )  # fmt: skip
    at = found.index("--dtype")
    assert found[at : at + 10] == [
        "--dtype", "float32", "--device", "cpu", "--template", "plain",
        "--device-map", '{"": "cpu"}', "--blocks-path", "a.b",
    ]  # fmt: skip


def test_the_comparison_is_the_same() -> None:
    handed = Handed(
        Path("a b/rows.jsonl"), Path("ref.jsonl"), (Path("v/0.st"), Path("v/1.st")),
        Path("out"),
    )  # fmt: skip
    found = words(handed=handed)
    assert found[2] == "a b/rows.jsonl"
    assert found[found.index("--reference") + 1] == "ref.jsonl"
    assert [b for a, b in pairwise(found) if a == "--vector"] == [
        "v/0.st", "v/1.st",
    ]  # fmt: skip
    assert "--no-reference" not in found
    assert "--no-reference" in words({"reference": "none"})


@pytest.mark.parametrize(
    "given",
    [
        {"alpha": 0.05, "seed": 7, "layers": (1, 2), "filter": "none"},
        {"family": "own: trees", "decoys": "null", "system": 'be: "kind"\n'},
        {"sampler": SamplerSettings()},
        {"sampler": SamplerSettings(temperature=0.7, allowed="list", top_k=5)},
    ],
)
def test_an_audit_is_told_all_settings_that_it_shares(given: dict[str, Any]) -> None:
    found = told(words(given))
    assert {name: getattr(found, name) for name in given} == given
    usual = AuditSettings()
    rest = set(AuditSettings.model_fields) - set(given)
    assert all(getattr(found, name) == getattr(usual, name) for name in rest)


def test_a_larger_subsample_is_audited_whole() -> None:
    assert told(words({"subsample": 5000})).max_rows == 5000
    assert told(words({"subsample": 50})).max_rows == AuditSettings().max_rows
