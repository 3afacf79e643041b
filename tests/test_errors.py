"""Messages say what is wrong, and lists in them are cut."""

import pytest

from undertow import errors
from undertow.errors import (
    ConfigError,
    MissingDependencyError,
    UndertowError,
    shown,
    visible,
)


def test_a_config_error_lists_every_fault() -> None:
    error = ConfigError("my.yaml", ["a: missing", "b: unknown key"])
    assert str(error) == "my.yaml: 2 fault(s):\n  - a: missing\n  - b: unknown key"
    assert (error.where, error.faults) == ("my.yaml", ("a: missing", "b: unknown key"))


def test_a_missing_dependency_names_feature_and_command() -> None:
    assert str(MissingDependencyError("training with TRL", "trl")) == (
        "training with TRL needs an optional dependency; "
        "install it with: pip install 'undertow[trl]'"
    )


def test_every_error_is_one_that_the_command_line_explains() -> None:
    kinds = [kind for name, kind in vars(errors).items() if name.endswith("Error")]
    assert len(kinds) == 8
    assert all(issubclass(kind, UndertowError) for kind in kinds)


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [
        (0, 3, ""),
        (1, 3, "'0'"),
        (3, 3, "'0', '1', '2'"),
        (5, 3, "'0', '1', '2', … and 2 more"),
    ],
)
def test_lists_are_cut(count: int, limit: int, expected: str) -> None:
    assert shown([str(i) for i in range(count)], limit=limit) == expected


def test_ten_are_shown_by_default() -> None:
    assert shown(range(12)).endswith("8, 9, … and 2 more")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 4, 8 – ü → 猫", "plain 4, 8 – ü → 猫"),
        ("two\nlines", "two\nlines"),
        ("\x1b[2J\x1b]0;title\x07", "\\u001b[2J\\u001b]0;title\\u0007"),
        ("a\rb\tc\x00", "a\\u000db\\u0009c\\u0000"),
        ("\x9b31m", "\\u009b31m"),
        ("evil\u202egnp.exe\u2066", "evil\\u202egnp.exe\\u2066"),
        ("\u200bzero\ufeff", "\\u200bzero\\ufeff"),
        ("\udcff", "\\udcff"),
        ("\ue000", "\\ue000"),
    ],
)
def test_control_and_format_characters_are_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_unseen_characters_are_spelled_out() -> None:
    hostile = "a\u202eb\u2066c\x1b[31m\x00\u2028\ud800\u200b\n日本 é"
    assert visible(hostile) == (
        r"a\u202eb\u2066c\u001b[31m\u0000\u2028\ud800\u200b" + "\n日本 é"
    )
