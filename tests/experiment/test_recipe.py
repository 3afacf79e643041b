"""Recipes: what they refuse, what they settle, and that the packaged ones hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from undertow.config import dump_settings, json_schema, load_settings
from undertow.errors import ConfigError
from undertow.experiment.recipe import Recipe

ROOT = Path(__file__).parents[2]
PACKAGED = sorted(
    path
    for folder in ("recipes", "src/undertow/recipes")
    for path in (ROOT / folder).rglob("*.yaml")
)
LEAST: dict[str, Any] = {
    "title": "t",
    "question": "q?",
    "model": {"name": "smollm2-135m"},
    "traits": ["owl"],
    "teachers": [{"kind": "prompt"}],
}
STEER = {"kind": "steer", "steer": {"layer": 3, "dose": 0.3}}
TAKEN = {"kind": "steer", "steer": {**STEER["steer"], "mode": "project_out"}}  # type: ignore[dict-item]


def recipe(**changes: Any) -> Recipe:
    """The least recipe with changes."""
    return Recipe.model_validate({**LEAST, **changes})


def test_the_least_recipe() -> None:
    found = recipe()
    assert found.family == "animals"
    assert found.seeds == (0,)
    assert found.noise.levels == (0.0,)
    assert found.noise.scope == ("mlp", "attention", "embedding")
    assert found.control_of(found.teachers[0]) == "none"
    assert found.teachers[0].label == "prompt"


@pytest.mark.parametrize(
    ("control", "student", "kind"),
    [
        ("auto", "lora", "none"),
        ("auto", "full", "none"),
        ("auto", "soft", "decoy"),
        ("none", "soft", "none"),
        ("decoy", "lora", "decoy"),
    ],
)
def test_soft_students_have_a_decoy_for_control(
    control: str, student: str, kind: str
) -> None:
    found = recipe(control=control, student={"kind": student})
    assert found.control_of(found.teachers[0]) == kind
    assert found.controls == {kind}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traits": []}, "at least 1 item"),
        ({"traits": ["owl", "owl"]}, "traits: a value stands there twice: ('owl', 'ow"),
        ({"seeds": [1, 1]}, "seeds: a value stands there twice: (1, 1)"),
        ({"seeds": []}, "at least 1 item"),
        ({"teachers": []}, "at least 1 item"),
        ({"teachers": [STEER, STEER]}, "teachers: a name stands there twice: ['steer'"),
        ({"teachers": [{"kind": "none"}]}, "'prompt', 'steer' or 'finetune'"),
        ({"teachers": [{"kind": "steer"}]}, "kind 'steer' needs the settings 'steer'"),
        (
            {"teachers": [{**STEER, "kind": "prompt"}]},
            "settings 'steer' belong to kind 'steer'",
        ),
        (
            {"teachers": [{"kind": "prompt", "finetune": {}}]},
            "settings 'finetune' belong to kind 'finetune'",
        ),
        ({"teachers": [{"kind": "prompt", "name": "a/b"}]}, "should match pattern"),
        (
            {"audit": {}, "noise": {"levels": [0.1]}},
            "audit: it needs a clean base; add 0 to noise.levels",
        ),
        (
            {"audit": {}, "rows": {"sampler": {"temperature": 0}}},
            "audit: rows drawn greedily hold no chance; set rows.sampler.temperature",
        ),
        (
            {"audit": {}, "teachers": [TAKEN, STEER | {"name": "other"}]},
            "audit: it looks for what a teacher adds, and the first one takes a",
        ),
        (
            {"audit": {"settings": {"seed": 3, "family": "trees", "fresh": 9}}},
            "settings ['family', 'seed'] are those of the recipe; leave them out here",
        ),
        ({"audit": {"rows": 15}}, "greater than or equal to 16"),
        ({"audit": {"share": 1}}, "less than 1"),
        ({"decoy": "cat"}, "decoy is given, but the control is 'none'"),
        ({"decoy": "owl", "control": "decoy"}, "decoy 'owl' is one of the traits"),
        ({"rows": {"count": 0}}, "greater than or equal to 1"),
        ({"evaluation": {"questions": 1}}, "greater than or equal to 2"),
        ({"sampler": {}}, "Extra inputs are not permitted"),
    ],
)
def test_what_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        recipe(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("steer", "message"),
    [
        ({}, "give either layer (with how much) or sweep"),
        ({"layer": 1}, "give one of dose, strength and norm, beside layer"),
        ({"layer": 1, "dose": 1, "strength": 2}, "give one of dose, strength and norm"),
        ({"layer": 1, "norm": 8, "strength": 2}, "give one of dose, strength and norm"),
        ({"layer": 1, "norm": 0}, "greater than 0"),
        ({"dose": 1, "sweep": {"layers": [1], "doses": [1]}}, "give one of dose, str"),
        (
            {"layer": 1, "dose": 1, "sweep": {"layers": [1], "doses": [1]}},
            "give either",
        ),
        ({"layer": -1, "dose": 1}, "greater than or equal to 0"),
        ({"layer": 1, "dose": 0}, "greater than 0"),
        ({"sweep": {"layers": [], "doses": [1]}}, "at least 1 item"),
    ],
)
def test_a_strength_is_settled_in_one_way(steer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        recipe(teachers=[{"kind": "steer", "steer": steer}])
    assert message in str(caught.value)


def test_two_teachers_of_a_kind_have_names() -> None:
    found = recipe(teachers=[STEER, {**STEER, "name": "strong"}, {"kind": "prompt"}])
    assert [t.label for t in found.teachers] == ["steer", "strong", "prompt"]


def test_a_recipe_is_resolved_once_for_all(tmp_path: Path) -> None:
    first = recipe(teachers=[STEER], noise={"levels": [0, 0.1]}, seeds=[3, 1])
    path = tmp_path / "r.yaml"
    path.write_text(dump_settings(first), encoding="utf-8")
    second = load_settings(Recipe, path)
    assert second == first
    assert dump_settings(second) == dump_settings(first)


def test_all_faults_of_a_recipe_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "title: t\nmodel: {nmae: x}\ntraits: owl\nteachers: [{kind: steer}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(Recipe, path, ["rows.sampler.top_p=2", "student.optimiser=adam"])
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "question", "model.name", "model.nmae", "traits", "teachers.0",
        "rows.sampler.top_p", "student.optimiser",
    ]  # fmt: skip
    assert "model.nmae: unknown key; did you mean 'name'?" in caught.value.faults


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_packaged_recipes_hold_and_resolve(path: Path, tmp_path: Path) -> None:
    found = load_settings(Recipe, path)
    (tmp_path / "r.yaml").write_text(dump_settings(found), encoding="utf-8")
    assert load_settings(Recipe, tmp_path / "r.yaml") == found


def references(schema: object) -> set[str]:
    """Every "$ref" within a schema."""
    if isinstance(schema, dict):
        own = {str(schema["$ref"])} if "$ref" in schema else set()
        return own.union(*map(references, schema.values()))
    if isinstance(schema, list):
        return set().union(*map(references, schema))
    return set()


def test_the_schema_stands_alone() -> None:
    schema = json_schema(Recipe)
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
    assert references(schema) == {f"#/$defs/{name}" for name in schema["$defs"]}
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
    assert set(schema["required"]) == set(LEAST)


def test_a_device_map_is_a_name_or_names_every_part() -> None:
    parts = {"model": 0, "lm_head": "cpu"}
    for given in ("auto", parts):
        found = recipe(model={"name": "m", "device_map": given})
        assert found.model.device_map == given
        stored = yaml.safe_load(dump_settings(found))
        assert stored["model"]["device_map"] == given
    with pytest.raises(ValidationError, match="device_map"):
        recipe(model={"name": "m", "device_map": {"model": [0]}})
