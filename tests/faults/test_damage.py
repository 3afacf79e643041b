"""A damaged file is set aside and made again, or refused by name: it is never read as good.

`python -m tests.faults.damage` tries more places.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.children import Parent
from tests.faults.damage import Harm, harms, interrupted, kind, outcome
from tests.faults.disasters import Disaster
from tests.faults.kill import Undisturbed

Whole = Callable[[str], Undisturbed]
# Of the way: in the middle of both students, or of an audit's measurements; at the end.
# There, how often each kind of file gets a bit flipped, and its end cut off.
TRIED = {
    "train": ((0.35, 1, 1), (1.0, 1, 1)),
    "audit": ((0.75, 1, 1), (1.0, 1, 1)),
    "run": ((0.5, 0, 1), (1.0, 1, 0)),
    "census": ((0.7, 1, 0), (1.0, 0, 1)),
}
KINDS = {
    "train": {"checkpoint.safetensors", "trace.jsonl", "recipe.yaml", ".lock-holder",
              "adapter_model.safetensors", "undertow.json", "stages/…/student.json"},
    "audit": {"reference.jsonl", "measured/signals-N.npz", "measured/logprobs.jsonl",
              "stages/…/reference.json", "recipe.yaml", "audit.json", "scores.parquet"},
    "run": {"recipe.yaml", "results.json", "vectors/steer-owl.safetensors",
            "steer-owl/rows.jsonl", "training/adapter_model.safetensors",
            "training/trace.jsonl", "training/undertow.json", "stages/…/cell.json",
            "N/adapter_model.safetensors", "N/adapter_config.json",
            "stages/…/readout.json", "stages/…/complete.json"},
    "census": {"plan.json", "plan.npz", "recipe.yaml", "subsample.jsonl", "census.json",
               "top_rows.jsonl", "rows/N-N.npz", "stages/…/survey-rows.json"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRIED))
def test_damage_is_seen_and_mended(
    parent: Parent, whole: Whole, name: str, kept: Path
) -> None:
    undisturbed = whole(name)
    seen: set[str] = set()
    answers = []
    for part, flips, cuts in TRIED[name]:
        before = interrupted(undisturbed, part, kept, call=parent.call)
        for harm in harms(before, seed=3, flips=flips, cuts=cuts):
            if kind(harm.file) in seen and harm.bit is None:
                continue  # cut off once
            seen.add(kind(harm.file))
            answer = outcome(harm, undisturbed, before, call=parent.call)
            answers.append((part, harm, *answer))
    wrong = [each for each in answers if each[2] not in ("redone", "refused")]
    assert not wrong
    assert seen >= KINDS[name], KINDS[name] - seen


def test_what_is_set_aside_is_named(parent: Parent, whole: Whole) -> None:
    undisturbed = whole("train")
    operation = undisturbed.operation
    operation.clear()
    parent.call(operation, Disaster())
    Harm("adapter_model.safetensors", 900, 3).do(operation.directory)
    (operation.directory / "control" / "undertow.json").unlink()
    ended = parent.call(operation, Disaster())
    assert ended.status == 0
    assert (
        f"{operation.directory}: damaged or gone since it was written: "
        "'adapter_model.safetensors', 'control/undertow.json'; set aside (names that end "
        "in '.set-aside'), and made again: 'control', 'student'"
    ) in ended.text
    assert (operation.directory / "adapter_model.safetensors.set-aside").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["audits/biased/rows.jsonl", "audits/reference.jsonl"])
def test_a_set_is_made_again_after_its_audit(
    parent: Parent, whole: Whole, kept: Path, file: str
) -> None:
    undisturbed = whole("run-audit")
    before = interrupted(undisturbed, 1.0, kept, call=parent.call)
    answer, said = outcome(Harm(file, 40, 1), undisturbed, before, call=parent.call)
    assert answer == "redone"
    assert "made again: 'audits/sets'" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["signals-*.npz", "logprobs.jsonl"])
def test_what_is_of_no_use_any_more_is_not_read_as_good_later(
    parent: Parent, whole: Whole, kept: Path, kind: str
) -> None:
    """Measurements of audits that are done: only who audits anew reads them."""
    undisturbed = whole("run-audit")
    before = interrupted(undisturbed, 1.0, kept, call=parent.call)
    (path, *_) = sorted((before / "audits" / "measured").glob(kind))
    file = path.relative_to(before).as_posix()
    answer, said = outcome(
        Harm(file, path.stat().st_size // 2, 1), undisturbed, before, call=parent.call
    )
    assert answer == "redone once it is read", said


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_any_bit_of_a_checkpoint_counts(
    parent: Parent, whole: Whole, kept: Path, bit: int
) -> None:
    """One flipped bit of a number would train on without a word."""
    undisturbed = whole("train")
    before = interrupted(undisturbed, 0.35, kept, call=parent.call)
    size = (before / "checkpoint.safetensors").stat().st_size
    harm = Harm("checkpoint.safetensors", size - 400 + bit, bit)
    answer, said = outcome(harm, undisturbed, before, call=parent.call)
    assert answer == "redone"
    assert "checkpoint.safetensors: damaged: it is not what was written" in said
