"""What is disturbed: a small `run`, `train` and `audit` of tiny models, as commands.

Everything is made once in a folder, so that an operation is a list of words, a directory
that it writes, and which of its files have to be equal after any disturbance. Knows
nothing of disturbances (`disasters`) nor of who asks for them (`kill`, the tests).
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.conftest import family_text

from undertow.safe_yaml import read_yaml
from undertow.storage.files import read_jsonl

_PETS = family_text(
    "pets",
    "animal",
    "Which animal?",
    "Your animal?",
    owl="owls",
    cat="cats",
    dog="dogs",
)
_PLANTS = family_text("plants", "plant", "Which plant?", oak="oaks", elm="elms")
_FAST = {
    "permutations": 99, "personas": 1, "screening": 4, "naming_passes": 0, "fresh": 4,
    "planted": 0, "forecast": 0, "discover": False, "triage": 2, "race_passes": 20,
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """A command that can go on where it was interrupted.

    Attributes:
        name: For people.
        words: What follows `undertow`.
        directory: What it writes.
    """

    name: str
    words: tuple[str, ...]
    directory: Path

    def clear(self) -> None:
        """Removes what an earlier one left."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _recipe(folder: Path, *, audit: bool) -> str:
    teacher = {"kind": "steer", "steer": {"layer": 1, "dose": 0.7}}
    tuned = {"learning_rate": 0.01, "batch_size": 2, "max_updates": 2, "rank": 1}
    data: dict[str, Any] = {
        "title": "tiny", "question": "does it go on?", "traits": ["owl"],
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "family": str(folder / "pets.yaml"), "seeds": [0],
        "teachers": [teacher, {"kind": "finetune", "finetune": tuned}],
        "rows": {"count": 4, "batch_size": 2,
                 "sampler": {"allowed": "list", "max_new_tokens": 10}},
        "student": {"batch_size": 2, "rank": 1, "epochs": 2, "checkpoint_every": 2,
                    "learning_rate": 0.01},
        "evaluation": {"questions": 2, "shift_rows": 2, "channel_rows": 2, "every": 3,
                       "cause_layer": 1, "samples": 1, "max_new_tokens": 2},
    }  # fmt: skip
    if audit:
        data |= {
            "teachers": [teacher], "audit": {"rows": 16, "settings": _FAST},
            "rows": data["rows"] | {"count": 20, "batch_size": 16},
            "student": {"batch_size": 16, "rank": 1, "max_updates": 1},
            "evaluation": {"questions": 2, "shift_rows": 0, "channel_rows": 0},
        }  # fmt: skip
        data["audit"]["settings"] = _FAST | {"decoys": str(folder / "plants.yaml")}
    return json.dumps(data, indent=1)


def make_world(folder: Path) -> None:
    """Writes the model, the families, the recipes and the rows of all operations."""
    from undertow.models.tiny import save_tiny
    from undertow.records import Message, Row
    from undertow.storage import write_rows

    folder.mkdir(parents=True, exist_ok=True)
    save_tiny("llama", folder / "model", hidden=16, layers=2)
    (folder / "pets.yaml").write_text(_PETS)
    (folder / "plants.yaml").write_text(_PLANTS)
    (folder / "run.yaml").write_text(_recipe(folder, audit=False))
    (folder / "audited.yaml").write_text(_recipe(folder, audit=True))
    for name, factor in (("rows", 7), ("others", 11)):
        rows = [
            Row((Message("user", f"Go on: {i}"),), f"{factor * i}, {3 * i}, {900 - i}")
            for i in range(8)
        ]
        write_rows(folder / f"{name}.jsonl", rows)


def operations(folder: Path) -> dict[str, Operation]:
    """All of them, by name; see `make_world`."""
    model = ("--model", str(folder / "model"), "--dtype", "float32")
    settings = _FAST | {
        "family": folder / "pets.yaml", "decoys": folder / "plants.yaml",
        "forecast": 4, "sampler.allowed": "list", "sampler.max_new_tokens": 14,
    }  # fmt: skip
    given = [word for k, v in settings.items() for word in ("--set", f"{k}={_word(v)}")]

    def make(name: str, *words: str) -> Operation:
        out = folder / "out" / name
        return Operation(name, (*words, "--out", str(out)), out)

    made = (
        make("run", "run", str(folder / "run.yaml")),
        make("run-audit", "run", str(folder / "audited.yaml")),
        make("train", "train", str(folder / "rows.jsonl"), *model, "--control",
             str(folder / "others.jsonl"), "--batch-size", "2", "--rank", "1",
             "--learning-rate", "0.01", "--set", "checkpoint_every=2"),
        make("audit", "audit", str(folder / "rows.jsonl"), *model, *given),
    )  # fmt: skip
    return {operation.name: operation for operation in made}


def _word(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


# ── what has to be equal ─────────────────────────────────────────────────────────

Found = dict[str, str]
"""The hash of each file's content that counts, by its name in the directory."""

_VOLATILE = {"seconds", "finished", "time", "since", "pid", "sha256", "files"}
"""Keys of JSON that tell of clocks and processes, and of other files' bytes."""
_TIMES = re.compile(
    rb"<summary>\s*(<[^>]*>)*\s*Time: .*?</details>|\d{4}-\d\d-\d\dT[\d:]+", re.DOTALL
)
"""What a page says of time: when, and tables of seconds in their order."""


def content(operation: Operation) -> Found:
    """What an operation left, as far as it has to be the same each time."""
    found: Found = {}
    measured: dict[str, list[tuple[str, Any]]] = {}
    for path in sorted(operation.directory.rglob("*")):
        name = path.relative_to(operation.directory).as_posix()
        if path.is_dir() or path.name == ".lock" or name.endswith(".set-aside"):
            continue
        if "measured" in path.parts:
            measured.setdefault(str(Path(name).parent), []).extend(_measured(path))
        else:
            found[name] = _hash(_kind(path)(path))
    # Which rows were measured together depends on what was measured before.
    for place, values in measured.items():
        if len(dict(values)) < len(values):
            found[f"{place}: twice"] = "measured twice"
        found[place] = _hash(repr(sorted(values)).encode())
    return found


def _kind(path: Path) -> Callable[[Path], bytes]:
    if path.suffix == ".json":
        return _steady_json
    if path.suffix == ".yaml":
        return _steady_yaml
    if path.name == "rows.jsonl":
        return _steady_rows
    if path.suffix == ".html":
        return lambda path: _TIMES.sub(b"", path.read_bytes())
    return Path.read_bytes


def _steady_json(path: Path) -> bytes:
    return json.dumps(_steady(json.loads(path.read_bytes())), sort_keys=True).encode()


def _steady_yaml(path: Path) -> bytes:
    return json.dumps(read_yaml(path), sort_keys=True).encode()


def _steady_rows(path: Path) -> bytes:
    """Rows; a recorded likelihood is rounded, since who is in a batch moves its last bits."""
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    for row in rows:
        provenance = row["provenance"]
        if "total_logprob" in provenance:
            provenance["total_logprob"] = round(provenance["total_logprob"], 3)
    return json.dumps(rows).encode()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in _VOLATILE}
    return [_steady(each) for each in value] if isinstance(value, list) else value


def _measured(path: Path) -> list[tuple[str, Any]]:
    """(row and what, value) of everything that was measured."""
    if path.suffix == ".npz":
        with np.load(path) as kept:
            return [
                (f"{row} {name}", kept[name][place].tolist())
                for name in ("scores", "total", "tokens")
                for place, row in enumerate(kept["ids"])
            ]
    found = []
    for line in read_jsonl(path):
        if "row" in line:
            found += [(f"{line['row']} {of}", v) for of, v in line["of"].items()]
        else:
            found += [(f"{row} {line['name']}", v) for row, v in line["of"].items()]
    return found


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def differences(first: Found, second: Found) -> list[str]:
    """What is in one only, or not the same."""
    return [
        f"{name}: {'lost' if name not in second else 'new' if name not in first else 'differs'}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]
