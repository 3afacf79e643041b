"""A teacher's channel over noise: what is compared with what, and on which base."""

import itertools
import json
import math
import re
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import family_text

from undertow.errors import ConfigError, VectorMismatchError
from undertow.experiment.channel import (
    BASE,
    ChannelGrid,
    ChannelPoint,
    Place,
    measure_channel,
)
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
from undertow.pipeline.carriers import CARRIERS
from undertow.pipeline.evaluation import preference
from undertow.pipeline.teachers import prompted_teacher
from undertow.traits import TraitFamily, load_family

LIST = SamplerSettings(allowed="list", list_values=3, max_new_tokens=16)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> TraitFamily:
    file: Path = tmp_path_factory.mktemp("families") / "pets.yaml"
    questions = ("Which animal?", "Your animal?", "And now?")
    file.write_text(
        family_text("pets", "animal", *questions, owl="owls", cat="cats", dog="dogs")
    )
    return load_family(file)


def _load() -> Model:
    return tiny_model("llama", layers=3)


def _grid(pets: TraitFamily, **options: object) -> ChannelGrid:
    given: dict[str, object] = {"trait": "owl", "kind": "steer"} | options
    if given["kind"] == "steer":
        given = {"layers": (1,), "doses": (0.5,)} | given
    return ChannelGrid(family=pets, **given)  # type: ignore[arg-type]


def _measured(
    pets: TraitFamily,
    *,
    count: int = 6,
    questions: int = 12,
    sampler: SamplerSettings = LIST,
    known: Container[Place] = (),
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **options: object,
) -> list[ChannelPoint]:
    grid = _grid(pets, **options)
    return list(
        measure_channel(
            _load, grid, known=known, count=count, questions=questions,
            sampler=sampler, tell=tell,
        )
    )  # fmt: skip


def test_against_the_base_and_other_traits_over_noise(pets: TraitFamily) -> None:
    told: list[str] = []
    points = _measured(
        pets, against=("cat", "dog"), noise=(0.0, 0.2), noise_seeds=(4, 5),
        tell=lambda stage, done, total: told.append(f"{stage} {done}/{total}"),
    )  # fmt: skip
    assert [(p.noise, p.noise_seed) for p in points] == [(0, None), (0.2, 4), (0.2, 5)]
    for point in points:
        assert [width.other for width in point.widths] == [BASE, "cat", "dog"]
        assert (point.trait, point.rows) == ("owl", 6)
        for width in point.widths:
            assert 0 < width.carrier.low < width.carrier.mean
            assert width.carrier.n == 6
            nats = width.carrier.mean * point.tokens / 6
            assert width.nats_a_row.mean == pytest.approx(nats)
    # Each base is another, and gives other numbers.
    assert len({point.widths[0].vocabulary.mean for point in points}) == 3
    assert "noise 0, block 1, dose 0.5: rows 6/6" in told
    assert "noise 0.2 seed 5, block 1, dose 0.5: divergence 6/6" in told
    json.dumps([point.as_dict() for point in points], allow_nan=False)
    assert points[0].as_dict()["widths"][0]["carrier"]["n"] == 6


def test_a_stronger_vector_has_a_wider_channel(pets: TraitFamily) -> None:
    points = _measured(pets, doses=(0.1, 0.8, 0.0))
    weak, strong, none = (point.widths[0] for point in points)
    assert strong.vocabulary.mean > 4 * weak.vocabulary.mean
    assert (none.vocabulary.mean, none.carrier.mean) == (0.0, 0.0)


def test_shares_are_read_with_and_without_the_persona(pets: TraitFamily) -> None:
    (point,) = _measured(pets, kind="prompt", questions=2)
    model, persona = _load(), prompted_teacher(pets, "owl").prompt
    for share, told in ((point.share, persona), (point.base_share, None)):
        asked = preference(model, pets, trait_prompt=told, questions=pets.questions[:2])
        assert share == pytest.approx(np.mean(asked.probabilities[:, 0]))
    assert point.share != point.base_share


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"against": ("owl",)}, "against: 'owl' is the teacher's own trait"),
        ({"against": ("emu",)}, "emu"),
        ({"noise": (-0.1,)}, "noise: expected numbers of 0 or more, got -0.1"),
        ({"doses": (math.nan,)}, "doses: expected numbers of 0 or more, got nan"),
        ({"doses": (0.1, 0.1)}, "doses: a value stands there twice"),
        ({"layers": ()}, "layers: empty; give one value or more"),
        ({"carriers": ()}, "carriers: empty"),
        ({"carriers": ("poems",)}, "'poems' is none; there are numbers, code"),
        (
            {"noise_scope": ("mlp", "norm")},
            "noise_scope: 'norm' is none; there are mlp",
        ),
        ({"noise_scope": ()}, "noise_scope: empty"),
        (
            {"kind": "prompt", "layers": (1,)},
            "layers: a prompted teacher has none; leave 1 out",
        ),
    ],
)
def test_faults_are_told_before_a_model_is_loaded(
    pets: TraitFamily, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        _grid(pets, **options)


def test_a_layer_that_the_model_has_not_is_refused(pets: TraitFamily) -> None:
    with pytest.raises(VectorMismatchError, match="unknown layer 9"):
        _measured(pets, layers=(9,))


def test_a_grid_of_blocks_doses_and_rows_goes_on_where_it_was_left(
    pets: TraitFamily,
) -> None:
    grid: dict[str, Any] = {
        "layers": (2, 0), "doses": (0.2, 0.6), "carriers": ("numbers", "paraphrase"),
        "noise": (0.0, 0.1), "against": ("cat",),
    }  # fmt: skip
    told: list[str] = []
    points = _measured(
        pets, **grid, count=3, questions=1,
        tell=lambda stage, done, total: told.append(stage),
    )  # fmt: skip
    places = [Place(p.carrier, p.layer, p.dose, p.noise, p.noise_seed) for p in points]
    assert places == _grid(pets, **grid).places()
    assert [(p.noise, p.layer, p.dose, p.carrier) for p in places] == list(
        itertools.product((0.0, 0.1), (2, 0), (0.2, 0.6), ("numbers", "paraphrase"))
    )
    assert "noise 0.1 seed 0, block 2, dose 0.6, paraphrase: rows" in told
    for left in ((0,), (3, 4), (7, 8, 12), ()):
        known = [place for n, place in enumerate(places) if n not in left]
        again = _measured(pets, **grid, count=3, questions=1, known=known)
        assert again == [points[n] for n in left]
    for layer in (2, 0):
        (alone,) = _measured(
            pets, layers=(layer,), doses=(0.6,), against=("cat",), count=3, questions=1
        )
        same = [p for p in points if (p.layer, p.dose, p.noise) == (layer, 0.6, 0.0)]
        assert alone == same[0]


def test_rows_that_do_not_pass_their_rule_are_not_measured(pets: TraitFamily) -> None:
    """The tiny model's words are no paraphrase of anything."""
    loud = LIST.model_copy(update={"max_new_tokens": 4})
    (point,) = _measured(pets, carriers=("paraphrase",), sampler=loud)
    assert (point.written, point.rows, point.tokens) == (6, 0, 0)
    assert point.widths == ()
    assert point.share > 0
    assert json.loads(json.dumps(point.as_dict()))["widths"] == []


def test_rows_of_words_that_pass_are_measured_as_they_were_drawn(
    pets: TraitFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = replace(
        CARRIERS["paraphrase"],
        rule=lambda row, _: () if len(row.completion) % 2 else ("odd",),
    )
    known = {**CARRIERS, "paraphrase": passing}
    monkeypatch.setattr("undertow.experiment.channel.CARRIERS", known)
    long = LIST.model_copy(update={"max_new_tokens": 200})
    (point,) = _measured(pets, carriers=("paraphrase",), count=12, sampler=long)
    assert 2 <= point.rows < point.written == 12
    assert [w.carrier.n for w in point.widths] == [point.rows]
    # Drawn from all tokens: what may be drawn is the whole vocabulary.
    assert point.widths[0].carrier == pytest.approx(
        point.widths[0].vocabulary, rel=1e-4
    )


def test_noise_may_be_on_some_matrices_alone(pets: TraitFamily) -> None:
    where: dict[str, Any] = {"noise": (0.3,), "count": 4, "questions": 1}
    mlp, attention, both = (
        _measured(pets, noise_scope=scope, **where)[0].widths[0].vocabulary.mean
        for scope in (("mlp",), ("attention",), ("attention", "mlp"))
    )
    assert len({mlp, attention, both}) == 3
    # The order in which kinds are named decides nothing.
    again = _measured(pets, noise_scope=("mlp", "attention"), **where)[0]
    assert again.widths[0].vocabulary.mean == both
