"""Which judge is meant, and that a faulty one is refused before it is asked."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from undertow.errors import ConfigError
from undertow.models.tiny import save_tiny
from undertow.pipeline.judge_settings import JudgeSettings, judged, opened_judge
from undertow.pipeline.judging import DEFAULT_QUESTION, ModelJudge, TextJudge
from undertow.records import Message, Row, Verdict

URL = "https://host:8000/v1"


def test_an_address_is_asked_over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    settings = JudgeSettings(name=URL, model="m", key_env="JUDGE_KEY", question="Owl?")
    settings.check()
    with opened_judge(settings) as judge:
        assert isinstance(judge, TextJudge)
        assert judge.name == f"m at {URL}"
        assert judge.question.text == "Owl?"
    assert "secret" not in settings.model_dump_json()


def test_any_other_name_is_a_local_model_s(tmp_path: Path) -> None:
    settings = JudgeSettings(name=str(save_tiny("llama", tmp_path / "tiny")))
    settings.check()
    with opened_judge(settings) as judge:
        assert isinstance(judge, ModelJudge)
        assert judge.question.text == DEFAULT_QUESTION


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": URL}, "needs `model`"),
        ({"name": "here", "model": "m"}, "belong to an endpoint"),
        ({"name": "here", "key_env": "K"}, "belong to an endpoint"),
        ({"name": ""}, "at least 1 character"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        JudgeSettings.model_validate(data)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (JudgeSettings(name=URL, model="m", key_env="NO_SUCH_KEY"), "is not set"),
        (JudgeSettings(name="https://me:pw@h/v1", model="m"), "name or password"),
        (JudgeSettings(name="here", question=" "), "expected a question"),
    ],
)
def test_what_cannot_work_is_refused_before_work(
    settings: JudgeSettings, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        settings.check()
    assert "pw" not in str(caught.value)


def test_nobody_is_asked_where_no_row_passes(tmp_path: Path) -> None:
    rows = [Row((Message("user", "Go on"),), "words")]
    verdicts = [Verdict(rows[0].row_id, ("not_numbers",))]
    settings = JudgeSettings(name="no-such-model")
    found, judgement = judged(settings, rows, verdicts, answers=tmp_path / "a.jsonl")
    assert found == verdicts
    assert (dict(judgement.opinions), judgement.asked) == ({}, 0)
    assert not list(tmp_path.iterdir())
