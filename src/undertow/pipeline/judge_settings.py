"""Which judge looks at rows, as plain values, and how it is opened.

A judge is an OpenAI-compatible endpoint or a local model. How either is asked stands in
`pipeline.endpoint` and `pipeline.judging`; neither is imported before it is wanted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from undertow.errors import MissingDependencyError
from undertow.records import Row, Verdict

if TYPE_CHECKING:
    from undertow.pipeline.endpoint import Endpoint
    from undertow.pipeline.judging import Judge, Judgement, Question


class JudgeSettings(BaseModel):
    """Who is asked about rows that pass the rule, and what; yes refuses a row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        min_length=1,
        description="an endpoint's address (https://host/v1) or a local model's name",
    )
    model: str | None = Field(default=None, description="model's name at the endpoint")
    key_env: str | None = Field(
        default=None,
        description="variable that holds the endpoint's key, if it has one",
    )
    question: str | None = Field(
        default=None,
        description="asked of each row; null: whether it says or hints at more than it "
        "should, or answers nothing",
    )

    @property
    def is_endpoint(self) -> bool:
        """Whether it is asked over the network."""
        return "://" in self.name

    @model_validator(mode="after")
    def _fits(self) -> "JudgeSettings":
        if self.is_endpoint and self.model is None:
            raise ValueError("an endpoint needs `model`, the model's name there")
        if not self.is_endpoint and (self.model or self.key_env):
            raise ValueError(
                "model and key_env belong to an endpoint; name its address"
            )
        return self

    def check(self) -> None:
        """Refuses what cannot work, before any work is done.

        Raises:
            ConfigError: A faulty address or question, or no key in the environment.
            MissingDependencyError: The extra `judge` is not installed.
        """
        self.asked()
        if not self.is_endpoint:
            return
        self.endpoint().key()
        if find_spec("httpx2") is None:
            raise MissingDependencyError("a judge at an endpoint", "judge")

    def asked(self) -> "Question":
        """The question."""
        from undertow.pipeline.judging import Question

        return Question() if self.question is None else Question(self.question)

    def endpoint(self) -> "Endpoint":
        """Where it is asked, if over the network."""
        from undertow.pipeline.endpoint import Endpoint

        return Endpoint(self.name, self.model or "", key_env=self.key_env)


def judged(
    settings: JudgeSettings,
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    *,
    answers: Path,
    on_row: Callable[[int, int], None] | None = None,
) -> "tuple[list[Verdict], Judgement]":
    """The verdicts with those of the judge, who is asked about rows that pass.

    Args:
        settings: Who is asked, and what.
        rows: All of them.
        verdicts: Of the rule, in their order.
        answers: File where the judge's answers are kept, and taken from.
        on_row: Called with (rows asked about, rows in all).

    Raises:
        ModelError: The judge cannot be loaded or asked.
    """
    from undertow.pipeline.judging import Judgement, judge_rows, judged_verdicts

    passed = [row for row, v in zip(rows, verdicts, strict=True) if v.accepted]
    if not passed:
        return list(verdicts), Judgement({}, 0)
    with opened_judge(settings) as judge:
        found = judge_rows(passed, judge, answers=answers, on_row=on_row)
    return judged_verdicts(verdicts, found.opinions), found


@contextmanager
def opened_judge(settings: JudgeSettings) -> "Iterator[Judge]":
    """The judge, ready to be asked.

    Raises:
        ConfigError: A faulty address, or no key in the environment.
        MissingDependencyError: The extra `judge` is not installed.
        ModelError: The local model cannot be loaded.
    """
    from undertow.pipeline.judging import ModelJudge, TextJudge

    if settings.is_endpoint:
        from undertow.pipeline.endpoint import asking

        endpoint = settings.endpoint()
        with asking(endpoint) as ask:
            yield TextJudge(endpoint.name, ask, settings.asked())
    else:
        from undertow.models.loading import load_model

        yield ModelJudge(load_model(settings.name), settings.asked())
