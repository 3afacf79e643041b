"""Docstrings are plain text: brackets side by side, "[row][token]", are no links.

An extension of the reader of docstrings (`extensions` of mkdocstrings in mkdocs.yml).
"""

from typing import Any

import griffe


class PlainBrackets(griffe.Extension):
    """Escapes what the site would take for a reference."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes one object's docstring as it is read."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("][", "]\\[")
