"""A teacher's channel over noise: what is compared with what, and on which base."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import family_text

from undertow.errors import ConfigError, VectorMismatchError
from undertow.experiment.channel import BASE, ChannelPoint, measure_channel
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
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


def _measured(pets: TraitFamily, **options: object) -> list[ChannelPoint]:
    given = {"kind": "steer", "trait": "owl", "count": 6, "sampler": LIST} | options
    return list(measure_channel(_load, family=pets, **given))  # type: ignore[arg-type]


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
    assert "noise 0: rows 6/6" in told
    assert "noise 0.2 seed 5: divergence 6/6" in told
    json.dumps([point.as_dict() for point in points], allow_nan=False)
    assert points[0].as_dict()["widths"][0]["carrier"]["n"] == 6


def test_a_stronger_vector_has_a_wider_channel(pets: TraitFamily) -> None:
    weak, strong = (_measured(pets, dose=d)[0].widths[0] for d in (0.1, 0.8))
    assert strong.vocabulary.mean > 4 * weak.vocabulary.mean
    none = _measured(pets, dose=0.0)[0].widths[0]
    assert (none.vocabulary.mean, none.carrier.mean) == (0.0, 0.0)


def test_shares_are_read_with_and_without_the_persona(pets: TraitFamily) -> None:
    (point,) = _measured(pets, kind="prompt", questions=2)
    model, persona = _load(), prompted_teacher(pets, "owl").prompt
    for share, told in ((point.share, persona), (point.base_share, None)):
        asked = preference(model, pets, trait_prompt=told, questions=pets.questions[:2])
        assert share == pytest.approx(np.mean(asked.probabilities[:, 0]))
    assert point.share != point.base_share


def test_what_cannot_be_is_refused(pets: TraitFamily) -> None:
    with pytest.raises(ConfigError, match="own trait"):
        _measured(pets, against=("owl",))
    with pytest.raises(ConfigError, match="emu"):
        _measured(pets, against=("emu",))
    with pytest.raises(ConfigError, match="expected a number of 0 or more"):
        _measured(pets, noise=(-0.1,))
    with pytest.raises(VectorMismatchError, match="unknown layer 9"):
        _measured(pets, layer=9)
