"""Killed at any point, once or several times: the same command ends with the same files.

`python -m tests.faults.kill` tries more points, and draws the pages too.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.faults.children import Parent
from tests.faults.disasters import Disaster
from tests.faults.kill import Point, Undisturbed, drawn, report, suffered
from tests.faults.operations import Found, Operation, content, differences

Whole = Callable[[str], Undisturbed]
SEED = 7
COUNTS = {"train": 27, "audit": 4, "run": 4, "run-audit": 3, "census": 2}


def _points(name: str, whole: Undisturbed) -> list[Point]:
    """The first points of the stream that fall on an operation."""
    found: list[Point] = []
    number = 0
    while len(found) < COUNTS[name]:
        point = drawn(
            number, SEED, {(n, d): whole for n in COUNTS for d in (True, False)}
        )
        if point.operation == name:
            found.append(replace(point, draws=False))
        number += 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COUNTS))
def test_a_killed_command_goes_on_to_the_same_end(
    parent: Parent, whole: Whole, name: str
) -> None:
    undisturbed = whole(name)
    found = [
        suffered(point, undisturbed, call=parent.call)
        for point in _points(name, undisturbed)
    ]
    assert sum(each["killed"] > 0 for each in found) >= 0.9 * COUNTS[name]
    wrong = [each for each in found if each["faults"] or each["differences"]]
    assert not wrong, report(found) + f"\n{wrong}"


def test_a_kill_is_a_kill(parent: Parent, whole: Whole) -> None:
    """The points are where they say: files lie there half written, and work is missing."""
    undisturbed = whole("train")
    operation = undisturbed.operation
    operation.clear()
    saves = [
        n for n, what in enumerate(_seen(parent, undisturbed)) if what[:4] == "save"
    ]
    operation.clear()
    ended = parent.call(operation, Disaster("kill", saves[0], "within"))
    assert ended.status == -9
    drafts = list(operation.directory.rglob(".undertow-*"))
    assert len(drafts) == 1
    half = drafts[0].stat().st_size
    assert differences(undisturbed.left, content(operation))
    operation.clear()
    ended = parent.call(operation, Disaster("kill", saves[0], "after"))
    assert ended.status == -9
    (draft,) = operation.directory.rglob(".undertow-*")
    assert draft.stat().st_size == pytest.approx(2 * half, abs=1)


def _seen(parent: Parent, whole: Undisturbed) -> tuple[str, ...]:
    whole.operation.clear()
    return parent.call(whole.operation, Disaster()).seen


def test_a_difference_would_be_seen(parent: Parent, whole: Whole) -> None:
    """What is compared is not blind to a changed, lost or added file."""
    undisturbed = whole("train")
    operation = undisturbed.operation
    operation.clear()
    parent.call(operation, Disaster())
    assert differences(undisturbed.left, content(operation)) == []
    (operation.directory / "adapter_model.safetensors").write_bytes(b"x")
    (operation.directory / "undertow.json").unlink()
    (operation.directory / "more").write_text("x")
    assert differences(undisturbed.left, content(operation)) == [
        "adapter_model.safetensors: differs", "more: new",
        "stages/student.json: differs",  # its digests do not fit any more
        "undertow.json: lost",
    ]  # fmt: skip


def test_the_last_bit_of_a_number_counts(tmp_path: Path) -> None:
    operation = Operation("made", (), tmp_path)
    (tmp_path / "measured").mkdir()

    def left(nats: float, score: float, *, turned: bool = False) -> Found:
        lines = [{"read": {"base": {"a": nats}}}, {"read": {"base": {"b": -1}}}]
        text = "\n".join(map(json.dumps, lines[::-1] if turned else lines))
        (tmp_path / "measured" / "logprobs.jsonl").write_text(text)
        np.savez(tmp_path / "measured" / "signals-0.npz", scores=np.array([score]))
        return content(operation)

    first = left(-3.25, 1.0)
    assert differences(first, left(-3.25, 1.0, turned=True)) == []
    name = "measured/logprobs.jsonl: differs"
    assert differences(first, left(np.nextafter(-3.25, 0), 1.0)) == [name]
    name = "measured/signals-0.npz: differs"
    assert differences(first, left(-3.25, np.nextafter(1.0, 0))) == [name]


def test_only_what_clocks_say_is_left_out(tmp_path: Path) -> None:
    operation = Operation("made", (), tmp_path)

    def left(**facts: object) -> Found:
        (tmp_path / "results.json").write_text(json.dumps(facts))
        return content(operation)

    first = left(seconds={"rows": 1.5}, sha256="ab", time="2026-01-01", loss=0.1)
    assert differences(
        first, left(seconds={"rows": 9}, sha256="ab", time="2027-01-01", loss=0.1)
    ) == []  # fmt: skip
    for other in (
        {"seconds": {"train": 1.5}, "sha256": "ab", "time": "2026-01-01", "loss": 0.1},
        {"seconds": {"rows": 1.5}, "sha256": "cd", "time": "2026-01-01", "loss": 0.1},
        {"seconds": {"rows": 1.5}, "sha256": "ab", "loss": 0.1},
        {"seconds": {"rows": 1.5}, "sha256": "ab", "time": "", "loss": 0.1 + 1e-15},
    ):
        assert differences(first, left(**other)) == ["results.json: differs"]
