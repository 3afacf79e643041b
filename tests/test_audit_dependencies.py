"""The audit of dependencies: a flaw fails, and silence is not taken for safety."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SAFE = {"name": "safe", "version": "1.0", "vulns": []}
ODD = {"name": "odd", "skip_reason": "Dependency not found on PyPI: odd (2.0)"}
FLAWED = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [{"id": "PYSEC-2014-8", "fix_versions": ["2.7.2"], "aliases": []}],
}


def audited(tmp_path: Path, **answers: list[dict[str, Any]]) -> tuple[int, str]:
    """Runs the audit with a pip-audit that knows these services; others time out."""
    texts = {name: json.dumps({"dependencies": own}) for name, own in answers.items()}
    double = tmp_path / "pip-audit"
    double.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "assert sys.argv[sys.argv.index('--requirement') + 1].endswith('pins.txt')\n"
        f"found = {texts!r}.get(sys.argv[-1])\n"
        "sys.exit('ConnectionError: no such host') if found is None else print(found)\n"
        "sys.exit('PYSEC' in found)\n"
    )
    double.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "audit_dependencies.py"), str(double),
         str(tmp_path / "pins.txt")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_vulnerability_fails_and_is_named(tmp_path: Path) -> None:
    status, said = audited(tmp_path, pypi=[SAFE, FLAWED])
    assert status == 1
    assert "jinja2 2.4.1: PYSEC-2014-8, mended in 2.7.2" in said
    assert said.endswith("pypi: 2 packages, 1 vulnerabilities\n")


def test_safe_packages_pass_and_unknown_ones_are_named(tmp_path: Path) -> None:
    status, said = audited(tmp_path, pypi=[SAFE, ODD])
    assert status == 0
    assert said == "not known to pypi: odd\npypi: 1 packages, 0 vulnerabilities\n"


def test_the_second_database_is_asked_if_the_first_knows_nothing(
    tmp_path: Path,
) -> None:
    status, said = audited(tmp_path, pypi=[ODD], osv=[FLAWED])
    assert status == 1
    assert "pypi: not reachable: Dependency not found on PyPI: odd (2.0)" in said
    assert "osv: 1 packages, 1 vulnerabilities" in said


@pytest.mark.parametrize("pypi", [[ODD], []])
def test_no_database_passes_and_says_that_nothing_was_audited(
    pypi: list[dict[str, Any]], tmp_path: Path
) -> None:
    status, said = audited(tmp_path, pypi=pypi)
    assert status == 0
    assert "osv: not reachable: ConnectionError: no such host" in said
    assert said.endswith(
        "nothing was audited: no vulnerability database is reachable\n"
    )


def test_every_pin_is_exact() -> None:
    """A package without a version could not be asked about."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 50
    assert [p for p in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", p)] == []
