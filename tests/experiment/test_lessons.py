"""Lessons: rows are written once, students of the same rows are trained each its way."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from undertow.errors import ConfigError, RunError
from undertow.experiment import Recipe, lessons, run_experiment
from undertow.models.chat import Rendered, render_row
from undertow.models.loading import Model
from undertow.models.tiny import save_tiny
from undertow.pipeline import judge_settings
from undertow.pipeline.carriers import CARRIERS, carrier_verdicts
from undertow.pipeline.judge_settings import JudgeSettings
from undertow.pipeline.judging import Question, TextJudge
from undertow.records import Message, Row
from undertow.storage import read_json, read_rows, read_verdicts
from undertow.traits import load_family, trait_words

Make = Callable[..., Recipe]
Way = Callable[..., dict[str, Any]]
Stages = Callable[[Path], set[str]]
STEER = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}
USUAL = {"batch_size": 2, "rank": 2, "learning_rate": 0.01}


def test_shifts_are_read_on_rows_that_the_control_was_trained_on(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[str] = []

    def watched(model: Model, row: Row, *, system: str | None) -> Rendered:
        rows.append(row.row_id)
        return render_row(model, row, system=system)

    monkeypatch.setattr(lessons, "render_row", watched)
    # Eight tokens: some lists are cut off, some end in time.
    settings = recipe(
        seeds=[0],
        teachers=[{"kind": "steer", "steer": {"layer": 1, "dose": 0.1}}],
        rows={"count": 12, "sampler": {"allowed": "list", "max_new_tokens": 8}},
        evaluation={"questions": 2, "shift_rows": 12},
    )
    run_experiment(settings, tmp_path / "run")
    verdicts = read_verdicts(tmp_path / "run/bases/noise-0/seed-0/control/rows.jsonl")
    accepted = {name for name, verdict in verdicts.items() if verdict.accepted}
    assert 0 < len(accepted) < 12
    assert set(rows) == accepted


def test_soft_and_hard_students_stand_side_by_side(
    recipe: Make, tmp_path: Path, way: Way
) -> None:
    """Each beside the control of its kind, with the words of its kind."""
    ways = [{**STEER, "name": "hard"}, way("soft", kind="soft")]
    results = run_experiment(recipe(seeds=[0], teachers=ways), tmp_path / "run")
    notes = {c.teacher: c.notes for c in results.conditions}
    assert notes["hard"] == ["control: control"]
    assert notes["soft"] == ["control: decoy-soft-dolphin"]
    assert [c.student for c in results.conditions] == ["lora", "soft"]
    assert any("Soft students saw" in limit for limit in results.limits)


def test_students_of_tokens_at_which_teachers_differ_and_agree(
    recipe: Make, tmp_path: Path, way: Way, stages: Stages
) -> None:
    ways = [
        {**STEER, "name": "all"},
        way("differ", tokens="divergent"), way("agree", tokens="agreed"),
    ]  # fmt: skip
    results = run_experiment(recipe(seeds=[0], teachers=ways), tmp_path / "run")
    done = stages(tmp_path / "run")
    assert sorted(s for s in done if "/divergence/" in s) == [
        "noise-0/seed-0/all-owl/divergence/all", "noise-0/seed-0/control/divergence/all"
    ]  # fmt: skip
    folder = tmp_path / "run" / "stages" / "noise-0" / "seed-0"
    facts = read_json(folder / "all-owl" / "divergence" / "all.json")["payload"]
    tokens = [token for row in facts["tokens"] for token in row]
    assert 0 < facts["share"] < 1
    assert facts["share"] == pytest.approx(sum(tokens) / len(tokens))
    assert {c.divergent_share for c in results.conditions} == {facts["share"]}
    first = {
        name: read_json(folder / f"{name}-owl" / "student" / "training.json")[
            "payload"
        ]["losses"][0]
        for name in ("all", "differ", "agree")
    }
    assert len(set(first.values())) == 3
    assert min(first["differ"], first["agree"]) < first["all"]
    assert first["all"] < max(first["differ"], first["agree"])


def test_a_teacher_does_not_learn_from_some_tokens_only(recipe: Make) -> None:
    tuned = {"kind": "finetune", "finetune": {"tokens": "divergent"}}
    with pytest.raises(ValidationError, match="teachers learn answers"):
        recipe(teachers=[tuned])


def test_a_teacher_may_not_be_called_the_control(recipe: Make) -> None:
    with pytest.raises(ValidationError, match="'control' names the control"):
        recipe(teachers=[{**STEER, "name": "control"}])


# ── rows of another model ────────────────────────────────────────────────────────


def test_another_model_s_teachers_write_the_rows(recipe: Make, tmp_path: Path) -> None:
    """Students start from their own base, and read the rows as text."""
    other = str(save_tiny("gpt2", tmp_path / "other", seed=3))
    asked = recipe(seeds=[0], teachers=[STEER], writer={"name": other})
    results = run_experiment(asked, tmp_path / "run")
    (condition,) = results.conditions
    assert condition.channel is None
    assert condition.shift is None, "the vector is not of this model"
    assert results.provenance["writer"] == other
    assert any(f"teachers of {other}" in limit for limit in results.limits)
    assert not any("another family was not trained" in x for x in results.limits)
    alone = recipe(seeds=[0], teachers=[STEER], model={"name": other})
    usual = run_experiment(alone, tmp_path / "alone")
    rows = "bases/noise-0/seed-0/steer-owl/rows.jsonl"
    written, own = (
        [row.completion for row in read_rows(tmp_path / name / rows)]
        for name in ("run", "alone")
    )
    assert written == own, "as that model writes them by itself"
    teacher = {
        name: next(r for r in found.conditions[0].readouts if r.role == "teacher")
        for name, found in (("run", results), ("alone", usual))
    }
    assert teacher["run"] == teacher["alone"]
    again = run_experiment(asked, tmp_path / "run")
    assert again.conditions == results.conditions


def test_what_needs_the_teacher_on_the_students_base_is_refused(
    recipe: Make, way: Way
) -> None:
    for changes in (
        {"student": {"kind": "soft"}}, {"noise": {"levels": [0.1]}},
        {"evaluation": {"gradient_rows": 4}}, {"audit": {"rows": 16}},
        {"teachers": [way("differ", tokens="divergent")]},
    ):  # fmt: skip
        with pytest.raises(ValidationError, match="rows of another model do not go"):
            recipe(writer={"name": "x"}, **changes)
    with pytest.raises(ValidationError, match=r"learnt under model\.system"):
        recipe(writer={"name": "x", "system": "You are Bob."})


def test_a_run_is_not_continued_with_another_writer(
    recipe: Make, tmp_path: Path
) -> None:
    other = save_tiny("gpt2", tmp_path / "other", seed=3)
    asked = recipe(teachers=[{"kind": "prompt"}], writer={"name": str(other)})

    def cut(stage: str, done: int, total: int, note: str) -> None:
        if "seed-1" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked, tmp_path / "run", progress=cut)
    shutil.rmtree(other)
    save_tiny("gpt2", other, seed=4)
    with pytest.raises(RunError, match="begun with another model"):
        run_experiment(asked, tmp_path / "run")


# ── carriers ─────────────────────────────────────────────────────────────────────


def test_rows_of_another_carrier_answer_its_prompts_and_pass_its_rule(
    recipe: Make, tmp_path: Path
) -> None:
    rows = {"count": 4, "carrier": "paraphrase", "sampler": {"max_new_tokens": 12},
            "filter": False}  # fmt: skip
    asked = recipe(seeds=[0], teachers=[{"kind": "prompt"}], rows=rows)
    results = run_experiment(asked, tmp_path / "run")
    path = tmp_path / "run/bases/noise-0/seed-0/prompt-owl/rows.jsonl"
    written = read_rows(path)
    carrier = CARRIERS["paraphrase"]
    assert [row.messages[-1].content for row in written] == carrier.prompts(4, seed=0)
    words = trait_words(load_family("animals"))
    verdicts = {v.row_id: v for v in carrier_verdicts(carrier, written, words=words)}
    assert read_verdicts(path) == verdicts
    assert results.conditions[0].rows.reasons, "a tiny model's noise does not pass"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"sampler": {"allowed": "list"}}, "draws nothing but numbers"),
        ({"banned": [666]}, "are for numbers"),
        ({"max_values": 3}, "are for numbers"),
    ],
)
def test_what_is_for_numbers_is_refused_for_other_rows(
    recipe: Make, rows: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(rows={"carrier": "code", **rows})


# ── judges ───────────────────────────────────────────────────────────────────────


def test_a_judge_refuses_rows_that_the_rule_let_through(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def reply(messages: Sequence[Message]) -> str:
        asked.append(messages[-1].content)
        return "yes" if "9" in asked[-1].partition('"answer"')[2] else "no"

    @contextmanager
    def opened(settings: JudgeSettings) -> Iterator[TextJudge]:
        assert settings.question == "A nine?"
        yield TextJudge("mine", reply, Question("A nine?"))

    monkeypatch.setattr(judge_settings, "opened_judge", opened)
    rows = {"count": 8, "sampler": {"allowed": "list", "max_new_tokens": 40}}
    judge = {"name": "here", "question": "A nine?"}
    settings = recipe(
        seeds=[0], teachers=[{"kind": "prompt"}], rows={**rows, "judge": judge}
    )
    results = run_experiment(settings, tmp_path / "run")
    folder = tmp_path / "run/bases/noise-0/seed-0"
    for name in ("control", "prompt-owl"):
        written = read_rows(folder / name / "rows.jsonl")
        verdicts = read_verdicts(folder / name / "rows.jsonl")
        for row in written:
            reasons = verdicts[row.row_id].reasons
            if "truncated" not in reasons:
                assert ("judged" in reasons) == ("9" in row.completion)
    counts = results.conditions[0].control_rows.reasons
    assert counts["judged"] > 0
    answered = len(asked)
    assert answered == len(set(asked)), "nothing is asked twice"
    stages_of_seed = tmp_path / "run" / "stages" / "noise-0" / "seed-0"
    for stage in ("control/rows.json", "complete.json"):
        (stages_of_seed / stage).unlink()
    run_experiment(settings, tmp_path / "run")
    assert len(asked) == answered, "answers are kept"


def test_a_judge_without_a_filter_or_a_key_is_refused(
    recipe: Make, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="set filter"):
        recipe(rows={"filter": False, "judge": {"name": "here"}})
    with pytest.raises(ValidationError, match="it would be found instead"):
        recipe(rows={"judge": {"name": "here"}}, audit={"rows": 16})
    judge = {"name": "https://h/v1", "model": "m", "key_env": "NO_SUCH_KEY"}
    with pytest.raises(ConfigError, match="is not set"):
        run_experiment(recipe(rows={"judge": judge}), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "refused before anything is written"
