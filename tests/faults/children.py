"""Runs commands in children of one process that has imported everything once.

A child is forked, does one command under one disaster, and ends; what it printed, how it
ended and what it did to files come back. The parent computes nothing and starts no thread,
so that its children may. `python -m tests.faults.children` is such a parent for another
process: a line of JSON in, a line out.
"""

import gc
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.faults.disasters import Disaster, Watch
from tests.faults.operations import Operation, make_world, operations

HANGS = 120.0
"""Seconds after which a child counts as hanging."""
_IMPORTED = (
    "undertow.audit.auditor", "undertow.audit.cost", "undertow.audit.files",
    "undertow.cli", "undertow.experiment", "undertow.experiment.running",
    "undertow.models.tiny", "undertow.pipeline.students", "undertow.report.figure_data",
    "undertow.report.html", "pyarrow.parquet", "safetensors.torch",
    "transformers.models.llama.modeling_llama",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: Of its exit; negative for the signal that killed it, None if it hung.
        text: What it printed.
        seen: Its file operations.
        steps: Of progress.
        seconds: That it took.
    """

    status: int | None
    text: str
    seen: tuple[str, ...]
    steps: int
    seconds: float

    @property
    def faults(self) -> list[str]:
        """What nobody should ever see."""
        found = ["hang"] * (self.status is None)
        if "Traceback (most recent call last)" in self.text:
            found.append("traceback")
        if self.status not in (None, 0, 2, 130, -signal.SIGKILL):
            found.append(f"status {self.status}")
        return found


def import_everything() -> None:
    """What every child needs."""
    for name in _IMPORTED:
        import_module(name)
    mapping: Any = import_module("transformers.conversion_mapping")
    mapping.get_checkpoint_conversion_mapping("llama")  # a table that takes a while
    gc.collect()
    gc.freeze()  # what children need not copy


def call(operation: Operation, disaster: Disaster, *, draws: bool = True) -> Ended:
    """One command in a child; drawing pages may be left out, which takes longest."""
    watch = Watch(operation.directory, disaster)
    operation.directory.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # Pipes: no limit on the size of files holds for them.
    (text, says), (facts, tells) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.dup2(says, 1)
        os.dup2(says, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), line_buffering=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), line_buffering=True)
        try:
            _command(operation, watch, draws=draws)
        finally:  # whatever it raised, it has been printed
            sys.stdout.flush()
            sys.stderr.flush()
            told = json.dumps({"seen": watch.seen, "steps": watch.steps}).encode()
            while told:
                told = told[os.write(tells, told) :]
            os._exit(watch.status)
    os.close(says)
    os.close(tells)
    status, heard = _waited(child, (text, facts), began)
    found = json.loads(heard[facts] or b'{"seen": [], "steps": 0}')
    return Ended(status, heard[text].decode(errors="replace"), tuple(found["seen"]),
                 found["steps"], round(time.monotonic() - began, 3))  # fmt: skip


def _command(operation: Operation, watch: Watch, *, draws: bool) -> None:
    """`undertow WORDS`, its status left with the watch."""
    import traceback

    from undertow.audit import cost
    from undertow.cli import console, main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    cost.timed_flops = lambda **_: 1e11
    console._lines = lambda: lambda *_: watch.step()
    if not draws:
        _draw_nothing()
    sys.argv = ["undertow", *operation.words]
    watch.install()
    watch.status = 1
    try:
        main()
        watch.status = 0
    except SystemExit as end:
        watch.status = (
            end.code if isinstance(end.code, int) else int(end.code is not None)
        )
    except BaseException:
        traceback.print_exc()


def _draw_nothing() -> None:
    files: Any = import_module("undertow.audit.files")
    figure_data: Any = import_module("undertow.report.figure_data")
    html: Any = import_module("undertow.report.html")
    html.write_report = files.write_audit_report = lambda _, path: path
    figure_data.write_figure_data = files.write_audit_figure_data = lambda *_: []


def _waited(
    child: int, pipes: tuple[int, int], began: float
) -> tuple[int | None, dict[int, bytes]]:
    """How a child ended, and what came out of its pipes; a child that hangs is killed."""
    heard = dict.fromkeys(pipes, b"")
    opened = list(pipes)
    hung = False
    while opened:
        ready, _, _ = select.select(opened, [], [], 1.0)
        for pipe in ready:
            part = os.read(pipe, 1 << 16)
            heard[pipe] += part
            if not part:
                opened.remove(pipe)
                os.close(pipe)
        if not hung and time.monotonic() - began > HANGS:
            hung = True
            os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if hung else status, heard


def world(folder: Path) -> dict[str, Operation]:
    """Makes the operations' world in a child; the operations."""
    child = os.fork()
    if not child:
        status = 1
        try:
            make_world(folder)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(f"{folder}: no world could be made there")
    return operations(folder)


class Parent:
    """Another process that has imported everything, and calls commands for this one."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.children", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self.operations = operations(folder)
        self._line()  # the world is made

    def call(
        self, operation: Operation, disaster: Disaster, *, draws: bool = False
    ) -> Ended:
        """One command in a child of that process."""
        asked = {"name": operation.name, "disaster": asdict(disaster), "draws": draws}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        told = self._line()
        return Ended(**told | {"seen": tuple(told["seen"])})

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the parent ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Ends it."""
        self._process.communicate(timeout=30)


def _serve(folder: Path) -> None:
    import_everything()
    made = world(folder)
    print("{}", flush=True)  # noqa: T201
    for line in sys.stdin:
        asked = json.loads(line)
        ended = call(
            made[asked["name"]], Disaster(**asked["disaster"]), draws=asked["draws"]
        )
        print(json.dumps(asdict(ended)), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
