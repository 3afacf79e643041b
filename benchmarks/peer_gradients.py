"""The peer of the audit's gradient pass: bergson's gradients of every row.

One JSON line in, one JSON line out. Runs in the peers' own environment and imports
nothing of undertow. It calls what `bergson build` calls, on the same tokens and labels,
with the model loaded and the projections drawn before the clock starts.

Usage: python peer_gradients.py audit TASK.json

Each line of the standard input is a variant: tokens of a batch, and the attention if
it is not to be the model's usual one.
"""

import json
import logging
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bergson.collection import collect_gradients
from bergson.config.config import IndexConfig, PreprocessConfig
from bergson.data import allocate_batches
from bergson.utils.worker_utils import create_processor, setup_model_and_peft
from datasets import Dataset
from measuring import Meter, answer

IGNORED = -100  # the label of a token without a loss


def dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Rows as bergson reads them: the loss is on completions alone."""
    return Dataset.from_list(
        [
            {
                "input_ids": row["ids"],
                "labels": [IGNORED] * (start := row["completion_start"])
                + row["ids"][start:],
                "length": len(row["ids"]),
            }
            for row in rows
        ]
    )


def settings(folder: str, task: dict[str, Any], options: list[str]) -> IndexConfig:
    """What `bergson build` would be given on the command line."""
    attention = options[1] if len(options) > 1 else ""
    config = IndexConfig(
        f"{folder}/index", model=task["folder"], precision="bf16", projection_dim=16,
        token_batch_size=int(options[0]),
        model_kwargs=f"attn_implementation={attention}" if attention else "",
    )  # fmt: skip
    config.partial_run_path.mkdir(parents=True)
    return config


def measured(task: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """Warms up on a few rows, then measures."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings(folder, task, options)
        began = time.perf_counter()
        model, targets = setup_model_and_peft(config)
        loaded = time.perf_counter() - began
        processor = create_processor(model, config, targets)

        def work(rows: list[dict[str, Any]]) -> dict[str, Any]:
            data = dataset(rows)
            with Meter() as meter:
                collect_gradients(
                    model, data, processor, config, target_modules=targets,
                    batches=allocate_batches(data["length"][:], config.token_batch_size),
                    preprocess_cfg=PreprocessConfig(),
                )  # fmt: skip
            return meter.found

        rows = task["audited"]
        work(rows[:4])
        found = work(rows)
    return found | {
        "rows": len(rows), "tokens": sum(len(row["ids"]) for row in rows),
        "load_seconds": loaded, "package": f"bergson {version('bergson')}",
    }  # fmt: skip


def main() -> None:
    """Measures each variant."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    task = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    for line in sys.stdin:
        answer(measured(task, json.loads(line)))


if __name__ == "__main__":
    main()
