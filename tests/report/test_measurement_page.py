"""Pages of measurements need nothing, are the same again, and obey no text."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.report.measured import entanglement, grid, spot, vector

from undertow.errors import RunError
from undertow.findings import Token
from undertow.measurements import Measurement, parse
from undertow.report.measurement_page import render_measurement, write_measurement
from undertow.storage import write_text


@pytest.mark.parametrize("made", [grid(), vector(), entanglement()], ids=type)
def test_a_page_needs_nothing_and_is_the_same_again(made: Measurement) -> None:
    page = render_measurement(made)
    assert page == render_measurement(parse(made.model_dump()))
    assert "<script" not in page
    assert "style=" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<figure") == page.count('class="basis"') >= 1


def test_hostile_text_is_shown(evil: Sequence[str]) -> None:
    for text in evil:
        says = vector().says.model_copy(
            update={
                "raised": [Token(text=text, logit=1.0)], "behaviour": [text],
                "lowered": [Token(text=text, logit=-1.0)], "battery": {text: 1.0},
            }
        )  # fmt: skip
        other = spot(carrier=text)
        widths = [w.model_copy(update={"other": text}) for w in other.widths[1:]]
        widths.insert(0, other.widths[0])
        update = {"trait": text, "model": text, "family": text}
        for made in (
            grid(other.model_copy(update={"widths": widths})).model_copy(update=update),
            entanglement().model_copy(update={**update, "rows": text}),
            vector().model_copy(
                update={"model": text, "rows": text, "says": says,
                        "cosines": {text: 0.5, "owl": 0.1}}
            ),
        ):  # fmt: skip
            page = render_measurement(made)
            assert "<script" not in page
            assert "<img" not in page
            assert "javascript:" not in page.casefold().replace("&#34;javascript:", "")


def test_numbers_that_do_not_fit_are_refused() -> None:
    broken = vector().model_copy(update={"sets": None})
    with pytest.raises(RunError, match="vector measurement: the numbers do not fit"):
        render_measurement(broken)


def test_other_files_are_no_measurements() -> None:
    values: tuple[object, ...] = (
        {},
        [],
        {"measurement": "weight"},
        grid().model_dump() | {"more": 1},
    )
    for value in values:
        with pytest.raises(ValidationError):
            parse(value)


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "page.html"
    write_text(target, "old")
    assert write_measurement(vector(), target) == target
    assert target.read_text(encoding="utf-8") == render_measurement(vector())
