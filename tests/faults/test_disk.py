"""No room, no permission, a turned clock, two at once, Ctrl-C twice: a message, and it goes on.

Tests may run as root, whom no permission stops, so a full disk and a read-only one are
errors that the first operation and all later ones get. Real ones are the limit on the size
of files, which the kernel sets, and a small file system, where one can be mounted.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.faults.children import Ended, Parent
from tests.faults.disasters import Disaster, What
from tests.faults.kill import Undisturbed
from tests.faults.operations import content, differences

from undertow.seeding import generator

Whole = Callable[[str], Undisturbed]


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
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("full", "No space left on device"),
        ("limit", "the disk is full (File too large)"),
        ("read-only", "Read-only file system"),
    ],
)
def test_what_cannot_be_written_is_said_and_goes_on_later(
    parent: Parent, whole: Whole, what: What, said: str
) -> None:
    undisturbed = whole("train")
    for at in _places(what, undisturbed, 5):
        undisturbed.operation.clear()
        ended = parent.call(undisturbed.operation, Disaster(what, at))
        assert ended.faults == [], ended.text
        if ended.status == 0:  # nothing of that size was left to be written
            assert what == "limit" or at > 0.9 * undisturbed.count
        else:
            assert ended.status == 2
            assert len(_told(ended)) == 1
            assert said in ended.text
        assert _goes_on(parent, undisturbed) == []


@pytest.mark.slow
def test_an_audit_without_room_goes_on_later(parent: Parent, whole: Whole) -> None:
    undisturbed = whole("audit")
    for at in _places("full", undisturbed, 3):
        undisturbed.operation.clear()
        ended = parent.call(undisturbed.operation, Disaster("full", at))
        assert (ended.faults, ended.status) == ([], 2), ended.text
        assert "No space left on device" in ended.text
        assert _goes_on(parent, undisturbed) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(
    parent: Parent, whole: Whole, small_disk: Path
) -> None:
    undisturbed = whole("train")
    place = undisturbed.operation.directory
    undisturbed.operation.clear()
    place.symlink_to(small_disk / "run", target_is_directory=True)
    (small_disk / "run").mkdir()
    try:
        (small_disk / "filler").write_bytes(bytes(1_010_000))
        ended = parent.call(undisturbed.operation, Disaster())
        assert (ended.status, ended.faults) == (2, []), ended.text
        assert "the disk is full (No space left on device)" in ended.text
        (small_disk / "filler").unlink()
        assert _goes_on(parent, undisturbed) == []
    finally:
        place.unlink()


# ── clocks ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("days", [-20_000.0, -1.0, 4_000.0])
def test_a_clock_that_jumps_changes_nothing(
    parent: Parent, whole: Whole, days: float
) -> None:
    undisturbed = whole("train")
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


def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(
    parent: Parent, whole: Whole
) -> None:
    from filelock import FileLock

    undisturbed = whole("train")
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


# ── Ctrl-C ───────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("more", [0, 1, 3])
def test_ctrl_c_again_and_again(parent: Parent, whole: Whole, more: int) -> None:
    undisturbed = whole("train")
    for at in _places(f"interrupt {more}", undisturbed, 3):
        undisturbed.operation.clear()
        ended = parent.call(undisturbed.operation, Disaster("interrupt", at, more=more))
        assert (ended.status, ended.faults) == (130, []), ended.text
        assert _told(ended) == [
            "error: interrupted; finished work is kept, the same command continues"
        ]
        assert _goes_on(parent, undisturbed) == []
