"""The base of a run: of the run's origin, with its noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undertow.errors import RunError
from undertow.experiment import Recipe, bases
from undertow.experiment.stages import Base
from undertow.runs import Run, open_run
from undertow.traits import TraitFamily, load_family

Make = Callable[..., Recipe]


def _silent(*_: Any) -> None:
    """Shows nothing."""


def _base(recipe: Recipe, run: Run, *, noise: float = 0.0) -> Base:
    model = bases.load(recipe.model, _silent)
    return Base(recipe, load_family(recipe.family), run, model, noise, 1, _silent)


def test_a_clean_base_keeps_where_it_came_from(recipe: Make, tmp_path: Path) -> None:
    asked = recipe()
    with open_run(tmp_path / "run", recipe_text="a: 1\n") as run:
        base = _base(asked, run)
        assert bases.prepared(base) is base
        kept = run.payload(bases.ORIGIN)
    assert kept["model_fingerprint"] == base.model.fingerprint
    assert kept["dtype"] == "float32"


def test_a_noised_base_is_another_model_and_says_how(
    recipe: Make, tmp_path: Path
) -> None:
    asked = recipe(noise={"levels": [0.1]})
    with open_run(tmp_path / "run", recipe_text="a: 1\n") as run:
        clean = _base(asked, run, noise=0.1)
        noised = bases.prepared(clean)
        facts = run.payload("noise-0.1/seed-1/noise")
    assert noised.model.fingerprint == facts["fingerprint"] != clean.model.fingerprint
    assert facts["seed"] == 1
    assert facts["matrices"] > 0


def test_a_run_of_another_origin_is_refused(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(tmp_path / "run", recipe_text="a: 1\n") as run:
        base = _base(recipe(), run)
        bases.prepared(base)
        monkeypatch.setattr(TraitFamily, "digest", "another")
        with pytest.raises(RunError, match=r"family_digest: there .*, now 'another'"):
            bases.prepared(base)


def test_the_writer_has_an_origin_of_its_own(recipe: Make, tmp_path: Path) -> None:
    with open_run(tmp_path / "run", recipe_text="a: 1\n") as run:
        model = _base(recipe(), run).model
        bases.keep_writer(run, model)
        assert run.payload(bases.WRITER)["model"] == model.name
        assert not run.is_done(bases.ORIGIN)
