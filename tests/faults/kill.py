"""A campaign: commands killed at seeded points, once or several times, and gone on with.

    python -m tests.faults.kill --points 300 --seed 0 --out FILE.jsonl

Writes a line for each point as it comes, leaves out those that stand there already, and
prints what became of all; exit status 1 if one of them was not as it has to be.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from tests.faults.children import Ended, call, import_everything, world
from tests.faults.disasters import Disaster, How
from tests.faults.operations import Found, Operation, content, differences

from undertow.seeding import generator

_OFTEN = {"run": 0.25, "run-audit": 0.1, "train": 0.35, "audit": 0.2, "census": 0.1}
Call = Callable[..., Ended]
"""Runs one command under a disaster, here or by another process."""
_HOWS: tuple[How, ...] = ("before", "after", "within", "within", "step")
_DRAWN = 25
"""One point in so many draws the pages too."""


@dataclass(frozen=True)
class Undisturbed:
    """An operation as it goes by itself."""

    operation: Operation
    count: int
    steps: int
    left: Found
    draws: bool


def undisturbed(operation: Operation, *, draws: bool, call: Call = call) -> Undisturbed:
    """Runs it once.

    Raises:
        RuntimeError: It fails by itself.
    """
    operation.clear()
    ended = call(operation, Disaster(), draws=draws)
    if ended.status or ended.faults:
        raise RuntimeError(f"{operation.name}: {ended.text}")
    left = content(operation)
    return Undisturbed(operation, len(ended.seen), ended.steps, left, draws)


@dataclass(frozen=True)
class Point:
    """An operation, and the kills that it suffers one after the other."""

    number: int
    operation: str
    draws: bool
    kills: tuple[Disaster, ...]


class _Sizes(dict[tuple[str, bool], Undisturbed]):
    """Operations as they go by themselves, each run when it is first asked for."""

    def __init__(self, made: dict[str, Operation]) -> None:
        super().__init__()
        self.made = made

    def __missing__(self, key: tuple[str, bool]) -> Undisturbed:
        self[key] = undisturbed(self.made[key[0]], draws=key[1])
        return self[key]


def drawn(number: int, seed: int, sizes: dict[tuple[str, bool], Undisturbed]) -> Point:
    """The point of a number; the same for the same seed."""
    stream = generator(seed, "kill", number)
    name = str(stream.choice(list(_OFTEN), p=list(_OFTEN.values())))
    draws = number % _DRAWN == _DRAWN - 1
    size = sizes[name, draws]
    kills = []
    for _ in range(int(stream.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        how = cast("How", str(stream.choice(_HOWS)))
        bound = size.steps if how == "step" else size.count
        kills.append(Disaster("kill", int(stream.integers(bound)), how))
    return Point(number, name, draws, tuple(kills))


def suffered(point: Point, whole: Undisturbed, *, call: Call = call) -> dict[str, Any]:
    """Kills, goes on until the end, and compares; what happened, as JSON."""
    operation = whole.operation
    operation.clear()
    ends: list[Ended] = []
    for kill in point.kills:
        ends.append(call(operation, kill, draws=point.draws))
        if ends[-1].status == 0:  # there was less left than that
            break
    ends.append(call(operation, Disaster(), draws=point.draws))
    faults = [fault for ended in ends for fault in ended.faults]
    faults += [f"not completed: {ends[-1].text[-600:]}"] * (ends[-1].status != 0)
    return {
        "point": point.number, "operation": point.operation, "draws": point.draws,
        "kills": [asdict(kill) for kill in point.kills],
        "killed": sum(ended.status == -9 for ended in ends),
        "statuses": [ended.status for ended in ends], "faults": faults,
        "differences": differences(whole.left, content(operation)),
        "warned": [line for ended in ends for line in ended.text.splitlines()
                   if "Warning" in line][:3],
        "seconds": round(sum(ended.seconds for ended in ends), 2),
    }  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    known = _known(given.out, given.seed)
    os.nice(10)
    import_everything()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        made = world(Path(place))
        sizes = _Sizes(made)
        for number in range(given.points):
            if number in known:
                continue
            point = drawn(number, given.seed, sizes)
            found = suffered(point, sizes[point.operation, point.draws])
            known[number] = found | {"seed": given.seed}
            if found["faults"] or found["differences"]:
                _keep(sizes[point.operation, point.draws].operation, number, given.out)
            with given.out.open("a") as file:
                file.write(json.dumps(known[number]) + "\n")
    chosen = [known[number] for number in range(given.points)]
    print(report(chosen))  # noqa: T201
    return int(any(each["faults"] or each["differences"] for each in chosen))


def _known(path: Path, seed: int) -> dict[int, dict[str, Any]]:
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    found = [json.loads(line) for line in lines]
    return {each["point"]: each for each in found if each["seed"] == seed}


def _keep(operation: Operation, number: int, out: Path) -> None:
    """What a point left that it should not have, for people to look at."""
    place = out.with_name(f"{out.stem}-{number}")
    shutil.copytree(operation.directory, place, dirs_exist_ok=True)


def report(found: list[dict[str, Any]]) -> str:
    """Counts, in lines."""
    lines = []
    for name in _OFTEN:
        own = [each for each in found if each["operation"] == name]
        kinds = Counter(
            difference.rsplit(": ", 1)[1]
            for each in own
            for difference in each["differences"]
        )
        faults = Counter(
            fault.split(":")[0] for each in own for fault in each["faults"]
        )
        lines.append(
            f"{name:<10} {len(own):>4} points, {sum(e['killed'] for e in own)} kills: "
            f"{sum(not e['faults'] and not e['differences'] for e in own)} equal; files "
            f"lost {kinds['lost']}, new {kinds['new']}, different {kinds['differs']}, "
            f"measured twice {kinds['measured twice']}; tracebacks {faults['traceback']}, "
            f"hangs {faults['hang']}, not completed {faults['not completed']}"
        )
    killed = sum(each["killed"] > 0 for each in found)
    lines.append(f"{len(found)} points, {killed} of them killed, "
                 f"{sum(e['killed'] for e in found)} kills")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
