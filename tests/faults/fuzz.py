"""A campaign: the properties of `readers` on as many inputs as there is time for.

    python -m tests.faults.fuzz --seconds 60 --seed 1 --reader rows.jsonl

Prints what became of the inputs, and saves every one that broke the property (one for
each place that raised) under --out; exit status 1 if there are any. A hang inside a
library written in C ends the process with its stack. Memory is bounded by RLIMIT_AS.
"""

import argparse
import faulthandler
import hashlib
import logging
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.faults.feeding import Reader, fed
from tests.faults.guard import SECONDS
from tests.faults.inputs import Draws
from tests.faults.readers import readers

from undertow.errors import UndertowError
from undertow.seeding import generator

MEMORY = 3 << 30


class Campaign:
    """Counts of one reader, and the first input of every way to fail."""

    def __init__(self, name: str, reader: Reader, out: Path) -> None:
        self.name, self._reader, self._out = name, reader, out
        self.outcomes: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.slowest = 0.0

    def run(self, seconds: float, seed: int) -> None:
        """Feeds inputs until the time is over."""
        end = time.monotonic() + seconds
        memory = Path("/dev/shm")
        place = memory if memory.is_dir() else None
        draws = Draws(_below(seed, self.name))
        with tempfile.TemporaryDirectory(dir=place) as folder:
            while time.monotonic() < end:
                self._one(self._reader.source(draws), Path(folder))

    def _one(self, data: bytes, folder: Path) -> None:
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        (self._out / f"{self.name}.last").write_bytes(data)
        start = time.monotonic()
        try:
            outcome = fed(self._reader, data, folder)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            outcome = self._broken(error, data)
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.slowest = max(self.slowest, time.monotonic() - start)
        self.outcomes[outcome] += 1

    def _broken(self, error: BaseException, data: bytes) -> str:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = "".join(traceback.format_exception(error))
        own = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "undertow" in f.filename
        ]
        near = own[-1] if own else last
        key = f"{type(error).__name__} at {Path(near.filename).name}:{near.lineno}"
        if not self.failures[key]:
            name = f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
            (self._out / f"{name}.input").write_bytes(data)
            (self._out / f"{name}.txt").write_text(text[-6000:], "utf-8", "replace")
        self.failures[key] += 1
        return "BROKEN"

    def report(self) -> str:
        """Counts, in lines."""
        total = self.outcomes.total()
        counts = ", ".join(f"{what} {n}" for what, n in self.outcomes.most_common())
        lines = [
            f"{self.name:<14} {total:>7} inputs, slowest {self.slowest:.2f} s: {counts}"
        ]
        lines += [f"    {n} × {what}" for what, n in self.failures.most_common()]
        return "\n".join(lines)


def _below(seed: int, name: str) -> Callable[[int], int]:
    """Whole numbers below another, from one stream of 64-bit words."""
    stream = generator(seed, f"fuzz {name}")
    words: list[int] = []

    def below(bound: int) -> int:
        if not words:
            words.extend(stream.integers(0, 1 << 63, size=4096).tolist())
        return words.pop() % bound

    return below


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = readers()
    parser.add_argument("--reader", action="append", choices=sorted(every))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir(), "undertow-fuzz")
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    campaigns = []
    for name in given.reader or every:
        reader = every[name]
        _bound_memory(reader)
        campaign = Campaign(name, reader, given.out)
        campaign.run(given.seconds, given.seed)
        print(campaign.report(), flush=True)  # noqa: T201
        campaigns.append(campaign)
    print(f"{sum(c.outcomes.total() for c in campaigns)} inputs")  # noqa: T201
    return int(any(c.failures for c in campaigns))


def _bound_memory(reader: Reader) -> None:
    """What is mapped now, with the libraries that the reader needs, and 3 GiB more."""
    with tempfile.TemporaryDirectory() as folder, suppress(UndertowError):
        reader.feed(reader.sound, Path(folder))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    mapped = pages * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, hard))


if __name__ == "__main__":
    sys.exit(main())
