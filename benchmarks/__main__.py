"""`python -m benchmarks`: generation and training beside the peers, in one run.

Generation against `model.generate`, LoRA training against TRL's `SFTTrainer`: the
same model, prompts and rows, bfloat16 on both sides, each measurement in a process of
its own. First each side tries its batch sizes once; then the best of both are measured
in alternation, and ratios are taken pair by pair. Writes JSON and prints a table.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.task import write_task
from undertow.runs import provenance

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".bench-venv"
# Each side's variants: batch size, and for TRL whether autocast is on.
VARIANTS = {
    ("generation", "ours"): (("128",), ("256",)),
    ("generation", "peer"): (("32",), ("64",), ("128",)),
    ("training", "ours"): (("8",), ("16",), ("32",)),
    ("training", "peer"): (("8",), ("8", "autocast"), ("16", "autocast"),
                           ("32", "autocast")),
}  # fmt: skip
NAMES = {"generation": "model.generate", "training": "TRL SFTTrainer"}


def peers_python() -> Path:
    """The interpreter of the peers' environment, which is made if it is missing."""
    python, marker = PEERS / "bin" / "python", PEERS / "installed"
    if not marker.exists():
        print("installing the peers …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check",
                   "-c", HERE.parent / "constraints.txt", "-r",
                   HERE / "requirements.txt"]  # fmt: skip
        subprocess.run([str(part) for part in install], check=True)
        marker.touch()
    return python


def measure(
    side: str, what: str, task: Path, variant: tuple[str, ...]
) -> dict[str, Any]:
    """One measurement in a process of its own."""
    python = Path(sys.executable) if side == "ours" else peers_python()
    script = HERE / ("ours.py" if side == "ours" else "peers.py")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [str(python), str(script), what, str(task), *variant],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{side} {what} {variant} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found |= {"side": side, "variant": " ".join(variant)}
    found["tokens_per_second"] = found["tokens"] / found["seconds"]
    print(f"  {side:<5}{what:<11} batch {found['variant']:<12}"
          f"{found['tokens_per_second']:>8.0f} tokens/s "
          f"{found['peak_mib']:>6} MiB", flush=True)  # fmt: skip
    return found


def compare(what: str, task: Path, *, repeats: int) -> dict[str, Any]:
    """Tries every variant once, then measures the best of each side in alternation."""
    tries = {
        side: [measure(side, what, task, v) for v in VARIANTS[what, side]]
        for side in ("ours", "peer")
    }
    best = {
        side: max(found, key=lambda f: f["tokens_per_second"])["variant"]
        for side, found in tries.items()
    }
    pairs = [
        {side: measure(side, what, task, tuple(best[side].split())) for side in best}
        for _ in range(repeats)
    ]
    ratios = [
        pair["ours"]["tokens_per_second"] / pair["peer"]["tokens_per_second"]
        for pair in pairs
    ]
    return {
        "what": what, "peer": NAMES[what], "best": best, "tries": tries,
        "pairs": pairs, "ratio_median": statistics.median(ratios),
        "ratio_low": min(ratios), "ratio_high": max(ratios),
    }  # fmt: skip


def table(comparisons: list[dict[str, Any]]) -> list[str]:
    """The result as aligned lines: medians over the pairs."""
    head = (
        f"{'':<12}{'peer':<16}{'ours, tok/s':>12}{'peer, tok/s':>12}"
        f"{'ratio':>8}{'range':>14}{'ours, MiB':>11}{'peer, MiB':>11}"
    )
    lines = [head]
    for found in comparisons:
        middle = {
            (side, key): statistics.median(pair[side][key] for pair in found["pairs"])
            for side in ("ours", "peer")
            for key in ("tokens_per_second", "peak_mib")
        }
        spread = f"{found['ratio_low']:.2f}-{found['ratio_high']:.2f}"
        lines.append(
            f"{found['what']:<12}{found['peer']:<16}"
            f"{middle['ours', 'tokens_per_second']:>12.0f}"
            f"{middle['peer', 'tokens_per_second']:>12.0f}"
            f"{found['ratio_median']:>8.2f}{spread:>14}"
            f"{middle['ours', 'peak_mib']:>11.0f}{middle['peer', 'peak_mib']:>11.0f}"
        )
    return lines


def main() -> None:
    """Parses the options, measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=80)
    parser.add_argument("--only", choices=sorted(NAMES), default=None)
    parser.add_argument("--out", type=Path, default=HERE / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    task = options.out / "task.json"
    write_task(task, model_name=options.model, prompts=options.prompts,
               rows=options.rows, new_tokens=options.new_tokens)  # fmt: skip
    peers_python()
    wanted = [options.only] if options.only else sorted(NAMES)
    comparisons = [compare(what, task, repeats=options.repeats) for what in wanted]
    date = datetime.now(UTC).date().isoformat()
    facts = provenance(model=options.model, machine=platform.machine())
    path = options.out / f"{date}-{options.model}.json"
    content = {"date": date, "settings": vars(options) | {"out": None},
               "provenance": facts, "comparisons": comparisons}  # fmt: skip
    path.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    print("\n".join(table(comparisons)))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
