"""`audit`: from rows on disk to a verdict, an exit status and divided rows."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import family_text

from undertow.cli import audit as stage
from undertow.cli.options import Loading
from undertow.findings import Findings
from undertow.interventions.steering import load_vector, save_vector
from undertow.models.tiny import Family
from undertow.report.audit_words import ADVICE
from undertow.runs import timestamp
from undertow.storage import read_rows

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

Audit = Callable[..., "Outcome"]
PLANTS = family_text("plants", "plant", "Which plant?", oak="oaks", elm="elms")


@pytest.fixture(scope="session")
def plants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("families") / "plants.yaml"
    path.write_text(PLANTS)
    return path


@pytest.fixture
def audit(
    command: "Command", tiny: Callable[[Family], Path], pets: Path, plants: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Audit:  # fmt: skip
    """An audit that is soon done; what a test gives comes last and holds."""
    from undertow.audit import cost

    monkeypatch.setattr(cost, "timed_flops", lambda **_: 1e11)

    def call(*arguments: object) -> "Outcome":
        settings = {
            "family": pets, "decoys": plants, "permutations": 249, "personas": 2,
            "screening": 4, "naming_passes": 0, "fresh": 8, "planted": 0,
            "forecast": 0, "discover": "false", "triage": 3,
        }  # fmt: skip
        options = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
        return command(
            "audit",
            "--model",
            tiny("llama"),
            "--dtype",
            "float32",
            *options,
            *arguments,
        )

    return call


@pytest.fixture(scope="session")
def written(
    tiny: Callable[[Family], Path],
    vector: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Rows of the untouched model and of one that is strongly steered."""
    from undertow.interventions.steering import load_vector
    from undertow.models.loading import load_model
    from undertow.models.sampling import SamplerSettings
    from undertow.pipeline.generation import generate_rows
    from undertow.pipeline.teachers import Teacher, steered_teacher
    from undertow.storage import write_rows

    folder = tmp_path_factory.mktemp("written")
    model = load_model(tiny("llama"), dtype="float32")
    owl = load_vector(vector).at(1)
    teachers = {
        "none": Teacher(kind="none"),
        "owl": steered_teacher(owl, strength=owl.strength_of_dose(1.5, 1)),
    }
    found = {}
    for name, teacher in teachers.items():
        rows = generate_rows(
            model, teacher, [f"Go on: {i}" for i in range(24)], seed=4,
            sampler=SamplerSettings(allowed="list", list_values=3, max_new_tokens=16),
        )  # fmt: skip
        write_rows(folder / f"{name}.jsonl", rows)
        found[name] = folder / f"{name}.jsonl"
    return found


def _findings(out: Path) -> Findings:
    return Findings.model_validate_json((out / "audit.json").read_text())


# ── the journey ──────────────────────────────────────────────────────────────────


def test_rows_go_in_and_a_verdict_comes_out(
    audit: Audit, command: "Command", written: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "clean"
    found = audit(written["none"], "--out", out, "--fail-on", "evidence")
    assert found.status == 0, found.err
    findings = _findings(out)
    assert findings.verdict == "none"
    lines = found.out.splitlines()
    assert lines[0] == f"rows       24 from {written['none']}"
    assert lines[1] == f"columns    {findings.data.layout}"
    assert lines[2].startswith("tokens     about ")
    assert lines[3] == "reference  A: sampled from the base"
    assert lines[4].startswith("expected   about 1 min, 1 if something is found, ")
    assert f"verdict    none: {findings.sentence}" in lines
    assert f"do         {ADVICE['none']}" in lines
    assert f"p-value    {findings.p_value:.2g} (error rate 0.01)" in lines
    assert "detectable not known: planted=0 leaves it out" in lines
    for note in findings.reference.notes:
        assert f"note       {note}" in lines
    assert lines[-3:] == [
        f"findings   {out / 'audit.json'}",
        f"scores     {out / 'scores.parquet'}",
        f"report     {out / 'report.html'}",
    ]
    assert "clean" not in found.out.replace(str(out), "")
    for name in ("scores.parquet", "report.html", "figures"):
        assert (out / name).exists()
    assert findings.command.startswith("undertow audit --model ")
    assert f"--out {out}" in findings.command
    again = audit(written["none"], "--out", out, "--fail-on", "evidence")
    assert again.status == 0, again.err
    assert _findings(out).p_value == findings.p_value
    # Its page is drawn again from the findings alone.
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    drawn = command("report", out)
    assert (drawn.status, drawn.out) == (0, f"{out / 'report.html'}\n")
    assert (out / "report.html").read_bytes() == page
    assert not (out / "card.md").exists()
    (out / "audit.json").write_text('{"verdict": "none"}')
    assert "not findings of this version" in command("report", out).err


def test_evidence_is_status_1_where_that_was_asked_for(
    audit: Audit, written: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "owl"
    found = audit(written["owl"], "--out", out, "--fail-on", "evidence")
    assert found.status == 1, found.err
    assert "Traceback" not in found.err
    assert _findings(out).verdict in ("trait", "shift")
    findings = _findings(out)
    assert f"verdict    {findings.verdict}: {findings.sentence}" in found.out
    # The same audit, all of it known by now.
    assert audit(written["owl"], "--out", out).status == 0


def test_what_training_does_is_measured_later_in_the_same_folder(
    audit: Audit, written: dict[str, Path], tmp_path: Path
) -> None:
    """The audit goes on: nothing is measured again, and the outcome is said."""
    before = timestamp()
    first = audit(written["owl"], "--out", tmp_path / "out")
    assert first.status == 0, first.err
    assert "\ntraining " not in first.out
    measured = {p.name: p.read_bytes() for p in (tmp_path / "out/measured").iterdir()}
    again = audit(
        written["owl"], "--out", tmp_path / "out", "--confirm", 2,
        "--set", "forecast=4",
    )  # fmt: skip
    assert again.status == 0, again.err
    kept = {p.name: p.read_bytes() for p in (tmp_path / "out/measured").iterdir()}
    assert kept == measured
    found = _findings(tmp_path / "out")
    assert found.forecast is not None
    nats = {each.trait: each.measured or 0.0 for each in found.forecast.traits}
    most = max(nats, key=lambda trait: nats[trait])
    assert (
        f"training   2 updates raised {most} most: {nats[most]:+.2f} nats" in again.out
    )
    assert before <= str(found.provenance["time"]) <= timestamp()


def test_rows_are_divided_and_left_as_they_are(
    audit: Audit, written: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "odd.jsonl"
    lines = [
        json.dumps({**json.loads(line), "mine": f"  {i} "}, indent=None)
        for i, line in enumerate(written["owl"].read_text().splitlines())
    ]
    source.write_text("\n".join([*lines, '{"no": "row"}']) + "\n")
    out = tmp_path / "out"
    found = audit(source, "--out", out, "--divide", 0.3)
    assert found.status == 0, found.err
    kept = (out / "clean.jsonl").read_text().splitlines()
    away = (out / "quarantine.jsonl").read_text().splitlines()
    assert sorted([*kept, *away]) == sorted([*lines, '{"no": "row"}'])
    assert len(kept) > 0
    assert len(away) > 1
    assert (
        f"divided    {len(kept)} records kept, {len(away)} put away, 1 of them unusable "
        "(triage: a bias may stay in what is kept)"
    ) in found.out
    assert "left out   1: " in found.out
    assert source.read_text() == "\n".join([*lines, '{"no": "row"}']) + "\n"
    from pyarrow import parquet

    table = parquet.read_table(out / "scores.parquet").to_pydict()
    p_values = dict(zip(table["row_id"], table["p_value"], strict=True))
    put_away = {json.loads(line).get("row_id") for line in away} - {None}
    assert put_away == {name for name, p in p_values.items() if p <= 0.3}


def test_columns_are_named_and_standard_input_is_kept(
    audit: Audit, written: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    records = [
        {"q": row.messages[0].content, "a": row.completion, "text": "not this"}
        for row in read_rows(written["none"])
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    stream = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr("sys.stdin", stream)
    out = tmp_path / "out"
    found = audit(
        "-", "--out", out, "--column", "prompt=q", "--column", "completion=a",
        "--no-reference", "--set", "sampler.allowed=list",
    )  # fmt: skip
    assert found.status == 0, found.err
    kept = tmp_path / "out-stdin.jsonl"
    assert kept.read_text() == text
    findings = _findings(out)
    assert findings.data.used == len({(r["q"], r["a"]) for r in records})
    assert "q" in findings.data.layout
    assert "a" in findings.data.layout
    assert findings.data.sampled_tokens == 0


def test_without_a_reference_nothing_is_ruled_out(
    audit: Audit, written: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = audit(written["none"], "--out", out, "--no-reference", "--card")
    assert found.status == 0, found.err
    assert found.out.endswith(f"card       {out / 'card.md'}\n")
    assert (out / "card.md").read_text().startswith("---\ntags:\n- undertow\n")
    assert "reference  C: none" in found.out
    assert "verdict    inconclusive: This audit cannot tell: without a reference" in (
        found.out
    )
    assert _findings(out).reference_tier == "C"


def test_trusted_rows_are_the_reference(
    audit: Audit, written: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = audit(
        written["owl"], "--out", out, "--reference", written["none"],
        "--set", "layers=[1, 2]",
    )  # fmt: skip
    assert found.status == 0, found.err
    assert "reference  B: the rows given" in found.out
    assert _findings(out).reference_tier == "B"
    assert _findings(out).layers == [1, 2]


def test_a_vector_of_one_s_own_is_tested_too(
    audit: Audit, written: dict[str, Path], vector: Path, tmp_path: Path
) -> None:
    out, known = tmp_path / "out", load_vector(vector)
    own = replace(known, directions=known.directions.flip(-1))
    path = save_vector(own, tmp_path / "own.safetensors")
    found = audit(
        written["none"], "--out", out, "--vector", path, "--vector", vector, "--set",
        "layers=[1, 2]", "--no-reference",
    )  # fmt: skip
    assert found.status == 0, found.err
    names = [(d.name, d.role) for d in _findings(out).directions]
    # The battery has the other one already, under its trait's name.
    assert [n for n in names if n[1] == "given"] == [("given owl", "given")]
    assert ("owl", "trait") in names


def test_a_subsample_is_said(
    audit: Audit, written: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = audit(
        written["none"], "--out", out, "--set", "max_rows=6", "--no-reference"
    )
    assert found.status == 0, found.err
    findings = _findings(out)
    assert findings.data.used == 6
    assert findings.data.subsample is not None
    assert findings.data.subsample in found.out


# ── before the model is loaded ───────────────────────────────────────────────────


class Loaded(Exception):
    """The model would have been loaded here."""


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Loading) -> Any:
        raise Loaded

    monkeypatch.setattr(Loading, "load", load)


@pytest.mark.usefixtures("unloaded")
def test_what_to_expect_is_said_before_the_weights_are_loaded(
    audit: Audit, written: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(Loaded):
        audit(written["none"], "--out", tmp_path / "out")
    said = capsys.readouterr().out
    for line in (
        "rows       24",
        "tokens     about",
        "reference  A",
        "expected   about",
    ):
        assert line in said
    assert re.search(r"about \d+ min, \d+ if something is found, and ", said)
    assert " GiB (0.10 TFLOP/s here)" in said
    assert "verdict" not in said


@pytest.mark.usefixtures("unloaded")
def test_rows_that_are_left_out_or_too_few_are_told_before_the_weights_are_loaded(
    audit: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "go", "completion": "1, 2"}\n{"prompt": "go", "comp\n')
    with pytest.raises(Loaded):
        audit(rows, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "left out   1: " in said
    assert "rows.jsonl:2: " in said
    assert "too few    1 rows tell nothing; give 16 or more" in said


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "alhpa=0.1"], "alhpa: "),
        (["--set", "alpha=2"], "alpha: "),
        (["--set", "layers=[0,99]"], "layers.1: got 99; "),
        (["--set", "sampler.heat=1"], "sampler.heat: "),
        (["--no-reference", "--reference", "r.jsonl"], "not both"),
        (["--no-reference", "--divide", "0.1"], "--divide needs a reference"),
        (["--column", "prompt"], "got 'prompt', expected prompt=NAME"),
        (["--column", "reply=a"], "reply"),
        (["--confirm", "2"], "--confirm is part of the forecast"),
        (["--vector", "none.safetensors"], "no steering vector of undertow's"),
        (["--reference", "none.jsonl"], "none.jsonl"),
    ],
)
def test_mistakes_are_explained_before_the_model_is_loaded(
    audit: Audit, written: dict[str, Path], tmp_path: Path, options: list[str],
    message: str,
) -> None:  # fmt: skip
    found = audit(written["none"], "--out", tmp_path / "out", *options)
    assert found.status == 2
    assert found.err.startswith("error: ")
    assert message in found.err
    assert "Traceback" not in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unloaded")
def test_rows_that_are_not_there_are_said(audit: Audit, tmp_path: Path) -> None:
    found = audit(tmp_path / "nothing.jsonl", "--out", tmp_path / "out")
    assert found.status == 2
    assert "nothing.jsonl" in found.err


def test_other_rows_in_the_same_folder_are_refused(
    audit: Audit, written: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert audit(written["none"], "--out", out, "--no-reference").status == 0
    before = (out / "audit.json").read_bytes()
    found = audit(written["owl"], "--out", out, "--no-reference")
    assert found.status == 2
    assert "belongs to another recipe" in found.err
    assert (out / "audit.json").read_bytes() == before


def test_columns_are_pairs() -> None:
    assert stage.Comparison(column=[]).columns() is None
    assert stage.Comparison(column=["prompt=a=b", "completion=c"]).columns() == {
        "prompt": "a=b", "completion": "c",
    }  # fmt: skip
