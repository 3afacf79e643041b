"""Time, processor and memory of one measurement; used by both sides of a benchmark.

Imports torch and nothing of either side.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch


class Meter:
    """Measures what happens inside its block; `found` has the figures afterwards.

    Peak memory is the device's where there is one, else the process's; the high-water
    mark is taken back at the start.
    """

    def __enter__(self) -> "Meter":
        """Begins when the device has nothing left to do."""
        self.found: dict[str, Any] = {}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._began, self._worked = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends when the device has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._began
        cores = (time.process_time() - self._worked) / seconds
        self.found = {"seconds": seconds, "cores": cores, "peak_mib": _peak_mib()}


def _peak_mib() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def answer(found: dict[str, Any]) -> None:
    """Tells whoever asked."""
    print("FOUND " + json.dumps(found), flush=True)
    sys.stdout.flush()
