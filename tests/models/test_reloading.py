"""A model that another process would load: the same one, once, or none."""

from pathlib import Path

import pytest

from undertow.errors import ModelError
from undertow.models.loading import load_model
from undertow.models.reloading import ModelFacts, remember_model, same_model
from undertow.models.tiny import save_tiny

OPTIONS = {"dtype": "float32", "device": "cpu"}


def test_it_is_loaded_once(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "tiny")
    facts = ModelFacts(str(folder), load_model(folder, **OPTIONS).fingerprint, OPTIONS)
    first = same_model(facts)
    assert first.fingerprint == facts.fingerprint
    assert same_model(facts) is first
    assert same_model(ModelFacts(facts.name, facts.fingerprint, {**OPTIONS})) is first


def test_one_that_is_here_is_not_loaded(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "tiny")
    model = load_model(folder, **OPTIONS)
    facts = ModelFacts("not to be found", model.fingerprint, OPTIONS)
    remember_model(model, facts)
    assert same_model(facts) is model


def test_other_options_are_another_model(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "tiny")
    facts = [
        ModelFacts(str(folder), load_model(folder, dtype=dtype).fingerprint, {"dtype": dtype})
        for dtype in ("float32", "bfloat16")
    ]  # fmt: skip
    first = same_model(facts[0])
    assert same_model(facts[1]).dtype != first.dtype
    assert same_model(facts[0]) is not first, "one a process is kept"


def test_other_weights_under_the_name_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "tiny")
    facts = ModelFacts(str(folder), "0" * 16, OPTIONS)
    for _ in range(2):  # a refused one is not kept
        with pytest.raises(ModelError, match="expected 0000000000000000; put the same"):
            same_model(facts)
