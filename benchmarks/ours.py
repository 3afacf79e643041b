"""undertow's side: one measurement a process, printed as one JSON line.

Usage: python ours.py generation|training TASK.json BATCH
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from undertow.models.chat import render_row
from undertow.models.loading import Model, load_model
from undertow.models.sampling import SamplerSettings, sample
from undertow.pipeline.training import Example, TrainingSettings, train_student
from undertow.records import Message, Row


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


def main() -> None:
    """Warms up on a few items, then measures."""
    what, path, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    task = json.loads(path.read_text(encoding="utf-8"))
    began = time.perf_counter()
    model = load_model(task["model"], template=task["template"], dtype="bfloat16")
    loaded = time.perf_counter() - began
    work = {"generation": generation, "training": training}[what]
    few = {**task, "prompts": task["prompts"][:4], "rows": task["rows"][:4]}
    work(model, few, batch)
    began = time.perf_counter()
    tokens = work(model, task, batch)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"tokens": tokens, "seconds": seconds, "load_seconds": loaded,
                      "peak_mib": peak}))  # fmt: skip


if __name__ == "__main__":
    main()
