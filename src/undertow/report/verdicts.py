"""What an interval allows one to say: the words of a report's answer.

An interval that includes zero shows no transfer, and that is said; so is an interval that
could not be computed.
"""

import math

from undertow.report.text import cell_name, known, level_text
from undertow.results import Estimate, Results

TRAVELLED, AGAINST = "travelled", "moved the other way"
NOT_SHOWN, NO_INTERVAL = "no transfer shown", "no interval"
NOT_COMPUTED = "not computed"


def verdict(estimate: Estimate) -> str:
    """The outcome of a difference from a control, in two or three words."""
    if not known(estimate.mean):
        return NOT_COMPUTED
    low, high = estimate.low, estimate.high
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return NO_INTERVAL
    if low > 0:
        return TRAVELLED
    return AGAINST if high < 0 else NOT_SHOWN


def plain_words(results: Results) -> list[str]:
    """One sentence for each kind of outcome that there was; if several, a tally first."""
    noisy = any(t.noise for t in results.transfers)
    found: dict[str, list[str]] = {}
    for item in results.transfers:
        name = cell_name(item.teacher, item.noise, item.trait, is_noisy=noisy)
        found.setdefault(verdict(item.transfer), []).append(name)
    shown, total = len(found.get(TRAVELLED, ())), len(results.transfers)
    sentences = []
    if total > 1:
        sentences = [f"Transfer was shown in {shown} of {total} conditions."]
        # The others need their sentences; these have their rows in the table.
        found.pop(TRAVELLED, None)
    for outcome, (before, after) in _words(level_text(results.confidence)).items():
        if outcome in found:
            sentences.append(f"{before}{'; '.join(found[outcome])}{after}.")
    return sentences


def _words(level: str) -> dict[str, tuple[str, str]]:
    return {
        TRAVELLED: ("Transfer was shown for ", f": its {level} interval excludes zero"),
        NOT_SHOWN: (
            "No transfer was shown for ",
            f": its {level} interval includes zero",
        ),
        AGAINST: ("Against the teacher's trait moved ", ""),
        NO_INTERVAL: ("Nothing is shown for ", ": no interval could be computed"),
        NOT_COMPUTED: ("Nothing could be computed for ", ""),
    }
