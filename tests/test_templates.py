"""The forms for issues are such as the forge takes, and what they name is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github"
FORMS = [FOLDER / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "feature")]
# What GitHub knows of a form, and of its inputs.
KEYS = {
    "name",
    "description",
    "title",
    "labels",
    "assignees",
    "projects",
    "type",
    "body",
}
TYPES = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_the_folder_holds_two_forms_and_their_settings() -> None:
    found = sorted(path.name for path in (FOLDER / "ISSUE_TEMPLATE").iterdir())
    assert found == ["bug.yml", "config.yml", "feature.yml"]
    settings = yaml.safe_load((FOLDER / "ISSUE_TEMPLATE" / "config.yml").read_text())
    assert set(settings) <= {"blank_issues_enabled", "contact_links"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one_that_the_forge_takes(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert set(form) <= KEYS
    assert form["name"]
    assert form["description"]
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0
    for part in form["body"]:
        assert part["type"] in TYPES
        inner: dict[str, Any] = part["attributes"]
        if part["type"] == "markdown":
            assert inner["value"].strip()
            continue
        assert inner["label"]
        options = inner.get("options", [])
        if part["type"] == "dropdown":
            assert all(isinstance(option, str) for option in options)
            assert len(set(options)) == len(options) > 1
        elif part["type"] == "checkboxes":
            assert all(option["label"] for option in options)
            assert options
    needed = [p for p in form["body"] if p.get("validations", {}).get("required")]
    assert needed


@pytest.mark.parametrize(
    "path", [*FORMS, FOLDER / "PULL_REQUEST_TEMPLATE.md"], ids=lambda path: path.stem
)
def test_files_that_a_template_names_exist(path: Path) -> None:
    text = path.read_text()
    named = set(re.findall(r"\b(?:docs/)?[\w./-]+\.(?:md|py)\b", text))
    for name in named | set(re.findall(r"`(\.ci/\w+)`", text)):
        assert (ROOT / name).is_file(), name
