"""The page of a vector that rows would teach: answers, tables and command."""

import shlex

from tests.report.measured import vector

from undertow.report.measurement_page import render_measurement
from undertow.report.vector_page import vector_content


def test_the_nearest_and_the_next_are_told() -> None:
    content = vector_content(vector())
    assert list(content.answers) == [
        "It is nearest to the vector of owl: cosine +0.40.",
        "The next is wolf with +0.30; the mean of all 5 is +0.20.",
    ]
    nothing = vector().model_copy(update={"cosines": {"owl": None}})
    assert list(vector_content(nothing).answers) == ["No cosine could be computed."]


def test_tokens_and_answers_stand_in_tables() -> None:
    page = render_measurement(vector())
    assert "&#39; owl&#39;" in page
    assert "I am an owl." in page
    assert "rows, 200 control; 5 traits" in page


def test_the_command_has_every_setting() -> None:
    words = shlex.split(vector_content(vector()).command)
    assert words[:3] == ["undertow", "analyze", "vector"]
    assert words[-2:] == ["--", "a b.jsonl"]
    options = dict(zip(words[3:-2:2], words[4:-2:2], strict=True))
    assert (options["--steps"], options["--use"]) == ("4", "300")
    assert (options["--learning-rate"], options["--batch-size"]) == ("0.01", "16")
    assert (options["--allowed"], options["--control"]) == ("list", "base.jsonl")
