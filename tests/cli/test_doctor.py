"""`doctor` says the same to people and to programs, and its exit status counts."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from undertow import __version__
from undertow.models import self_tests

if TYPE_CHECKING:
    from tests.conftest import Command


def test_without_a_model_the_surroundings_are_looked_at(command: "Command") -> None:
    found = command("doctor")
    assert found.status == 0, found.out
    lines = found.out.splitlines()
    groups = [line for line in lines[:-1] if not line.startswith(" ")]
    assert groups == ["packages", "machine", "cache"]
    assert lines[-1].endswith(" 0 failed")


def test_with_a_model_it_is_tested_and_json_says_the_same(
    command: "Command", llama: Path
) -> None:
    asked = ("doctor", "--model", llama, "--dtype", "float32")
    found = command(*asked, "--json")
    assert found.status == 0, found.err
    document = json.loads(found.out)
    assert document["undertow"] == __version__
    assert document["status"] in ("ok", "advice")
    model = [c for c in document["checks"] if c["group"] == "model"]
    assert [c["name"] for c in model][:2] == ["loading", "parts"]
    assert {c["status"] for c in model} == {"ok"}
    lines = command(*asked).out.splitlines()
    said = [line.split() for line in lines if re.match(r"  \S", line)]
    names = [(words[0], words[1]) for words in said]
    wanted = [(c["status"], c["name"].split()[0]) for c in document["checks"]]
    assert names[: len(wanted)] == wanted
    assert f"  ok      {'end tokens':<19}  2 '<|im_end|>'" in "\n".join(lines)


def test_a_model_that_is_not_there_is_a_failed_check(
    command: "Command", tmp_path: Path
) -> None:
    found = command("doctor", "--model", tmp_path / "nowhere", "--json")
    assert found.status == 1
    document = json.loads(found.out)
    last = document["checks"][-1]
    assert document["status"] == last["status"] == "failed"
    assert (last["group"], last["name"]) == ("model", "loading")
    assert f"{tmp_path / 'nowhere'}: no such file or folder" in last["measured"]
    assert "Traceback" not in found.err


def test_a_check_that_fails_is_seen_in_the_exit_status(
    command: "Command", llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("blocks \x1b[31m gone\nmore")

    monkeypatch.setattr(self_tests, "new_adapter", broken)
    found = command("doctor", "--model", llama, "--dtype", "float32")
    assert found.status == 1
    assert "RuntimeError: blocks \\u001b[31m gone more" in found.out
    assert found.out.endswith(" 1 failed\n")


def test_advice_stands_below_its_check(
    command: "Command", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    lines = command("doctor").out.splitlines()
    (place,) = [i for i, line in enumerate(lines) if " pulled: —" in line]
    assert lines[place].split()[0] == "advice"
    assert lines[place + 1].split(None, 1)[0] == "→"
    assert "undertow models pull" in lines[place + 1]
