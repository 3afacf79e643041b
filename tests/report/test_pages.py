"""Foreign text on a page: what nobody sees is spelled out, and told from its spelling."""

import pytest

from undertow.report.pages import marked


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
