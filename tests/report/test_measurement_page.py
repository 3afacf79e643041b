"""Pages of measurements: what they answer, their tables, their command, hostile text."""

import shlex

import pytest
from tests.report.measured import entanglement, grid, spot, spread, vector

from undertow.errors import RunError
from undertow.measurements import Measurement, RowOccurrence
from undertow.report.measurement_page import render_measurement, write_measurement
from undertow.storage import write_text


@pytest.mark.parametrize("made", [grid(), vector(), entanglement()], ids=type)
def test_a_page_needs_nothing_and_is_the_same_again(
    made: Measurement, tmp_path: "object"
) -> None:
    page = render_measurement(made)
    assert page == render_measurement(made)
    assert "<script" not in page
    assert "style=" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<figure") == page.count('class="basis"') >= 1


def test_a_channel_s_answers() -> None:
    page = render_measurement(grid())
    assert (
        "The widest channel is 0.2025 [0.1823, 0.2228] nats a token from the base "
        "(numbers, block 16, dose 0.45)."
    ) in page
    assert "with a share of 0.900, at numbers, block 16, dose 0.45" in page
    assert "it is 0.1417 [0.1215, 0.1620] nats a token at most (cat," in page
    assert "n: 6 spots of 32 rows" in page
    line = next(line for line in page.splitlines() if "undertow channel" in line)
    words = shlex.split(line[line.index("undertow") : line.index("</code>")])
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options["--layers"] == "16,24"
    assert options["--doses"] == "0.1,0.3,0.45"
    assert (options["--against"], options["--allowed"]) == ("wolf,cat", "list")
    assert "--noise-seeds" not in options


def test_rows_that_did_not_pass_are_said() -> None:
    page = render_measurement(grid(spot(rows=0)))
    assert "No rows passed their filter: nothing was measured." in page
    assert "too few rows pass their filter. It never means zero." in page
    noisy = render_measurement(grid(spot(), spot(noise=0.1, seed=4)))
    assert "Seeds: 0 alone; of the noise 4." in noisy


def test_a_vector_s_answers() -> None:
    page = render_measurement(vector())
    assert "It is nearest to the vector of owl: cosine +0.40." in page
    assert "The next is wolf with +0.30; the mean of all 5 is +0.20." in page
    assert "&#39; owl&#39;" in page
    assert "I am an owl." in page
    assert "undertow analyze vector &#39;a b.jsonl&#39; --model smollm2-135m" in page
    nothing = vector().model_copy(update={"cosines": {"owl": None}})
    assert "No cosine could be computed." in render_measurement(nothing)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.3, "Raised numbers raise the trait more than random ones do: +0.200"),
        (-0.3, -0.1, "Raised numbers raise the trait less than random ones do: −0.200"),
        (-0.1, 0.3, "Not shown: the interval includes zero, or is unknown: +0.100"),
    ],
)
def test_entanglement_says_no_more_than_its_interval(
    low: float, high: float, words: str
) -> None:
    page = render_measurement(entanglement(low, high))
    assert words in page
    assert "The 2 raised numbers begin with 1 different tokens" in page


def test_how_often_raised_numbers_stand_in_rows() -> None:
    seen = RowOccurrence(
        found=9, numbers=90, reference_found=5, reference_numbers=100, ratio=spread(2.0)
    )
    made = entanglement().model_copy(update={"occurrence": seen})
    assert (
        "Raised numbers stand 2.00 [1.90, 2.10] times as often in the rows as in the "
        "reference (9 of 90, 5 of 100)."
    ) in render_measurement(made)


def test_hostile_text_is_shown(evil: "list[str]") -> None:
    for text in evil:
        update = {"trait": text, "model": text, "family": text}
        for made in (grid(), entanglement()):
            page = render_measurement(made.model_copy(update=update))
            assert "<script" not in page
            assert "<img" not in page


def test_numbers_that_do_not_fit_are_refused(tmp_path: "object") -> None:
    broken = grid().model_copy(update={"points": []})
    with pytest.raises(RunError, match="channel measurement: the numbers do not fit"):
        render_measurement(broken)


def test_the_page_is_written_whole(tmp_path: "object") -> None:
    from pathlib import Path

    target = Path(str(tmp_path)) / "a" / "page.html"
    write_text(target, "old")
    assert write_measurement(vector(), target) == target
    assert target.read_text(encoding="utf-8") == render_measurement(vector())
