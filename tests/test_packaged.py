"""What comes with the package is found by its name, and at no cost."""

import subprocess
import sys
from pathlib import Path

import pytest

from undertow import packaged as module
from undertow.packaged import packaged


def test_names_lead_to_files_in_the_order_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PACKAGE", tmp_path)
    (tmp_path / "recipes" / "paper").mkdir(parents=True)
    for name in ("z.yaml", "paper/b.yaml", "a.v2.yaml", "read.me", "a.yaml.orig"):
        (tmp_path / "recipes" / name).write_text("")
    found = packaged("recipes")
    assert list(found) == ["a.v2", "paper/b", "z"]
    assert found["paper/b"] == tmp_path / "recipes" / "paper" / "b.yaml"
    assert packaged("traits") == {}


def test_the_package_brings_recipes_and_families() -> None:
    assert {"demo", "demo-small"} <= set(packaged("recipes"))
    assert list(packaged("traits")) == ["aims", "animals", "moods", "trees"]
    assert all(path.is_file() for path in packaged("recipes").values())


def test_nothing_heavy_is_imported_for_it() -> None:
    code = (
        "import sys; import undertow.packaged, undertow.models.known_models\n"
        "print(sorted({'yaml', 'pydantic', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
