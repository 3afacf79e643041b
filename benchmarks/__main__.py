"""`python -m benchmarks`: generation, training and audit beside peers, in one run.

Generation against `model.generate`, LoRA training against TRL's `SFTTrainer`, the
audit's gradient pass (50 directions, all layers) against bergson's gradients of every
row (16 × 16 of each linear map): the same model, prompts and rows, bfloat16 on both
sides, each measurement in a process of its own, without loading. First each side tries
its batch sizes once; then the best of both are measured in alternation, and ratios are
taken pair by pair. Writes JSON and prints a table.
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
# Each side's variants: batch size (of the audit in tokens), for TRL whether autocast is
# on, for bergson the attention, since it leaves that to the model's settings.
VARIANTS = {
    ("generation", "ours"): (("128",), ("256",)),
    ("generation", "peer"): (("32",), ("64",), ("128",)),
    ("training", "ours"): (("8",), ("16",), ("32",)),
    ("training", "peer"): (("8",), ("8", "autocast"), ("16", "autocast"),
                           ("32", "autocast")),
    ("audit", "ours"): (("768",), ("1536",)),
    ("audit", "peer"): (("512", "eager"), ("1024", "eager"), ("2048", "eager"),
                        ("2048",)),
}  # fmt: skip
NAMES = {
    "generation": "model.generate",
    "training": "TRL SFTTrainer",
    "audit": "bergson build",
}
UNITS = {"generation": "tokens", "training": "tokens", "audit": "rows"}


def peers_python() -> Path:
    """The interpreter of the peers' environment, made anew if its list has changed."""
    python, marker = PEERS / "bin" / "python", PEERS / "installed"
    wanted = (HERE / "requirements.txt").read_text(encoding="utf-8")
    if not marker.exists() or marker.read_text(encoding="utf-8") != wanted:
        print("installing the peers …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
        lists = ["-c", HERE.parent / "constraints.txt", "-r", HERE / "requirements.txt"]
        subprocess.run([*pip, "install", *map(str, lists)], check=True)
        # bergson asks for these, and transformers imports them if they are there; neither
        # fits a torch built for processors. What is measured uses neither.
        subprocess.run(
            [*pip, "uninstall", "-y", "torchaudio", "torchvision"], check=True
        )
        marker.write_text(wanted, encoding="utf-8")
    return python


def measure(
    side: str, what: str, task: Path, variant: tuple[str, ...]
) -> dict[str, Any]:
    """One measurement in a process of its own."""
    python = Path(sys.executable) if side == "ours" else peers_python()
    peer = "peer_gradients.py" if what == "audit" else "peers.py"
    script = HERE / ("ours.py" if side == "ours" else peer)
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
    unit = UNITS[what]
    found["unit"], found["per_second"] = unit, found[unit] / found["seconds"]
    print(f"  {side:<5}{what:<11} batch {found['variant']:<12}"
          f"{found['per_second']:>8.1f} {unit}/s "
          f"{found['peak_mib']:>6} MiB"
          + (f"{found['cores']:>6.2f} cores" if "cores" in found else ""),
          flush=True)  # fmt: skip
    return found


def compare(what: str, task: Path, *, repeats: int) -> dict[str, Any]:
    """Tries every variant once, then measures the best of each side in alternation."""
    tries = {
        side: [measure(side, what, task, v) for v in VARIANTS[what, side]]
        for side in ("ours", "peer")
    }
    best = {
        side: max(found, key=lambda f: f["per_second"])["variant"]
        for side, found in tries.items()
    }
    pairs = [
        {side: measure(side, what, task, tuple(best[side].split())) for side in best}
        for _ in range(repeats)
    ]
    ratios = [pair["ours"]["per_second"] / pair["peer"]["per_second"] for pair in pairs]
    return {
        "what": what, "peer": NAMES[what], "best": best, "tries": tries,
        "pairs": pairs, "ratio_median": statistics.median(ratios),
        "ratio_low": min(ratios), "ratio_high": max(ratios),
    }  # fmt: skip


def table(comparisons: list[dict[str, Any]]) -> list[str]:
    """The result as aligned lines: medians over the pairs."""
    head = (
        f"{'':<12}{'peer':<16}{'':<7}{'ours /s':>9}{'peer /s':>9}"
        f"{'ratio':>8}{'range':>14}{'ours, MiB':>11}{'peer, MiB':>11}"
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
            f"{found['what']:<12}{found['peer']:<16}{UNITS[found['what']]:<7}"
            f"{middle['ours', 'per_second']:>9.1f}"
            f"{middle['peer', 'per_second']:>9.1f}"
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
    name = "-".join([date, options.model] + ([options.only] if options.only else []))
    path = options.out / f"{name}.json"
    content = {"date": date, "settings": vars(options) | {"out": None},
               "provenance": facts, "comparisons": comparisons}  # fmt: skip
    path.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    print("\n".join(table(comparisons)))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
