"""Hostile text stays text; progress says what is left."""

import json
import sys
import time

import pytest

from undertow.cli import console


def test_results_go_to_one_stream_and_errors_to_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.say("kept \x1b[31m3")
    console.say_error("bad \x1b[0mrow")
    found = capsys.readouterr()
    assert found.out == "kept \\u001b[31m3\n"
    assert found.err == "error: bad \\u001b[0mrow\n"


def test_json_is_strict_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    value = {
        "nan": float("nan"),
        "text": "\x1b[2J\u202e\x7f\u2028 日",
        "pair": (1, 2.5),
    }
    console.say_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == {**value, "nan": None, "pair": [1, 2.5]}
    assert out.isascii()
    assert all(char == "\n" or char.isprintable() for char in out)


def test_without_a_terminal_a_stage_has_a_first_and_a_last_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with console.progress() as report:
        for done in range(5):
            report("rows", done, 4, f"{done}\x1b tokens")
        report("other", 1, 1, "")
    assert capsys.readouterr().err.splitlines() == [
        "rows 0/4 · 0\\u001b tokens",
        "rows 4/4 · 4\\u001b tokens",
        "other 1/1",
    ]


def test_a_long_stage_speaks_every_half_minute_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Clocks of the calls: one each, and one more where a rate is worked out.
    clock = iter([0.0, 0.0, 10.0, 40.0, 40.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with console.progress() as report:
        report("rows", 0, 100, "")
        report("rows", 10, 100, "")
        report("rows", 20, 100, "")
    # 20 steps took 40 s, so the other 80 take 160.
    assert capsys.readouterr().err.splitlines() == [
        "rows 0/100",
        "rows 20/100 · 0.5/s · 160 s left",
    ]


def test_the_rate_counts_from_where_the_stage_was_continued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 14.0)
    assert console._rate((10.0, 60), 70) == "2.5/s"
    assert console._rate((10.0, 60), 60) == ""
    assert console._rate((13.5, 60), 70) == ""


def test_on_a_terminal_a_bar_is_drawn_without_foreign_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with console.progress() as report:
        report("rows [red]\x1b[5m", 1, 4, "[bold]\x07")
        report("rows [red]\x1b[5m", 4, 4, "[bold]\x07")
    drawn = capsys.readouterr().err
    assert "rows [red]\\u001b[5m" in drawn
    assert "[bold]\\u0007" in drawn
    assert "4/4" in drawn
    assert "\x1b[5m" not in drawn
    assert "\x07" not in drawn
