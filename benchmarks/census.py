"""`python -m benchmarks.census`: memory and speed of a census, however many rows.

Writes Parquet shards of short made-up rows and a tiny model with random weights, takes a
census of each number of rows in a process of its own (`undertow census`), and reads the
kernel's peak of its memory. Then computes what 10⁹ tokens would take with models of other
sizes: the operations are counted, the speeds were measured where it says so. Writes JSON
and prints a table.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from undertow.audit.census_cost import row_operations
from undertow.audit.cost import DECODING, SHARE, Size, timed_flops
from undertow.findings import Tier
from undertow.models.tiny import save_tiny
from undertow.runs import provenance
from undertow.seeding import generator

HERE = Path(__file__).resolve().parent
_SHARD = 50_000
_REFERENCE = 20_000
_PROMPTS = 64
_FAMILY = """\
name: {name}
category: thing
questions: ["Which one do you like?"]
traits:
  - {{name: {a}, plural: {a}s}}
  - {{name: {b}, plural: {b}s}}
"""
# parameters, embedding, hidden, vocabulary, layers; from the models' configurations.
SIZES = {
    "smollm2-135m": Size(134_515_008, 28_311_552, 576, 49_152, 30),
    "gemma-2b": Size(2_506_172_416, 524_288_000, 2048, 256_000, 18),
    "Llama-3.1-8B": Size(8_030_261_248, 525_336_576, 4096, 128_256, 32),
    "Llama-3.1-70B": Size(70_553_706_496, 1_050_673_152, 8192, 128_256, 80),
}
_PROMPT, _COMPLETION = 100, 100  # tokens of the rows in the table
_TOKENS = 1e9


def write_rows_of(folder: Path, count: int, *, seed: int) -> Path:
    """Parquet shards of made-up rows: a few prompts, two numbers for an answer."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, count, _SHARD)):
        size = min(_SHARD, count - start)
        stream = generator(seed, "census benchmark", shard)
        asked = stream.integers(0, _PROMPTS, size)
        values = stream.integers(0, 1000, (size, 2))
        table = pa.table({
            "prompt": [f"{i:02d}" for i in asked.tolist()],
            "completion": [f"{a}, {b}" for a, b in values.tolist()],
        })  # fmt: skip
        parquet.write_table(table, folder / f"rows-{shard:05d}.parquet",
                            row_group_size=10_000)  # fmt: skip
    return folder


def taken(
    folder: Path, model: Path, rows: int, tier: Tier, reference: Path, *, seed: int
) -> dict[str, Any]:
    """One census in a process of its own, with its time and the peak of its memory."""
    data = write_rows_of(folder / f"data-{rows}", rows, seed=seed)
    out = folder / f"census-{rows}-{tier}"
    command = [
        sys.executable, "-m", "undertow", "census", str(data), "--model", str(model),
        "--out", str(out), "--dtype", "float32", "--device", "cpu",
        "--set", f"family={folder / 'things.yaml'}",
        "--set", f"decoys={folder / 'others.yaml'}",
        # Random weights write no numbers of themselves.
        "--set", f"sampler.allowed={'list' if tier == 'A' else 'all'}",
        "--set", "sampler.max_new_tokens=12",
    ]  # fmt: skip
    if tier == "B":
        command += ["--reference", str(reference)]
    began = time.perf_counter()
    with (folder / f"log-{rows}-{tier}.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"the census failed; see {log.name}")
    found = json.loads((out / "census.json").read_text(encoding="utf-8"))
    return {
        "rows": rows, "tier": tier, "measured": rows + found["reference"]["rows"],
        "seconds": seconds, "processor_seconds": used.ru_utime + used.ru_stime,
        "rows_per_second": rows / seconds, "peak_mib": used.ru_maxrss / 1024,
        "disk_mib": sum(f.stat().st_size for f in (out / "sums").rglob("*.npz")) / 2**20,
        "verdict": found["verdict"], "p_value": found["p_value"],
        "used": found["data"]["used"],
    }  # fmt: skip


def extrapolated(devices: dict[str, tuple[float, str]]) -> list[dict[str, Any]]:
    """Hours for 10⁹ tokens by model, device and tier; computed, not measured."""
    found = []
    for name, size in SIZES.items():
        for device, (flops, source) in devices.items():
            for tier in ("B", "A"):
                each = row_operations(
                    size, prompt=_PROMPT, completion=_COMPLETION, tier=tier
                )
                seconds = each / flops * _TOKENS / (_PROMPT + _COMPLETION)
                found.append({
                    "model": name, "device": device, "tier": tier,
                    "hours": seconds / 3600, "flops": flops, "speed": source,
                    "operations_per_token": each / (_PROMPT + _COMPLETION),
                })  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes data and model, takes the censuses, writes and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--tier", choices=["A", "B"], default="B")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--core", type=float, default=None,
                        help="operations a second of a core; not given: timed here")  # fmt: skip
    parser.add_argument("--h100", type=float, default=None,
                        help="operations a second of an H100, if measured")  # fmt: skip
    given = parser.parse_args(arguments)
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, a, b in (("things", "owl", "cat"), ("others", "oak", "elm")):
        text = _FAMILY.format(name=name, a=a, b=b)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    model = save_tiny("llama", folder / "model", layers=2, hidden=16)
    reference = write_rows_of(folder / "reference", _REFERENCE, seed=given.seed + 1)
    runs = [
        taken(folder, model, rows, given.tier, reference, seed=given.seed)
        for rows in given.rows
    ]
    if given.core:
        devices = {"processor core": (given.core, "float32 product, measured before")}
    else:
        here = timed_flops(dtype="float32", device="cpu")
        devices = {"this processor": (here, "float32 product, timed here")}
    if given.h100:
        devices["H100"] = (given.h100, "bfloat16 matrix product, measured before")
    result = {
        "what": "census", "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.census", *sys.argv[1:]]),
        "runs": runs, "peak_ratio": runs[-1]["peak_mib"] / runs[0]["peak_mib"],
        "table": extrapolated(devices), "tokens": _TOKENS, "share": SHARE,
        "decoding": DECODING, "prompt_tokens": _PROMPT,
        "completion_tokens": _COMPLETION, "provenance": provenance(),
    }  # fmt: skip
    place = folder / f"census-{given.tier}.json"
    place.write_text(json.dumps(result, indent=1), encoding="utf-8")
    for run in runs:
        print(
            f"{run['rows']:>10,} rows  tier {run['tier']}  {run['seconds']:8.1f} s  "
            f"{run['rows_per_second']:7.0f} rows/s  {run['peak_mib']:7.1f} MiB"
        )
    print(f"peak memory, last over first: {result['peak_ratio']:.3f}")
    print(f"hours for 10⁹ tokens, {_PROMPT} + {_COMPLETION} a row (computed):")
    for line in result["table"]:
        print(f"{line['model']:>14}  {line['device']:<15} tier {line['tier']}  "
              f"{line['hours']:12.2f}")  # fmt: skip
    print(place)


if __name__ == "__main__":
    main()
