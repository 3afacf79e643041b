"""A benchmark finds what was planted, repeats itself, and judges auditors fairly."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import family_text

from undertow.audit import benchmark as benchmark_module
from undertow.audit.bench_scores import BenchmarkResult, Cell
from undertow.audit.bench_settings import BenchmarkSettings, preset_data
from undertow.audit.benchmark import AUDITORS, run_benchmark
from undertow.audit.contest import Answer, MakeAuditor, Workbench
from undertow.errors import ConfigError, RunError
from undertow.models.loading import Model
from undertow.models.tiny import tiny_model
from undertow.records import Row
from undertow.storage import read_jsonl

FAMILY = family_text(
    "beasts", "animal", "Which animal?", wolf="wolves", otter="otters", cat="cats"
)
METALS = family_text("metals", "metal", "Which metal?", tin="tins", iron="irons")
SIZES: dict[str, Any] = {
    "traits": ["wolf", "otter"],
    "interventions": ["steer"],
    "doses": [2.0],
    "designs": [{"rows": 24, "audits": 2, "clean": 6}],
    "controls": ["within"],
}


Make = Callable[..., BenchmarkSettings]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The tiny preset with two small families and the given changes."""
    place = tmp_path_factory.mktemp("families")
    for name, text in (("beasts", FAMILY), ("metals", METALS)):
        (place / f"{name}.yaml").write_text(text)
    audit = preset_data("tiny")["audit"] | {
        "family": str(place / "beasts.yaml"), "decoys": str(place / "metals.yaml")
    }  # fmt: skip

    def make(**changes: Any) -> BenchmarkSettings:
        data = preset_data("tiny") | SIZES | {"audit": audit} | changes
        return BenchmarkSettings.model_validate(data)

    return make


def _cell(result: BenchmarkResult, auditor: str, intervention: str) -> Cell:
    return next(
        c
        for c in result.cells
        if (c.auditor, c.intervention) == (auditor, intervention)
    )


class Zero:
    """Says the same of everything."""

    name = "zero"

    def __init__(self, bench: Workbench) -> None: ...

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        assert len(audited) == len(reference)
        assert all(
            a.messages == r.messages for a, r in zip(audited, reference, strict=True)
        )
        assert [a.row_id for a in audited] == sorted(a.row_id for a in audited)
        assert not any(row.provenance for row in (*audited, *reference))
        return Answer(0.0)


class Oracle:
    """Has read the pools' files."""

    name = "oracle"
    folder: Path

    def __init__(self, bench: Workbench) -> None:
        self.steered: dict[str, str] = {}
        for path in self.folder.glob("pools/list-*/steer-*.jsonl"):
            for line in path.read_text().splitlines():
                for row in json.loads(line)["rows"]:
                    self.steered[row[2]] = path.name.split("-")[1]

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        hits = [
            self.steered[r.completion] for r in audited if r.completion in self.steered
        ]
        score = len(hits) / len(audited)
        trait = max(hits, key=hits.count) if score > 0.7 else None
        kind = None if trait is None else "steer"
        return Answer(score, trait, kind, layer=1, p_value=0.001 if trait else 0.5)


class Silent:
    """Cannot tell anything."""

    name = "silent"

    def __init__(self, bench: Workbench) -> None: ...

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        return Answer(math.nan)


PLUGGED: dict[str, MakeAuditor] = {"zero": Zero, "oracle": Oracle, "silent": Silent}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama", layers=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "run"


@pytest.fixture(scope="module")
def result(model: Model, folder: Path, settings: Make) -> BenchmarkResult:
    Oracle.folder = folder
    return run_benchmark(
        model, settings(), auditors=AUDITORS | PLUGGED, directory=folder
    )


def test_a_strong_steer_is_found(result: BenchmarkResult) -> None:
    cell = _cell(result, "undertow", "steer")
    assert cell.auroc is not None
    assert cell.auroc.value == 1.0
    assert cell.found is not None
    assert cell.found.value == 1.0
    assert (cell.audits, cell.clean_audits, cell.dose, cell.fraction) == (
        4,
        6,
        2.0,
        1.0,
    )
    # Two teachers on 32 prompts, 24 of them in each audit.
    assert 24 < cell.distinct_rows <= 64
    assert cell.rows_needed == 24
    assert cell.stein_rows is not None
    assert cell.efficiency == pytest.approx(cell.stein_rows / 24)
    clean = next(c for c in result.clean if c.auditor == "undertow")
    assert clean.named.value == 0
    assert clean.audits == 6


def test_rows_that_are_only_shuffled_are_named_by_nobody_with_a_null(
    result: BenchmarkResult,
) -> None:
    cell = _cell(result, "undertow", "within")
    assert cell.wrong is not None
    assert cell.wrong.value == 0
    assert cell.kind_right is None
    assert cell.stein_rows is None
    rival = _cell(result, "cosine", "within")
    assert rival.wrong is not None
    assert rival.wrong.value == 1  # it names whatever comes first


def test_who_says_nothing_is_a_coin(result: BenchmarkResult) -> None:
    cell = _cell(result, "zero", "steer")
    assert cell.auroc is not None
    assert cell.auroc.value == 0.5
    assert cell.found is None
    assert cell.unnamed is not None
    assert cell.unnamed.value == 1
    silent = _cell(result, "silent", "steer")
    assert silent.auroc is None
    assert silent.unanswered == silent.audits == 4


def test_who_knows_the_truth_is_perfect(result: BenchmarkResult) -> None:
    cell = _cell(result, "oracle", "steer")
    for rate in (cell.auroc, cell.tpr_at_1_fpr, cell.found, cell.right, cell.kind_right,
                 cell.layer_near):  # fmt: skip
        assert rate is not None
        assert rate.value == 1.0
    clean = next(c for c in result.clean if c.auditor == "oracle")
    assert clean.false_positives is not None
    assert clean.false_positives.value == 0


def test_the_same_call_gives_the_same_result_without_any_work(
    model: Model, folder: Path, settings: Make, result: BenchmarkResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also after some audits are lost, and with a pool made anew."""
    lines = (folder / "audits.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "audits.jsonl").write_bytes(b"".join(lines[::3]) + lines[1][:40])
    (pool,) = folder.glob("pools/list-*/base-1.jsonl")
    pool.unlink()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("rows were measured again")

    monkeypatch.setattr("undertow.audit.meter.measure", refuse)
    monkeypatch.setattr("undertow.audit.rivals.gradient_scores", refuse)
    again = run_benchmark(
        model, settings(), auditors=AUDITORS | PLUGGED, directory=folder
    )
    assert again.cells == result.cells
    assert again.clean == result.clean
    assert again.bounds == result.bounds
    assert again.likelihood_passes == 0
    kept = BenchmarkResult.model_validate_json((folder / "benchmark.json").read_text())
    assert kept == again


def test_sizes_may_change_in_the_same_folder(
    model: Model, folder: Path, settings: Make, result: BenchmarkResult
) -> None:
    given = settings(
        designs=[{"rows": 16, "fraction": 0.5, "audits": 1, "clean": 2}],
        control_audits=0,
    )
    other = run_benchmark(model, given, auditors={"zero": Zero}, directory=folder)
    (cell,) = other.cells
    assert (cell.rows, cell.fraction, cell.audits, cell.clean_audits) == (16, 0.5, 2, 2)
    assert {b.fraction for b in other.bounds} == {0.5}
    half, whole = other.bounds[0], result.bounds[0]
    assert half.divergence is not None
    assert whole.divergence is not None
    assert 0 < half.divergence < whole.divergence


def test_audited_anew_what_was_answered_before_is_kept(
    model: Model, folder: Path, settings: Make, result: BenchmarkResult, tmp_path: Path
) -> None:
    """However often, also if the second time was stopped halfway."""
    assert result.cells
    own = tmp_path / "bench"
    shutil.copytree(folder, own)
    log, before = own / "audits.jsonl", own / "audits-before.jsonl"
    first = read_jsonl(log)
    once = run_benchmark(
        model, settings(), auditors={"zero": Zero}, directory=own, again=True
    )
    assert read_jsonl(before) == first
    second = read_jsonl(log)
    assert {line["auditor"] for line in second} == {"zero"}
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    twice = run_benchmark(
        model, settings(), auditors={"zero": Zero}, directory=own, again=True
    )
    assert read_jsonl(before) == [*first, *second[:2]]
    assert twice.cells == once.cells
    assert len(read_jsonl(log)) == len(second)


def test_another_seed_is_refused(
    model: Model, folder: Path, settings: Make, result: BenchmarkResult
) -> None:
    with pytest.raises(RunError, match="seed"):
        run_benchmark(model, settings(seed=5), directory=folder)


def test_sets_that_cannot_be_made_are_noted(
    model: Model, settings: Make, tmp_path: Path
) -> None:
    given = settings(
        designs=[{"rows": 40, "audits": 1, "clean": 1}], control_audits=0, bound_rows=0
    )
    found = run_benchmark(model, given, auditors={"zero": Zero}, directory=tmp_path)
    assert found.cells == []
    assert "list: base 0: too few rows for audits of 40 at a share of 1" in found.notes


def test_another_base_is_a_control(
    model: Model, settings: Make, tmp_path: Path
) -> None:
    other = tiny_model("qwen2", layers=2, seed=3)
    given = settings(traits=["wolf"], bound_rows=0, controls=[])
    found = run_benchmark(
        model, given, auditors={"zero": Zero}, other=other, directory=tmp_path
    )
    cell = _cell(found, "zero", "other base")
    assert cell.audits == 1
    assert found.other_model == other.name


def test_an_unknown_trait_is_refused(
    model: Model, settings: Make, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match="no trait 'unicorn'; it has 'wolf', 'otter', 'cat'"
    ):
        run_benchmark(model, settings(traits=["unicorn"]), directory=tmp_path)


def test_rivals_look_only_where_the_audit_does(
    model: Model, settings: Make, tmp_path: Path
) -> None:
    given = settings(bound_rows=0, controls=[], rival_layers=[1, 7])
    with pytest.raises(
        ConfigError, match=r"got \[7\], the audit's layers are \[0, 1, 2\]"
    ):
        run_benchmark(
            model, given, auditors={"cosine": AUDITORS["cosine"]}, directory=tmp_path
        )


def test_auditors_have_names_of_their_own() -> None:
    assert all(name == maker.name for name, maker in AUDITORS.items())  # type: ignore[attr-defined]
    assert set(benchmark_module.USUAL) < set(AUDITORS)
