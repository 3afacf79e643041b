"""Tables of channels and gradients: what stands in them, and why there is a dash."""

import pytest

from undertow.report.inner_tables import (
    cause_table,
    channel_table,
    gradient_table,
    prediction_table,
    prediction_words,
    scope_of,
    ways_of,
)
from undertow.report.tables import Row
from undertow.results import Prediction, Results


def texts(row: Row) -> list[tuple[str, str]]:
    return [(cell.text, cell.below) for cell in row]


def test_the_channel_stands_beside_its_transfer(realistic: Results) -> None:
    table = channel_table(realistic)
    assert len(table.rows) == 4
    name, every, sampled, row, moved = texts(table.rows[0])
    assert name == ("owl", "steer, noise 0")
    assert every == ("0.041", "[0.037, 0.045]")
    assert sampled == ("0.024", "[0.021, 0.027]")
    assert row == ("0.72", "[0.62, 0.82]")
    assert moved[0] == "+0.42"


def test_what_was_foretold_is_said_with_its_uncertainty(realistic: Results) -> None:
    (row,) = prediction_table(realistic).rows
    assert texts(row) == [
        ("transfer: student − control, nats", "channel as sampled"),
        ("+0.80", "[−0.20, +0.98]"), ("4", ""), ("0.083", ""),
    ]  # fmt: skip
    words = prediction_words(realistic.predictions[0])
    assert words.startswith("ρ = +0.80 [")
    assert words.endswith("over 4 cells, p 0.083")


def test_soft_students_see_all_tokens() -> None:
    assert [scope_of(kind) for kind in ("lora", "full", "soft")] == [
        "carrier", "carrier", "vocabulary"
    ]  # fmt: skip


def test_students_trained_otherwise_are_told_apart(realistic: Results) -> None:
    other = {"student": "soft", "way": "optimizer sgd"}
    transfers = [
        *realistic.transfers,
        *(t.model_copy(update=other) for t in realistic.transfers),
    ]
    found = realistic.model_copy(
        update={
            "transfers": transfers,
            "predictions": [
                *realistic.predictions,
                realistic.predictions[0].model_copy(update=other),
            ],
        }
    )
    assert ways_of(found) == [("lora", ""), ("soft", "optimizer sgd")]
    below = [texts(row)[0][1] for row in prediction_table(found).rows]
    assert below == [
        "channel as sampled; students: lora",
        "channel as sampled; students: soft, optimizer sgd",
    ]


def test_gradients_of_own_and_other_vectors(realistic: Results) -> None:
    table = gradient_table(realistic)
    (row,) = table.rows
    found = dict(zip(table.columns, texts(row), strict=True))
    assert found["block"] == ("block 24", "")
    assert found["#own vector"] == ("+0.060", "[+0.030, +0.090]")
    assert found["#others'"][0] == "+0.001"
    assert found["#unsteered"] == ("—", "")
    assert found["#r over doses"][0] == "+0.97"
    assert found["#bend"][0] == "—"
    assert "every teacher was steered" in table.all_notes[-1]


def test_what_a_shift_does_stands_beside_what_is_to_be_explained(
    realistic: Results, empty: Results
) -> None:
    table = cause_table(realistic)
    assert len(table.rows) == len(realistic.conditions)
    causes = realistic.conditions[0].causes
    assert causes is not None
    name, block, whole, sufficient, necessary = texts(table.rows[0])
    assert name == ("owl", "steer, noise 0, seed 0")
    assert block[0] == "24"
    for found, wanted in zip(
        (whole, sufficient, necessary),
        (causes.whole, causes.sufficient, causes.necessary), strict=True,
    ):  # fmt: skip
        assert found[0] == f"{wanted.mean:+.2f}"
    assert cause_table(empty).rows == ()


@pytest.mark.parametrize("mean", [None, float("nan")])
def test_no_correlation_is_said_to_be_none(mean: float | None, empty: Results) -> None:
    assert channel_table(empty).rows == prediction_table(empty).rows == ()
    nothing = Prediction(
        scope="carrier", of="transfer", p_value=None,
        correlation=empty.transfers[0].transfer.model_copy(update={"mean": mean}),
    )  # fmt: skip
    assert prediction_words(nothing) == "no correlation could be computed"
