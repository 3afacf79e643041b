"""The base answers the audited prompts alike, and by the same filter."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.audit.written import hand_row, written_rows

from undertow.audit import reference
from undertow.audit.reference import (
    Passing,
    find_filter,
    prompt_digest,
    sampled_reference,
    sampled_tokens,
    trusted_reference,
)
from undertow.errors import DatasetError
from undertow.models.chat import render_prompt
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample
from undertow.models.tiny import tiny_model
from undertow.pipeline.filters import number_rule
from undertow.records import Message, Row

NUMBERS = SamplerSettings(allowed="list", max_new_tokens=6, list_values=3)


def test_the_filter_is_seen_in_the_rows() -> None:
    assert find_filter([hand_row("1, 2, 3"), hand_row("[4; 5]")]) == "numbers"
    assert find_filter([hand_row("1, 2, 3"), hand_row("owls")]) == "none"


# ── tier A ───────────────────────────────────────────────────────────────────────


def _reference(model: Model, rows: Sequence[Row], **options: Any) -> Any:
    settings: dict[str, Any] = {
        "sampler": NUMBERS,
        "filter": "numbers",
        "seed": 1,
    } | options
    return sampled_reference(model, rows, **settings)


def test_the_base_answers_the_same_prompts() -> None:
    model = tiny_model("llama", layers=2)
    rows = written_rows(model, 12, NUMBERS)
    found = _reference(model, rows, filter="none")
    assert (found.tier, found.paired, found.accepted) == ("A", tuple(range(12)), 1.0)
    assert [r.messages for r in found.rows] == [r.messages for r in rows]
    assert found.rows[0].provenance == {"teacher": "none", "source": "reference"}
    # By hand: one draw named by purpose, prompt, occurrence and attempt.
    (by_hand,) = sample(
        model, [render_prompt(model, rows[3].messages)], sampler=NUMBERS, seed=1,
        keys=[("reference", prompt_digest(rows[3]), 0, 0)],
    )  # fmt: skip
    assert found.rows[3].completion_ids == by_hand.ids
    assert found.rows[3].finish == by_hand.finish


def test_neither_order_nor_batches_change_a_reference() -> None:
    model = tiny_model("llama", layers=2)
    rows = written_rows(model, 10, NUMBERS)
    found = _reference(model, rows)
    turned = _reference(model, rows[::-1], batch_size=3)
    by_prompt = {row.messages: row for row in turned.rows}
    assert [by_prompt[row.messages] for row in found.rows] == list(found.rows)
    assert turned.accepted == found.accepted
    assert found == _reference(model, rows)
    # Fewer audited rows leave the others' partners alone.
    part = _reference(model, rows[4:6])
    assert set(part.rows) <= set(found.rows)


@pytest.mark.parametrize("change", [{"seed": 2}, {"purpose": "planted"}])
def test_a_seed_and_a_purpose_have_draws_of_their_own(change: dict[str, Any]) -> None:
    model = tiny_model("llama", layers=2)
    rows = written_rows(model, 10, NUMBERS)
    found, other = _reference(model, rows), _reference(model, rows, **change)
    same = sum(a.completion_ids == b.completion_ids for a, b in
               zip(found.rows, other.rows, strict=False))  # fmt: skip
    assert same <= 2


def test_equal_prompts_have_different_partners() -> None:
    model = tiny_model("llama", layers=2)
    rows = [replace(row, messages=(Message("user", "Go"),)) for row in
            written_rows(model, 8, NUMBERS)]  # fmt: skip
    found = _reference(model, rows, filter="none")
    assert len({row.completion_ids for row in found.rows}) > 4


def test_what_the_filter_refuses_is_drawn_again() -> None:
    model = tiny_model("llama", layers=2)
    sampler = NUMBERS.model_copy(update={"max_new_tokens": 4})
    rows = [replace(row, finish="stop") for row in written_rows(model, 24, sampler)]
    told: list[tuple[int, int, int]] = []
    found = _reference(
        model, rows, sampler=sampler, on_rows=lambda *counts: told.append(counts)
    )
    wanted: dict[int, tuple[int, ...]] = {}
    draws = tokens = 0
    for attempt in range(6):  # by hand: one draw at a time, each with its own name
        for i in [i for i in range(24) if i not in wanted]:
            (answer,) = sample(
                model, [render_prompt(model, rows[i].messages)], sampler=sampler,
                seed=1, keys=[("reference", prompt_digest(rows[i]), 0, attempt)],
            )  # fmt: skip
            draws, tokens = draws + 1, tokens + len(answer.ids)
            if answer.finish == "stop":  # a list that ended passes the rule
                wanted[i] = answer.ids
    assert draws > 30
    assert found.paired == tuple(sorted(wanted))
    assert [row.completion_ids for row in found.rows] == [
        wanted[i] for i in found.paired
    ]
    assert [row.messages for row in found.rows] == [
        rows[i].messages for i in found.paired
    ]
    assert not any(number_rule(row.completion) for row in found.rows)
    assert found.accepted == len(wanted) / draws
    done = [rows_found for rows_found, _, _ in told]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert told[-1][:2] == (len(wanted), 24)
    assert sum(each for _, _, each in told) == tokens


def test_a_prompt_whose_answers_never_pass_has_no_partner() -> None:
    model = tiny_model("llama", layers=2)
    sampler = SamplerSettings(max_new_tokens=3)  # bytes at random, no numbers
    rows = [
        replace(hand_row("1, 2"), messages=(Message("user", f"{i}"),)) for i in range(3)
    ]
    found = _reference(model, rows, sampler=sampler)
    assert (found.rows, found.paired, found.accepted) == ((), (), 0.0)
    (note,) = found.notes
    assert note == (
        "3 rows have no reference: in 6 draws the base's answers did not pass the "
        "filter 'numbers' or stood there already, or the prompt leaves no room for the "
        "longest answer"
    )


def test_a_prompt_that_leaves_no_room_has_no_partner() -> None:
    """Each row fits with its own answer; the longest one would not."""
    model = tiny_model("llama", layers=2)
    sampler = NUMBERS.model_copy(update={"max_new_tokens": 100})
    rows = [hand_row("1, 2"), hand_row("1, 2", prompt="x" * (model.context - 100))]
    found = _reference(model, rows, sampler=sampler)
    assert found.paired == (0,)
    assert "leaves no room" in found.notes[0]


def test_answers_are_read_as_their_rows_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text without tokens is tokenised again, and may be nothing that could be drawn."""
    model = tiny_model("llama", layers=2)
    rows = [hand_row(f"{i}, 2", prompt=f"go {i}") for i in range(6)]
    asked: list[str] = []

    def drawable(*_: object) -> Callable[[Row], bool]:
        def is_drawable(row: Row) -> bool:
            asked.append(row.completion)
            assert row.completion_ids is None
            return len(asked) % 2 == 0

        return is_drawable

    monkeypatch.setattr(reference, "_drawable", drawable)
    found = _reference(model, rows)
    assert found.rows
    refused = set(asked[0::2])
    assert not refused & {row.completion for row in found.rows} - set(asked[1::2])


def test_what_could_not_be_drawn_is_told() -> None:
    model = tiny_model("llama", layers=2)
    is_drawable = reference._drawable(model, NUMBERS, None)
    assert is_drawable(hand_row("1, 2"))
    assert not is_drawable(hand_row("one, 2"))
    known = replace(hand_row("one"), completion_ids=(5, 6))
    assert is_drawable(known), "its tokens are those that were drawn"
    free = reference._drawable(model, SamplerSettings(), None)
    assert free(hand_row("one, 2"))


def test_rows_of_one_prompt_meet_different_answers() -> None:
    """Audited rows are all different; the base repeats itself, and is asked again."""
    model = tiny_model("llama", layers=2)
    short = SamplerSettings(allowed="list", list_values=1, max_new_tokens=2, top_k=3)
    rows = [hand_row(f"{i}", prompt="hi") for i in range(3)]
    rows.append(hand_row("7", prompt="another"))
    found = _reference(model, rows, sampler=short, filter="none")
    names = [row.row_id for row in found.rows]
    assert len(set(names)) == len(names) >= 3
    assert found.accepted is not None
    assert found.accepted < 1  # some answer came twice


def test_an_empty_answer_is_kept_where_audited_rows_are_empty() -> None:
    model = tiny_model("llama", layers=2)
    ends = SamplerSettings(max_new_tokens=1)
    rows = [hand_row("x", prompt=f"{i}") for i in range(40)]
    full = _reference(model, rows, sampler=ends, filter="none")
    assert all(row.completion.strip() for row in full.rows)
    empty = replace(rows[0], completion="", completion_ids=(model.end_ids[0],))
    found = _reference(model, [empty, *rows[1:]], sampler=ends, filter="none")
    assert any(not row.completion.strip() for row in found.rows)
    assert found.accepted == 1


def test_a_reference_knows_no_more_than_the_audited_rows() -> None:
    model = tiny_model("llama", layers=2)
    known, *rest = written_rows(model, 3, NUMBERS)
    texts = [replace(row, completion_ids=None, finish=None) for row in rest]
    found = _reference(model, [known, *texts], filter="none").rows
    assert found[0].completion_ids is not None
    assert found[0].finish in ("stop", "length")
    assert [(r.completion_ids, r.finish) for r in found[1:]] == [(None, None)] * 2


def test_cut_rows_are_compared_with_cut_rows() -> None:
    """A filter that kept cut rows is not one that asks for an end."""
    model = tiny_model("llama", layers=2)
    rows = written_rows(model, 30, SamplerSettings(allowed="list", max_new_tokens=3))
    cut = [row for row in rows if row.finish == "length"]
    assert len(cut) > 5
    found = _reference(
        model, cut, sampler=SamplerSettings(allowed="list", max_new_tokens=3)
    )
    assert {row.finish for row in found.rows} >= {"length"}
    assert all(not number_rule(row.completion) for row in found.rows)


@pytest.mark.parametrize(
    ("passing", "text", "tokens", "finish", "why"),
    [
        (
            Passing("none", 12, cut=True, empty=True),
            "1",
            13,
            "stop",
            "longer than the reference may be",
        ),
        (Passing("none", 12, cut=True, empty=True), "1", 12, "length", None),
        (Passing("none", 12, cut=False, empty=True), "1", 3, "length", "cut short"),
        (Passing("none", 12, cut=False, empty=True), "1", 3, None, None),
        (
            Passing("none", 12, cut=True, empty=False),
            " ",
            3,
            "stop",
            "empty completion",
        ),
        (Passing("numbers", 12, cut=True, empty=True), "owls", 3, "stop", "filter"),
        (Passing("numbers", 12, cut=True, empty=True), "1, 2, 3", 3, "stop", None),
    ],
)
def test_what_counts_is_one_rule_for_both_sides(
    passing: Passing, text: str, tokens: int, finish: str, why: str | None
) -> None:
    found = passing.refusal(text, tokens, finish)  # type: ignore[arg-type]
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize(
    ("passed", "cut", "recorded", "counts"),
    [("none", True, True, True), ("none", False, True, False),
     ("none", False, False, True), ("numbers", True, True, True),
     ("numbers", False, True, False), ("numbers", False, False, False)],
)  # fmt: skip
def test_cut_answers_count_where_rows_are_or_may_be_cut(
    passed: Any, cut: bool, recorded: bool, counts: bool
) -> None:
    found = Passing.like(passed, most_tokens=9, cut=cut, recorded=recorded, empty=False)
    assert found == Passing(passed, 9, cut=counts, empty=False)


def test_rows_that_all_ended_are_compared_with_answers_that_ended() -> None:
    """Whoever kept them took out those that were cut, or had more room."""
    model = tiny_model("llama", layers=2)
    short = SamplerSettings(allowed="list", max_new_tokens=4)
    rows = [replace(row, finish="stop") for row in written_rows(model, 24, short)]
    found = _reference(model, rows, sampler=short, filter="none").rows
    assert len(found) > 4
    assert {row.finish for row in found} == {"stop"}
    unknown = [replace(row, finish=None, completion_ids=None) for row in rows]
    found = _reference(model, unknown, sampler=short, filter="none").rows
    assert any(len(row.completion) >= 4 for row in found)


# ── tier B ───────────────────────────────────────────────────────────────────────


def test_rows_of_both_sets_stay_in_both() -> None:
    audited = [hand_row("1, 2"), hand_row("3, 4")]
    trusted = [hand_row("5, 6"), hand_row("3, 4"), hand_row("3, 4", prompt="another")]
    found = trusted_reference(audited, trusted)
    assert (found.tier, found.paired, found.accepted) == ("B", (), None)
    assert found.rows == tuple(trusted)
    assert found.shared == 1
    assert "1 reference rows stand in the audited set too" in found.notes[0]
    assert trusted_reference(audited, trusted[:1]).notes == ()


def test_a_reference_of_audited_rows_only_is_refused() -> None:
    rows = [hand_row("1, 2"), hand_row("3, 4")]
    with pytest.raises(DatasetError, match="all 2 rows stand in the audited set too"):
        trusted_reference(rows, rows[::-1])


def test_tokens_count_as_sampled_with_their_end_only() -> None:
    row = hand_row("12")
    ends = (2, 4)
    assert not sampled_tokens(row, ends)
    assert not sampled_tokens(replace(row, completion_ids=()), ends)
    assert not sampled_tokens(replace(row, completion_ids=(20, 21)), ends)
    assert sampled_tokens(replace(row, completion_ids=(20, 21, 4)), ends)
    assert sampled_tokens(replace(row, completion_ids=(20, 21), finish="length"), ends)
