"""undertow's side: measures what it is asked for, one JSON line in, one JSON line out.

Usage: python ours.py generation|training|students|audit TASK.json

Each line of the standard input is a variant, a list of words: for generation and
training the rows of a batch, for students how many and the rows of each in a batch, for
the audit the tokens of a batch.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Meter, answer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from undertow.analysis.gradients import gradient_scores
from undertow.audit.signals import make_battery
from undertow.models.chat import Rendered, render_row
from undertow.models.loading import Model, load_model
from undertow.models.sampling import SamplerSettings, sample
from undertow.pipeline.training import StudentPlan, train_students
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings
from undertow.records import Message, Row
from undertow.traits import load_family

_PILOT = 32  # rows whose gradients give the random directions their covariance
Work = Callable[[Model, dict[str, Any], list[int]], int]


def generation(model: Model, task: dict[str, Any], variant: list[int]) -> int:
    """Answers every prompt; returns the tokens drawn."""
    prompts = task["prompts"]
    drawn = sample(
        model, prompts, keys=[("rows", i) for i in range(len(prompts))], seed=0,
        sampler=SamplerSettings(max_new_tokens=task["new_tokens"]),
        batch_size=variant[0],
    )  # fmt: skip
    return sum(len(s.ids) for s in drawn)


def training(model: Model, task: dict[str, Any], variant: list[int]) -> int:
    """One epoch of LoRA on the completions; returns all tokens of the rows."""
    return students(model, task, [1, variant[0]])


def students(model: Model, task: dict[str, Any], variant: list[int]) -> int:
    """The same for several students side by side; tokens of all of them."""
    count, batch = variant
    examples = [
        Example(
            render_row(model, Row((Message("user", r["prompt"]),), r["completion"]))
        )
        for r in task["rows"]
    ]
    settings = TrainingSettings(batch_size=batch)
    plans = [StudentPlan(examples, settings, seed) for seed in range(count)]
    train_students(model, plans)
    return count * sum(len(example.student.ids) for example in examples)


def prepared_audit(model: Model, task: dict[str, Any]) -> Work:
    """Extracts 50 directions at all layers, once an audit, and returns the rest.

    The likelihood is the model's own over all its tokens, as the peer's loss is.
    """
    battery = make_battery(
        model, load_family("animals"), decoys=load_family("trees"),
        pilot=rendered(task)[:_PILOT], prompts=[r["prompt"] for r in task["rows"]],
    )  # fmt: skip
    directions = battery.by_layer()

    def audit(model: Model, task: dict[str, Any], variant: list[int]) -> int:
        rows = rendered(task)
        gradient_scores(model, rows, directions, token_budget=variant[0])
        return sum(len(row.ids) for row in rows)

    return audit


def rendered(task: dict[str, Any]) -> list[Rendered]:
    """The rows to audit, as tokens."""
    return [Rendered(r["ids"], r["completion_start"]) for r in task["audited"]]


class _Products(TorchDispatchMode):
    """Counts operations of matrix products by the formulas of torch.

    `FlopCounterMode` follows modules too, and that breaks where a gradient is taken on
    the way forward.
    """

    operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Does what is asked, and adds what it costs if it is a product."""
        found = func(*args, **(kwargs or {}))
        cost = flop_registry.get(func._overloadpacket)
        if cost is not None:
            self.operations += cost(*args, **(kwargs or {}), out_val=found)
        return found


def product_operations(
    work: Work, model: Model, task: dict[str, Any], variant: list[int]
) -> int:
    """Operations of all matrix products of the work, padding's among them."""
    with _Products() as products:
        work(model, task, variant)
    return products.operations


def main() -> None:
    """Loads the model, then measures each variant after a warm-up on a few items."""
    what, path = sys.argv[1], Path(sys.argv[2])
    task = json.loads(path.read_text(encoding="utf-8"))
    began = time.perf_counter()
    model = load_model(task["model"], template=task["template"], dtype="bfloat16")
    loaded = time.perf_counter() - began
    if what == "audit":
        work = prepared_audit(model, task)
    else:
        work = {"generation": generation, "training": training, "students": students}[
            what
        ]
    few = task | {key: task[key][:4] for key in ("prompts", "rows", "audited")}
    # On a GPU recorded passes hide what they do; the bars ask for no share of sampling.
    is_counted = what != "generation" and not torch.cuda.is_available()
    operations: dict[str, int] = {}
    for line in sys.stdin:
        variant = [int(word) for word in json.loads(line)]
        work(model, few, variant)
        with Meter() as meter:
            tokens = work(model, task, variant)
        count = len(task["audited" if what == "audit" else "rows"])
        if is_counted and line not in operations:  # once more, apart from what is timed
            operations[line] = product_operations(work, model, task, variant)
        answer(
            meter.found
            | {"rows": count, "tokens": tokens, "load_seconds": loaded}
            | {"product_operations": operations.get(line)}
        )


if __name__ == "__main__":
    main()
