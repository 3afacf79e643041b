"""Figures of trained vectors and told numbers: order, places, labels."""

import math

import numpy as np
import pytest
from tests.report.measured import entanglement, vector
from tests.report.test_inner_figures import marks

from undertow.report.drawings import drawable
from undertow.report.measurement_figures import (
    draw_entanglement_figures,
    draw_vector_figures,
)


def test_traits_stand_by_size_and_the_first_is_coloured() -> None:
    figures = draw_vector_figures(vector())
    cosines, moved = figures["likeness"].panels
    assert cosines.title == "Cosine with each trait's vector, block 15"
    assert "Largest: owl +0.40, wolf +0.30, cat +0.20" in cosines.label
    assert "Largest: owl +1.90, cat −0.40" in moved.label, "null is left out"
    ((own, _),) = marks(cosines.svg, "student")
    others = [x for x, _ in marks(cosines.svg, "control")]
    assert own > max(others)
    assert others == sorted(others, reverse=True)


def test_each_set_has_its_losses() -> None:
    figures = draw_vector_figures(vector())
    assert figures["losses"].legend == (("student", "rows"), ("control", "control"))
    assert "rows 1.400, control 1.950" in figures["losses"].panels[0].label
    alone = draw_vector_figures(vector(control=False))
    assert alone["losses"].legend == (("student", "rows"),)
    nothing = vector().model_copy(update={"sets": [], "cosines": {"owl": None}})
    assert set(draw_vector_figures(nothing)) == {"likeness"}


def test_told_numbers_stand_by_change_and_effect() -> None:
    (figure,) = draw_entanglement_figures(entanglement()).values()
    told, groups = figure.panels
    (first, high), (second, _) = marks(told.svg, "student")
    (random, low), _ = marks(told.svg, "control")
    assert second - first == pytest.approx((first - random) / 20, rel=0.05)
    assert high < low, "a larger effect stands higher"
    assert "raised 0.200" in groups.label.replace("+", "")
    assert "raised − random +0.200" in groups.label
    assert len(marks(groups.svg, "ink")) == 1


def test_numbers_that_no_axis_holds_leave_a_gap() -> None:
    assert [drawable(v) for v in (None, math.nan, math.inf, 1e300, np.float64(2.0))] == [
        False, False, False, False, True,
    ]  # fmt: skip
    wild = vector().model_copy(
        update={"cosines": {"owl": 1e300, "cat": 0.1, "dog": 0.2}}
    )
    panel = draw_vector_figures(wild)["likeness"].panels[0]
    assert "Largest: dog +0.20, cat +0.10" in panel.label
