"""What a census will take: worked by hand."""

import pytest

from undertow.audit.census_cost import census_cost, row_operations, tokens_of
from undertow.audit.cost import Size
from undertow.audit.shards import Survey

SIZE = Size(parameters=1100, embedding=100, hidden=5, vocabulary=20, layers=2)


def seen(rows: int) -> Survey:
    return Survey(
        rows=rows, without_prompt=0, characters=(25 * rows, 20 * rows),
        digits=(0, 10 * rows), cut=False, recorded=False, empty=False, skipped={}, first_fault="",
        digest=0, sizes=(1,), pilot=(), subsample=(),
    )  # fmt: skip


def test_operations_are_worked_by_hand() -> None:
    # 1,000 weights and a head of 20 × 5: 2,000 and 200 operations a token.
    read = 2000 * 10 + 2 * 2200 * 4
    assert row_operations(SIZE, prompt=10.0, completion=4.0, tier="B") == read / 0.7
    drawn = 2000 * 14 + 200 * 4
    paired = (read + 2 * 2200 * 4) / 0.7 + drawn / 0.25
    assert row_operations(SIZE, prompt=10.0, completion=4.0, tier="A") == pytest.approx(
        paired
    )


def test_tokens_are_guessed_from_characters() -> None:
    assert tokens_of(seen(7)) == (25 / 2.5 + 30, 10 + 10 / 2.5 + 1)


def test_cost_is_in_proportion_to_rows_and_counts_both_sides() -> None:
    one = census_cost(seen(10), None, size=SIZE, tier="A", flops=100.0)
    ten = census_cost(seen(100), None, size=SIZE, tier="A", flops=1000.0)
    assert ten.operations == pytest.approx(10 * one.operations)
    assert ten.seconds == pytest.approx(one.seconds)
    assert (one.rows, one.tokens) == (20, 550)
    both = census_cost(seen(10), seen(30), size=SIZE, tier="B", flops=100.0)
    alone = census_cost(seen(10), None, size=SIZE, tier="B", flops=100.0)
    assert both.operations == pytest.approx(4 * alone.operations)
    assert both.rows == 40
