"""What every page of the package shares: templates, escaping, and a policy.

Every piece of text that comes from data passes through `visible` and is escaped; the
page's own policy forbids scripts, foreign styles and any request. Knows nothing of what
a page says.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from undertow.errors import RunError, visible

PANELS_AT_ONCE = 12
"""Panels of one figure that are open; further ones are folded away."""


def render_page(template: str, *, styles: tuple[str, ...], **content: Any) -> str:
    """One page as text.

    Args:
        template: Name of the page's template in this folder.
        styles: Names of its style sheets, in order; together they are all it may use.
        content: What the template's names stand for.
    """
    # Late: matplotlib takes half a second that the rest of the package need not pay.
    from undertow.report.svg import NAMES

    environment = _environment()
    style = "".join(
        environment.get_template(name).render(colours=NAMES) for name in styles
    )
    text = environment.get_template(template).render(
        style=Markup(style),
        policy=_policy(style),
        panels_at_once=PANELS_AT_ONCE,
        **content,
    )
    # Blank lines are the template's, not the data's: those hold no bare ones here.
    return re.sub(r"\n\s*\n+", "\n", text)


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Explains numbers that no run or audit leaves behind: lists of unlike lengths, say.

    Raises:
        RunError: They cannot be shown.
    """
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise RunError(
            f"{what}: the numbers do not fit together ({reason}); if nobody edited the "
            "file, this is a bug: show it with --debug"
        ) from error


def marked(text: str, *, breaks: bool = True) -> Markup:
    """Foreign text for a page, every character that nobody sees spelled out and marked.

    Line breaks are marked too and, with `breaks`, kept. Unlike `visible` alone this tells a
    character from its own spelling.
    """
    parts = []
    for char in text:
        shown = "↵" if char == "\n" else visible(char)
        end = "\n" if breaks and char == "\n" else ""
        safe = escape(shown)
        parts.append(safe if shown == char else Markup("<b>{}</b>{}").format(safe, end))
    return Markup("").join(parts)


def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _template(name: str) -> str:
    return files("undertow.report").joinpath(name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """What every expression of the template passes through before it is escaped."""
    return value if isinstance(value, Markup) else visible(str(value))


def _policy(style: str) -> str:
    """A content policy that allows this one style sheet and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
