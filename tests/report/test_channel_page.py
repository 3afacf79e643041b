"""The page of a channel measurement: its answers, table and command."""

import shlex

import pytest
from tests.report.measured import grid, spot, spread

from undertow.measurements import ChannelMeasurement
from undertow.report.channel_page import channel_content
from undertow.report.measurement_page import render_measurement


def _options(found: ChannelMeasurement) -> dict[str, str]:
    words = shlex.split(channel_content(found).command)
    assert words[:2] == ["undertow", "channel"]
    return dict(zip(words[2::2], words[3::2], strict=True))


def test_the_widest_is_told_as_one_of_many() -> None:
    wide, shown, other = channel_content(grid()).answers
    assert wide == (
        "The widest channel is 0.203 [0.182, 0.223] nats a token from the base (numbers, "
        "block 16, dose 0.45; of 6 the one with the largest lower bound, not corrected "
        "for that)."
    )
    assert shown == (
        "The trait shows most, with a share of 0.900, at numbers, block 16, dose 0.45; "
        "that model without it says 0.030."
    )
    assert other.startswith(
        "There it is 0.101 [0.081, 0.122] nats a token from the nearest of 2 other traits' "
        "teachers (wolf)"
    )
    one = grid().model_copy(update={"against": ["wolf"]})
    assert (
        "nats a token from the teacher of wolf: what" in channel_content(one).answers[2]
    )
    (alone,) = channel_content(
        grid(spot().model_copy(update={"widths": spot().widths[:1]}))
    ).answers
    assert alone.endswith("(numbers, block 24, dose 0.3).")


def test_the_command_has_every_setting() -> None:
    options = _options(grid())
    assert (options["--layers"], options["--doses"]) == ("16,24", "0.1,0.3,0.45")
    assert (options["--against"], options["--allowed"]) == ("wolf,cat", "list")
    assert (options["--dtype"], options["--max-new-tokens"]) == ("bfloat16", "60")
    assert "--noise-seeds" not in options
    assert "--system" not in options
    mixed = grid(spot(), spot(carrier="code"))
    assert "--allowed" not in _options(mixed), "code is drawn from all tokens"
    assert _options(grid().model_copy(update={"system": ""}))["--system"] == ""


def test_few_rows_with_a_large_mean_are_not_the_widest() -> None:
    few = spot(0.45, rows=2)
    wide = [
        w.model_copy(update={"vocabulary": spread(5.0, 9.0, n=2)}) for w in few.widths
    ]
    lead = channel_content(
        grid(spot(), few.model_copy(update={"widths": wide}))
    ).answers
    assert "dose 0.3;" in lead[0]


@pytest.mark.parametrize("mean", [0.0, None])
def test_nothing_and_unknown_are_told_apart(mean: float | None) -> None:
    widths = [
        width.model_copy(update={"vocabulary": spread(mean, 0.0)})
        for width in spot().widths
    ]
    answers = channel_content(
        grid(spot().model_copy(update={"widths": widths}))
    ).answers
    if mean is None:
        assert list(answers) == ["No divergence from the base could be computed."]
    else:
        assert answers[0].startswith("The widest channel is 0.00 [0.00, 0.00] nats")


def test_rows_that_did_not_pass_are_said() -> None:
    page = render_measurement(grid(spot(rows=0)))
    assert "Too few rows passed their filter: nothing was measured." in page
    assert "too few rows pass their filter. It never means zero." in page
    assert "figure-widths" not in page
    noisy = render_measurement(grid(spot(), spot(noise=0.1, seed=4)))
    assert "Seeds: 0 alone; of the noise 4." in noisy
    assert "n: 2 spots of 32 rows." in noisy
    assert "n: 2 spots of 16 to 32 rows." in render_measurement(
        grid(spot(), spot(0.1, rows=16))
    )
