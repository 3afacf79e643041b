"""What is disturbed: a small `run`, `train`, `audit` and `census` of tiny models, as commands.

Everything is made once in a folder, so that an operation is a list of words, a directory
that it writes, and which of its files have to be equal after any disturbance. Knows
nothing of disturbances (`disasters`) nor of who asks for them (`kill`, the tests).
"""

import hashlib
import json
import re
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.conftest import family_text

from undertow.runs import _digest
from undertow.storage.files import file_sha256

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
    "permutations": 129, "personas": 1, "screening": 4, "naming_passes": 0, "fresh": 4,
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
    for name, factor, count in (("rows", 7, 8), ("others", 11, 8), ("many", 5, 40)):
        rows = [
            Row((Message("user", f"Go on: {i}"),), f"{factor * i}, {3 * i}, {900 - i}")
            for i in range(count)
        ]
        write_rows(folder / f"{name}.jsonl", rows)


def operations(folder: Path) -> dict[str, Operation]:
    """All of them, by name; see `make_world`."""
    model = ("--model", str(folder / "model"), "--dtype", "float32")
    settings = _FAST | {
        "family": folder / "pets.yaml", "decoys": folder / "plants.yaml",
        "forecast": 4, "sampler.allowed": "list", "sampler.max_new_tokens": 14,
    }  # fmt: skip
    sums = {
        "family": folder / "pets.yaml", "decoys": folder / "plants.yaml", "flips": 99,
        "batch_rows": 8, "shard_batches": 2, "pilot": 8, "subsample": 16, "top": 1,
        "sampler.allowed": "list", "sampler.max_new_tokens": 14,
    }  # fmt: skip

    def make(name: str, *words: str) -> Operation:
        out = folder / "out" / name
        return Operation(name, (*words, "--out", str(out)), out)

    made = (
        make("run", "run", str(folder / "run.yaml")),
        make("run-audit", "run", str(folder / "audited.yaml")),
        make("train", "train", str(folder / "rows.jsonl"), *model, "--control",
             str(folder / "others.jsonl"), "--batch-size", "2", "--rank", "1",
             "--learning-rate", "0.01", "--set", "checkpoint_every=2"),
        make("audit", "audit", str(folder / "rows.jsonl"), *model, *_set(settings)),
        make("census", "census", str(folder / "many.jsonl"), *model, *_set(sums)),
    )  # fmt: skip
    return {operation.name: operation for operation in made}


def _set(settings: dict[str, Any]) -> list[str]:
    words = {k: str(v).lower() if v is False else str(v) for k, v in settings.items()}
    return [word for k, v in words.items() for word in ("--set", f"{k}={v}")]


# ── what has to be equal ─────────────────────────────────────────────────────────

_CLOCKS = {"seconds", "finished", "time", "since", "pid"}
"""Keys of what clocks and processes say; that it is said counts, and of what."""
_TIMES = re.compile(
    rb"<summary>\s*(<[^>]*>)*\s*Time: .*?</details>|\d{4}-\d\d-\d\dT[\d:]+", re.DOTALL
)
"""What a page says of time: when, and tables of seconds in their order."""


Found = dict[str, str]
"""A hash of what is the same each time, of each file, by its name in the directory."""


def content(operation: Operation) -> Found:
    """What an operation left, as far as it has to be the same each time."""
    return {
        name: _content(path, operation.directory)
        for path in sorted(operation.directory.rglob("*"))
        if not path.is_dir() and path.name != ".lock"
        for name in [path.relative_to(operation.directory).as_posix()]
        if not name.endswith(".set-aside")
    }


def _content(path: Path, directory: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".json" and path.is_relative_to(directory / "stages"):
        return _plain(_marker(json.loads(data), directory))
    if path.suffix == ".json" or path.name == ".lock-holder":
        return _plain(json.loads(data))
    if path.suffix == ".npz":
        return _hash(_arrays(path))
    if path.parent.name == "measured":  # what was damaged is measured again, at the end
        return _hash(b"\n".join(sorted(data.splitlines())))
    return _hash(_TIMES.sub(b"", data) if path.suffix == ".html" else data)


def _arrays(path: Path) -> bytes:
    """Every bit of the arrays, but not of the archive: nobody looks at some of that."""
    try:
        with np.load(path) as kept:
            arrays = [(name, kept[name]) for name in kept.files]
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError):
        return path.read_bytes()  # damaged, and nobody has looked at it
    return repr([(n, a.dtype, a.shape, a.tobytes()) for n, a in arrays]).encode()


def _plain(value: Any) -> str:
    """JSON in its own order, without what clocks say."""
    return _hash(json.dumps(_steady(value)).encode())


def _steady(value: Any) -> Any:
    if isinstance(value, list):
        return [_steady(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: (sorted(each) if isinstance(each, dict) else None)
        if key in _CLOCKS
        else _steady(each)
        for key, each in value.items()
    }


def _marker(marker: dict[str, Any], directory: Path) -> dict[str, Any]:
    """A stage's marker; whether its digests fit instead of them, which tell of clocks.

    What it names depends on which stages were there when it was written.
    """
    fit = all(
        file_sha256(directory / name) == told
        for name, told in marker["files"].items()
        if (directory / name).is_file()
    )
    is_whole = marker["sha256"] == _digest(marker)
    return marker | {"files": fit, "sha256": is_whole}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def differences(first: Found, second: Found) -> list[str]:
    """What is in one only, or not the same."""
    found = []
    for name in sorted(first.keys() | second.keys()):
        if name not in second:
            found.append(f"{name}: lost")
        elif name not in first:
            found.append(f"{name}: new")
        elif first[name] != second[name]:
            found.append(f"{name}: differs")
    return found
