"""The peer of the audit's gradient pass: bergson's gradients of every row.

One measurement a process, printed as one JSON line. Runs in the peers' own environment
and imports nothing of undertow. It calls what `bergson build` calls, on the same tokens
and labels, with the model loaded and the projections drawn before the clock starts.

Usage: python peer_gradients.py audit TASK.json TOKENS [ATTENTION]
"""

import json
import logging
import resource
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


def main() -> None:
    """Warms up on a few rows, then measures."""
    path, options = Path(sys.argv[2]), sys.argv[3:]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    task = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        config = settings(folder, task, options)
        began = time.perf_counter()
        model, targets = setup_model_and_peft(config)
        loaded = time.perf_counter() - began
        processor = create_processor(model, config, targets)

        def work(rows: list[dict[str, Any]]) -> tuple[float, float]:
            data = dataset(rows)
            began, worked = time.perf_counter(), time.process_time()
            collect_gradients(
                model, data, processor, config, target_modules=targets,
                batches=allocate_batches(data["length"][:], config.token_batch_size),
                preprocess_cfg=PreprocessConfig(),
            )  # fmt: skip
            seconds = time.perf_counter() - began
            return seconds, (time.process_time() - worked) / seconds

        rows = task["audited"]
        work(rows[:4])
        seconds, cores = work(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({
        "rows": len(rows), "tokens": sum(len(row["ids"]) for row in rows),
        "seconds": seconds, "cores": cores, "load_seconds": loaded, "peak_mib": peak,
        "package": f"bergson {version('bergson')}",
    }))  # fmt: skip


if __name__ == "__main__":
    main()
