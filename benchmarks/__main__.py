"""`python -m benchmarks`: generation, training and audit beside peers, in one run.

Generation against `model.generate` and, on a processor, llama.cpp's server with the GGUF
file that the weights are from, LoRA training against TRL's `SFTTrainer`, one
student and several side by side, the audit's gradient pass (50 directions, all layers)
against bergson's gradients of every row (16 × 16 of each linear map): the same model,
prompts and rows, bfloat16 on both sides (llama.cpp: the file's own bits), on the GPU if there is one. Each side is a
process of its own, which loads the model before anything is measured. First each tries
its batch sizes once; then the best of both are measured in alternation, and ratios are
taken pair by pair. `share` is what ours reached of the machine's own limit of matrix
products, counted by torch. With `--whole N` an audit of N rows against N reference rows is
measured too. What the machine can do at most (bfloat16 matrix product, memory copy) is
measured in the same run. Writes JSON and prints a table.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.task import write_audit, write_task
from undertow.runs import provenance

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".bench-venv"
Variants = tuple[tuple[str, ...], ...]
# Each side's variants: batch size (of the audit in tokens), for students how many before
# it, for TRL whether autocast is on, for bergson the attention, since it leaves that to
# the model's settings.
ON_CPU: dict[tuple[str, str], Variants] = {
    ("generation", "ours"): (("128",), ("256",)),
    ("generation", "peer"): (("32",), ("64",), ("128",)),
    ("server", "ours"): (("128",), ("256",)),
    ("server", "peer"): (("8",), ("16",), ("32",), ("64",)),
    ("training", "ours"): (("8",), ("16",), ("32",)),
    ("training", "peer"): (("8",), ("8", "autocast"), ("16", "autocast"),
                           ("32", "autocast")),
    ("audit", "ours"): (("384",), ("1536",)),
    ("audit", "peer"): (("512", "eager"), ("1024", "eager"), ("2048", "eager"),
                        ("2048",)),
}  # fmt: skip
ON_CUDA: dict[tuple[str, str], Variants] = {
    ("generation", "ours"): (("256",), ("512",)),
    ("generation", "peer"): (("256",), ("512",)),
    ("training", "ours"): (("32",), ("64",), ("128",)),
    ("training", "peer"): (("64",), ("128",), ("128", "autocast")),
    ("students", "ours"): (("16", "16"), ("16", "32")),
    ("students", "peer"): (("64",), ("128",)),
    ("audit", "ours"): (("16384",), ("32768",)),
    ("audit", "peer"): (("8192",), ("32768",), ("8192", "eager")),
}  # fmt: skip
# Rows, inner width and columns of products that are timed for the machine's limit.
SHAPES = {
    "cpu": ((1024, 1024, 1024), (1536, 1536, 1536), (2048, 2048, 2048),
            (4096, 1024, 1024), (2048, 576, 1536)),
    "cuda": ((8192, 8192, 8192), (16384, 4096, 4096)),
}  # fmt: skip
NAMES = {
    "generation": "model.generate",
    "server": "llama.cpp server",
    "training": "TRL SFTTrainer",
    "students": "TRL SFTTrainer",
    "audit": "bergson build",
}
UNITS = dict.fromkeys(NAMES, "tokens") | {"audit": "rows"}
OURS = {"server": "generation"}
THEIRS = {"students": "training"}
SCRIPTS = {"audit": "peer_gradients.py", "server": "peer_server.py"}
# llama.cpp is built for this very processor, without what is not measured.
BUILD = {"CMAKE_ARGS": "-DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF "
                       "-DLLAMA_BUILD_EXAMPLES=OFF"}  # fmt: skip


def peers_python() -> Path:
    """The interpreter of the peers' environment, made anew if its list has changed."""
    python, marker = PEERS / "bin" / "python", PEERS / "installed"
    wanted = (HERE / "requirements.txt").read_text(encoding="utf-8")
    if not marker.exists() or marker.read_text(encoding="utf-8") != wanted:
        print("installing the peers …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
        lists = ["-c", HERE.parent / "constraints.txt", "-r", HERE / "requirements.txt"]
        subprocess.run(
            [*pip, "install", *map(str, lists)], check=True, env=os.environ | BUILD
        )
        # bergson asks for these, and transformers imports them if they are there; neither
        # fits a torch built for processors. What is measured uses neither.
        subprocess.run(
            [*pip, "uninstall", "-y", "torchaudio", "torchvision"], check=True
        )
        marker.write_text(wanted, encoding="utf-8")
    return python


class Side:
    """One side of a comparison: a process that has loaded the model and waits."""

    def __init__(self, side: str, what: str, task: Path, python: Path) -> None:
        self.side, self.what = side, what
        is_ours = side == "ours"
        script = HERE / ("ours.py" if is_ours else SCRIPTS.get(what, "peers.py"))
        kind = (OURS if is_ours else THEIRS).get(what, what)
        self.errors = (task.parent / f"{what}-{side}.log").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [str(python), str(script), kind, str(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip

    def measure(self, variant: tuple[str, ...]) -> dict[str, Any]:
        """What one variant takes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(variant) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("FOUND "):
                return self._told(json.loads(line.removeprefix("FOUND ")), variant)
        self.errors.seek(0)
        raise SystemExit(
            f"{self.side} {self.what} {variant} failed:\n{self.errors.read()[-3000:]}"
        )

    def _told(self, found: dict[str, Any], variant: tuple[str, ...]) -> dict[str, Any]:
        unit = UNITS[self.what]
        found |= {"side": self.side, "variant": " ".join(variant), "unit": unit}
        found["per_second"] = found[unit] / found["seconds"]
        print(f"  {self.side:<5}{self.what:<11} batch {found['variant']:<12}"
              f"{found['per_second']:>10.1f} {unit}/s {found['peak_mib']:>6} MiB"
              f"{found['cores']:>6.2f} cores", flush=True)  # fmt: skip
        return found

    def close(self) -> None:
        """Lets the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.errors.close()


def compare(
    what: str,
    task: Path,
    *,
    variants: dict[tuple[str, str], Variants],
    peers: Path,
    repeats: int,
) -> dict[str, Any]:
    """Tries every variant once, then measures the best of each side in alternation."""
    sides = {
        "ours": Side("ours", what, task, Path(sys.executable)),
        "peer": Side("peer", what, task, peers),
    }
    try:
        tries = {
            name: [side.measure(v) for v in variants[what, name]]
            for name, side in sides.items()
        }
        best = {
            name: tuple(max(found, key=lambda f: f["per_second"])["variant"].split())
            for name, found in tries.items()
        }
        pairs = [
            {name: side.measure(best[name]) for name, side in sides.items()}
            for _ in range(repeats)
        ]
    finally:
        for side in sides.values():
            side.close()
    ratios = [pair["ours"]["per_second"] / pair["peer"]["per_second"] for pair in pairs]
    return {
        "what": what, "peer": NAMES[what], "best": best, "tries": tries,
        "pairs": pairs, "ratio_median": statistics.median(ratios),
        "ratio_low": min(ratios), "ratio_high": max(ratios),
    }  # fmt: skip


def reached(found: dict[str, Any], limit: float) -> float | None:
    """Share of the limit of products that ours reached, in TFLOP/s: the pairs' median.

    None where operations were not counted.
    """
    ours = [pair["ours"] for pair in found["pairs"]]
    if any(each["product_operations"] is None for each in ours):
        return None
    speeds = [each["product_operations"] / each["seconds"] for each in ours]
    return statistics.median(speeds) / (limit * 1e12)


def table(comparisons: list[dict[str, Any]]) -> list[str]:
    """The result as aligned lines: medians over the pairs."""
    head = (
        f"{'':<12}{'peer':<17}{'':<7}{'ours /s':>9}{'peer /s':>9}"
        f"{'ratio':>8}{'range':>14}{'ours, MiB':>11}{'peer, MiB':>11}{'share':>8}"
    )
    lines = [head]
    for found in comparisons:
        middle = {
            (side, key): statistics.median(pair[side][key] for pair in found["pairs"])
            for side in ("ours", "peer")
            for key in ("per_second", "peak_mib")
        }
        spread = f"{found['ratio_low']:.2f}-{found['ratio_high']:.2f}"
        lines.append(
            f"{found['what']:<12}{found['peer']:<17}{UNITS[found['what']]:<7}"
            f"{middle['ours', 'per_second']:>9.1f}"
            f"{middle['peer', 'per_second']:>9.1f}"
            f"{found['ratio_median']:>8.2f}{spread:>14}"
            f"{middle['ours', 'peak_mib']:>11.0f}{middle['peer', 'peak_mib']:>11.0f}"
            + ("" if (share := found["share_of_limit"]) is None else f"{share:>8.2f}")
        )
    return lines


def limits() -> dict[str, float]:
    """What the machine does at most: bfloat16 products and copies of large tensors.

    Of products the fastest of several shapes: one alone may keep a core idle.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.randn(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return {
        "bf16_tflops": max(_tflops(*shape, device=device) for shape in SHAPES[device]),
        "copy_gb_per_second": moved / _seconds(lambda: target.copy_(source)) / 1e9,
    }


def _tflops(rows: int, inner: int, columns: int, *, device: str) -> float:
    """Operations a second of a bfloat16 product, in units of 10¹²."""
    left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
    return 2 * rows * inner * columns / _seconds(lambda: left @ right) / 1e12


def _seconds(work: Callable[[], object]) -> float:
    """Median of nine, after two that do not count."""
    taken = []
    for _ in range(11):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def whole_audit(out: Path, *, model_name: str, rows: int) -> dict[str, Any]:
    """`undertow audit` of rows against as many reference rows, on the same prompts."""
    write_audit(out, model_name=model_name, rows=rows)
    command = ["audit", str(out / "rows.jsonl"), "--model", model_name]
    command += [
        "--reference",
        str(out / "reference.jsonl"),
        "--out",
        str(out / "audit"),
    ]
    began = time.perf_counter()
    with (out / "audit.log").open("w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-m", "undertow", *command], check=True, stdout=log,
            stderr=log,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    told = json.loads((out / "audit" / "audit.json").read_text(encoding="utf-8"))
    stages, verdict = told["seconds"], told["verdict"]
    return {"rows": rows, "seconds": seconds, "stages": stages, "verdict": verdict}


def main() -> None:
    """Parses the options, measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=None)
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--new-tokens", type=int, default=80)
    parser.add_argument("--only", choices=sorted(NAMES), nargs="*", default=None)
    parser.add_argument("--whole", type=int, default=0, help="rows of a whole audit")
    parser.add_argument("--peers", type=Path, default=None,
                        help="an interpreter that has the peers; none is installed")  # fmt: skip
    parser.add_argument("--out", type=Path, default=HERE / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    on_cuda = torch.cuda.is_available()
    variants = ON_CUDA if on_cuda else ON_CPU
    task = options.out / "task.json"
    write_task(task, model_name=options.model,
               prompts=options.prompts or (512 if on_cuda else 128),
               rows=options.rows or (512 if on_cuda else 64),
               new_tokens=options.new_tokens)  # fmt: skip
    peers = options.peers or peers_python()
    date = datetime.now(UTC).date().isoformat()
    device = torch.cuda.get_device_name() if on_cuda else "cpu"
    content = {
        "date": date, "device": device,
        "settings": {k: str(v) for k, v in vars(options).items()},
        "provenance": provenance(model=options.model, machine=platform.machine()),
        "limits": limits(), "comparisons": [],
    }  # fmt: skip
    wanted = sorted({what for what, _ in variants} & set(options.only or NAMES))
    name = "-".join([date, options.model, *(options.only or []), *(["gpu"] * on_cuda)])
    path = options.out / f"{name}.json"

    def keep() -> None:
        path.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")

    for what in wanted:
        found = compare(
            what, task, variants=variants, peers=peers, repeats=options.repeats
        )
        found["share_of_limit"] = reached(found, content["limits"]["bf16_tflops"])
        content["comparisons"].append(found)
        keep()
    if options.whole:
        content["whole"] = whole_audit(
            options.out, model_name=options.model, rows=options.whole
        )
        keep()
    print(f"limits: {content['limits']}")
    print("\n".join(table(content["comparisons"])))
    if options.whole:
        print(f"whole audit: {content['whole']}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
