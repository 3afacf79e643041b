"""What is disturbed: a small `run`, `train`, `audit` and `census` of tiny models, as commands.

Everything is made once in a folder, so that an operation is a list of words, a directory
that it writes, and which of its files have to be equal after any disturbance. Knows
nothing of disturbances (`disasters`) nor of who asks for them (`kill`, the tests).
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.conftest import family_text

from undertow.runs import _digest
from undertow.storage.files import file_sha256, read_jsonl

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

NEAR = 1e-5
"""What likelihoods may differ by, nats: who is read beside a row moves the last bits."""
_NEAR = {"total_logprob", "statistic"}
"""Keys of likelihoods, and of sums of them; every other number is the same."""
_CLOCKS = {"seconds", "finished", "time", "since", "pid"}
"""Keys of what clocks and processes say; that it is said counts, and of what."""
_TIMES = re.compile(
    rb"<summary>\s*(<[^>]*>)*\s*Time: .*?</details>|\d{4}-\d\d-\d\dT[\d:]+", re.DOTALL
)
"""What a page says of time: when, and tables of seconds in their order."""


@dataclass(frozen=True)
class Content:
    """What counts of a file: a hash of what is the same each time, and what is near."""

    same: str
    near: tuple[float, ...] = ()

    def equals(self, other: "Content") -> bool:
        """Whether all is the same, and what may differ differs by less than `NEAR`."""
        return (
            self.same == other.same
            and len(self.near) == len(other.near)
            and np.allclose(self.near, other.near, rtol=0, atol=NEAR)
        )


Found = dict[str, Content]
"""What counts of each file, by its name in the directory."""


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
            found[name] = _content(path, operation.directory)
    # Which rows were measured together depends on what was measured before.
    for place, values in measured.items():
        if len(dict(values)) < len(values):
            found[f"{place}: twice"] = Content("measured twice")
        found[place] = _plain(dict(sorted(values)))
    return found


def _content(path: Path, directory: Path) -> Content:
    data = path.read_bytes()
    if path.suffix == ".json" and path.is_relative_to(directory / "stages"):
        return _plain(_marker(json.loads(data), directory))
    if path.suffix == ".json" or path.name == ".lock-holder":
        return _plain(json.loads(data))
    if path.name == "rows.jsonl":
        return _plain([json.loads(line) for line in data.splitlines()])
    if path.suffix == ".npz":
        return Content(_hash(_arrays(path)))
    return Content(_hash(_TIMES.sub(b"", data) if path.suffix == ".html" else data))


def _arrays(path: Path) -> bytes:
    """Every bit of the arrays, but not of the archive: nobody looks at some of that."""
    with np.load(path) as kept:
        arrays = [(name, kept[name]) for name in kept.files]
    return repr([(n, a.dtype, a.shape, a.tobytes()) for n, a in arrays]).encode()


def _plain(value: Any) -> Content:
    """JSON in its own order, without what clocks say, and apart from what is near."""
    near: list[float] = []
    same = _hash(json.dumps(_steady(value, near)).encode())
    return Content(same, tuple(near))


def _steady(value: Any, near: list[float]) -> Any:
    if isinstance(value, list):
        return [_steady(each, near) for each in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, each in value.items():
        if key in _CLOCKS:
            found[key] = sorted(each) if isinstance(each, dict) else None
        elif key in _NEAR and isinstance(each, float):
            near.append(each)
        else:
            found[key] = _steady(each, near)
    return found


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


def _measured(path: Path) -> list[tuple[str, Any]]:
    """(row and what, value) of everything that was measured; likelihoods are near."""
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
    return [(of, {"total_logprob": value}) for of, value in found]


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
        elif not first[name].equals(second[name]):
            found.append(f"{name}: differs")
    return found
