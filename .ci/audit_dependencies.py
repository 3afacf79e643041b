"""Asks vulnerability databases about every pinned dependency, by pip-audit.

    python .ci/audit_dependencies.py PIP_AUDIT [REQUIREMENTS]

A known vulnerability fails. A database that cannot be reached does not, but it is said
that nothing was audited: pip-audit itself calls packages that an index does not tell of
"skipped", and then says that no vulnerabilities are known.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SERVICES = ("pypi", "osv")
PATIENCE = 60
"""Seconds for one database."""
ACCEPTED: dict[str, str] = {}
"""Vulnerabilities that are known and lived with: id → why they do not matter here."""


def asked(command: str, requirements: str, service: str) -> list[dict[str, Any]] | str:
    """What a database says of each package, or why it could not be asked."""
    words = [
        command, "--requirement", requirements, "--no-deps", "--disable-pip",
        "--format", "json", "--progress-spinner", "off", "--vulnerability-service",
        service, *(word for name in ACCEPTED for word in ("--ignore-vuln", name)),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PATIENCE} seconds"
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {done.returncode}"
    if all("skip_reason" in package for package in found):
        return str(found[0]["skip_reason"]) if found else "no packages"
    return found


def main(command: str, requirements: str = str(ROOT / "constraints.txt")) -> int:
    """Prints what is known; 1 if that is a vulnerability."""
    for service in SERVICES:
        found = asked(command, requirements, service)
        if isinstance(found, list):
            return tell(service, found)
        sys.stdout.write(f"{service}: not reachable: {found}\n")
    sys.stdout.write("nothing was audited: no vulnerability database is reachable\n")
    return 0


def tell(service: str, packages: list[dict[str, Any]]) -> int:
    """Prints vulnerabilities and what is not known; 1 if there are any."""
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    known = [(p, v) for p in packages for v in p.get("vulns", ())]
    for package, flaw in known:
        mended = ", ".join(flaw["fix_versions"]) or "no version"
        sys.stdout.write(
            f"{package['name']} {package['version']}: {flaw['id']}, mended in {mended}\n"
        )
    if skipped:
        sys.stdout.write(f"not known to {service}: {', '.join(skipped)}\n")
    audited = len(packages) - len(skipped)
    sys.stdout.write(f"{service}: {audited} packages, {len(known)} vulnerabilities\n")
    return int(bool(known))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
