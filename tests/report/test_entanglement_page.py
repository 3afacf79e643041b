"""The page on entangled numbers says no more than its intervals."""

import shlex

import pytest
from tests.report.measured import entanglement, spread

from undertow.measurements import RowOccurrence
from undertow.report.entanglement_page import entanglement_content


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.3, "Raised numbers raise the trait more than random ones do: +0.200"),
        (-0.3, -0.1, "Raised numbers raise the trait less than random ones do: −0.200"),
        (-0.1, 0.3, "Not shown: the interval includes zero, or is unknown: +0.100"),
    ],
)
def test_the_lead_follows_the_interval(low: float, high: float, words: str) -> None:
    lead, ranks, caution = entanglement_content(entanglement(low, high)).answers
    assert lead.startswith(words)
    assert (
        ranks
        == "Ranks of change and effect correlate +0.50 [−0.20, +0.90] over 6 numbers."
    )
    assert caution.startswith("The 2 raised numbers begin with 1 different tokens")


def test_how_often_raised_numbers_stand_in_rows() -> None:
    seen = RowOccurrence(
        found=9, numbers=90, reference_found=5, reference_numbers=100, ratio=spread(2.0)
    )
    made = entanglement().model_copy(
        update={"occurrence": seen, "rows": "a.jsonl", "reference": "b.jsonl"}
    )
    content = entanglement_content(made)
    assert content.answers[-1] == (
        "Raised numbers stand 2.00 [1.90, 2.10] times as often in the rows as in the "
        "reference (9 of 90, 5 of 100)."
    )
    words = shlex.split(content.command)
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert (options["--rows"], options["--reference"]) == ("a.jsonl", "b.jsonl")
    assert (options["--numbers"], options["--questions"]) == ("40", "2")
