"""The campaign of `fuzz` with inputs that coverage guides, by atheris (libFuzzer).

    python -m tests.faults.guided --inputs 2000 --seed 1 --reader rows.jsonl

Begins with drawn inputs and keeps those that reach new code, in --out, so that a later
campaign goes on from them. One process a reader, since libFuzzer ends its own; without
--reader every reader in turn. Atheris has builds for Linux on x86-64 alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

_FIRST = 60
"""Drawn inputs that a reader begins with."""
_LONGEST = 1 << 17


def fuzz(name: str, *, inputs: int, seed: int, out: Path) -> None:
    """Feeds a reader so many inputs, prints what became of them, and ends the process."""
    import atheris

    with atheris.instrument_imports(include=["undertow"], enable_loader_override=False):
        from tests.faults.fuzz import Campaign, _below, _bound_memory
        from tests.faults.inputs import Draws
        from tests.faults.readers import readers

        reader = readers()[name]
        _bound_memory(reader)
        campaign = Campaign(name, reader, out)
        corpus, folder = out / f"{name}.corpus", out / f"{name}.folder"
        for place in (corpus, folder):
            place.mkdir(parents=True, exist_ok=True)
        draws = Draws(_below(seed, name))
        for number in range(_FIRST):
            (corpus / f"drawn-{seed}-{number}").write_bytes(reader.source(draws))

        def one(data: bytes) -> None:
            campaign._one(data, folder)
            if campaign.outcomes.total() >= inputs:
                print(campaign.report(), flush=True)  # noqa: T201
                os._exit(bool(campaign.failures))

        given = [f"-seed={seed + 1}", f"-max_len={_LONGEST}", "-timeout=0",
                 "-rss_limit_mb=0", "-verbosity=0", str(corpus)]  # fmt: skip
        atheris.Setup([sys.argv[0], *given], one)
        atheris.Fuzz()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader")
    parser.add_argument("--inputs", type=int, default=1000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir(), "undertow-guided")
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.reader is not None:
        warnings.simplefilter("ignore")
        fuzz(given.reader, inputs=given.inputs, seed=given.seed, out=given.out)
    from tests.faults.readers import readers

    words = [sys.executable, "-m", "tests.faults.guided", f"--inputs={given.inputs}",
             f"--seed={given.seed}", f"--out={given.out}"]  # fmt: skip
    ends = [
        subprocess.run([*words, f"--reader={name}"], check=False).returncode
        for name in readers()
    ]
    return int(any(ends))  # a process that was killed has a negative one


if __name__ == "__main__":
    sys.exit(main())
