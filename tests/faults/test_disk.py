"""No room, no permission, a turned clock, two at once, Ctrl-C twice: a message, and it goes on.

Tests may run as root, whom no permission stops, so a full disk and a read-only one are
errors that the first operation and all later ones get. Real ones are the limit on the size
of files, which the kernel sets, and a small file system, where one can be mounted.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults.children import Ended, Parent
from tests.faults.disasters import Disaster, What
from tests.faults.kill import Undisturbed
from tests.faults.operations import content, differences

from undertow.seeding import generator

Whole = Callable[[str], Undisturbed]
NAMES = ("train", "run", "audit")
SAID = {
    "full": "No space left on device",
    "limit": "the disk is full (File too large)",
    "read-only": "Read-only file system",
}


def _places(what: str, whole: Undisturbed, count: int) -> list[int]:
    """The first operation, and seeded others."""
    drawn = generator(11, what, whole.operation.name).integers(
        whole.count, size=count - 1
    )
    return [0, *sorted(drawn.tolist())]


def _goes_on(parent: Parent, whole: Undisturbed) -> list[str]:
    """What is not as it was without disturbance, after the same command once more."""
    ended = parent.call(whole.operation, Disaster())
    wrong = differences(whole.left, content(whole.operation))
    return ended.faults + wrong + [ended.text] * (ended.status != 0)


def _told(ended: Ended) -> list[str]:
    """The lines that an error has."""
    return [line for line in ended.text.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
@pytest.mark.parametrize("what", sorted(SAID))
@pytest.mark.parametrize(("name", "count"), [("train", 5), ("run", 2), ("audit", 2)])
def test_what_cannot_be_written_is_said_and_goes_on_later(
    parent: Parent, whole: Whole, what: What, name: str, count: int
) -> None:
    undisturbed = whole(name)
    for at in _places(what, undisturbed, count):
        undisturbed.operation.clear()
        ended = parent.call(undisturbed.operation, Disaster(what, at))
        assert ended.faults == [], ended.text
        if ended.status == 0:  # nothing of that size was left to be written
            assert what == "limit" or at > 0.9 * undisturbed.count
        else:
            assert ended.status == 2
            assert len(_told(ended)) == 1
            assert SAID[what] in ended.text
        assert _goes_on(parent, undisturbed) == []


def _mount(place: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return (
        shutil.which("mount") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if not _mount(place, "size=2m"):
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@contextmanager
def _lying_on(disk: Path, undisturbed: Undisturbed) -> Iterator[None]:
    """The operation's directory is a folder on another disk."""
    place = undisturbed.operation.directory
    undisturbed.operation.clear()
    (disk / "run").mkdir()
    place.symlink_to(disk / "run", target_is_directory=True)
    try:
        yield
    finally:
        place.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_really_full(
    parent: Parent, whole: Whole, small_disk: Path, name: str
) -> None:
    undisturbed = whole(name)
    with _lying_on(small_disk, undisturbed):
        filler = small_disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 12_288))
        ended = parent.call(undisturbed.operation, Disaster())
        assert (ended.status, ended.faults) == (2, []), ended.text
        assert "the disk is full (No space left on device)" in ended.text
        filler.unlink()
        assert _goes_on(parent, undisturbed) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_really_read_only(
    parent: Parent, whole: Whole, small_disk: Path, name: str
) -> None:
    """From the middle of the way on, as a disk with a fault becomes."""
    undisturbed = whole(name)
    with _lying_on(small_disk, undisturbed):
        parent.call(undisturbed.operation, Disaster("kill", undisturbed.count // 2))
        before = content(undisturbed.operation)
        if not _mount(small_disk, "remount,ro"):
            pytest.skip("no file system can be made read-only here")
        ended = parent.call(undisturbed.operation, Disaster())
        assert (ended.status, ended.faults) == (2, []), ended.text
        assert len(_told(ended)) == 1
        assert "Read-only file system" in ended.text
        assert content(undisturbed.operation) == before
        assert _mount(small_disk, "remount,rw")
        assert _goes_on(parent, undisturbed) == []


# ── clocks ───────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "days"),
    [
        ("train", -20_000.0),
        ("train", -1.0),
        ("train", 4_000.0),
        ("run", -20_000.0),
        ("audit", 4_000.0),
    ],
)
def test_a_clock_that_jumps_changes_nothing(
    parent: Parent, whole: Whole, name: str, days: float
) -> None:
    undisturbed = whole(name)
    operation = undisturbed.operation
    operation.clear()
    at = undisturbed.count // 3
    ended = parent.call(operation, Disaster("clock", at, days=days))
    assert (ended.status, ended.faults) == (0, []), ended.text
    assert differences(undisturbed.left, content(operation)) == []
    operation.clear()
    parent.call(operation, Disaster("kill", at))
    now = time.time() + days * 86400
    for path in operation.directory.rglob("*"):
        os.utime(path, (max(0, now), max(0, now)))
    assert _goes_on(parent, undisturbed) == []


# ── two at once ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(
    parent: Parent, whole: Whole, name: str
) -> None:
    from filelock import FileLock

    undisturbed = whole(name)
    operation = undisturbed.operation
    operation.clear()
    parent.call(operation, Disaster("kill", undisturbed.count // 2))
    before = content(operation)
    with FileLock(operation.directory / ".lock", timeout=0):
        ended = parent.call(operation, Disaster())
        assert (ended.status, ended.faults) == (2, [])
        assert "is in use by another run" in ended.text
        assert content(operation) == before
    assert _goes_on(parent, undisturbed) == []


@contextmanager
def _process(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """`undertow WORDS`; killed at the end, if it did not end."""
    with subprocess.Popen(
        [sys.executable, "-m", "undertow", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_of_two_processes_one_says_so_and_the_other_ends_whole(whole: Whole) -> None:
    undisturbed = whole("train")
    operation = undisturbed.operation
    operation.clear()
    holder = operation.directory / ".lock-holder"
    with _process(*operation.words) as first:
        while not holder.exists():
            assert first.poll() is None, first.stdout and first.stdout.read()
            time.sleep(0.002)
        first.send_signal(
            signal.SIGSTOP
        )  # so that it is still there, however slow we are
        with _process(*operation.words) as second:
            said, _ = second.communicate(timeout=120)
        assert second.returncode == 2
        assert (
            f"error: {operation.directory}: is in use by another run (process " in said
        )
        assert f" {first.pid} on " in said
        first.send_signal(signal.SIGCONT)
        said, _ = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert differences(undisturbed.left, content(operation)) == []


# ── Ctrl-C ───────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [("train", 0), ("train", 1), ("train", 3), ("run", 1), ("audit", 1)],
)
def test_ctrl_c_again_and_again(
    parent: Parent, whole: Whole, name: str, more: int
) -> None:
    undisturbed = whole(name)
    for at in _places(f"interrupt {more}", undisturbed, 3 if name == "train" else 2):
        undisturbed.operation.clear()
        ended = parent.call(undisturbed.operation, Disaster("interrupt", at, more=more))
        assert (ended.status, ended.faults) == (130, []), ended.text
        assert _told(ended) == [
            "error: interrupted; finished work is kept, the same command continues"
        ]
        assert _goes_on(parent, undisturbed) == []
