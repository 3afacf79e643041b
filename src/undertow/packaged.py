"""The YAML files that come with the package, by their short names: recipes, families.

A shell asks for them at every TAB, so this imports nothing. Knows nothing of what stands
in them.
"""

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).parent


def packaged(kind: Literal["recipes", "traits"]) -> dict[str, Path]:
    """Files by name, in the order of names; one of a folder below is "folder/name"."""
    folder = _PACKAGE / kind
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in folder.rglob("*.yaml")
    }
    return dict(sorted(found.items()))
