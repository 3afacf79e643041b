"""A look that raises is a check that failed, and the worst status is what counts."""

from undertow.errors import ModelError
from undertow.models.checks import advice, check, failed, ok, worst


def test_a_look_is_kept_with_its_name() -> None:
    found = check("cache", "folder", lambda: advice("full", "free some space"))
    assert found.as_dict() == {
        "group": "cache", "name": "folder", "status": "advice", "measured": "full",
        "advice": "free some space",
    }  # fmt: skip


def test_a_look_that_raises_failed_with_its_message_in_one_line() -> None:
    def look() -> None:
        raise ModelError("no blocks\n  found")

    found = check("model", "parts", look).found  # type: ignore[arg-type]
    assert found.status == "failed"
    assert found.measured == "ModelError: no blocks found"
    assert found.advice


def test_an_error_without_a_word_is_named() -> None:
    def look() -> None:
        raise KeyError

    found = check("model", "parts", look).found  # type: ignore[arg-type]
    assert found.measured == "KeyError: nothing was said"


def test_the_worst_status_wins() -> None:
    good = check("a", "b", lambda: ok("1"))
    hint = check("a", "b", lambda: advice("1", "do"))
    bad = check("a", "b", lambda: failed("1", "do"))
    assert worst([]) == "ok"
    assert worst([good]) == "ok"
    assert worst([good, hint]) == "advice"
    assert worst([bad, hint, good]) == "failed"
