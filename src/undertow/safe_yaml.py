"""YAML as a stranger may have written it: plain types, each key once, of bounded size.

Aliases share what they name, so they cannot fill the memory; merges (`<<`) copy, and are
counted. Knows nothing of what the values mean (see `config` and `traits`).
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from undertow.errors import ConfigError

LARGEST = 1 << 18
"""Bytes of a file; PyYAML takes seconds for as much, and no recipe has a tenth of it."""
_NUMBER = 100
"""Characters of a number: sixties (`1:30`) and hexadecimals know no other bound."""
_PARTS, _KEYS = 100, 1_000
"""Mappings that one merge may name, and keys that it may lead to."""
_MERGE = "tag:yaml.org,2002:merge"
# PyYAML raises the last ones at a tag whose value does not fit: `!!bool x`, `!!int ''`.
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError, ArithmeticError, LookupError,
               AttributeError, TypeError)  # fmt: skip


class NotYaml(ValueError):
    """A text that is not YAML, or not of the kind that is read here."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key standing twice (PyYAML takes the last)."""

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001 (PyYAML's signature)
    ) -> dict[Hashable, Any]:
        """Builds a mapping, each key once."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen and name != "<<":
                raise _refused(f"the key {name!r} stands twice", key)
            seen.add(str(name))
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Copies merged keys, of which merges of merges make too many."""
        for key, value in node.value:
            many = isinstance(value, yaml.SequenceNode) and len(value.value) > _PARTS
            if key.tag == _MERGE and many:
                raise _refused("a merge of too many mappings", key)
        super().flatten_mapping(node)
        if len(node.value) > _KEYS:
            raise _refused("merges make too many keys", node)


def _refused(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    _check_number(node)
    return loader.construct_yaml_int(node)


def _broken(loader: _Loader, node: yaml.ScalarNode) -> float:
    _check_number(node)
    return loader.construct_yaml_float(node)


def _check_number(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode) and len(node.value) > _NUMBER:
        raise _refused(f"a number of {len(node.value)} characters", node)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _broken)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        NotYaml: It is none; the message names line and column where they are known.
    """
    if len(text) > LARGEST:
        raise NotYaml(f"{len(text):,} characters, expected at most {LARGEST:,}")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _UNREADABLE as error:
        raise NotYaml(_told(error)) from error


def _told(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = getattr(error, "problem", None) or str(error)
    return f"{where}not YAML: {problem}"


def read_yaml(path: Path) -> Any:
    """The value of a YAML file.

    Raises:
        ConfigError: It cannot be read, is too large, or is not YAML.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; check the name"
        raise ConfigError(where, [reason]) from error
    except ValueError as error:
        raise ConfigError(repr(where), [f"is no path: {error}"]) from error
    if len(data) > LARGEST:
        fault = f"is over {LARGEST:,} bytes long; check that it is the right file"
        raise ConfigError(where, [fault])
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(where, [f"is not UTF-8 text: {error}"]) from error
    except NotYaml as error:
        raise ConfigError(where, [str(error)]) from error
