"""Parts of batches: nothing is lost, nobody has more rows than another."""

from undertow.models.chat import Rendered
from undertow.pipeline.training_rows import Example, Weighted, packed_parts, parts_of


def _rows(*lengths: int, share: float) -> list[Weighted]:
    return [(Example(Rendered([7] * n, 2)), share) for n in lengths]


def test_lengths_are_the_student_s() -> None:
    row = Example(Rendered([7, 8, 9, 2], 1), Rendered([5, 5, 5, 8, 9, 2], 3))
    assert (row.length, row.counted) == (4, 3)


def test_a_part_holds_equally_many_rows_of_each() -> None:
    mine, theirs = _rows(4, 5, 9, share=0.1), _rows(6, share=0.5)
    parts = parts_of([mine, theirs], token_budget=40)
    assert [[len(own) for own in part] for part in parts] == [[2, 2], [1, 1]]
    assert [row for part in parts for row in part[0]] == mine
    # Who has fewer rows repeats one that counts nothing.
    assert [share for part in parts for _, share in part[1]] == [0.0, 0.0, 0.5]
    assert {row.length for part in parts for row, _ in part[1]} == {6}


def test_a_budget_that_holds_no_row_still_takes_one_at_a_time() -> None:
    parts = parts_of([_rows(4, 5, share=1.0)], token_budget=1)
    assert [[len(own) for own in part] for part in parts] == [[1], [1]]


def test_the_longer_view_is_what_has_to_fit() -> None:
    row = Example(Rendered([7, 8, 9, 2], 1), Rendered([5, 5, 5, 8, 9, 2], 3))
    assert row.longest == 6
    assert Example(Rendered([7, 8, 9, 2], 1)).longest == 4


def test_parts_that_are_not_padded_hold_about_as_many_tokens() -> None:
    rows = _rows(9, 3, 8, 4, 7, 5, share=0.5)
    ordered = sorted(rows, key=lambda each: each[0].length)
    assert packed_parts(rows, token_budget=27) == [[ordered]]
    two = packed_parts(rows, token_budget=23)  # 36 tokens, and half as many again fit
    assert [[row.length for row, _ in own] for (own,) in two] == [[3, 4, 5, 7], [8, 9]]
    alone = packed_parts(rows, token_budget=1)
    assert [len(own) for (own,) in alone] == [1] * 6


def test_a_long_row_is_not_packed_with_short_ones() -> None:
    """Attention would pad each of them to its length."""
    rows = _rows(500, *(50,) * 31, share=1.0)
    parts = packed_parts(rows, token_budget=1536)
    assert sum(len(own) for (own,) in parts) == 32
    for (own,) in parts:
        lengths = [row.length for row, _ in own]
        assert len(own) * max(lengths) <= 2 * 1536
        assert sum(lengths) <= 1.5 * 1536
