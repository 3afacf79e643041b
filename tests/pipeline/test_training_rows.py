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
    assert packed_parts(rows, token_budget=24) == [[sorted_by_length(rows)]]
    two = packed_parts(rows, token_budget=23)  # 36 tokens, and half as many again fit
    assert [sum(row.length for row, _ in own) for (own,) in two] == [18, 18]
    assert sorted_by_length([each for (own,) in two for each in own]) == (
        sorted_by_length(rows)
    )
    alone = packed_parts(rows, token_budget=1)
    assert [len(own) for (own,) in alone] == [1] * 6


def sorted_by_length(rows: list[Weighted]) -> list[Weighted]:
    return sorted(rows, key=lambda each: -each[0].length)
