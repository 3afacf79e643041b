"""Onsets of curves that are known."""

import math

from undertow.stats import onset


def test_it_is_where_the_rise_that_ends_at_the_top_begins() -> None:
    assert onset([0.0, 0.1, 0.3, 0.6, 0.5]) == 2
    assert onset([0.0, 0.1, 0.3, 0.6, 0.5], share=0.9) == 3
    assert onset([0.5, 0.1, 0.3, 0.6]) == 2, "an earlier hill is another one"
    assert onset([0.4, 0.5, 0.6]) == 0
    assert onset([0.1, None, 0.6]) == 2
    assert onset([0.5, math.nan, 0.6]) == 2


def test_what_never_rises_has_none() -> None:
    assert onset([]) is None
    assert onset([0.0, -0.1]) is None
    assert onset([None, math.nan]) is None
