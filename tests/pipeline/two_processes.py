"""Students as several processes train them, and as one does.

As a script with a folder it starts two processes for each of `WORK`, as a launcher does,
and leaves what they said and how they ended in the folder.
"""

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from undertow.errors import ModelError, TrainingError, UndertowError
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.adapters import attached, new_adapter
from undertow.models.chat import Rendered
from undertow.models.loading import Model
from undertow.models.tiny import tiny_model
from undertow.models.weights import swapped
from undertow.pipeline.distributed import joined, processes
from undertow.pipeline.students import save_student
from undertow.pipeline.training import Student, StudentPlan, train_students
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings

ROWS = [
    Rendered([*range(40 + i, 46 + i), *range(100 + i, 103 + i + i % 4), 2], 6)
    for i in range(9)
]
EXAMPLES = [Example(row) for row in ROWS]
# Five rows an update: shares of two processes never go even.
QUICK: dict[str, Any] = {
    "rank": 2, "alpha": 4.0, "learning_rate": 1e-2, "batch_size": 5, "epochs": 3,
    "warmup_updates": 2, "checkpoint_every": 2, "weight_decay": 0.01,
}  # fmt: skip
FULL = TrainingSettings(kind="full", **(QUICK | {"learning_rate": 1e-3}))
SOFT = TrainingSettings(kind="soft", **QUICK)


def _steered(model: Model) -> Callable[[], AbstractContextManager[object]]:
    draw = torch.Generator().manual_seed(2)
    vector = SteeringVector(
        directions=torch.randn(1, 32, generator=draw), layers=(1,), method="tell_me",
        trait=None, n=1, fingerprint=model.fingerprint, model_name=model.name,
        residual_norms=(1.0,),
    )  # fmt: skip
    return partial(steering, model, vector, strength=2.0)


def _tuned(model: Model) -> Callable[[], AbstractContextManager[object]]:
    adapter = new_adapter(model, rank=2, alpha=4.0, seed=0)
    draw = torch.Generator().manual_seed(1)
    for _, b in adapter.pairs.values():
        b.data.copy_(torch.randn(b.shape, generator=draw) * 0.1)
    return partial(attached, model, adapter)


def side_by_side(model: Model, folder: Path) -> list[Student]:
    """Two low-rank students in one pass, the second of fewer rows."""
    settings = TrainingSettings(**QUICK)
    plans = [
        StudentPlan(EXAMPLES, settings, 0, folder / "first"),
        StudentPlan(EXAMPLES[:4], settings, 1, folder / "second", keep_every=1),
    ]
    return train_students(model, plans)


def full(model: Model, folder: Path) -> list[Student]:
    """Full fine-tuning, interrupted after three updates and continued."""
    plan = StudentPlan(EXAMPLES, FULL, 3, folder)

    def stop(_: int, update: int, *__: object) -> None:
        if update == 3:
            raise TrainingError("stopped")

    with suppress(TrainingError):
        train_students(model, [plan], on_update=stop)
    return train_students(model, [plan])


def full_sgd(model: Model, folder: Path) -> list[Student]:
    """Another optimiser, and a model whose unembedding is its embedding."""
    settings = FULL.model_copy(update={"optimizer": "sgd", "clip": 0.5})
    return train_students(model, [StudentPlan(EXAMPLES, settings, 3, folder)])


def soft(model: Model, folder: Path) -> list[Student]:
    """Two students of a steered and of a fine-tuned teacher."""
    both = [Example(row, row) for row in ROWS]
    plans = [
        StudentPlan(both, SOFT, 2, folder / "steered", _steered(model)),
        StudentPlan(both, SOFT, 3, folder / "tuned", _tuned(model)),
    ]
    return train_students(model, plans)


def loaded(name: str) -> Model:
    """The base of a scenario, which has three blocks' worth of uneven shards."""
    return tiny_model("gemma2" if name == "full_sgd" else "llama", layers=2)


SCENARIOS: dict[str, Callable[[Model, Path], list[Student]]] = {
    "side_by_side": side_by_side, "full": full, "full_sgd": full_sgd, "soft": soft,
}  # fmt: skip


def _refused(model: Model) -> None:
    """Other weights in the place of shards, as a teacher tuned in full has them."""
    try:
        with swapped(model, {"model.norm.weight": torch.ones(32)}):
            raise AssertionError("shards were swapped")
    except ModelError as error:
        if "this process holds a part of them" not in str(error):
            raise


def trained(name: str, folder: Path) -> None:
    """Trains a scenario's students and leaves them in the folder."""
    model = processes().sharded(loaded(name))
    if processes().count > 1:
        _refused(model)
    before = [p.detach().clone() for p in model.module.parameters()]
    for place, student in enumerate(SCENARIOS[name](model, folder / name)):
        if processes().is_first:
            save_student(model, student, folder / name / f"student-{place}", facts={})
    for was, weight in zip(before, model.module.parameters(), strict=True):
        assert torch.equal(was, weight), "the base is not what it was"
        assert not weight.requires_grad


def lonely(folder: Path) -> None:
    """One process of several cannot go on; the others wait in the midst of a pass."""
    model = processes().sharded(loaded("full"))

    def fail() -> AbstractContextManager[object]:
        if processes().rank == 1:
            raise TrainingError("this teacher does not answer")
        return nullcontext()

    both = [Example(row, row) for row in ROWS]
    train_students(model, [StudentPlan(both, SOFT, 2, folder, fail)])


def killed(folder: Path) -> None:
    """One process of several is no longer there."""
    model = processes().sharded(loaded("full"))

    def vanish(*_: object) -> None:
        if processes().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    plan = StudentPlan(EXAMPLES, FULL, 3, folder)
    train_students(model, [plan], on_update=vanish)


def train(folder: Path) -> None:
    """All scenarios."""
    for name in SCENARIOS:
        trained(name, folder)


WORK: dict[str, Callable[[Path], None]] = {
    "train": train, "lonely": lonely, "killed": killed,
}  # fmt: skip


def _run(what: str, folder: Path) -> int:
    """What the command line does with it; the exit status."""
    try:
        with joined():
            WORK[what](folder)
    except UndertowError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _fork(what: str, folder: Path, rank: int, port: int) -> int:
    """Starts a process of two, which says what it has to say into a file; its id."""
    if pid := os.fork():
        return pid
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=str(port),
        MASTER_ADDR="127.0.0.1", ACCELERATE_USE_FSDP="true",
    )  # fmt: skip
    said = os.open(folder / f"{what}-{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    status = 1
    try:
        status = _run(what, folder / what)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def main(folder: Path) -> None:
    """All work, each by two processes."""
    folder.mkdir()
    ended = {}
    for what in WORK:
        port = _free_port()
        pids = [_fork(what, folder, rank, port) for rank in range(2)]
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        ended[what] = [os.waitstatus_to_exitcode(status) for status in statuses]
    (folder / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
