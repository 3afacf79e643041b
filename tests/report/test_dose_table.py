"""The channel beside the dose: which cells are compared, and with what outcome."""

from pathlib import Path

import pytest
from scipy.stats import spearmanr

from undertow.report.dose_table import Taught, dose_table, subsets
from undertow.results import Results
from undertow.storage import read_json

KEPT = Path(__file__).parents[2] / "docs" / "studies" / "channel-12" / "results.json"


@pytest.fixture(scope="module")
def kept() -> Results:
    return Results.model_validate(read_json(KEPT))


def taught(kind: str, *, layer: int | None = None, dose: float | None = None) -> Taught:
    return Taught(kind, layer, dose, 0.1, 1.0, 1.0)


def texts(results: Results) -> list[list[str]]:
    return [
        [f"{cell.text} {cell.below}".strip().replace("−", "-") for cell in row]
        for row in dose_table(results).rows
    ]


def test_correlations_are_those_of_the_cells(kept: Results) -> None:
    head, whole, *parts = texts(kept)
    assert head == ["transfer: student - control, nats"]
    assert whole[:2] == ["all", "21"]
    assert [row[:2] for row in parts[:3]] == [
        ["without fine-tuned teachers", "18"], ["steered", "15"],
        ["steered after block 24", "12"],
    ]  # fmt: skip
    block = [t for t in kept.transfers if t.teacher.startswith("block24")]
    moved = [t.transfer.mean for t in block]
    widths = [t.channel.vocabulary.mean for t in block if t.channel]
    doses = [float(t.teacher.partition("_")[2]) for t in block]
    for text, by in zip(parts[2][2:], (widths, doses), strict=True):
        assert text.startswith(f"{spearmanr(by, moved).statistic:+.2f} [")
    base = [t.from_base.mean for t in kept.transfers if t.from_base]
    every = [t.channel.vocabulary.mean for t in kept.transfers if t.channel]
    assert texts(kept)[6][2].startswith(f"{spearmanr(every, base).statistic:+.2f} [")


def test_prompts_have_no_dose(kept: Results) -> None:
    row = dose_table(kept).rows[1]
    assert (row[3].text, row[3].why) == ("—", "not every cell has it")


def test_students_trained_otherwise_are_ranked_by_themselves(kept: Results) -> None:
    other = {"way": "rank 1"}
    more = [t.model_copy(update=other) for t in kept.transfers if t.trait != "owl"]
    both = kept.model_copy(update={"transfers": [*kept.transfers, *more]})
    found = texts(both)
    assert found[1] == texts(kept)[1]
    assert found[10][0] == "transfer: student - control, nats; students: soft, rank 1"
    assert found[11][1] == "14"


def test_only_parts_that_differ_are_ranked() -> None:
    steered = [taught("steer", layer=24, dose=dose) for dose in (0.1, 0.2, 0.3, 0.4)]
    assert list(subsets(steered)) == ["all"]
    more = [*steered, taught("steer", layer=16, dose=0.3), taught("prompt")]
    assert {name: len(part) for name, part in subsets(more).items()} == {
        "all": 6, "steered": 5, "steered after block 24": 4,
    }  # fmt: skip


def test_nothing_is_said_where_doses_are_not_known(kept: Results) -> None:
    assert subsets([taught("prompt")] * 8) == {}
    bare = kept.model_copy(update={"alignments": []})
    assert dose_table(bare).rows == ()
