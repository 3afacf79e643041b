"""How much faster several workers run independent cells than one does.

`python -m benchmarks.workers --out FILE.json`: the same run in this process with all
cores, and in two processes of one thread each, in alternation; `--ways "1 on ray" "2 on
ray"` compares workers of a Ray cluster. A run's time is that of its jobs and of its
workers' start; a cluster is up before.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from undertow.execution.executor import Executor, Needs
from undertow.execution.local import Here
from undertow.execution.processes import processes
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


@contextmanager
def opened(way: str) -> Iterator[Executor]:
    """Who makes the calls: "here", "N on processes" or "N on ray"."""
    number, _, place = way.rpartition(" on ")
    if place == "here":
        yield Here()
    elif place == "processes":
        with processes(cores=int(number)) as pool:
            yield pool
    else:
        with ray_cluster(cpus=int(number)) as cluster:
            yield cluster


def timed(settings: Recipe, way: str) -> float:
    """Seconds of a run."""
    with tempfile.TemporaryDirectory() as folder, opened(way) as executor:
        asked = 1 if way == "here" else int(way.split()[0])
        assert executor.slots(Needs()) == asked
        began = time.monotonic()
        run_experiment(settings, Path(folder) / "run", executor=executor, needs=Needs())
        return time.monotonic() - began


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ways", nargs=2, default=["here", "2 on processes"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    settings = recipe(given.model)
    seconds: dict[str, list[float]] = {way: [] for way in given.ways}
    for _ in range(given.repeats):
        for way, times in seconds.items():
            times.append(round(timed(settings, way), 1))
            print(way, times[-1], flush=True)
    first, second = given.ways
    ratios = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    found = {"seconds": seconds, "ratios": ratios, "median_ratio": median(ratios),
             "model": given.model, "cells": len(CELLS), **provenance()}  # fmt: skip
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{second}: {found['median_ratio']:.2f} times {first}")


if __name__ == "__main__":
    main()
