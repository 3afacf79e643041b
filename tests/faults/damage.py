"""Files of a directory with a bit flipped or their end cut off, and what the next try does.

Two answers are right: the file is named, made again and all is as if nothing had happened,
or an error names the file and says what to do, and once that is done all is as if nothing
had happened. What a finished run has no use for may wait until somebody reads it. `python -m tests.faults.damage --out FILE.jsonl` tries more than the tests do.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.children import call, import_everything, world
from tests.faults.disasters import Disaster
from tests.faults.kill import Call, Undisturbed, undisturbed
from tests.faults.operations import Operation, content, differences

from undertow.seeding import generator

_PLAIN = re.compile(r"[0-9a-f]{12,}|\d+")


@dataclass(frozen=True)
class Harm:
    """What is done to one file.

    Attributes:
        file: Its name in the directory.
        place: Of the byte; everything from it on is cut off if `bit` is None.
        bit: The one that is flipped.
    """

    file: str
    place: int
    bit: int | None

    def do(self, directory: Path) -> None:
        """Damages the file."""
        path = directory / self.file
        data = bytearray(path.read_bytes())
        if self.bit is None:
            data = data[: self.place]
        else:
            data[self.place] ^= 1 << self.bit
        path.write_bytes(data)


def kind(file: str) -> str:
    """Files of one kind are written and read by the same lines of the program."""
    path = Path(file)
    if path.suffix == ".json" and path.parts[0] == "stages":
        return f"stages/…/{_PLAIN.sub('N', path.stem)}.json"
    return _PLAIN.sub("N", "/".join(path.parts[-2:]))


def harms(directory: Path, *, seed: int, flips: int, cuts: int) -> Iterator[Harm]:
    """Damage of every kind of file in a directory, at seeded places."""
    seen = set()
    for path in sorted(directory.rglob("*")):
        file = path.relative_to(directory).as_posix()
        if not path.is_file() or kind(file) in seen or not path.stat().st_size:
            continue
        seen.add(kind(file))
        stream = generator(seed, f"harm {file}")
        size = path.stat().st_size
        for _ in range(flips):
            yield Harm(file, int(stream.integers(size)), int(stream.integers(8)))
        for _ in range(cuts):
            yield Harm(file, int(stream.integers(size)), None)


def outcome(
    harm: Harm, whole: Undisturbed, before: Path, *, call: Call = call
) -> tuple[str, str]:
    """What became of a damaged directory, and what was said of it.

    Args:
        harm: The damage.
        whole: The operation as it goes by itself.
        before: A copy of the directory as it is to be damaged.
        call: Runs the command.

    Returns:
        "redone" (at once, or once it is read), "refused" (and completed as it was told) or
        what went wrong.
    """
    operation = whole.operation
    restored(operation, before)
    harm.do(operation.directory)
    ended = call(operation, Disaster(), draws=whole.draws)
    said = ended.text[-900:]
    if ended.faults:
        return f"wrong: {ended.faults}", said
    if ended.status == 0:
        wrong = differences(whole.left, content(operation))
        if wrong == [f"{harm.file}: differs"] and "/measured/" in harm.file:
            return _once_it_is_read(harm, whole, call=call)
        return (f"wrong: {wrong}", said) if wrong else ("redone", said)
    if Path(harm.file).name not in ended.text:
        return "wrong: the error does not name the file", said
    told = _as_told(harm, operation, before, said)
    if not told:
        return "wrong: the error does not say what to do", said
    ended = call(operation, Disaster(), draws=whole.draws)
    wrong = differences(whole.left, content(operation))
    if ended.status or ended.faults or wrong:
        return f"wrong after doing as told: {wrong}", said + ended.text[-900:]
    return "refused", said


def _once_it_is_read(harm: Harm, whole: Undisturbed, *, call: Call) -> tuple[str, str]:
    """What becomes of a measurement that a finished run has no use for any more.

    Only an audit that has to go on reads it; so the audits are no longer done.
    """
    operation = whole.operation
    for marker in (operation.directory / "stages" / "audits").glob("*.json"):
        if marker.stem != "sets":
            marker.unlink()
    ended = call(operation, Disaster(), draws=whole.draws)
    wrong = differences(whole.left, content(operation))
    if ended.status or ended.faults or wrong:
        return f"wrong once it is read: {ended.faults} {wrong}", ended.text[-900:]
    # A line without an end is what a kill leaves.
    torn = harm.bit is None and Path(harm.file).suffix == ".jsonl"
    if not torn and f"{Path(harm.file).name}: damaged" not in ended.text:
        return "wrong: nobody says that it is damaged", ended.text[-900:]
    return "redone once it is read", ended.text[-900:]


def _as_told(harm: Harm, operation: Operation, before: Path, said: str) -> bool:
    """Does what a message asks for; False if it asks for nothing."""
    path = operation.directory / harm.file
    if "mend or delete it" in said or "delete it" in said:
        path.unlink()
        return True
    if "delete the line" in said:
        found = re.search(re.escape(path.name) + r":(\d+): ", said)
        assert found is not None, said
        lines = path.read_bytes().split(b"\n")
        del lines[int(found[1]) - 1]
        path.write_bytes(b"\n".join(lines))
        return True
    if "belongs to another recipe" in said and "damaged" in said:
        shutil.copy(before / harm.file, path)
        return True
    return False


def restored(operation: Operation, before: Path) -> None:
    """Puts a copy in the place of the operation's directory."""
    operation.clear()
    shutil.copytree(before, operation.directory)


def interrupted(
    whole: Undisturbed, at: float, place: Path, *, call: Call = call
) -> Path:
    """A copy of the directory of an operation that was killed at a part of its way."""
    whole.operation.clear()
    call(whole.operation, Disaster("kill", int(at * whole.count)), draws=whole.draws)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole.operation.directory, place)
    return place


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flips", type=int, default=2)
    parser.add_argument("--cuts", type=int, default=1)
    parser.add_argument("--parts", type=float, nargs="*", default=[0.35, 0.7, 1.0])
    parser.add_argument(
        "--operations", nargs="*", default=["train", "audit", "run", "census"]
    )
    given = parser.parse_args()
    os.nice(10)
    import_everything()
    counts: Counter[str] = Counter()
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place,
        given.out.open("w") as file,
    ):
        made = world(Path(place))
        for name in given.operations:
            whole = undisturbed(made[name], draws=False)
            for part in given.parts:
                before = interrupted(whole, part, Path(place, "before"))
                found = harms(
                    before, seed=given.seed, flips=given.flips, cuts=given.cuts
                )
                for harm in found:
                    answer, said = outcome(harm, whole, before)
                    line: dict[str, Any] = {
                        "operation": name,
                        "part": part,
                        **asdict(harm),
                    }
                    line |= {"outcome": answer, "said": said}
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    counts[f"{name}: {answer[:60]}"] += 1
    for what, count in sorted(counts.items()):
        print(f"{count:>5} {what}")  # noqa: T201
    return int(any(": wrong" in what for what in counts))


if __name__ == "__main__":
    sys.exit(main())
