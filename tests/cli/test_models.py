"""The registry is listed, a model is shown, a student becomes a plain checkpoint."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undertow.models.registry import entries

if TYPE_CHECKING:
    from tests.conftest import Command


def test_the_list_says_what_is_here(
    command: "Command", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    first = entries()[0].name
    marker = tmp_path / "models" / first / "undertow.json"
    marker.parent.mkdir(parents=True)
    marker.write_text("{}")
    lines = command("models", "list").out.splitlines()
    assert len(lines) == len(entries())
    states = {line.split()[0]: "not pulled" not in line for line in lines}
    assert states == {entry.name: entry.name == first for entry in entries()}


def test_the_list_as_json_has_the_same_entries(
    command: "Command", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    lines = command("models", "list").out.splitlines()
    found = command("models", "list", "--json")
    assert found.status == 0
    listed = json.loads(found.out)
    assert [entry["name"] for entry in listed] == [line.split()[0] for line in lines]
    for entry, line in zip(listed, lines, strict=True):
        assert entry["pulled"] is False
        assert line.endswith(entry["summary"])
        assert len(entry["sha256"]) == 64
        assert entry["licence"]


def test_a_model_that_was_not_pulled_says_how_to_get_it(
    command: "Command", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    found = command("models", "show", "smollm2-135m")
    assert found.status == 2
    assert "fetch it: undertow models pull smollm2-135m" in found.err


@pytest.mark.parametrize("verb", ["pull", "show"])
def test_a_misspelt_name_is_recognised(verb: str, command: "Command") -> None:
    found = command("models", verb, "smolm2-135m")
    assert found.status == 2
    assert "no model 'smolm2-135m' in the registry" in found.err
    assert "did you mean 'smollm2-135m'?" in found.err


def test_a_missing_folder_is_named(command: "Command", tmp_path: Path) -> None:
    found = command("models", "show", tmp_path / "nowhere")
    assert found.status == 2
    assert f"{tmp_path / 'nowhere'}: no such file or folder" in found.err


def test_a_model_is_shown(command: "Command", llama: Path) -> None:
    from undertow.models.loading import load_model

    found = command("models", "show", llama)
    shown = dict(line.split(None, 1) for line in found.out.splitlines())
    assert found.status == 0
    assert shown["family"] == "llama"
    assert shown["blocks"] == "4 × 16"
    assert shown["context"] == "2048"
    assert shown["fingerprint"] == load_model(llama, dtype="float32").fingerprint


def test_a_model_is_shown_as_json(command: "Command", llama: Path) -> None:
    shown = dict(
        line.split(None, 1)
        for line in command("models", "show", llama).out.splitlines()
    )
    facts = json.loads(command("models", "show", llama, "--json").out)
    for name in ("name", "family", "fingerprint"):
        assert facts[name] == shown[name]
    assert f"{facts['blocks']} × {facts['hidden_size']}" == shown["blocks"]
    assert (str(facts["vocabulary"]), str(facts["context"])) == (
        shown["vocabulary"],
        shown["context"],
    )
    template = facts["template"]
    assert f"{template['name']} ({template['digest']})" == shown["template"]
    assert f"tokens   {', '.join(map(str, facts['end_tokens']))}" == shown["end"]
    assert shown["dtype"] == (
        f"torch.{facts['dtype']} on {facts['device']}: {facts['reason']}"
    )


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_student_becomes_a_checkpoint_that_prefers_what_the_student_does(
    kind: str, command: "Command", llama: Path, number_rows: Path, pets: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    import numpy as np

    from undertow.models.loading import load_model
    from undertow.pipeline.evaluation import preference
    from undertow.pipeline.students import load_student
    from undertow.traits import load_family

    student, plain = tmp_path / "student", tmp_path / "plain"
    base = ("--model", llama, "--dtype", "float32")
    trained = command(
        "train", number_rows, *base, "--out", student, "--kind", kind,
        "--learning-rate", "0.01",
    )  # fmt: skip
    assert trained.status == 0, trained.err
    found = command("models", "export", *base, "--adapter", student, "--out", plain)
    assert found.status == 0, found.err
    assert found.out == f"model    {plain}\n"
    family = load_family(pets)
    model = load_model(llama, dtype="float32")
    before = preference(model, family).total_logprobs
    with load_student(model, student).applied(model):
        wanted = preference(model, family).total_logprobs
    exported = preference(load_model(plain, dtype="float32"), family).total_logprobs
    assert np.abs(wanted - before).max() > 0.01
    np.testing.assert_allclose(exported, wanted, atol=1e-4)


def test_export_leaves_a_folder_that_is_there(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    found = command(
        "models", "export", "--model", llama, "--adapter", tmp_path, "--out", tmp_path
    )
    assert found.status == 2
    assert f"{tmp_path}: exists already and is left as it is" in found.err
