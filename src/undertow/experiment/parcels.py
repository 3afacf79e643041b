"""Parts of a run directory as values that travel, and what came back of them.

A parcel is files by their paths in the directory. Whoever does a job elsewhere unpacks it
into an empty directory, works there, and packs what changed; on its return markers are
written last, as everywhere. Knows nothing of jobs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from undertow.runs import Run
from undertow.storage import DRAFT_PREFIX, replacing

_MARKERS, _FILES = "stages", "bases"
_KEPT_THERE = "audits/measured"
"""Measurements that only serve whoever made them."""


@dataclass(frozen=True)
class Made:
    """What a job left: new or changed files by path, and those that it took away."""

    files: Mapping[str, bytes]
    removed: tuple[str, ...] = ()


def pack(directory: Path, places: Sequence[str]) -> dict[str, bytes]:
    """The files of places in a run directory.

    Args:
        directory: Of the run.
        places: Stage names: each stands for its marker, its files, and all that lies
            below it; one that ends in .json stands for the marker alone.
    """
    found = (path for place in dict.fromkeys(places) for path in _at(directory, place))
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in dict.fromkeys(found)
        if path.is_file() and not path.name.startswith(DRAFT_PREFIX)
    }


def _at(directory: Path, place: str) -> Iterator[Path]:
    if place.endswith(".json"):
        yield directory / _MARKERS / place
        return
    for root in (directory / _MARKERS, directory / _FILES, directory):
        own = root / place
        yield from own.rglob("*")
        beside = own.parent.iterdir() if own.parent.is_dir() else ()
        yield from (path for path in beside if path.name.startswith(f"{own.name}."))


def unpack(directory: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a directory, and their folders."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def changes(directory: Path, before: Mapping[str, bytes]) -> Made:
    """What lies in a directory now and did not before, or was another."""
    after = {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(DRAFT_PREFIX)
    }
    new = {
        name: content
        for name, content in after.items()
        if before.get(name) != content and not name.startswith(f"{_KEPT_THERE}/")
    }
    return Made(new, tuple(name for name in before if name not in after))


def accept(run: Run, made: Made) -> None:
    """Puts what a job left into the run's own directory, markers last.

    Raises:
        RunError: The disk is full, or a path leads out of the directory.
    """
    for name in sorted(made.files, key=lambda name: name.startswith(f"{_MARKERS}/")):
        with replacing(run.path(*name.split("/")), lasting=False) as draft:
            draft.write_bytes(made.files[name])
    for name in made.removed:
        run.path(*name.split("/")).unlink(missing_ok=True)
    run.rest()
