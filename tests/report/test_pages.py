"""Foreign text on a page: what nobody sees is spelled out, and told from its spelling."""

import pytest

from undertow.errors import DatasetError, RunError
from undertow.report.pages import fitting, marked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain <b> & 'q'", "plain &lt;b&gt; &amp; &#39;q&#39;"),
        ("a\u202eb", r"a<b>\u202e</b>b"),
        # A reader can tell the spelling from the character.
        (r"a\u202eb", r"a\u202eb"),
        ("\x1b[2J\x00", r"<b>\u001b</b>[2J<b>\u0000</b>"),
        ("one\n\ntwo", "one<b>↵</b>\n<b>↵</b>\ntwo"),
        ("\ud800", r"<b>\ud800</b>"),
        ("", ""),
    ],
)
def test_unseen_characters_are_marked(text: str, shown: str) -> None:
    assert str(marked(text)) == shown


def test_line_breaks_can_be_marked_and_left_out() -> None:
    assert str(marked("a\nb", breaks=False)) == "a<b>↵</b>b"


@pytest.mark.parametrize(
    "error",
    [IndexError("out"), ZeroDivisionError("by 0"), OverflowError("x"), ValueError("y")],
)
def test_numbers_that_do_not_fit_are_explained(error: Exception) -> None:
    with pytest.raises(RunError) as caught, fitting("results"):
        raise error
    assert str(caught.value).startswith(
        f"results: the numbers do not fit together ({type(error).__name__}: {error}); if"
    )
    with pytest.raises(DatasetError, match="as it is"), fitting("results"):
        raise DatasetError("as it is")
