"""What results do not show is said: of controls, sets that were not audited, sweeps."""

from collections.abc import Callable
from typing import Any

from undertow.experiment.limits import LIMITS, limits
from undertow.experiment.recipe import Recipe

Make = Callable[..., Recipe]
SOFT = {"kind": "soft"}
FIXED = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}
SWEPT = {"kind": "steer", "steer": {"sweep": {"layers": [1], "doses": [0.3, 0.5]}}}


def told(found: Recipe, *, audited: int = 0) -> str:
    return " ".join(limits(found, [], audited=audited))


def test_what_always_holds_comes_first(recipe: Make) -> None:
    assert limits(recipe(), [], audited=0)[: len(LIMITS)] == list(LIMITS)
    cross = recipe(writer={"name": "other"}, evaluation={"channel_rows": 0})
    assert "another family was not trained" not in told(cross)
    assert "written by teachers of other" in told(cross)


def test_sets_that_were_not_audited_are_counted(recipe: Make) -> None:
    found = recipe(audit={"rows": 16}, student=SOFT)
    assert "of at most 16 rows were audited blind" in told(found, audited=3)
    assert "could not be audited" not in told(found, audited=3)
    assert "2 of these sets could not be audited" in told(found, audited=1)
    assert "audited" not in told(recipe(), audited=0)


def test_a_decoy_that_was_swept_by_itself_is_told(recipe: Make) -> None:
    def of(**changes: Any) -> str:
        return told(recipe(**changes))

    words = "The decoy's vector was swept by itself"
    assert words in of(teachers=[FIXED | {"name": "a"}, SWEPT], student=SOFT)
    assert words not in of(teachers=[FIXED], student=SOFT)
    assert words not in of(teachers=[SWEPT])
