"""Compiles `kernels.c` for this very processor, once, and hands out its functions.

The library lies in the cache folder under a name that says source, compiler, processor
and user, so another machine that shares the folder builds its own, and nobody runs what
somebody else has put there. Where there is no compiler nothing is lost but time: whoever
asks gets None, the reason and what to do. Knows nothing of models.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from undertow.models.registry import cache_directory

_SOURCE = Path(__file__).with_name("kernels.c")
# Nothing here lets a NaN be taken for a number, as -ffast-math would.
_FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno",
          "-fno-trapping-math", "-fPIC")  # fmt: skip
_P, _N = c_void_p, c_int64
_ARGUMENTS: dict[str, list[type]] = {
    "norm_forward": [_P, _P, _P, _P, _N, _N, c_float, c_float],
    "norm_backward": [_P, _P, _P, _P, _P, _N, _N, c_float],
    "gated_forward": [_P, _P, _P, _N, c_int],
    "gated_backward": [_P, _P, _P, _P, _P, _N, c_int],
    "rotate": [_P, _P, _P, _P, _P, _P, _P, _N, c_int],
    "softmax_forward": [_P, _P, _P, _P, _P, _N, c_float],
    "softmax_backward": [_P, _P, _P, _N, _N, c_float],
    "logprobs_forward": [_P, _P, _P, _N, _N, c_float, c_int],
    "adapter_forward": [_P, _P, _P, _P, _P, _N, _N, _N, _N, c_float],
    "adapter_backward": [_P, _P, _P, _P, _P, _P, _P, _N, _N, _N, _N, _N, c_float],
}


_INSTALL = "install a compiler: apt install gcc libc6-dev"


class Built(NamedTuple):
    """The library, or why there is none and what to do; "" where nothing can be done."""

    library: ctypes.CDLL | None
    reason: str
    remedy: str = ""


@cache
def kernels() -> Built:
    """The compiled functions of `kernels.c`, built where they are not there yet.

    UNDERTOW_KERNELS=off leaves them out.

    Cost: half a second the first time on a machine, then nothing.
    """
    if os.environ.get("UNDERTOW_KERNELS", "").lower() in ("off", "0"):
        return Built(None, "switched off by UNDERTOW_KERNELS")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Built(None, "made for Linux on x86-64 only")
    compiler, threads = shutil.which("gcc"), _threads()
    if compiler is None:
        return Built(None, "no gcc is found", _INSTALL)
    if threads is None:
        return Built(None, "torch does not bring libgomp, whose threads they would use")
    try:
        return Built(_loaded(_built(compiler, threads)), f"compiled by {compiler}")
    except subprocess.CalledProcessError as error:
        return Built(None, f"{compiler} failed: {_fault(error)}", _INSTALL)
    except subprocess.TimeoutExpired as error:
        return Built(None, str(error), "try again when the machine is less busy")
    except OSError as error:  # of the folder, or of what lies in it
        return Built(None, str(error), "let UNDERTOW_CACHE name a folder of yours")


def _fault(error: subprocess.CalledProcessError) -> str:
    """The line that says what is wrong; the last one often says only that it ended."""
    said = str(error.stderr).strip().splitlines() or [f"status {error.returncode}"]
    return next((line for line in said if "error" in line), said[-1])


def _threads() -> Path | None:
    """The library of threads that torch brings: a second one would fight it for the cores."""
    return min((Path(torch.__file__).parent / "lib").glob("libgomp*"), default=None)


def _built(compiler: str, threads: Path) -> Path:
    """Where the library lies; compiled if it does not."""
    version = _run(compiler, "-dumpfullversion")
    known = (_SOURCE.read_text("utf-8"), *_FLAGS, version, threads.name, _processor(),
             str(os.getuid()))  # fmt: skip
    digest = hashlib.sha256("\0".join(known).encode()).hexdigest()[:16]
    target = cache_directory() / "kernels" / f"{digest}.so"
    if target.exists():
        if _owner(target) != os.getuid():
            raise PermissionError(f"{target} belongs to another user; remove it")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        compiled, linked = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        _run(compiler, *_FLAGS, "-fopenmp", "-c", str(_SOURCE), "-o", str(compiled))
        _run(compiler, "-shared", str(compiled), str(threads), "-lm", "-o", str(linked))
        linked.replace(target)
    return target


def _owner(path: Path) -> int:
    return path.stat().st_uid


def _run(*command: str) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip()


def _processor() -> str:
    """What tells this kind of processor from others: its name and what it can do."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    said = (line for line in lines if line.startswith(("model name", "flags")))
    return "\n".join(sorted(set(said)))


def _loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library
