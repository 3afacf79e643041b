"""How much faster two workers of a Ray cluster run independent cells than one does.

`python -m benchmarks.workers --out FILE.json`: the same run on clusters of one and of two
cores of this machine, in alternation, each core one thread. A run's time is that of its
jobs and of its workers' start; the cluster is up before.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

from undertow.execution.executor import Needs
from undertow.execution.ray_cluster import ray_cluster
from undertow.experiment import Recipe, run_experiment
from undertow.runs import provenance

CELLS = ("owl", "wolf", "penguin", "otter", "eagle")


def recipe(model: str) -> Recipe:
    """Cells that do not need each other, beside their control."""
    return Recipe.model_validate(
        {
            "title": "cells", "question": "how fast?", "model": {"name": model},
            "traits": list(CELLS), "teachers": [{"kind": "prompt"}], "seeds": [0],
            "rows": {"count": 16, "sampler": {"allowed": "list", "max_new_tokens": 40}},
            "student": {"batch_size": 8, "epochs": 2},
            "evaluation": {"questions": 4, "shift_rows": 8},
        }
    )  # fmt: skip


def timed(settings: Recipe, cores: int) -> float:
    """Seconds of a run on so many workers."""
    with tempfile.TemporaryDirectory() as folder, ray_cluster(cpus=cores) as cluster:
        assert cluster.slots(Needs()) == cores
        began = time.monotonic()
        run_experiment(settings, Path(folder) / "run", executor=cluster, needs=Needs())
        return time.monotonic() - began


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    settings, seconds = recipe(given.model), {1: [], 2: []}  # type: ignore[var-annotated]
    for _ in range(given.repeats):
        for cores in (1, 2):
            seconds[cores].append(round(timed(settings, cores), 1))
            print(cores, seconds[cores][-1], flush=True)
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    found = {"seconds": seconds, "ratios": ratios, "median_ratio": median(ratios),
             "model": given.model, "cells": len(CELLS), **provenance()}  # fmt: skip
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"two workers: {found['median_ratio']:.2f} times one")


if __name__ == "__main__":
    main()
