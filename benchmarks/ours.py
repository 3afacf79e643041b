"""undertow's side: one measurement a process, printed as one JSON line.

Usage: python ours.py generation|training|audit TASK.json BATCH

BATCH is rows, and for the audit tokens.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from undertow.analysis.gradients import gradient_scores
from undertow.audit.signals import make_battery
from undertow.models.chat import Rendered, render_row
from undertow.models.loading import Model, load_model
from undertow.models.sampling import SamplerSettings, sample
from undertow.pipeline.training import Example, train_student
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Message, Row
from undertow.traits import load_family

_PILOT = 32  # rows whose gradients give the random directions their covariance


def generation(model: Model, task: dict[str, Any], batch: int) -> int:
    """Answers every prompt; returns the tokens drawn."""
    prompts = task["prompts"]
    drawn = sample(
        model, prompts, keys=[("rows", i) for i in range(len(prompts))], seed=0,
        sampler=SamplerSettings(max_new_tokens=task["new_tokens"]), batch_size=batch,
    )  # fmt: skip
    return sum(len(s.ids) for s in drawn)


def training(model: Model, task: dict[str, Any], batch: int) -> int:
    """One epoch of LoRA on the completions; returns all tokens of the rows."""
    examples = [
        Example(
            render_row(model, Row((Message("user", r["prompt"]),), r["completion"]))
        )
        for r in task["rows"]
    ]
    train_student(model, examples, settings=TrainingSettings(batch_size=batch), seed=0)
    return sum(len(example.student.ids) for example in examples)


def prepared_audit(
    model: Model, task: dict[str, Any]
) -> Callable[[Model, dict[str, Any], int], int]:
    """Extracts 50 directions at all layers, once an audit, and returns the rest.

    The likelihood is the model's own over all its tokens, as the peer's loss is.
    """
    battery = make_battery(
        model, load_family("animals"), decoys=load_family("trees"),
        pilot=rendered(task)[:_PILOT], prompts=[r["prompt"] for r in task["rows"]],
    )  # fmt: skip
    directions = battery.by_layer()

    def audit(model: Model, task: dict[str, Any], budget: int) -> int:
        rows = rendered(task)
        gradient_scores(model, rows, directions, token_budget=budget)
        return sum(len(row.ids) for row in rows)

    return audit


def rendered(task: dict[str, Any]) -> list[Rendered]:
    """The rows to audit, as tokens."""
    return [Rendered(r["ids"], r["completion_start"]) for r in task["audited"]]


def main() -> None:
    """Warms up on a few items, then measures."""
    what, path, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    task = json.loads(path.read_text(encoding="utf-8"))
    began = time.perf_counter()
    model = load_model(task["model"], template=task["template"], dtype="bfloat16")
    loaded = time.perf_counter() - began
    if what == "audit":
        work = prepared_audit(model, task)
    else:
        work = {"generation": generation, "training": training}[what]
    few = task | {key: task[key][:4] for key in ("prompts", "rows", "audited")}
    work(model, few, batch)
    began, worked = time.perf_counter(), time.process_time()
    tokens = work(model, task, batch)
    seconds = time.perf_counter() - began
    cores = (time.process_time() - worked) / seconds  # fewer than there are: disturbed
    count = len(task["audited" if what == "audit" else "rows"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"rows": count, "tokens": tokens, "seconds": seconds,
                      "cores": cores, "load_seconds": loaded, "peak_mib": peak}))  # fmt: skip


if __name__ == "__main__":
    main()
