"""Every example is short and runs, here on a tiny model."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from undertow.models.tiny import save_tiny

FOLDER = Path(__file__).parents[1] / "examples"
# What each one has to print: its own numbers, not just some.
SAID = {
    "adapter_with_peft": r"adapter_config\.json\nadapter_model\.safetensors\n.*\n"
    r"the student moved its logits by up to (?!0\.0000)\d.*\n"
    r"undertow and PEFT differ by up to (0\.0e\+00|\d\.\de-(0[6-9]|1\d))",
    "audit_a_file": r"^(trait|shift|none): .+\np = [\d.e-]+, error rate 0\.01\n- ",
    "control_vector": r"direction\.3 acts after block 3, counted from 0\nowl moved by \+",
    "find_a_vector": r"dose 0\.3: owl 0\.\d{3} of the animals",
    "kinds_of_teacher": r"none +owl.*\n.*\nprompt +owl.*\n.*\nsteer +owl.*\n.*\n"
    r"finetune +owl 0\.\d{3}, 4 of 4 rows kept",
    "own_trait": r"blue 0\.\d\d, red 0\.\d\d, gray 0\.\d\d",
    "plug_in_an_auditor": r"undertow +steer: 16 rows, AUROC [\d.]+\nlength +steer: 16",
    "rows_and_two_students": r"transfer [+-]\d\.\d{3} nats .* over 8 questions",
    "rows_with_trl": r"8 rows there, 8 back: .*\n(.*\n)*the student of TRL: owl -\d",
}
SLOW = {"audit_a_file", "plug_in_an_auditor", "rows_with_trl"}
EXAMPLES = sorted(FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny Llama."""
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny")


def test_what_each_example_says_is_looked_at() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(SAID)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert f"Run: python examples/{path.name} [MODEL]" in text


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in SAID
    ],
)
def test_an_example_runs_and_prints_what_it_found(
    name: str,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = FOLDER / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [path.name, str(tiny)])
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(SAID[name], out), out
