"""Families are listed, shown to be copied, and checked."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from undertow.packaged import packaged
from undertow.traits import load_family

if TYPE_CHECKING:
    from tests.conftest import Command


def test_the_list_has_every_family_with_its_members(command: "Command") -> None:
    found = command("families", "list")
    assert found.status == 0
    for name, line in zip(packaged("traits"), found.out.splitlines(), strict=True):
        assert line.split()[0] == name
        assert line.endswith(", ".join(load_family(name).names))
    listed = json.loads(command("families", "list", "--json").out)
    assert [each["name"] for each in listed] == list(packaged("traits"))
    assert listed[0]["members"] == list(load_family(listed[0]["name"]).names)


def test_a_family_that_is_shown_is_one_that_can_be_read(
    command: "Command", tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(command("families", "show", "animals").out)
    content = own.read_text().replace("name: animals", "name: mine")
    newt = "traits:\n  - {name: newt, plural: newts}\n"
    own.write_text(content.replace("traits:\n", newt))
    found = command("families", "check", own)
    assert found.status == 0, found.err
    assert found.out.startswith("family     mine: newt, owl, ")
    assert command("families", "show", own).out == own.read_text()


@pytest.mark.parametrize("name", ["animals", "pets"])
def test_json_is_the_family(
    name: str, command: "Command", pets: Path, tmp_path: Path
) -> None:
    named = pets if name == "pets" else name
    shown = json.loads(command("families", "show", named, "--json").out)
    assert shown == yaml.safe_load(command("families", "show", named).out)
    checked = json.loads(command("families", "check", named, "--json").out)
    # As it is read: with what the file leaves out, and a family of its own again.
    assert checked["prompt"] == load_family(named).prompt
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps(checked))
    assert load_family(again) == load_family(named)


def test_few_questions_are_told(command: "Command", pets: Path) -> None:
    found = command("families", "check", pets)
    assert "questions  3\n" in found.out
    assert "give 16 or more" in found.out
    assert "note" not in command("families", "check", "animals").out


@pytest.mark.parametrize("verb", ["show", "check"])
def test_a_family_that_is_not_there_is_refused(verb: str, command: "Command") -> None:
    found = command("families", verb, "nope")
    assert found.status == 2
    assert "'animals'" in found.err
