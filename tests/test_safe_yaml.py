"""YAML of strangers: plain types, bounds, and faults that name the place."""

from pathlib import Path

import pytest

from undertow.errors import ConfigError
from undertow.safe_yaml import LARGEST, NotYaml, parse_yaml, read_yaml


def test_plain_values_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [0x1F, 1:30, 1.5, .inf, ~]\n"
    assert parse_yaml(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": [31, 90, 1.5, float("inf"), None],
    }


def merges(levels: int, width: int) -> str:
    parts = [", ".join([f"*a{i}"] * width) for i in range(levels)]
    lines = [f"a{i + 1}: &a{i + 1} {{<<: [{part}]}}" for i, part in enumerate(parts)]
    return "\n".join(["a0: &a0 {x: 1}", *lines])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\na: 2\n", "line 2, column 1: not YAML: the key 'a' stands twice"),
        ("a: !!python/name:os.system\n", "could not determine a constructor"),
        (merges(11, 10), "merges make too many keys"),
        (merges(1, 101), "a merge of too many mappings"),
        ("a: " + "1:" * 60 + "1", "a number of 121 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("a: " + "1:" * 400 + "1.5", "a number of 803 characters"),
        # What PyYAML raises by accident is told too.
        ("a: !!bool x", "not YAML: "),
        ("a: !!int ''", "not YAML: "),
        ("a: !!timestamp x", "not YAML: "),
        ("a: !!int [1]", "not YAML: "),
        ("[" * 5000, "not YAML: "),
        ("x" * (LARGEST + 1), "262,145 characters, expected at most 262,144"),
    ],
)
def test_what_is_not_read_is_said(text: str, fault: str) -> None:
    with pytest.raises(NotYaml) as caught:
        parse_yaml(text)
    assert fault in str(caught.value)


def test_a_large_mapping_may_be_merged_once() -> None:
    keys = ", ".join(f"k{i}: {i}" for i in range(150))
    assert len(parse_yaml(f"a: &a {{{keys}}}\nb: {{<<: *a}}\n")["b"]) == 150


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"a: " + b"x" * LARGEST)
    with pytest.raises(ConfigError, match="is over 262,144 bytes long"):
        read_yaml(large)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="is no path"):
        read_yaml(Path("a\0b.yaml"))
