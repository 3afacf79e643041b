"""`python -m undertow` is the command."""

import subprocess
import sys

from undertow import __version__


def test_the_package_itself_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "undertow", "--version"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["undertow", __version__]
    wrong = subprocess.run(
        [sys.executable, "-m", "undertow", "audit", "nowhere.jsonl", "--model", "x"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
