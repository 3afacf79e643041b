"""Inputs that coverage guides: a short part of the campaign, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has builds for Linux on x86-64 alone")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["rows.csv", "run"])
def test_guided_inputs_end_in_a_value_or_an_error_on_purpose(
    reader: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "tests.faults.guided", f"--reader={reader}",
             "--inputs=400", f"--out={tmp_path}"]  # fmt: skip
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{reader:<14}     400 inputs" in done.stdout
    assert "BROKEN" not in done.stdout
    kept = list((tmp_path / f"{reader}.corpus").iterdir())
    guided = [path for path in kept if not path.name.startswith("drawn-")]
    assert guided, "coverage was followed"
