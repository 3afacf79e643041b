"""Blind audits of a run: a planted bias, the truth beside the verdict, and no hint."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from undertow.audit.auditor import run_audit
from undertow.audit.reference import Reference
from undertow.config import dump_settings
from undertow.errors import DatasetError
from undertow.experiment import Recipe, audits, run_experiment
from undertow.experiment.audits import is_right
from undertow.experiment.stages import Base
from undertow.findings import Findings
from undertow.models.tiny import tiny_model
from undertow.records import Message, Row
from undertow.results import AuditTruth, Results
from undertow.runs import open_run
from undertow.storage import read_json, read_rows
from undertow.traits import load_family

ROWS, PLANTED = 48, 8
SETTINGS = {
    "screening": 8, "fresh": 16, "planted": PLANTED, "naming_passes": 200, "personas": 2,
    "permutations": 999, "discover": False, "forecast": 0,
}  # fmt: skip
DATA: dict[str, Any] = {
    "title": "tiny",
    "question": "does an audit see it?",
    "traits": ["owl"],
    "teachers": [{"kind": "steer", "steer": {"layer": 1, "dose": 0.7}}],
    "seeds": [3],
    "rows": {"count": ROWS, "sampler": {"allowed": "list", "max_new_tokens": 48}},
    "student": {"batch_size": 8, "rank": 2, "max_updates": 1},
    "evaluation": {"questions": 2, "shift_rows": 0},
    "audit": {"rows": ROWS, "share": 0.75, "settings": SETTINGS},
}


def make(folder: Path, **changes: Any) -> Recipe:
    """The recipe above, with changes."""
    named = {"model": {"name": str(folder), "dtype": "float32"}}
    return Recipe.model_validate(DATA | named | changes)


@dataclass
class Watched:
    """A run that was cut between two sets, went on, and what its audits were given."""

    folder: Path
    recipe: Recipe
    calls: list[dict[str, Any]] = field(default_factory=list)
    before: int = 0
    results: Results | None = None

    def outcome(self, name: str) -> Any:
        assert self.results is not None
        return {audit.name: audit for audit in self.results.audits}[name]

    def rows(self, name: str) -> list[Row]:
        return read_rows(self.folder / "audits" / name / "rows.jsonl")


def cut(stage: str, *_: object) -> None:
    """Ctrl-C when the last set is begun."""
    if stage.startswith("audit of mixture"):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def watched(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    found = Watched(tmp_path_factory.mktemp("audited") / "run", make(tiny_llama))

    def spy(model: Any, rows: Any, **rest: Any) -> Any:
        found.calls.append({"rows": rows, **rest})
        return run_audit(model, rows, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audits, "run_audit", spy)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(found.recipe, found.folder, progress=cut)
        found.before = len(found.calls)
        found.results = run_experiment(found.recipe, found.folder)
    return found


@pytest.mark.slow
def test_a_planted_bias_is_found_and_the_base_is_not_accused(watched: Watched) -> None:
    biased, clean, mixture = map(watched.outcome, audits.NAMES)
    assert biased.verdict in ("trait", "shift")
    assert biased.trait in (None, "owl")
    assert (biased.kind, biased.layer) == ("steer", 1)
    assert (clean.verdict, clean.trait) == ("none", None)
    assert mixture.verdict in ("trait", "shift")
    assert [a.right for a in (biased, clean, mixture)] == [True, True, True]
    assert biased.p_value < 0.01 < clean.p_value


@pytest.mark.slow
def test_the_truth_stands_beside_each_verdict(watched: Watched) -> None:
    rows = len(watched.rows("biased"))
    biased, clean, mixture = (watched.outcome(name).truth for name in audits.NAMES)
    assert biased.words == f"all {rows} rows: steered towards owl after block 1"
    assert clean.words == f"all {rows} rows: untouched base"
    taught = round(0.75 * rows)
    assert mixture.words == (
        f"{taught} rows: steered towards owl after block 1; {rows - taught} rows: "
        "untouched base"
    )
    assert [t.share for t in (biased, clean, mixture)] == [1, 0, taught / rows]
    assert (biased.kind, biased.layer, clean.kind) == ("steer", 1, "none")


@pytest.mark.slow
def test_the_sets_answer_the_same_prompts(watched: Watched) -> None:
    folder = watched.folder / "audits"
    biased, clean, mixture = map(watched.rows, audits.NAMES)
    reference = read_rows(folder / "reference.jsonl")
    prompts = [row.messages for row in biased]
    for rows in (clean, mixture, reference):
        assert [row.messages for row in rows] == prompts
    assert sum(a == b for a, b in zip(clean, reference, strict=True)) < len(clean) / 4
    marker = read_json(watched.folder / "stages" / "audits" / "sets.json")["payload"]
    poisoned = set(marker["poisoned"])
    for place, row in enumerate(mixture):
        assert row == (biased if place in poisoned else clean)[place]
    kept = watched.folder / "bases" / "noise-0" / "seed-3" / "steer-owl" / "rows.jsonl"
    assert {r.row_id for r in biased} <= {r.row_id for r in read_rows(kept)}


@pytest.mark.slow
def test_nothing_tells_the_auditor_who_wrote_a_row(watched: Watched) -> None:
    assert len(watched.calls) == 4  # one of them was cut
    for call in watched.calls:
        assert all(dict(row.provenance) == {} for row in call["rows"])
        assert all(dict(row.provenance) == {} for row in call["drawn"].rows)
        assert call["origin"].sources == ("rows.jsonl",)
        assert call["origin"].command == watched.calls[0]["origin"].command
        assert call["settings"] == watched.calls[0]["settings"]
        assert not call.get("vectors")
    for name in audits.NAMES:
        text = (watched.folder / "audits" / name / "rows.jsonl").read_text()
        assert "owl" not in text
        assert "steer" not in text


@pytest.mark.slow
def test_each_audit_leaves_its_own_findings(watched: Watched) -> None:
    for name in audits.NAMES:
        folder, outcome = watched.folder / "audits" / name, watched.outcome(name)
        findings = Findings.model_validate(read_json(folder / "audit.json"))
        assert (watched.folder / outcome.report).is_file()
        assert (folder / "scores.parquet").is_file()
        for key in ("verdict", "trait", "kind", "layer", "p_value", "sentence"):
            assert getattr(outcome, key) == getattr(findings, key)
        assert outcome.rows == outcome.reference_rows == findings.data.used
        assert findings.reference.tier == "A"
        assert findings.reference.sampler_source == "given"
        assert "undertow audit rows.jsonl --model" in findings.command


@pytest.mark.slow
def test_rows_that_stand_in_several_sets_are_measured_once(watched: Watched) -> None:
    folder = watched.folder / "audits"
    ids = [
        str(name)
        for path in sorted((folder / "measured").glob("signals-*.npz"))
        for name in np.load(path)["ids"]
    ]
    assert len(set(ids)) == len(ids)
    own = {r.row_id for name in ("biased", "clean") for r in watched.rows(name)}
    assert own <= set(ids)
    # The reference, and of each set at most eight planted rows and one written beside
    # each row of the half that an explanation is checked on.
    assert len(ids) <= len(own) + ROWS + 3 * (PLANTED + ROWS // 2)


@pytest.mark.slow
def test_a_run_cut_between_two_sets_ends_like_an_unbroken_one(
    watched: Watched, tmp_path: Path
) -> None:
    assert watched.before == 3, "the third audit was begun"
    assert len(watched.calls) == 4, "and the first two were not repeated"
    again = tmp_path / "run"
    shutil.copytree(watched.folder, again)
    shutil.rmtree(again / "stages" / "audits")
    shutil.rmtree(again / "audits")
    unbroken = run_experiment(watched.recipe, again)
    assert watched.results is not None
    assert unbroken.audits == watched.results.audits


def test_rows_are_taken_seed_after_seed(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = make(tiny_llama, seeds=[5, 2], audit=None,
                  rows=DATA["rows"] | {"count": 3})  # fmt: skip
    run_experiment(recipe, tmp_path / "run")
    family = load_family("animals")
    with open_run(tmp_path / "run", recipe_text=dump_settings(recipe)) as run:
        base = Base(recipe, family, run, tiny_model(), 0.0, 5, lambda *_: None)
        found = [row.provenance["seed"] for row in audits._taught(base)]
    assert found == sorted(found, reverse=True)
    assert set(found) == {5, 2}


def test_a_run_without_the_section_audits_nothing(
    tiny_llama: Path, tmp_path: Path
) -> None:
    settings = make(
        tiny_llama, audit=None, rows={"count": 4, "sampler": {"allowed": "list"}}
    )
    results = run_experiment(settings, tmp_path / "run")
    assert results.audits == []
    assert not (tmp_path / "run" / "audits").exists()


def test_sets_that_would_be_empty_are_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object, **__: object) -> Reference:
        return Reference(tier="A", accepted=0.0)

    monkeypatch.setattr(audits, "sampled_reference", nothing)
    settings = make(tiny_llama, rows={"count": 4, "sampler": {"allowed": "list"}})
    with pytest.raises(DatasetError, match=r"no prompt of [1-4] has a row of the tea"):
        run_experiment(settings, tmp_path / "run")


def test_all_sides_pass_the_filter_of_the_recipe(tiny_llama: Path) -> None:
    question = (Message("user", "Go on: 1"),)
    texts = ["1, 2", "7, 8", "1, 2, 3, 4", "one", " "]
    rows = [Row(question, text, finish="stop") for text in texts]
    rows.append(Row(question, "1, 2", finish="length"))
    strict = make(tiny_llama, rows={"max_values": 3, "banned": [7]})
    assert audits._accepted(strict, rows) == [True, *[False] * 5]
    loose = make(tiny_llama, rows={"filter": False})
    assert audits._accepted(loose, rows) == [*[True] * 4, False, True]


def test_the_command_repeats_an_audit_by_hand(tiny_llama: Path) -> None:
    model = {"name": "m odel", "dtype": "float32", "blocks_path": "a.b"}
    recipe = make(tiny_llama, model=model, seeds=[3])
    assert recipe.audit is not None
    settings = audits._audit_settings(recipe, recipe.audit)
    words = audits._command(recipe, settings)
    assert words.startswith(
        "undertow audit rows.jsonl --model 'm odel' --out again --dtype float32 "
        "--blocks-path a.b --set seed=3 --set 'sampler={"
    )
    assert "}' --set filter=numbers --set permutations=999 --set screening=" in words
    assert words.endswith("--set discover=false --set forecast=0")
    assert json.dumps(settings.sampler.model_dump()) in words  # type: ignore[union-attr]


TAUGHT = AuditTruth(words="", kind="steer", trait="owl", layer=1, share=0.5)
CLEAN = AuditTruth(words="", kind="none", share=0.0)
TUNED = AuditTruth(words="", kind="finetune", trait="owl", share=1.0)


@pytest.mark.parametrize(
    ("truth", "verdict", "trait", "kind", "right"),
    [
        (TAUGHT, "trait", "owl", "steer", True),
        (TAUGHT, "trait", "cat", "steer", False),
        (TAUGHT, "trait", "owl", "prompt", False),
        (TAUGHT, "trait", "owl", "unknown", True),
        (TAUGHT, "shift", None, "steer", True),
        (TAUGHT, "shift", None, "prompt", False),
        (TAUGHT, "none", None, None, False),
        (TAUGHT, "inconclusive", None, None, None),
        (CLEAN, "none", None, None, True),
        (CLEAN, "shift", None, "unknown", False),
        (CLEAN, "trait", "owl", "steer", False),
        (CLEAN, "inconclusive", None, None, None),
        (TUNED, "trait", "owl", "steer", True),
        (TUNED, "trait", "cat", "steer", False),
    ],
)
def test_a_verdict_is_right_if_all_that_it_says_is_true(
    truth: AuditTruth, verdict: Any, trait: Any, kind: Any, right: bool | None
) -> None:
    findings = Findings.model_construct(verdict=verdict, trait=trait, kind=kind)
    assert is_right(truth, findings) is right


def test_the_decoys_of_a_blind_audit_are_of_another_family_than_the_recipe_s() -> None:
    def asked(**settings: object) -> Recipe:
        changes: dict[str, Any] = {
            "model": {"name": "smollm2-135m"},
            "family": "trees",
            "traits": ["oak"],
            "audit": {"settings": settings},
        }
        return Recipe.model_validate(DATA | changes)

    made = asked()
    assert made.audit is not None
    found = audits._audit_settings(made, made.audit)
    assert (found.family, found.decoy_family) == ("trees", "animals")
    named = asked(decoys="animals")
    assert named.audit is not None
    assert audits._audit_settings(named, named.audit).decoy_family == "animals"
    with pytest.raises(
        ValidationError, match=r"audit\.settings\.decoys: 'trees' shares"
    ):
        asked(decoys="trees")
