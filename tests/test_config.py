"""Settings: every fault at once and by its place, overrides, YAML, JSON Schema."""

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from undertow.config import dump_settings, json_schema, load_settings
from undertow.errors import ConfigError

NO_NODE = (
    "override 'rows.note=[': line 1, column 2: not YAML: expected the node content, "
    "but found '<stream end>'"
)
NO_INTEGER = (
    "seeds.1: input should be a valid integer, unable to parse string as an integer; "
    "got 'two'"
)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Steer(_Model):
    """A nested list item."""

    kind: Literal["add", "remove"] = "add"
    dose: float = Field(default=0.3, gt=0, description="relative dose")
    layers: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _agree(self) -> "Steer":
        if self.kind == "remove" and not self.layers:
            raise ValueError("kind 'remove' needs layers")
        return self


class Rows(_Model):
    """A nested model."""

    count: int = Field(default=100, ge=1, description="prompts answered")
    filter: bool = True
    note: str | None = None


class Experiment(_Model):
    """The whole."""

    title: str = Field(description="what the run is called")
    rows: Rows = Field(default_factory=Rows)
    steers: tuple[Steer, ...] = ()
    seeds: tuple[int, ...] = (0,)
    either: Rows | Steer | None = None
    extras: dict[str, int] = Field(default_factory=dict)


def own(folder: Path, text: str) -> Path:
    """A settings file."""
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(path: Path, overrides: list[str] | None = None) -> tuple[str, ...]:
    """The faults that loading gives."""
    with pytest.raises(ConfigError) as caught:
        load_settings(Experiment, path, overrides or [])
    assert caught.value.where == str(path)
    return caught.value.faults


# ---- files


def test_settings_are_read(tmp_path: Path) -> None:
    path = own(tmp_path, "\ufefftitle: é\nrows: {count: 5}\nsteers: [{dose: 1e-2}]\n")
    found = load_settings(Experiment, path)
    assert found == Experiment(
        title="é", rows=Rows(count=5), steers=(Steer(dose=0.01),)
    )


def test_settings_come_back(tmp_path: Path) -> None:
    settings = Experiment(
        title="a: 'b' # ☃\n---\n",
        rows=Rows(note="yes"),
        steers=(Steer(dose=1e-7), Steer(layers=(1, 2))),
        extras={"no": 1, "1": 2},
    )
    text = dump_settings(settings)
    assert load_settings(Experiment, own(tmp_path, text)) == settings
    assert re.findall(r"^(\w+):", text, re.M)[:2] == ["title", "rows"]
    assert "  filter: true\n" in text


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = """
tilte: x
rows: {count: 0, fliter: no, zzz: 1}
steers:
  - {dose: -1}
  - {kind: project, laers: [1]}
  - {kind: remove}
seeds: [1, two]
"""
    assert faults(own(tmp_path, text), ["rows.note=[", "seeds.5=1", "x"]) == (
        NO_NODE,
        "override 'seeds.5=1': seeds is a list of 2; got '5', expected a place from 0",
        "override 'x': expected a.b=c",
        "title: missing (what the run is called)",
        "rows.count: input should be greater than or equal to 1; got 0",
        "rows.fliter: unknown key; did you mean 'filter'?",
        "rows.zzz: unknown key; there are 'count', 'filter', 'note'",
        "steers.0.dose: input should be greater than 0; got -1",
        "steers.1.kind: input should be 'add' or 'remove'; got 'project'",
        "steers.1.laers: unknown key; did you mean 'layers'?",
        "steers.2: kind 'remove' needs layers",
        NO_INTEGER,
        "tilte: unknown key; did you mean 'title'?",
    )


def test_faults_within_a_union_keep_their_place(tmp_path: Path) -> None:
    found = faults(own(tmp_path, "title: x\neither: {cuont: 3}\n"))
    assert any(f.startswith("either.Rows.cuont: unknown key") for f in found)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    found = faults(own(tmp_path, "title: x\nrows:\n  count: 1\n  count: 2\n"))
    assert found == ("line 4, column 3: not YAML: the key 'count' stands twice",)
    merged = "title: x\nextras: {<<: {a: 1}, a: 2}\n"
    assert load_settings(Experiment, own(tmp_path, merged)).extras == {"a": 2}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("title: [", "line 1, column 9: not YAML: expected the node content"),
        ("- a\n", "got ['a'], expected settings as `key: value` lines"),
        ("just text", "got 'just text', expected settings"),
        ("a: 1\n---\nb: 2\n", "not YAML: but found another document"),
        ("title: !!python/object/apply:os.system ['x']", "not YAML: could not determ"),
        ("? [a]\n: 1\n", "not YAML: found unhashable key"),
        ("title: &a [*a]\n", "title: input should be a valid string; got "),
        ("a: \x01", "not YAML: "),
        ("[" * 5000, "not YAML: "),
        ("", "title: missing"),
        ("# nothing\n", "title: missing"),
    ],
)
def test_what_is_no_settings_file_is_said(
    tmp_path: Path, text: str, fault: str
) -> None:
    assert any(fault in found for found in faults(own(tmp_path, text)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert faults(tmp_path / "gone.yaml") == (
        "cannot be read: No such file or directory; check the name",
    )
    assert faults(tmp_path) == ("cannot be read: Is a directory; check the name",)
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9")
    assert "is not UTF-8 text" in faults(tmp_path / "latin.yaml")[0]


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    parts = ["x", *(f"*a{i}" for i in range(11))]
    levels = [f"a{i}: &a{i} [{', '.join([part] * 10)}]" for i, part in enumerate(parts)]
    text = "\n".join(levels) + "\ntitle: *a11\n"
    found = faults(own(tmp_path, text))
    (title,) = (f for f in found if f.startswith("title"))
    assert len(title) < 160


def test_long_values_are_cut(tmp_path: Path) -> None:
    found = faults(own(tmp_path, f"title: x\nrows: {{count: {'y' * 5000}}}\n"))
    assert len(found[0]) < 220


# ---- overrides


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("rows.count=7", ("rows", "count"), 7),
        ("rows.filter=no", ("rows", "filter"), False),
        ("rows.note=null", ("rows", "note"), None),
        ("rows.note=a=b", ("rows", "note"), "a=b"),
        (" title = 'x y'", ("title",), "x y"),
        ("seeds=[4, 5]", ("seeds",), (4, 5)),
        ("seeds.1=9", ("seeds",), (1, 9)),
        ("steers.1.dose=1e-3", ("steers", 1, "dose"), 0.001),
        ("steers.0.layers.0=3", ("steers", 0, "layers"), (3,)),
        ("steers.0={dose: 2, layers: [1]}", ("steers", 0, "dose"), 2),
        ("either.count=3", ("either", "count"), 3),
        ("extras.new=3", ("extras",), {"new": 3}),
    ],
)
def test_overrides_reach_their_place(
    tmp_path: Path, override: str, place: tuple[str | int, ...], value: object
) -> None:
    text = "title: t\nrows: {note: n}\nseeds: [1, 2]\nsteers: [{layers: [1]}, {}]\n"
    found: Any = load_settings(Experiment, own(tmp_path, text), [override])
    for part in place:
        found = found[part] if isinstance(part, int) else getattr(found, part)
    assert found == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    path = own(tmp_path, "title: t\n")
    overrides = ["rows={count: 3}", "rows.count=4", "rows.note=x"]
    found = load_settings(Experiment, path, overrides)
    assert found.rows == Rows(count=4, note="x")


def test_an_override_leaves_other_places_of_an_anchor(tmp_path: Path) -> None:
    text = "title: t\nsteers:\n  - &s {dose: 1, layers: [1, 2]}\n  - *s\n"
    path = own(tmp_path, text)
    found = load_settings(Experiment, path, ["steers.0.dose=2", "steers.1.layers.0=7"])
    assert found.steers == (Steer(dose=2, layers=(1, 2)), Steer(dose=1, layers=(7, 2)))


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("rows", "override 'rows': expected a.b=c"),
        ("=3", "override '=3': expected a.b=c"),
        ("rows..count=3", "override 'rows..count=3': expected a.b=c"),
        ("title.x=3", "override 'title.x=3': title is 't' and has no parts"),
        ("seeds.-1=3", "override 'seeds.-1=3': seeds is a list of 1; got '-1', expec"),
        ("seeds.x=3", "seeds is a list of 1; got 'x', expected a place from 0"),
        ("seeds.0.x=3", "override 'seeds.0.x=3': seeds.0 is 1 and has no parts"),
        ("rows.cuont=3", "rows.cuont: unknown key; did you mean 'count'?"),
        ("rows.count=many", "rows.count: input should be a valid integer"),
        ("rows.count={a: 1, a: 2}", "not YAML: the key 'a' stands twice"),
    ],
)
def test_faults_of_overrides_are_named(
    tmp_path: Path, override: str, fault: str
) -> None:
    path = own(tmp_path, "title: t\nseeds: [1]\n")
    found = faults(path, [override])
    assert any(fault in text for text in found), found


# ---- schema


def test_the_schema_is_one_that_editors_take() -> None:
    schema = json_schema(Experiment)
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["title"]
    rows = schema["$defs"]["Rows"]["properties"]["count"]
    assert rows["minimum"] == 1
    assert rows["description"] == "prompts answered"


def test_numbers_without_end_survive_the_dump(tmp_path: Path) -> None:
    settings = Experiment(title="t", steers=(Steer(dose=math.inf),))
    found = load_settings(Experiment, own(tmp_path, dump_settings(settings)))
    assert found.steers[0].dose == math.inf
