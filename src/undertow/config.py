"""Any settings model ⇄ YAML: all faults at once, dotted overrides, JSON Schema.

Works for every pydantic model and knows none of them; what a recipe is stands in
`experiment`. What YAML is read stands in `safe_yaml`.
"""

import copy
import difflib
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from undertow.errors import ConfigError, shown
from undertow.safe_yaml import NotYaml, parse_yaml, read_yaml

Settings = TypeVar("Settings", bound=BaseModel)

_MOST_FAULTS = 200
"""Named at most: an alias can make one fault a hundred thousand."""


def load_settings(
    model_cls: type[Settings], path: Path | str, overrides: Sequence[str] = ()
) -> Settings:
    """Reads settings from a YAML file, with overrides on top.

    Args:
        model_cls: The settings model.
        path: The YAML file.
        overrides: Such as "rows.count=200" or "teachers.0.steer.dose=0.3"; the value
            is read as YAML, a number names a place in a list.

    Raises:
        ConfigError: The file is missing or not YAML, or settings are wrong: every
            fault of file and overrides at once, each with its dotted path.
    """
    data = _read(Path(path))
    return check_settings(model_cls, data, where=str(path), overrides=overrides)


def check_settings(
    model_cls: type[Settings],
    data: dict[str, Any],
    *,
    where: str,
    overrides: Sequence[str] = (),
) -> Settings:
    """Makes settings of plain values, with overrides on top.

    Args:
        model_cls: The settings model.
        data: Values by key; overrides are put into it.
        where: What a message calls the place that the values come from.
        overrides: As in `load_settings`.

    Raises:
        ConfigError: Settings are wrong: every fault at once, each with its path.
    """
    faults = [fault for text in overrides for fault in _override(data, text)]
    settings: Settings | None = None
    try:
        settings = model_cls.model_validate(data)
    except ValidationError as error:
        found = [dict(e) for e in error.errors()]
        more = len(found) - _MOST_FAULTS
        found = found[:_MOST_FAULTS]
        faults += [_fault(model_cls, e) for e in found if not _follows(e, found)]
        faults += [f"… and {more} more"] if more > 0 else []
    except RecursionError:
        faults.append("an alias holds itself")
    if faults or settings is None:
        raise ConfigError(where, faults)
    return settings


def dump_settings(settings: BaseModel) -> str:
    """The settings as YAML, defaults written out, in the order of their fields."""
    data = settings.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=88)


def json_schema(model_cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a settings model, for editors."""
    schema = model_cls.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _read(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        fault = f"got {_got(data)}, expected settings as `key: value` lines"
        raise ConfigError(str(path), [fault])
    return data


def _override(data: dict[str, Any], text: str) -> Iterator[str]:
    """Puts one override into `data`; yields the fault if it cannot."""
    dotted, equals, value_text = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        yield f"override {text!r}: expected a.b=c"
        return
    try:
        value = parse_yaml(value_text)
    except NotYaml as error:
        yield f"override {text!r}: {error}"
        return
    place: Any = data
    for depth, key in enumerate(keys):
        here = ".".join(keys[:depth]) or "the top"
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                yield (
                    f"override {text!r}: {here} is a list of {len(place)}; got "
                    f"{key!r}, expected a place from 0"
                )
                return
            slot: Any = int(key)
        elif isinstance(place, dict):
            slot = key
        else:
            yield f"override {text!r}: {here} is {_got(place)} and has no parts"
            return
        if depth == len(keys) - 1:
            place[slot] = value
        elif isinstance(place, dict) and place.get(slot) is None:
            place[slot] = {}
        else:
            # An anchor's other places keep what they hold.
            place[slot] = copy.copy(place[slot])
        place = place[slot]


def _fault(model_cls: type[BaseModel], error: dict[str, Any]) -> str:
    """One fault of pydantic's as `path: what; got …`."""
    place = tuple(error["loc"])
    where = ".".join(map(str, place)) or "the settings"
    parent = _model_at(model_cls, place[:-1])
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_suggestion(str(place[-1]), parent)}"
    if error["type"] == "missing":
        field = parent.model_fields.get(str(place[-1])) if parent else None
        text = f" ({field.description})" if field and field.description else ""
        return f"{where}: missing{text}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}: {message[:1].lower()}{message[1:]}; got {_got(error['input'])}"


def _follows(error: dict[str, Any], errors: Sequence[dict[str, Any]]) -> bool:
    """True if a list is too short only because pydantic left out what is wrong in it."""
    place = error["loc"]
    return error["type"] == "too_short" and any(
        len(e["loc"]) > len(place) and e["loc"][: len(place)] == place for e in errors
    )


def _suggestion(name: str, parent: type[BaseModel] | None) -> str:
    if parent is None:
        return "; remove it"
    known = list(parent.model_fields)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint}; there are {shown(known, limit=20)}" if not near else hint


def _model_at(
    model_cls: type[BaseModel] | None, place: Sequence[str | int]
) -> type[BaseModel] | None:
    """The model that stands at a path of keys and list places, if there is one."""
    for key in place:
        if isinstance(key, int) or model_cls is None:
            continue
        field = model_cls.model_fields.get(key)
        if field is None:
            # Unions put the name of their member into the path.
            continue
        model_cls = next(_models_in(field.annotation), None)
    return model_cls


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _got(value: object) -> str:
    # Not repr: aliases of aliases can stand for more than memory holds.
    shortening = reprlib.Repr()
    shortening.maxlevel, shortening.maxlist, shortening.maxdict = 3, 10, 10
    shortening.maxstring = shortening.maxother = shortening.maxlong = 90
    text = shortening.repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
