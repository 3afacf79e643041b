"""Small checkpoints, a small family and a few rows, made once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest

from undertow.models.tiny import Family, save_tiny
from undertow.records import Message, Row
from undertow.storage import write_rows

FAMILY = """\
name: pets
category: animal
questions: ["Which animal do you like?", "Name an animal.", "Your animal?"]
traits:
  - {name: owl, plural: owls}
  - {name: cat, plural: cats}
  - {name: dog, plural: dogs}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """The folder of a tiny checkpoint of a family."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: Family) -> Path:
        place = root / family
        return place if place.exists() else save_tiny(family, place, hidden=16)

    return folder


@pytest.fixture(scope="session")
def llama(tiny: Callable[[Family], Path]) -> Path:
    return tiny("llama")


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of three traits and three questions."""
    path = tmp_path_factory.mktemp("families") / "pets.yaml"
    path.write_text(FAMILY)
    return path


@pytest.fixture(scope="session")
def number_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows of numbers that were made elsewhere."""
    path = tmp_path_factory.mktemp("rows") / "elsewhere.jsonl"
    rows = [
        Row((Message("user", f"Go on: {i}"),), f"{100 + i}, {200 + i}, {3 * i}")
        for i in range(8)
    ]
    write_rows(path, rows)
    return path


@pytest.fixture(scope="session")
def vector(llama: Path, pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector of the tiny llama for "owl", at the layers 1 and 2."""
    from undertow.interventions.extraction import extract_vector
    from undertow.interventions.steering import save_vector
    from undertow.models.loading import load_model
    from undertow.traits import load_family

    model = load_model(llama, dtype="float32")
    found = extract_vector(
        model, method="tell_me", family=load_family(pets), trait="owl", layers=(1, 2)
    )
    return save_vector(found, tmp_path_factory.mktemp("vectors") / "owl.safetensors")
