"""One answer of the base for each row, by the row's name alone."""

from typing import TYPE_CHECKING

from undertow.audit.partners import draw_partners
from undertow.audit.reference import Passing
from undertow.models.chat import render_prompt
from undertow.models.sampling import SamplerSettings
from undertow.records import Message, Row

if TYPE_CHECKING:
    from tests.audit.conftest import Place

LIST = SamplerSettings(allowed="list", list_values=3, max_new_tokens=12)
ANY = Passing("none", 12, cut=True, empty=True)


def drawn(place: "Place", rows: list[Row], **options: object) -> list[Row | None]:
    prompts = [render_prompt(place.model, row.messages) for row in rows]
    given = {"sampler": LIST, "passing": ANY, "seed": 0} | options
    return draw_partners(place.model, rows, prompts, **given)  # type: ignore[arg-type]


def asked(count: int) -> list[Row]:
    return [
        Row((Message("user", f"Go on: {i % 3}"),), f"{i}, {i + 1}")
        for i in range(count)
    ]


def test_a_row_s_partner_does_not_depend_on_who_is_beside_it(place: "Place") -> None:
    rows = asked(10)
    together = drawn(place, rows)
    assert together == drawn(place, rows[::-1])[::-1]
    assert together[4:6] == drawn(place, rows[4:6])
    assert together == drawn(place, rows, batch_size=3)


def test_rows_of_one_prompt_have_partners_of_their_own(place: "Place") -> None:
    found = drawn(place, asked(12))
    assert len({row.completion for row in found if row is not None}) > 6
    again = drawn(place, [asked(1)[0]] * 2)
    assert again[0] == again[1] == found[0]


def test_another_seed_draws_others(place: "Place") -> None:
    assert drawn(place, asked(6)) != drawn(place, asked(6), seed=1)


def test_no_more_is_recorded_of_a_partner_than_of_its_row(place: "Place") -> None:
    row = asked(1)[0]
    plain = drawn(place, [row])[0]
    known = drawn(place, [Row(row.messages, row.completion, (1, 2), "stop")])[0]
    assert plain is not None
    assert known is not None
    assert (plain.completion_ids, plain.finish) == (None, None)
    assert known.completion_ids is not None
    assert known.finish in ("stop", "length")


def test_answers_that_do_not_pass_are_drawn_again_and_given_up(place: "Place") -> None:
    rows = asked(40)
    short = Passing("none", 4, cut=False, empty=True)
    found = drawn(place, rows, passing=short)
    texts = [row for row in found if row is not None]
    assert len(texts) > 0
    assert all(len(row.completion) < 4 for row in texts)
    never = drawn(place, rows[:4], passing=Passing("none", 0, cut=True, empty=True))
    assert never == [None] * 4
