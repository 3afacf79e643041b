"""Recipes are listed, shown, checked and described; unfinished runs have no report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from undertow.audit import cost
from undertow.cli import runs
from undertow.cli.foretelling import about, expected, many
from undertow.cli.runs import _demo_recipe, audit_lines
from undertow.models import registry
from undertow.packaged import packaged
from undertow.results import AuditOutcome, AuditTruth

if TYPE_CHECKING:
    from tests.conftest import Command

RECIPE = """\
# undertow run small.yaml --out runs/small
title: small
question: does it travel?
model: {name: tiny}
traits: [owl]
teachers: [{kind: prompt}]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_the_list_has_every_packaged_recipe_with_its_title(command: "Command") -> None:
    found = command("recipes", "list")
    assert found.status == 0
    lines = found.out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(packaged("recipes"))
    for line, path in zip(lines, packaged("recipes").values(), strict=True):
        content = yaml.safe_load(path.read_text())
        assert content["title"] in line
        assert line.endswith("(GPU)") == bool(content.get("needs_gpu"))


def test_the_list_as_json_has_the_same_entries(command: "Command") -> None:
    lines = command("recipes", "list").out.splitlines()
    listed = json.loads(command("recipes", "list", "--json").out)
    assert [r["name"] for r in listed] == [line.split()[0] for line in lines]
    for recipe, line in zip(listed, lines, strict=True):
        assert recipe["title"] in line
        assert recipe["needs_gpu"] == line.endswith("(GPU)")


@pytest.mark.parametrize("verb", ["show", "check"])
def test_a_recipe_as_json_has_what_the_yaml_has(
    verb: str, command: "Command", recipe: Path
) -> None:
    found = command("recipes", verb, recipe, "--json")
    assert found.status == 0
    told = json.loads(found.out)
    settings = told["recipe"] if verb == "check" else told
    assert settings == yaml.safe_load(command("recipes", verb, recipe).out)


def test_a_checked_recipe_says_what_it_will_take(
    command: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "timed_flops", lambda **_: 1e12)
    lines = command("recipes", "check", "gemma-2b-it").out.splitlines()
    told = {line[2:13].strip(): line[13:] for line in lines if line.startswith("# ")}
    assert list(told) == [
        "expected", "rows", "training", "operations", "disk", "time",
    ]  # fmt: skip
    assert told["expected"].startswith("170 students")
    assert told["expected"].endswith("cells: 160, bases: 6")
    assert told["rows"].startswith("10,200,000 are written")
    assert "1,912,500 updates at most (11,250 a student)" in told["training"]
    assert told["disk"].endswith("25 GB of noised bases")
    assert " days here, " in told["time"]
    assert "hours on one H100 (a guess: within a factor of two" in told["time"]


def test_a_recipe_whose_students_never_leave_their_warm_up_says_so(
    command: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "timed_flops", lambda **_: 1e12)
    found = command("recipes", "check", "demo", "--set", "rows.count=24").out
    assert "18 updates at most (3 a student)" in found
    assert "# too short  6 students have no more updates than their warm-up" in found


def test_the_json_of_a_checked_recipe_has_the_same_cost(
    command: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "timed_flops", lambda **_: 1e12)
    found = json.loads(command("recipes", "check", "demo", "--json").out)["cost"]
    assert (found["students"], found["rows"], found["updates"]) == (6, 512, 48)
    assert 0.02 < found["hours"]["here"] < 0.5
    assert found["hours"]["one H100"] < found["hours"]["here"]


def test_a_model_that_is_not_here_has_no_operations_and_no_time(
    command: "Command", recipe: Path
) -> None:
    found = command("recipes", "check", recipe)
    lines = [line for line in found.out.splitlines() if line.startswith("# ")]
    assert any(
        "operations not known: no configuration of tiny on this machine" in line
        for line in lines
    )
    assert not any("# time" in line for line in lines)


def test_a_run_is_foretold_in_a_line_until_it_is_done(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from undertow.config import load_settings
    from undertow.experiment import Recipe
    from undertow.experiment.cost import _jobs
    from undertow.traits import load_family

    monkeypatch.setattr(cost, "timed_flops", lambda **_: 1e12)
    asked = load_settings(Recipe, recipe, ["model.name=smollm2-135m"])
    line = expected(asked, tmp_path, is_here=True)
    assert line == "2 students, 480 k tokens, about 9 minutes here, or up to twice that"
    assert expected(asked, tmp_path, is_here=False) == line.split(", about")[0]
    for job in _jobs(asked, load_family("animals"), lambda _: False):
        for stage in job.stages:
            marker = tmp_path / "stages" / f"{stage}.json"
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
    assert expected(asked, tmp_path, is_here=True) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "a minute or two"), (130, "2 minutes"), (7100, "118 minutes"),
     (7200, "2 hours"), (172_800, "2 days"), (1e9, "11,574 days")],
)  # fmt: skip
def test_a_time_is_told_in_one_unit(seconds: float, words: str) -> None:
    assert about(float(seconds)) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (12, "12 "),
        (9344, "9.3 k"),
        (2_130_000, "2.1 M"),
        (330_000_000, "330 M"),
        (2_500_000_000, "2.5 G"),
    ],
)
def test_a_number_that_is_guessed_has_two_digits(count: int, words: str) -> None:
    assert many(count) == words


def test_a_recipe_is_shown_as_it_is(command: "Command", recipe: Path) -> None:
    assert command("recipes", "show", recipe).out == RECIPE


def test_a_checked_recipe_has_its_defaults_and_overrides(
    command: "Command", recipe: Path
) -> None:
    found = command("recipes", "check", recipe, "--set", "rows.count=7")
    content = yaml.safe_load(found.out)
    assert found.status == 0
    assert content["rows"]["count"] == 7
    assert content["rows"]["sampler"]["temperature"] == 1.0
    assert content["model"]["name"] == "tiny"


def test_all_faults_of_a_recipe_come_at_once(command: "Command", recipe: Path) -> None:
    found = command(
        "recipes", "check", recipe, "--set", "rows.count=0", "--set", "trait=[owl]"
    )
    assert found.status == 2
    assert f"{recipe}: 2 fault(s):" in found.err
    assert "rows.count:" in found.err
    assert "trait: unknown key; did you mean 'traits'?" in found.err


@pytest.mark.parametrize("verb", ["show", "check"])
def test_an_unknown_recipe_is_named_with_those_there_are(
    verb: str, command: "Command"
) -> None:
    found = command("recipes", verb, "owls")
    assert found.status == 2
    assert "recipe 'owls': 1 fault(s)" in found.err
    assert "no such file or packaged recipe; there are" in found.err


@pytest.mark.parametrize("verb", ["show", "check"])
def test_a_missing_file_is_named(verb: str, command: "Command", tmp_path: Path) -> None:
    found = command("recipes", verb, tmp_path / "gone.yaml")
    assert found.status == 2
    assert "gone.yaml" in found.err
    assert "No such file or directory" in found.err
    assert "Traceback" not in found.err


def test_hostile_text_of_a_recipe_does_not_reach_the_terminal(
    command: "Command", tmp_path: Path
) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("title: \x1b[2J\u202e\n")
    found = command("recipes", "show", path)
    assert found.out == "title: \\u001b[2J\\u202e\n"


def test_the_schema_is_json_and_describes_a_recipe(command: "Command") -> None:
    schema = json.loads(command("recipes", "schema").out)
    assert {"title", "question", "model", "traits", "teachers"} <= set(
        schema["required"]
    )
    assert schema["additionalProperties"] is False


def test_a_recipe_with_an_unknown_trait_is_refused_before_a_model_is_loaded(
    command: "Command", recipe: Path, tmp_path: Path
) -> None:
    found = command(
        "run", recipe, "--out", tmp_path / "run", "--set", "traits=[unicorn]"
    )
    assert found.status == 2
    assert "'unicorn'" in found.err
    assert "owl" in found.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flops", "name", "said"),
    [
        (0.4e12, "demo", ""),
        (0.1e12, "demo-small", "This machine computes 0.10 TFLOP/s"),
    ],
)
def test_a_slow_machine_gets_the_small_demo_and_keeps_it(
    flops: float,
    name: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cost, "timed_flops", lambda **_: flops)
    assert _demo_recipe(tmp_path) == packaged("recipes")[name]
    assert capsys.readouterr().out.startswith(said)
    begun = tmp_path / "recipe.yaml"
    for other in ("title: begun", "[", "- a"):
        begun.write_text(other)
        assert _demo_recipe(tmp_path) == packaged("recipes")[name], "no run of a demo"
    begun.write_text(packaged("recipes")["demo"].read_text())
    monkeypatch.setattr(cost, "timed_flops", lambda **_: 1 / 0)
    assert _demo_recipe(tmp_path) == begun, "a run that was begun is not changed"


def test_the_small_demo_asks_the_same_of_less() -> None:
    from undertow.config import load_settings
    from undertow.experiment import Recipe

    whole, small = (
        load_settings(Recipe, packaged("recipes")[name], [])
        for name in ("demo", "demo-small")
    )
    assert small.teachers == whole.teachers
    assert small.rows.sampler == whole.rows.sampler
    assert small.student == whole.student
    assert (
        len(small.seeds) * small.rows.count * 6 == len(whole.seeds) * whole.rows.count
    )


def test_the_demo_is_done_in_processes_where_they_fit(
    command: "Command", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(cost, "timed_flops", lambda **_: 1e12)
    monkeypatch.setattr(registry, "is_pulled", lambda _: True)
    monkeypatch.setattr(runs, "_run", lambda *given, **named: asked.append(named))
    assert command("demo", "--out", tmp_path / "demo").status == 0
    (named,) = asked
    assert named["where"].on == "auto"


def test_an_audit_is_a_line() -> None:
    item = AuditOutcome(
        name="clean",
        truth=AuditTruth(words="all 48 rows: untouched base", kind="none", share=0.0),
        rows=48, reference_rows=48, verdict="shift", trait=None, kind="steer", layer=4,
        p_value=0.002, detectable_fraction=None, sentence="", right=False,
        report="audits/clean/report.html",
    )  # fmt: skip
    (line,) = audit_lines([item])
    assert line == (
        "audit clean    wrong: a shift, steered after block 4, trait not identified "
        "(p 0.0020); truth: all 48 rows: untouched base"
    )
